"""The host of an app: its addresses and its key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from polyserve.driver import ErrorCode
from polyserve_azure.errors import AppError
from polyserve_azure.resources import ResourceManager, Types
from polyserve_azure.settings import AzureSettings

__all__ = ["KEY_HEADER", "app_url", "host_key", "scm_url"]

KEY_HEADER = "x-functions-key"


def host_key(manager: ResourceManager, site: str) -> str:
    """Return the default key of an app's host, which opens all of its functions; never the master key, which opens everything."""
    told = manager.post(Types.SITE, site, "host", "default", "listkeys")
    keys: Mapping[str, Any] = told.get("functionKeys") or {}
    found = keys.get("default") or next(iter(keys.values()), "")
    if not found:
        raise AppError(ErrorCode.UNAVAILABLE, f"the host of {site!r} has no key yet")
    return str(found)


def app_url(settings: AzureSettings, site: Mapping[str, Any]) -> str:
    """Return the address of an app, without a trailing slash."""
    if settings.app_url_template:
        return settings.app_url_template.replace("{name}", quote(str(site["name"]), safe="")).rstrip("/")
    return f"https://{site['properties']['defaultHostName']}"


def scm_url(settings: AzureSettings, site: Mapping[str, Any]) -> str:
    """Return the address that an app is published at; with a host name of its own it may be in another domain than usual."""
    if settings.scm_url_template:
        return settings.scm_url_template.replace("{name}", quote(str(site["name"]), safe="")).rstrip("/")
    properties = site["properties"]
    for each in properties.get("hostNameSslStates") or ():
        if each.get("hostType") == "Repository":
            return f"https://{each['name']}"
    host, _, domain = str(properties["defaultHostName"]).partition(".")
    return f"https://{host}.scm.{domain}"
