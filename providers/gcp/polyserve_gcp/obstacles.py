"""What Google Cloud cannot be asked for: options that the chosen platform has not got, or that exclude each other. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from polyserve.driver import FunctionSpec
from polyserve_gcp.errors import UnsupportedSettingError
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.sizes import misfits

__all__ = ["obstacles", "refuse"]

RESERVED = frozenset({"K_SERVICE", "K_REVISION", "K_CONFIGURATION", "PORT"})
"""Variables that Cloud Run sets itself: "Container runtime contract", 2026-11."""
RESERVED_OF_FUNCTIONS = frozenset(
    {"FUNCTION_TARGET", "FUNCTION_SIGNATURE_TYPE", "FUNCTION_SOURCE", "FUNCTION_USE_ASGI", "THREADS", "WORKERS"}
)
"""Those by which functions-framework is told what to run, and how."""


def obstacles(spec: FunctionSpec, settings: GcpSettings, *, split: bool = False) -> tuple[str, ...]:
    """Return why a revision cannot be under these settings, each reason with the way out; nothing where it can.

    Args:
        spec: The revision.
        settings: How functions run, and on which platform.
        split: Whether another revision is to have traffic beside it.
    """
    options = _of_run(settings) if settings.platform == "run" else _of_functions(settings, split=split)
    return (*options, *misfits(spec, settings), *_of_variables(spec, settings))


def refuse(spec: FunctionSpec, settings: GcpSettings, *, split: bool = False) -> None:
    """Refuse a revision that cannot be under these settings.

    Raises:
        UnsupportedSettingError: It cannot; the message has every reason.
    """
    if found := obstacles(spec, settings, split=split):
        raise UnsupportedSettingError("; ".join(found))


def _of_functions(settings: GcpSettings, *, split: bool) -> Iterator[str]:
    if settings.network or settings.subnetwork:
        yield 'network and subnetwork are for platform = "run": give functions a vpc_connector, or choose that platform'
    if split and settings.ingress != "all" and not (settings.vpc_connector and settings.egress == "all"):
        yield (
            f"ingress is {settings.ingress!r}, and functions reach each other through the VPC only: set vpc_connector and "
            'egress = "all", or choose platform = "run", which splits traffic by itself'
        )


def _of_run(settings: GcpSettings) -> Iterator[str]:
    for name in ("build_service_account", "worker"):
        if getattr(settings, name) != getattr(GcpSettings(), name):
            yield f'{name} is for platform = "functions": leave it out, nothing is built and instances serve by themselves'
    if settings.vpc_connector and (settings.network or settings.subnetwork):
        yield "vpc_connector and network exclude each other: leave out one"


def _of_variables(spec: FunctionSpec, settings: GcpSettings) -> Iterator[str]:
    reserved = RESERVED if settings.platform == "run" else RESERVED | RESERVED_OF_FUNCTIONS
    for name in sorted({*spec.environment, *settings.sealed}):
        if name in reserved or name.startswith("X_GOOGLE_"):
            yield f"environment variable {name!r} is set by the platform itself: rename it"
        elif name in spec.environment and name in settings.sealed:
            yield f"environment variable {name!r} has a value, and a secret in sealed: leave out one"
        elif name in settings.sealed and name.startswith("POLYSERVE_"):
            yield f"environment variable {name!r} in sealed: POLYSERVE_* are polyserve's own: rename it"
