"""How an app is called: one HTTP call to its own address, with the key of its host or a token."""

from __future__ import annotations

import json
from collections.abc import Mapping

from polyserve.driver import Address, ErrorCode, HttpCall, HttpReply, Request, Response
from polyserve_azure.callers import Callers
from polyserve_azure.errors import AppError, InvocationError, seconds_of
from polyserve_azure.hosts import app_url
from polyserve_azure.names import APP_TAG, site_name
from polyserve_azure.resources import ResourceManager, Types
from polyserve_azure.settings import AzureSettings

__all__ = ["FunctionInvoker"]

ANSWERED = "x-polyserve-revision"
"""Header of every answer that an app gave; what lacks it came from the platform in front of it."""


class FunctionInvoker:
    """Calls function apps. Implements `polyserve.driver.Invoker`.

    Args:
        settings: What apps are called.
        manager: Calls Azure.
        callers: What a caller shows.
    """

    def __init__(self, settings: AzureSettings, manager: ResourceManager, callers: Callers) -> None:
        self._settings = settings
        self._manager = manager
        self._callers = callers

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find an app's address and what to show there. It is asked for again once it was refused, so that keys can be renewed."""
        site = self._manager.find(Types.SITE, site_name(self._settings, name))
        if site is None or (site.get("tags") or {}).get(APP_TAG) != name:
            raise AppError(ErrorCode.NOT_FOUND, f"there is no app {name!r}")
        return Address(url=app_url(self._settings, site), headers=self._callers.headers(site))

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
    401: "the app's key or the token was refused: the key may have been renewed",
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
