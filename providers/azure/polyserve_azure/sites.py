"""What a site is made of: its configuration and its settings, from an app and back. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polyserve.driver import AppSpec, Scaling
from polyserve_azure.names import MAX_TAG
from polyserve_azure.settings import AzureSettings
from polyserve_azure.storage import Access

__all__ = ["OWN_SETTINGS", "described", "hosting", "reached", "scale_of", "scaling_of", "settings_of"]

CONNECTION = "DEPLOYMENT_STORAGE_CONNECTION_STRING"
"""The setting that the platform reads an app's package with."""
OWN_SETTINGS = frozenset(
    {
        CONNECTION,
        "APPLICATIONINSIGHTS_CONNECTION_STRING",
        "AzureWebJobsDisableHomepage",
        "AzureWebJobsStorage",
        "AzureWebJobsStorage__accountName",
        "AzureWebJobsStorage__clientId",
        "AzureWebJobsStorage__credential",
    }
)
"""Settings that every app is given, beside those that are polyserve's by their name."""
MOST_INSTANCES = 100
"""What the platform takes where nobody says anything: "Flex Consumption plan", 2026-11."""


def described(
    app: AppSpec, settings: AzureSettings, plan: str, *, place: str, values: Mapping[str, str], tags: Mapping[str, str]
) -> dict[str, Any]:
    """Return the site of an app, as Resource Manager takes it.

    Args:
        app: The app.
        settings: How apps run.
        plan: Identifier of its plan.
        place: URL of the container that its package is kept in.
        values: Its settings.
        tags: Its tags.
    """
    identity = settings.app_identity
    authentication = {"type": "StorageAccountConnectionString", "storageAccountConnectionStringName": CONNECTION}
    if identity:
        authentication = {"type": "UserAssignedIdentity", "userAssignedIdentityResourceId": identity}
    return {
        **({"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}} if identity else {}),
        "location": settings.location,
        "kind": "functionapp,linux",
        "tags": dict(tags),
        "properties": {
            "serverFarmId": plan,
            "reserved": True,
            "httpsOnly": True,
            "functionAppConfig": {
                "deployment": {"storage": {"type": "blobContainer", "value": place, "authentication": authentication}},
                "runtime": {"name": "python", "version": app.spec.python},
                "scaleAndConcurrency": scale_of(app.spec.memory_mb, app.scaling, settings),
                "siteUpdateStrategy": {"type": "RollingUpdate" if settings.update == "rolling" else "Recreate"},
            },
            "siteConfig": {
                "minTlsVersion": "1.2",
                "appSettings": [{"name": name, "value": value} for name, value in sorted(values.items())],
            },
        },
    }


def settings_of(
    app: AppSpec,
    settings: AzureSettings,
    storage: Mapping[str, str],
    *,
    logs: str,
    callers: str,
    others: Mapping[str, Mapping[str, str]],
    before: Mapping[str, str],
) -> dict[str, str]:
    """Return the settings of an app, which its worker finds as environment variables.

    Args:
        app: The app.
        settings: How apps run.
        storage: How the storage account is reached.
        logs: Connection string of the component that it writes its log to.
        callers: What callers show, where that is no key.
        others: Address and key of the apps that requests are passed on to.
        before: The settings that it has so far, with `settled` where it answers as they say.
    """
    text = app.to_json()
    # What its package answers as until the next one is there: nothing that was only asked for meanwhile.
    was = before.get("POLYSERVE_APP", "") if before.get("settled") else before.get("POLYSERVE_APP_BEFORE", "")
    known: dict[str, Mapping[str, str]] = json.loads(before.get("POLYSERVE_FORWARDS") or "{}") if was else {}
    values = {
        **app.spec.environment,
        **storage,
        "AzureWebJobsDisableHomepage": "true",
        "APPLICATIONINSIGHTS_CONNECTION_STRING": logs,
        "POLYSERVE_APP": text,
        "POLYSERVE_CONCURRENCY": str(settings.concurrency),
    }
    if callers:
        values["POLYSERVE_CALLERS"] = callers
    if was and was != text:
        values["POLYSERVE_APP_BEFORE"] = was
    if known or others:
        values["POLYSERVE_FORWARDS"] = json.dumps({**known, **others}, sort_keys=True)
    return values


def reached(access: Access, client: str) -> dict[str, str]:
    """Return the settings by which an app and its host reach the storage account.

    Args:
        access: The account.
        client: Identifier of the identity's client; the account's key is used where it is empty.
    """
    if not client:
        return {"AzureWebJobsStorage": access.connection_string, CONNECTION: access.connection_string}
    return {
        "AzureWebJobsStorage__accountName": access.name,
        "AzureWebJobsStorage__credential": "managedidentity",
        "AzureWebJobsStorage__clientId": client,
        "POLYSERVE_STORAGE": access.endpoint,
    }


def scale_of(memory_mb: int, scaling: Scaling, settings: AzureSettings) -> dict[str, Any]:
    """Return the bounds of an app as the platform takes them."""
    return {
        "instanceMemoryMB": memory_mb,
        "maximumInstanceCount": scaling.max_instances or MOST_INSTANCES,
        "alwaysReady": [{"name": "http", "instanceCount": scaling.min_instances}] if scaling.min_instances else [],
        "triggers": {"http": {"perInstanceConcurrency": settings.concurrency}},
    }


def scaling_of(site: Mapping[str, Any]) -> Scaling:
    """Return the bounds of a site; the platform always has an upper one, a tag says whether somebody asked for it."""
    given = (site["properties"].get("functionAppConfig") or {}).get("scaleAndConcurrency") or {}
    ready = sum(int(each["instanceCount"]) for each in given.get("alwaysReady") or () if each["name"] == "http")
    asked = MAX_TAG in (site.get("tags") or {})
    return Scaling(min_instances=ready, max_instances=int(given["maximumInstanceCount"]) if asked else None)


def hosting(stacks: Mapping[str, Any]) -> dict[str, set[int]]:
    """Return the memory sizes that a region offers by Python minor version, for Flex Consumption."""
    found: dict[str, set[int]] = {}
    majors = [major for stack in stacks.get("value", ()) for major in stack["properties"].get("majorVersions", ())]
    for minor in (minor for major in majors for minor in major.get("minorVersions", ())):
        linux = (minor.get("stackSettings") or {}).get("linuxRuntimeSettings") or {}
        for sku in linux.get("Sku") or ():
            runtime = (sku.get("functionAppConfigProperties") or {}).get("runtime") or {}
            if sku.get("skuCode") == "FC1" and runtime.get("version"):
                found[str(runtime["version"])] = {int(each["size"]) for each in sku.get("instanceMemoryMB") or ()}
    return found
