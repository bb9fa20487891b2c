"""What Azure cannot be asked for: environment variables, which are an app's settings, that are the platform's own. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from polyserve.driver import FunctionSpec
from polyserve_azure.sites import OWN_SETTINGS

__all__ = ["obstacles"]

_NOT_ON_FLEX = """
ENABLE_ORYX_BUILD FUNCTIONS_EXTENSION_VERSION FUNCTIONS_MAX_HTTP_CONCURRENCY FUNCTIONS_WORKER_PROCESS_COUNT FUNCTIONS_WORKER_RUNTIME
FUNCTIONS_WORKER_RUNTIME_VERSION SCM_DO_BUILD_DURING_DEPLOYMENT WEBSITE_CONTENTAZUREFILECONNECTIONSTRING WEBSITE_CONTENTOVERVNET
WEBSITE_CONTENTSHARE WEBSITE_DNS_SERVER WEBSITE_MAX_DYNAMIC_APPLICATION_SCALE_OUT WEBSITE_NODE_DEFAULT_VERSION
WEBSITE_RUN_FROM_PACKAGE WEBSITE_SKIP_CONTENTSHARE_VALIDATION WEBSITE_VNET_ROUTE_ALL
"""
NOT_ON_FLEX = frozenset(_NOT_ON_FLEX.split())
"""Settings of other plans, which this one refuses: "Flex Consumption plan deprecations", App settings reference, 2026-11."""


def obstacles(spec: FunctionSpec) -> tuple[str, ...]:
    """Return why a revision cannot be, each reason with the way out; nothing where it can."""
    return tuple(_of_variables(spec))


def _of_variables(spec: FunctionSpec) -> Iterator[str]:
    # Names of settings are one in whatever case.
    own = {name.upper() for name in OWN_SETTINGS}
    for name in sorted(spec.environment):
        if name.upper() in NOT_ON_FLEX:
            yield f"environment variable {name!r} is a setting that apps on Flex Consumption cannot have: rename it, or leave it out"
        elif name.upper() in own:
            yield f"environment variable {name!r} is a setting of the app itself: rename it"
