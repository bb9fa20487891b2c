"""How a function is called: one HTTP call to its service's address, with an ID token that Google signed for that address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from polyserve.driver import Address, ErrorCode, HttpCall, HttpReply, Request, Response
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import InvocationError, seconds_of

__all__ = ["FindService", "Service", "ServiceInvoker"]

ANSWERED = "x-polyserve-revision"
"""Header of every answer that a function gave; what lacks it came from the platform in front of it, or from its framework."""
TOKEN = "authorization"  # noqa: S105 - the name of a header
TOKEN_BESIDE = "x-serverless-authorization"  # noqa: S105
"""Where Cloud Run looks first, so that a caller's own header reaches the function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where a function is called.

    Attributes:
        url: Its address, or that of one revision, without a trailing slash.
        audience: What an ID token has to be for: the service's own address.
        public: Whether everybody may call it.
    """

    url: str
    audience: str
    public: bool = False


class FindService(Protocol):
    """Finds where a function is called."""

    def __call__(self, name: str, revision: int | None) -> Service:
        """Return where a function, or one revision of it, is called. A missing one is NOT_FOUND."""
        ...


class ServiceInvoker:
    """Calls services of Cloud Run, which functions are. Implements `polyserve.driver.Invoker`.

    Args:
        credentials: Who calls.
        find: Finds the services.
    """

    def __init__(self, credentials: Credentials, find: FindService) -> None:
        self._credentials = credentials
        self._find = find

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find a service's address, and a token for it."""
        service = self._find(name, revision)
        if service.public:
            return Address(url=service.url, context=service)
        token, ends = self._credentials.id_token_until(service.audience)
        return Address(url=service.url, headers={TOKEN: f"Bearer {token}"}, expires_at=ends, context=service)

    def prepare(self, address: Address, request: Request) -> HttpCall:
        """Turn a request into the service's HTTP call, with the newest token that there is: others come in the background."""
        headers = dict(request.headers)
        service = address.context
        assert isinstance(service, Service)
        if not service.public:
            newest = self._credentials.newest_identity(service.audience)
            value = f"Bearer {newest.value}" if newest is not None else address.headers[TOKEN]
            headers[TOKEN_BESIDE if TOKEN in headers else TOKEN] = value
        if request.request_id:
            headers["x-request-id"] = request.request_id
        return HttpCall(method=request.method, url=address.url + request.path, headers=headers, body=request.body)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        """Turn the HTTP reply into the response of the function.

        Raises:
            InvocationError: It is an answer of the platform in front of it.
        """
        if reply.status >= 400 and ANSWERED not in reply.headers:
            if reply.status == 401:
                # Whoever resolves next gets another one.
                self._credentials.forget(address.headers.get(TOKEN, "").removeprefix("Bearer "))
            raise _failure(reply)
        return Response(status=reply.status, headers=reply.headers, body=reply.body)


# https://cloud.google.com/run/docs/troubleshooting, read 2026-11.
_BY_STATUS: Mapping[int, ErrorCode] = {
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.NOT_FOUND,
    408: ErrorCode.DEADLINE_EXCEEDED,
    413: ErrorCode.INVALID_ARGUMENT,
    414: ErrorCode.INVALID_ARGUMENT,
    429: ErrorCode.RESOURCE_EXHAUSTED,
    504: ErrorCode.DEADLINE_EXCEEDED,
}
_REASONS: Mapping[int, str] = {
    401: "the ID token was refused",
    403: "the caller may not call the service: it lacks the permission run.routes.invoke (roles/run.invoker)",
    404: "no service answers at this address, or its ingress lets nobody in from where the caller is",
    413: "the request is larger than the 32 MiB that Cloud Run takes",
    429: "no instance has room for the request, and there may be no more of them",
    500: "no instance could be started, or one ended without an answer: look at its log",
    502: "the instance ended without an answer, out of memory for one: its log says why",
    503: "the instance does not start, or ended without an answer, out of memory for one: its log says why",
    504: "the function did not answer within its time",
}


def _failure(reply: HttpReply) -> InvocationError:
    """Return the error that an answer of the platform is."""
    if reply.headers.get("x-google-status", "") in {"crash", "error"}:
        # What the framework says where the entrypoint itself fails.
        return InvocationError(ErrorCode.INTERNAL, f"HTTP {reply.status}: the function failed: its log says why")
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
