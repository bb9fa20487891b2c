"""What Azure takes for a function app: names, `functionAppConfig`, app settings.

Sources: "Resource name rules" (Microsoft.Web), "Flex Consumption plan" (memory, instances, concurrency, app settings that are
gone), read 2026-11-21.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from polyserve_azure.emulator.errors import bad_request
from polyserve_azure.emulator.installing import find_interpreter
from polyserve_azure.emulator.stacks import DEFAULT_MEMORY_MB, LARGEST_SCALE, MEMORY_MB, VERSIONS

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,58}[A-Za-z0-9])")
_SETTING = re.compile(r"[\w.:-]+", re.ASCII)
AUTHENTICATIONS = ("SystemAssignedIdentity", "UserAssignedIdentity", "StorageAccountConnectionString")
STRATEGIES = ("Recreate", "RollingUpdate")
DEFAULT_CONCURRENCY = 1
"""For Python; other languages have more, by memory ("Concurrency in Azure Functions")."""
_NOT_ON_FLEX = """
ENABLE_ORYX_BUILD FUNCTIONS_EXTENSION_VERSION FUNCTIONS_WORKER_PROCESS_COUNT FUNCTIONS_WORKER_RUNTIME
FUNCTIONS_WORKER_RUNTIME_VERSION FUNCTIONS_MAX_HTTP_CONCURRENCY SCM_DO_BUILD_DURING_DEPLOYMENT
WEBSITE_CONTENTAZUREFILECONNECTIONSTRING WEBSITE_CONTENTOVERVNET WEBSITE_CONTENTSHARE WEBSITE_DNS_SERVER
WEBSITE_MAX_DYNAMIC_APPLICATION_SCALE_OUT WEBSITE_NODE_DEFAULT_VERSION WEBSITE_RUN_FROM_PACKAGE
WEBSITE_SKIP_CONTENTSHARE_VALIDATION WEBSITE_VNET_ROUTE_ALL
"""
NOT_ON_FLEX = frozenset(_NOT_ON_FLEX.split())
"""App settings of other plans, which this one has in `functionAppConfig` or not at all."""


def check_name(name: str) -> None:
    """Refuse a name that no app can have.

    Raises:
        ServiceError: It is one.
    """
    if not _NAME.fullmatch(name):
        message = f"Site name '{name}' is invalid: 2 to 60 letters, digits and hyphens, with a letter or a digit at both ends."
        raise bad_request(message)


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse app settings that no Flex Consumption app can have.

    Raises:
        ServiceError: There is one.
    """
    for name in settings:
        if name.upper() in NOT_ON_FLEX:
            message = (
                f"The following app setting (Site.SiteConfig.AppSettings.{name}) for Flex Consumption sites is invalid. "
                "Please remove or rename it before retrying."
            )
            raise bad_request(message)
        if not _SETTING.fullmatch(name):
            raise bad_request(
                f"AppSetting with name '{name}' is not allowed: letters, digits, underscores, dots, colons and hyphens."
            )


def complete_config(given: Any) -> dict[str, Any]:
    """Return a `functionAppConfig` with what Azure puts where nothing was given.

    Raises:
        ServiceError: Something in it cannot be.
    """
    if not isinstance(given, dict):
        raise bad_request("Site.FunctionAppConfig is required for Flex Consumption sites.")
    config: dict[str, Any] = {
        "deployment": {"storage": _storage((given.get("deployment") or {}).get("storage"))},
        "runtime": _runtime(given.get("runtime") or {}),
        "scaleAndConcurrency": _scale(given.get("scaleAndConcurrency") or {}),
    }
    strategy = str((given.get("siteUpdateStrategy") or {}).get("type") or "Recreate")
    if strategy not in STRATEGIES:
        raise _invalid("SiteUpdateStrategy.Type", strategy, STRATEGIES)
    return config | {"siteUpdateStrategy": {"type": strategy}}


def _storage(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or str(given.get("type", "")).lower() != "blobcontainer":
        raise bad_request("Site.FunctionAppConfig.Deployment.Storage is invalid: it needs the type 'blobContainer'.")
    address = urlsplit(str(given.get("value") or ""))
    if address.scheme not in {"http", "https"} or not address.path.strip("/"):
        raise bad_request(
            "Site.FunctionAppConfig.Deployment.Storage.Value is invalid: it has to be the URL of a container."
        )
    authentication = dict(given.get("authentication") or {})
    kind = authentication.get("type")
    if kind not in AUTHENTICATIONS:
        raise _invalid("Deployment.Storage.Authentication.Type", kind, AUTHENTICATIONS)
    if kind == "UserAssignedIdentity" and not authentication.get("userAssignedIdentityResourceId"):
        raise bad_request(
            "Site.FunctionAppConfig.Deployment.Storage.Authentication.UserAssignedIdentityResourceId is required."
        )
    if kind == "StorageAccountConnectionString" and not authentication.get("storageAccountConnectionStringName"):
        raise bad_request(
            "Site.FunctionAppConfig.Deployment.Storage.Authentication.StorageAccountConnectionStringName is required."
        )
    return {"type": "blobContainer", "value": given["value"], "authentication": authentication}


def _runtime(given: Mapping[str, Any]) -> dict[str, str]:
    name, version = str(given.get("name") or ""), str(given.get("version") or "")
    if name != "python":
        raise bad_request(f"Site.FunctionAppConfig.Runtime.Name is invalid: the emulator runs 'python', not '{name}'.")
    if version not in VERSIONS:
        raise _invalid("Runtime.Version", version, tuple(VERSIONS))
    find_interpreter(version)
    return {"name": name, "version": version}


def _scale(given: Mapping[str, Any]) -> dict[str, Any]:
    memory = given.get("instanceMemoryMB") or DEFAULT_MEMORY_MB
    if memory not in MEMORY_MB:
        raise _invalid("ScaleAndConcurrency.InstanceMemoryMB", memory, MEMORY_MB)
    maximum = given.get("maximumInstanceCount") or 100
    if not isinstance(maximum, int) or not 1 <= maximum <= LARGEST_SCALE:
        raise _invalid("ScaleAndConcurrency.MaximumInstanceCount", maximum, (f"1 to {LARGEST_SCALE}",))
    scale: dict[str, Any] = {
        "instanceMemoryMB": memory,
        "maximumInstanceCount": maximum,
        "alwaysReady": _ready(given, maximum),
    }
    http = ((given.get("triggers") or {}).get("http") or {}).get("perInstanceConcurrency")
    if http is not None:
        if not isinstance(http, int) or not 1 <= http <= 1000:
            raise _invalid("ScaleAndConcurrency.Triggers.Http.PerInstanceConcurrency", http, ("1 to 1000",))
        scale["triggers"] = {"http": {"perInstanceConcurrency": http}}
    return scale


def _ready(given: Mapping[str, Any], maximum: int) -> list[dict[str, Any]]:
    found = []
    for one in given.get("alwaysReady") or ():
        name, count = str(one.get("name") or ""), one.get("instanceCount", 0)
        if name not in {"http", "blob", "durable"} and not name.startswith("function:"):
            raise _invalid("ScaleAndConcurrency.AlwaysReady.Name", name, ("http", "blob", "durable", "function:NAME"))
        if not isinstance(count, int) or not 0 <= count <= maximum:
            raise _invalid("ScaleAndConcurrency.AlwaysReady.InstanceCount", count, (f"0 to {maximum}",))
        found.append({"name": name, "instanceCount": count})
    return found


def _invalid(name: str, value: object, allowed: tuple[object, ...]) -> Exception:
    return bad_request(
        f"Site.FunctionAppConfig.{name} is invalid: '{value}' is none of {', '.join(map(str, allowed))}."
    )
