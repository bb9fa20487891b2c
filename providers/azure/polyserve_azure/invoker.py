"""How an app is called: one HTTP call to its own address, with the key of its host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from polyserve.driver import Address, ErrorCode, HttpCall, HttpReply, Request, Response
from polyserve_azure.errors import AppError, InvocationError, seconds_of
from polyserve_azure.names import APP_TAG, site_name
from polyserve_azure.resources import ResourceManager, Types
from polyserve_azure.settings import AzureSettings

__all__ = ["FunctionInvoker", "host_key"]

KEY_HEADER = "x-functions-key"
ANSWERED = "x-polyserve-revision"
"""Header of every answer that an app gave; what lacks it came from the platform in front of it."""


class FunctionInvoker:
    """Calls function apps. Implements `polyserve.driver.Invoker`.

    Args:
        settings: What apps are called.
        manager: Calls Azure.
    """

    def __init__(self, settings: AzureSettings, manager: ResourceManager) -> None:
        self._settings = settings
        self._manager = manager

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find an app's address and the key of its host. It is asked for again once it was refused, so that keys can be renewed."""
        site = self._manager.find(Types.SITE, site_name(self._settings, name))
        if site is None or (site.get("tags") or {}).get(APP_TAG) != name:
            raise AppError(ErrorCode.NOT_FOUND, f"there is no app {name!r}")
        return Address(
            url=app_url(self._settings, site), headers={KEY_HEADER: host_key(self._manager, str(site["name"]))}
        )

    def prepare(self, address: Address, request: Request) -> HttpCall:
        """Turn a request into the app's HTTP call."""
        headers = {**request.headers, **address.headers}
        if request.request_id:
            headers["x-request-id"] = request.request_id
        return HttpCall(method=request.method, url=address.url + request.path, headers=headers, body=request.body)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        """Turn the HTTP reply into the response of the app.

        Raises:
            InvocationError: It is an answer of the platform in front of it.
        """
        if reply.status >= 400 and ANSWERED not in reply.headers:
            raise _failure(reply)
        return Response(status=reply.status, headers=reply.headers, body=reply.body)


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


_BY_STATUS: Mapping[int, ErrorCode] = {
    # The platform has no such answers of its own but while an app starts, is published or is gone.
    404: ErrorCode.UNAVAILABLE,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.FAILED_PRECONDITION,
    408: ErrorCode.DEADLINE_EXCEEDED,
    413: ErrorCode.INVALID_ARGUMENT,
    414: ErrorCode.INVALID_ARGUMENT,
    429: ErrorCode.RESOURCE_EXHAUSTED,
    500: ErrorCode.INTERNAL,
    504: ErrorCode.DEADLINE_EXCEEDED,
}
_REASONS: Mapping[int, str] = {
    401: "the app's key was refused: it may have been renewed",
    403: "the app is stopped, or its network rules refuse the caller",
    404: "the app has no function yet: it is being published, or does not start; look at its log",
    413: "the request is larger than Azure takes",
    500: "the app's worker failed; look at its log",
    504: "the app did not answer within the 230 seconds that Azure gives",
}


def _failure(reply: HttpReply) -> InvocationError:
    """Return the error that an answer of the platform is."""
    default = ErrorCode.UNAVAILABLE if reply.status >= 500 else ErrorCode.INVALID_ARGUMENT
    reason = _REASONS.get(reply.status) or _words(reply.body) or "no reason given"
    wait = seconds_of(reply.headers.get("retry-after", ""))
    return InvocationError(_BY_STATUS.get(reply.status, default), f"HTTP {reply.status}: {reason}", retry_after=wait)


def _words(body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        text = body[:200].decode("utf-8", "replace")
        return "" if text.lstrip().startswith("<") else text.strip()
    return str(told.get("message") or told.get("error") or "")[:200] if isinstance(told, dict) else ""
