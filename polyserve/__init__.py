"""One trained model, one package, any serverless cloud.

    import polyserve

    package = polyserve.package(model, name="iris", sample=X[:8])
    deployment = polyserve.deploy(package)
    deployment.invoke(X)

This module is the public surface. Every name is imported when it is first used, so that `import polyserve` loads no SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyserve.api import (
        compress,
        connect,
        deploy,
        destroy,
        diff,
        list_deployments,
        open_bucket,
        package,
        partition,
        plan,
    )
    from polyserve.bucket import Bucket
    from polyserve.deployment import Deployment
    from polyserve.driver import Capability, ErrorCode
    from polyserve.endpoint import Endpoint
    from polyserve.errors import (
        AlreadyExistsError,
        ConflictError,
        DeadlineExceededError,
        FailedPreconditionError,
        InternalError,
        InvalidArgumentError,
        MissingDependencyError,
        NotFoundError,
        PackageError,
        PermissionDeniedError,
        PlanRefused,
        PolyserveError,
        ResourceExhaustedError,
        SettingsError,
        UnauthenticatedError,
        UnavailableError,
        UnsupportedError,
        VerificationError,
    )
    from polyserve.model import ModelPackage
    from polyserve.planner import Plan

__version__ = "0.1.0"

_HOMES = {
    "polyserve.api": (
        "compress",
        "connect",
        "deploy",
        "destroy",
        "diff",
        "list_deployments",
        "open_bucket",
        "package",
        "partition",
        "plan",
    ),
    "polyserve.bucket": ("Bucket",),
    "polyserve.deployment": ("Deployment",),
    "polyserve.driver": ("Capability", "ErrorCode"),
    "polyserve.endpoint": ("Endpoint",),
    "polyserve.errors": (
        "AlreadyExistsError",
        "ConflictError",
        "DeadlineExceededError",
        "FailedPreconditionError",
        "InternalError",
        "InvalidArgumentError",
        "MissingDependencyError",
        "NotFoundError",
        "PackageError",
        "PermissionDeniedError",
        "PlanRefused",
        "PolyserveError",
        "ResourceExhaustedError",
        "SettingsError",
        "UnauthenticatedError",
        "UnavailableError",
        "UnsupportedError",
        "VerificationError",
    ),
    "polyserve.model": ("ModelPackage",),
    "polyserve.planner": ("Plan",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyExistsError",
    "Bucket",
    "Capability",
    "ConflictError",
    "DeadlineExceededError",
    "Deployment",
    "Endpoint",
    "ErrorCode",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "MissingDependencyError",
    "ModelPackage",
    "NotFoundError",
    "PackageError",
    "PermissionDeniedError",
    "Plan",
    "PlanRefused",
    "PolyserveError",
    "ResourceExhaustedError",
    "SettingsError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "VerificationError",
    "compress",
    "connect",
    "deploy",
    "destroy",
    "diff",
    "list_deployments",
    "open_bucket",
    "package",
    "partition",
    "plan",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use and keep it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'polyserve' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
