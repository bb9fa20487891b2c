"""One request on its way through the host, and how it ends: the answer's headers, its error body, its line in the log.

Knows no route, no model and no wire format.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from random import getrandbits

from polyserve.runtime import logs
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response, error_body
from polyserve.runtime.protocol import JSON_TYPE, InferRequest
from polyserve.runtime.routes import MethodError
from polyserve.runtime.tensors import Tensor

__all__ = ["SHOWN_DIGITS", "Call", "close", "fail", "name", "readable"]

SHOWN_DIGITS = 12
"""Digits of the package's digest that the log shows."""

_LONGEST_ID = 128


class Call:
    """One request on its way through the host."""

    # Defaults of the class and not of __init__: most requests set few of these, and this is made for each.
    batch = 0
    body = b""
    code = ""
    cold = False
    content = JSON_TYPE
    error = ""
    extra: Mapping[str, str] | None = None
    inputs: Sequence[Tensor] = ()
    outputs: tuple[str, ...] | None = None
    predict_ms = 0.0
    route = "unknown"
    rows = 0
    status = 200
    tensors: Sequence[Tensor] = ()
    trace = ""
    wire: InferRequest | None = None

    def __init__(self, request: Request, started: float) -> None:
        self.request = request
        self.request_id = name(request)
        self.started = started


def name(request: Request) -> str:
    """Return the request's id; one of our own where it has none that is safe in a header and in the log."""
    request_id = request.request_id or request.headers.get("x-request-id", "")
    if (
        request_id
        and len(request_id) <= _LONGEST_ID
        and request_id.isascii()
        and request_id.isprintable()
        and '"' not in request_id
        and "\\" not in request_id
    ):
        return request_id
    # Ids are names, not secrets: the fast generator does, and it is seeded anew after a fork.
    return f"{getrandbits(128):032x}"


def fail(call: Call, error: RequestError) -> None:
    """Make a call's answer that of an error."""
    call.code = error.code.value
    call.error = error.message
    call.status = error.status
    call.content = JSON_TYPE
    call.extra = {"allow": error.allowed} if isinstance(error, MethodError) else None


def close(call: Call, *, revision: str, digest: str, now: float, at: str) -> tuple[Response, str]:
    """Return a call's answer, and its line in the log.

    Args:
        call: What is over.
        revision: The revision's number.
        digest: The package's digest.
        now: `time.perf_counter()` when it was over.
        at: The same moment in seconds since 1970, as the log has it.
    """
    request = call.request
    request_id = call.request_id
    arrived = request.received or call.started
    # Formatted once for the header and the log: at some thousand requests a second that is felt.
    queue_ms = f"{(call.started - arrived) * 1e3:.3f}"
    predict_ms = f"{call.predict_ms:.3f}"
    ms = f"{(now - arrived) * 1e3:.3f}"
    headers = {
        "content-type": call.content,
        "x-request-id": request_id,
        "x-polyserve-revision": revision,
        "x-polyserve-digest": digest,
        "x-polyserve-cold": "1" if call.cold else "0",
        "server-timing": f"queue;dur={queue_ms}, predict;dur={predict_ms}, total;dur={ms}",
    }
    if call.extra is not None:
        headers.update(call.extra)
    if call.code:
        call.body = error_body(ErrorCode(call.code), call.error, request_id)
    line = logs.request_line(
        at=at,
        request_id=request_id,
        route=call.route,
        status=call.status,
        code=call.code,
        ms=ms,
        queue_ms=queue_ms,
        predict_ms=predict_ms,
        rows=call.rows,
        batch=call.batch,
        cold=call.cold,
        revision=revision,
        digest=digest[:SHOWN_DIGITS],
        bytes_in=len(request.body),
        bytes_out=len(call.body),
        error=call.error,
    )
    return Response(status=call.status, headers=headers, body=call.body), line


def readable(request: Request, limit: int) -> bytes | memoryview:
    """Return a request's body decompressed, within the limit in bytes before and after.

    Raises:
        RequestError: It is over the limit, or is not of the coding it says.
    """
    body = request.body
    if len(body) > limit:
        raise _too_large(f"{len(body)}", limit)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding in {"identity", ""}:
        return body
    if coding not in {"gzip", "deflate"}:
        message = f"content-encoding: expected gzip, deflate or identity, got {coding[:40]!r}"
        raise RequestError(ErrorCode.INVALID_ARGUMENT, message, status=415)
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        message = f"expected a body of {coding}, got what cannot be read: {error}"
        raise RequestError(ErrorCode.INVALID_ARGUMENT, message) from error
    if len(plain) > limit:
        raise _too_large(f"more than {limit}", limit)
    if not inflate.eof:
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"expected a body of {coding}, got one that is cut short")
    return plain


def _too_large(size: str, limit: int) -> RequestError:
    message = f"the body has {size} bytes, and this deployment takes {limit}: send fewer rows at a time"
    return RequestError(ErrorCode.INVALID_ARGUMENT, message, status=413)
