"""The canonical request and response, and the one error body.

Everything that reaches a model passes through these two values, whatever the cloud: an entrypoint turns
its platform's native event into a `Request`, the host answers with a `Response`. Knows no HTTP server, no
cloud and no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ErrorCode(StrEnum):
    """What kind of failure it was. Closed and frozen: programs act upon the code, never upon the message."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CONFLICT = "CONFLICT"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"
    INTERNAL = "INTERNAL"
    UNKNOWN = "UNKNOWN"


HTTP_STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_ARGUMENT: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.ALREADY_EXISTS: 409,
    ErrorCode.CONFLICT: 409,
    ErrorCode.FAILED_PRECONDITION: 412,
    ErrorCode.RESOURCE_EXHAUSTED: 429,
    ErrorCode.INTERNAL: 500,
    ErrorCode.UNKNOWN: 500,
    ErrorCode.UNSUPPORTED: 501,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}
"""The HTTP status that goes with each code; `RequestError` may override it (a body over the limit is 413)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of a model service.

    Attributes:
        method: HTTP method, upper case.
        path: Path below the service's root, without query string, such as `/v2/models/iris/infer`.
        headers: Header values by lower-case name.
        body: The raw body.
        request_id: Names this call in logs and answers; made by the host where it is empty.
        received: `time.perf_counter()` when it arrived, for the queueing time; 0.0 where nobody looked.
    """

    method: str = "POST"
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    request_id: str = ""
    received: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The answer to a `Request`.

    Attributes:
        status: HTTP status.
        headers: Header values by lower-case name.
        body: The raw body.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class RequestError(Exception):
    """A request that cannot be answered, with the reason its caller may see.

    Args:
        code: What kind of failure it was.
        message: One sentence for the caller: the value, the limit, the way out. Never a traceback.
        status: HTTP status, where it is not the code's usual one.
    """

    def __init__(self, code: ErrorCode, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = HTTP_STATUS[code] if status is None else status


def error_body(code: ErrorCode, message: str, request_id: str) -> bytes:
    """Return the one error body that every provider and every route answers with."""
    return json.dumps({"error": message, "code": code.value, "request_id": request_id}, separators=(",", ":")).encode()
