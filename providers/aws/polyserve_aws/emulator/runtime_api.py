"""Lambda's Runtime API, for one execution environment.

Written against "Using the Lambda runtime API for custom runtimes" in Lambda's developer guide. The runtime client asks
for the next event and is kept waiting until there is one; then it posts the answer or the error.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from aiohttp import web

Result = tuple[bytes, bool, str]
"""The payload, whether it is an error, and why the environment is of no more use (empty where it still is)."""
RESPONSE_LIMIT = 6 * 1024 * 1024 + 100
"""Largest answer of a synchronous invocation, in bytes: 6 MB, and what Lambda allows on top of it."""
_RESULT = re.compile(r"/2018-06-01/runtime/invocation/([^/]+)/(response|error)")
# aiohttp takes no patience at all for endless patience.
_PATIENCE_S = 0.05
_CREDENTIALS = "/2021-04-23/credentials"
_ACCEPTED = b'{"status":"OK"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event on its way into a function.

    Attributes:
        request_id: Identifier of the invocation.
        payload: The event, as JSON.
        arn: ARN that was invoked, with the alias or version that was asked for.
        deadline_ms: When it must be over, in milliseconds since 1970.
        client_context: What the caller passed as its context, as JSON; empty where nothing.
    """

    request_id: str
    payload: bytes
    arn: str
    deadline_ms: int
    client_context: str = ""


def error_payload(kind: str, message: str) -> bytes:
    """Return an error as Lambda puts it into a payload."""
    return msgspec.json.encode({"errorType": kind, "errorMessage": message})


class RuntimeApi:
    """Serves one runtime client.

    Args:
        credentials: Those of the execution role, for environments that have to ask for them: a snapshot must not hold any.

    Attributes:
        ready: Set once the runtime has asked for an event.
        init_error: What the runtime reported instead of getting ready, as JSON.
    """

    def __init__(self, credentials: Mapping[str, str] | None = None) -> None:
        self._credentials, self._token = credentials, secrets.token_urlsafe(24)
        self.ready = asyncio.Event()
        self.init_error: bytes | None = None
        self._server: asyncio.Server | None = None
        self._web = web.Server(self._serve, access_log=None, auto_decompress=False)
        self._events: asyncio.Queue[tuple[Event, asyncio.Future[Result]] | None] = asyncio.Queue()
        self._current: tuple[Event, asyncio.Future[Result]] | None = None

    async def listen(self) -> str:
        """Start listening; returns the address that the client is told."""
        self._server = await asyncio.get_running_loop().create_server(self._web, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def variables(self, address: str) -> dict[str, str]:
        """Return the environment variables that say where the API, and the credentials, are to be had."""
        found = {"AWS_LAMBDA_RUNTIME_API": address}
        if self._credentials is not None:
            found["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"http://{address}{_CREDENTIALS}"
            found["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = self._token
        return found

    async def close(self) -> None:
        """Stop listening and drop the connection."""
        if self._server is not None:
            self._server.close()
        self._events.put_nowait(None)  # whoever still waits for an event is sent away
        await self._web.shutdown(_PATIENCE_S)

    def offer(self, event: Event) -> asyncio.Future[Result]:
        """Give the runtime an event; the result is its answer, or its error."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._events.put_nowait((event, answer))
        return answer

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.method == "GET":
            if path == "/2018-06-01/runtime/invocation/next":
                return await self._next()
            if path == _CREDENTIALS and self._credentials is not None:
                known = secrets.compare_digest(request.headers.get("Authorization", ""), self._token)
                return web.json_response(dict(self._credentials) if known else None, status=200 if known else 403)
            # A snapshot is never taken here: the hooks before and after it run one after the other.
            return web.Response(status=200 if path == "/2018-06-01/runtime/restore/next" else 404)
        body = await request.content.read()
        found = _RESULT.fullmatch(path)
        if found:
            return self._finish(found[1], found[2] == "error", body)
        if path in {"/2018-06-01/runtime/init/error", "/2018-06-01/runtime/restore/error"}:
            self.init_error = body
            self.ready.set()
            return web.Response(status=202, body=_ACCEPTED)
        return web.Response(status=404)

    async def _next(self) -> web.Response:
        self.ready.set()
        self._current = await self._events.get()
        if self._current is None:
            return web.Response(status=410)
        event = self._current[0]
        trace = f"Root=1-{int(time.time()):08x}-{event.request_id.replace('-', '')[:24]};Sampled=0"
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": event.request_id,
            "Lambda-Runtime-Deadline-Ms": str(event.deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": event.arn,
            "Lambda-Runtime-Trace-Id": trace,
        }
        if event.client_context:
            headers["Lambda-Runtime-Client-Context"] = event.client_context
        return web.Response(body=event.payload, headers=headers)

    def _finish(self, request_id: str, failed: bool, body: bytes) -> web.Response:
        if self._current is None or self._current[0].request_id != request_id:
            return web.json_response(
                {"errorType": "InvalidRequestID", "errorMessage": "Invalid request ID"}, status=400
            )
        answer = self._current[1]
        self._current = None
        too_large = not failed and len(body) > RESPONSE_LIMIT
        if too_large:
            message = f"Response payload size ({len(body)} bytes) exceeded maximum allowed payload size ({RESPONSE_LIMIT} bytes)."
            body, failed = error_payload("Function.ResponseSizeTooLarge", message), True
        if not answer.done():
            answer.set_result((body, failed, "size" if too_large else ""))
        # The runtime client does not survive a refusal, so its environment does not, either: as on AWS.
        return web.Response(status=413 if too_large else 202, body=_ACCEPTED)
