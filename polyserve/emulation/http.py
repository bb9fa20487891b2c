"""HTTP on loopback, as emulators speak it: listeners, a request as it came over the wire, and the answer to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

_PIECE = 256 * 1024
# What the server writes itself.
_OWN = frozenset({"connection", "date", "server", "transfer-encoding"})
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One HTTP request, read to its end.

    Attributes:
        method: `GET`, in capitals.
        target: Path and query as they were sent, percent-escapes and all: signatures are made over these.
        headers: Header fields, without regard to case.
        body: The body, with a chunked transfer encoding taken off.
        peer: Address of the caller.
    """

    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: bytes
    peer: str = "127.0.0.1"

    @cached_property
    def raw_path(self) -> str:
        """The path as it was sent."""
        return self.target.partition("?")[0] or "/"

    @cached_property
    def raw_query(self) -> str:
        """The query as it was sent, without its question mark."""
        return self.target.partition("?")[2]

    @cached_property
    def path(self) -> str:
        """The path with its escapes taken off."""
        return unquote(self.raw_path)

    @cached_property
    def query(self) -> dict[str, str]:
        """The query's first value for each name."""
        found: dict[str, str] = {}
        for name, value in parse_qsl(self.raw_query, keep_blank_values=True):
            found.setdefault(name, value)
        return found

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty where it is none."""
        try:
            decoded = msgspec.json.decode(self.body) if self.body else {}
        except msgspec.DecodeError:
            return {}
        return decoded if isinstance(decoded, dict) else {}


@dataclass(frozen=True)
class Answer:
    """What goes back: a status, header fields, and the body at once or piece by piece."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None


def json_answer(status: int, value: object, **headers: str) -> Answer:
    """Return a value as JSON."""
    fields = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, fields, b"" if status == 204 else msgspec.json.encode(value))


Handler = Callable[[Call], Awaitable[Answer]]
"""What answers the requests of a listener."""


class Listener:
    """One port on 127.0.0.1.

    Args:
        handler: Answers each request.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._web = web.Server(
            self._serve, access_log=None, auto_decompress=False, read_bufsize=2**20, max_line_size=2**16
        )
        self._server: asyncio.Server | None = None

    async def open(self, port: int = 0) -> int:
        """Start listening; returns the port."""
        self._server = await asyncio.get_running_loop().create_server(self._web, "127.0.0.1", port, backlog=1024)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Stop listening and drop what is connected."""
        if self._server is not None:
            self._server.close()
        # aiohttp takes no patience at all for endless patience.
        await self._web.shutdown(0.05)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = bytearray()
        if request.headers.get("Expect", "").lower() == "100-continue":
            # aiohttp's own applications do this, its plain server does not; clients wait a second for it.
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        if request.body_exists:
            async for piece in request.content.iter_any():
                body += piece
        call = Call(
            method=request.method, target=request.raw_path, headers=request.headers, body=bytes(body),
            peer=request.remote or "127.0.0.1",
        )  # fmt: skip
        try:
            answer = await self._handler(call)
        except Exception:
            # One call that breaks the emulator must not take it down, and must not look like a refusal of the cloud.
            _LOG.exception("the emulator failed on %s %s", call.method, call.raw_path)
            return web.Response(status=500, text="the emulator failed; its log says how")
        return await _respond(request, answer)


async def _respond(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in _OWN]
    fields = [(name, line) for name, value in headers for line in value.split("\n")]
    if answer.stream is None and len(answer.body) <= _PIECE and request.method != "HEAD":
        kept = [(name, value) for name, value in fields if name.lower() != "content-length"]
        return web.Response(status=answer.status, headers=CIMultiDict(kept), body=answer.body)
    streamed = web.StreamResponse(status=answer.status, headers=CIMultiDict(fields))
    if answer.stream is None and request.method != "HEAD":
        streamed.content_length = len(answer.body)
    try:
        await streamed.prepare(request)
        await _write(streamed, answer, request.method)
    except ConnectionError:
        # That a caller hangs up is no failure. Where it has not, what is cut short must not look whole.
        if request.transport is not None and not request.transport.is_closing():
            raise
    finally:
        # What is not read to its end has to be told: an instance may be waiting for its reader.
        close = getattr(answer.stream, "aclose", None)
        if close is not None:
            await close()
    return streamed


async def _write(streamed: web.StreamResponse, answer: Answer, method: str) -> None:
    if answer.stream is not None:
        async for piece in answer.stream:
            await streamed.write(piece)
    elif method != "HEAD":
        view = memoryview(answer.body)
        for start in range(0, len(view), _PIECE):
            await streamed.write(view[start : start + _PIECE])
    await streamed.write_eof()
