"""What who deploys must be allowed to do: as a list of permissions, and as the definition of a custom role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyserve.driver import FunctionSpec
from polyserve_gcp.settings import GcpSettings

__all__ = ["custom_role", "permissions"]

_STORAGE = (
    "storage.buckets.{create,delete,get}",
    "storage.objects.{create,delete,get,list,update}",
)
_READERS = ("storage.buckets.{getIamPolicy,setIamPolicy}",)
_FUNCTIONS = (
    "cloudfunctions.functions.{create,delete,get,list,sourceCodeSet,update}",
    # A front that passes requests on has to be let in by the functions that answer them.
    "run.services.{getIamPolicy,setIamPolicy}",
)
_RUN = (
    "run.services.{create,delete,get,list,update}",
    "run.revisions.{delete,get,list}",
)
_ALWAYS = (
    # On the account that functions run as, and on the one that builds them.
    "iam.serviceAccounts.actAs",
    "logging.logEntries.list",
    "run.routes.invoke",
)


def permissions(spec: FunctionSpec, settings: GcpSettings) -> Sequence[str]:
    """Return the permissions that deploying, calling, watching and destroying takes."""
    patterns = [*_STORAGE, *_ALWAYS, *(_FUNCTIONS if settings.platform == "functions" else _RUN)]
    if spec.models:
        patterns += _READERS
    if settings.platform == "run" and settings.public:
        patterns.append("run.services.setIamPolicy")
    if settings.impersonate:
        patterns.append("iam.serviceAccounts.{getAccessToken,getOpenIdToken}")
    if settings.vpc_connector:
        patterns.append("vpcaccess.connectors.{get,use}")
    if settings.network or settings.subnetwork:
        patterns.append("compute.subnetworks.{get,use}")
    found = set[str]()
    for pattern in patterns:
        head, brace, rest = pattern.partition("{")
        verbs, _, tail = rest.partition("}")
        found.update(f"{head}{verb}{tail}" for verb in verbs.split(",")) if brace else found.add(head)
    return sorted(found)


def custom_role(spec: FunctionSpec, settings: GcpSettings) -> Mapping[str, Any]:
    """Return the definition of a custom role that has them, as `gcloud iam roles create ID --file` takes it."""
    return {
        "title": f"polyserve deployer of {spec.name}",
        "description": "Deploys, calls, watches and destroys what polyserve makes.",
        "stage": "GA",
        "includedPermissions": list(permissions(spec, settings)),
    }
