"""HTTP on loopback: listeners, and how a request becomes a `Call` and an `Answer` a response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict

from polyserve_azure.emulator.exchange import Answer, Call

Handler = Callable[[Call], Awaitable[Answer]]
_PIECE = 256 * 1024
# What the server writes itself.
_OWN = frozenset({"connection", "date", "server", "transfer-encoding"})
_LOG = logging.getLogger(__name__)


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
            # One call that breaks the emulator must not take it down, and must not look like a refusal of Azure.
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
    await streamed.prepare(request)
    if answer.stream is not None:
        async for piece in answer.stream:
            await streamed.write(piece)
    elif request.method != "HEAD":
        view = memoryview(answer.body)
        for start in range(0, len(view), _PIECE):
            await streamed.write(view[start : start + _PIECE])
    await streamed.write_eof()
    return streamed
