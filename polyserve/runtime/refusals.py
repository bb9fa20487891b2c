"""Answers that a server gives without asking its host: same headers, same error body, same line in the log as the host's own.

Knows no socket and no model.
"""

from __future__ import annotations

import os
import re
import time
from typing import Protocol

from polyserve.runtime import logs
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response, error_body

# What may be repeated in a header and in the log as it is.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
_RETRY_AFTER_SECONDS = 1


class Revision(Protocol):
    """Who answers."""

    @property
    def revision(self) -> int:
        """The deployment's revision."""

    @property
    def digest(self) -> str:
        """The package's tree digest."""


class Refusals:
    """Turns errors into answers and logs them.

    Args:
        host: Names the revision and the package.
        sink: Takes the log's lines.
    """

    def __init__(self, host: Revision, sink: logs.Sink) -> None:
        self._host = host
        self._sink = sink

    def answer(self, error: RequestError, request: Request) -> Response:
        """Return the answer to a request that is refused."""
        given = request.request_id or request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        body = error_body(error.code, error.message, request_id)
        ms = f"{(time.perf_counter() - request.received) * 1e3 if request.received else 0.0:.3f}"
        headers = {
            "content-type": "application/json",
            "x-request-id": request_id,
            "x-polyserve-revision": str(self._host.revision),
            "x-polyserve-digest": self._host.digest,
            "x-polyserve-cold": "0",
            "server-timing": f"queue;dur={ms}, predict;dur=0.000, total;dur={ms}",
        }
        if error.code is ErrorCode.UNAUTHENTICATED:
            headers["www-authenticate"] = "Bearer"
        elif error.code in {ErrorCode.RESOURCE_EXHAUSTED, ErrorCode.UNAVAILABLE}:
            headers["retry-after"] = str(_RETRY_AFTER_SECONDS)
        route = (
            "invocations"
            if request.path == "/invocations"
            else "infer"
            if request.path.endswith("/infer")
            else "unknown"
        )
        line = logs.request_line(
            at=f"{time.time():.6f}",
            request_id=request_id,
            route=route,
            status=error.status,
            code=error.code.value,
            ms=ms,
            queue_ms=ms,
            predict_ms="0.000",
            rows=0,
            batch=0,
            cold=False,
            revision=self._host.revision,
            digest=self._host.digest[:12],
            bytes_in=len(request.body),
            bytes_out=len(body),
            error=error.message,
        )
        self._sink(line.encode())
        return Response(status=error.status, headers=headers, body=body)
