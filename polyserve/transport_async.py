"""HTTP/1.1 to a deployed function from an event loop: many calls in flight on one thread.

`httpx.AsyncClient` gets slower the more calls are in flight. Small calls have connections of our own (`polyserve.connection_async`); large
bodies and proxies go through aiohttp. One `LoopConnections` belongs to one event loop and is closed with it. The promise is that of
`polyserve.transport`: the same arguments, answers and errors.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING

from polyserve.connection_async import LoopConnection, connect
from polyserve.driver import HttpCall, HttpReply
from polyserve.transport import IDLE_SECONDS, Closed, Origin, format_head, proxy_of, route, tls_context

if TYPE_CHECKING:
    import aiohttp

__all__ = ["LoopConnections"]

_LIMIT = 1024
"""Connections of one loop; more calls than that wait their turn."""
_URLS = 512
_WHOLE_BYTES = 256 << 10
"""Bodies up to this size are written at once; larger ones in pieces, so that the loop comes round in between."""

# Connections that a fork brought into this process. Destroying them would reach into the parent's event loop through its shared descriptor.
_INHERITED: list[object] = []


class LoopConnections:
    """The connections of one event loop, made within it."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_LIMIT)
        self._idle: dict[Origin, deque[LoopConnection]] = {}
        self._open: set[LoopConnection] = set()
        self._targets: dict[str, tuple[Origin, str, str, str | None]] = {}
        self._session: list[aiohttp.ClientSession] = []
        self._life: AsyncGenerator[None] | None = None

    async def send(self, call: HttpCall, deadline: float) -> HttpReply:
        """Send a call and return its answer, whatever its status.

        Args:
            call: The call.
            deadline: When to give up, as `time.monotonic()` counts.

        Raises:
            ConnectionError: Nothing listens, or the connection ended before the answer was complete.
            TimeoutError: The deadline passed.
            ssl.SSLCertVerificationError: The server is not who it says.
            ValueError: The call is not one that HTTP can carry.
        """
        if self._life is None:
            # The loop closes the asynchronous generators that it has seen, before it ends: that is how the connections end with it.
            self._life = _living(self._open, self._session)
            await anext(self._life)
        origin, host, target, proxy = self._targets.get(call.url) or self._find(call.url)
        if proxy is not None or len(call.body) > _WHOLE_BYTES or call.method == "HEAD":
            return await self._send_through(call, origin, proxy, deadline)
        request = b"".join((format_head(call, host, target), call.body))
        if self._room.locked():
            async with asyncio.timeout(_left(deadline)):
                await self._room.acquire()
        else:
            await self._room.acquire()
        try:
            connection = self._take(origin)
            if connection is not None:
                # The server may have closed a connection that it had kept. Nothing was answered then, and a prediction may be asked
                # for twice.
                with suppress(Closed):
                    return await self._exchange(connection, origin, request, deadline)
            connection = await connect(origin, deadline)
            self._open.add(connection)
            return await self._exchange(connection, origin, request, deadline)
        finally:
            self._room.release()

    def _find(self, url: str) -> tuple[Origin, str, str, str | None]:
        if len(self._targets) >= _URLS:
            self._targets.clear()
        found = route(url)
        made = self._targets[url] = (*found, proxy_of(found[0]))
        return made

    def _take(self, origin: Origin) -> LoopConnection | None:
        """Return the connection used last that still is good."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.open and time.monotonic() - connection.idle_since < IDLE_SECONDS:
                return connection
            self._drop(connection)
        return None

    async def _exchange(self, connection: LoopConnection, origin: Origin, request: bytes, deadline: float) -> HttpReply:
        """Use a connection once; keep it for the next call if it is still good."""
        try:
            reply = await connection.exchange(request, deadline)
        except BaseException:
            self._open.discard(connection)
            raise
        if connection.open:
            idle = self._idle.get(origin)
            if idle is None:
                idle = self._idle[origin] = deque()
            idle.append(connection)
        else:
            self._drop(connection)
        return reply

    def _drop(self, connection: LoopConnection) -> None:
        connection.close()
        self._open.discard(connection)

    async def _send_through(self, call: HttpCall, origin: Origin, proxy: str | None, deadline: float) -> HttpReply:
        """Send what is large, or goes through a proxy."""
        import aiohttp
        from yarl import URL

        if not self._session:
            self._session.append(_session())
        left = _left(deadline)
        data: bytes | AsyncGenerator[memoryview]
        if len(call.body) <= _WHOLE_BYTES:
            data, headers = bytes(call.body), call.headers
        else:
            data, headers = _pieces(call.body), {**call.headers, "content-length": str(len(call.body))}
        try:
            async with self._session[0].request(
                call.method,
                # Already encoded, and signed as it is: not to be touched.
                URL(call.url, encoded=True),
                data=data,
                headers=headers,
                allow_redirects=False,
                proxy=proxy,
                ssl=tls_context() if origin.scheme == "https" else True,
                timeout=aiohttp.ClientTimeout(total=left),
            ) as response:
                payload = await response.read()
        except aiohttp.ClientConnectorCertificateError as error:
            raise error.certificate_error from error
        except TimeoutError:
            raise
        except aiohttp.ClientError as error:
            raise ConnectionError(_told(error)) from error
        answered = {name.lower(): value for name, value in response.headers.items()}
        return HttpReply(status=response.status, headers=answered, body=payload)

    async def close(self) -> None:
        """Close every connection; the next call opens new ones."""
        life, self._life = self._life, None
        self._idle.clear()
        if life is not None:
            await life.aclose()

    def close_from_outside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop close them, from whatever thread; a loop that does not run closes them when it shuts down."""
        if loop.is_running():
            loop.call_soon_threadsafe(self._close_soon, loop)

    def _close_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        task = loop.create_task(self.close())
        # The loop itself holds its tasks only weakly.
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    def forget(self) -> None:
        """Leave everything as it is, for good: it is another process's."""
        _INHERITED.extend((*self._open, *self._session, self._life))
        self._open, self._session, self._idle, self._life = set(), [], {}, None


_closing: set[asyncio.Task[None]] = set()


async def _pieces(body: bytes | memoryview) -> AsyncGenerator[memoryview]:
    view = memoryview(body).cast("B")
    for at in range(0, len(view), _WHOLE_BYTES):
        yield view[at : at + _WHOLE_BYTES]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline passed")
    return left


def _session() -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=_LIMIT, keepalive_timeout=IDLE_SECONDS, resolver=aiohttp.ThreadedResolver()
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
    )


def _told(error: aiohttp.ClientError) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer was cut off"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # asyncio puts the address where the reason should be.
        reason = os.strerror(cause.errno) if isinstance(cause, ConnectionError) and cause.errno else cause.strerror
        return f"cannot connect to {error.host}:{error.port}: {reason or cause}"
    return str(error) or type(error).__name__


async def _living(connections: set[LoopConnection], sessions: list[aiohttp.ClientSession]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        for connection in list(connections):
            connection.abort()
        connections.clear()
        while sessions:
            await sessions.pop().close()
        # A transport closes its socket on the loop's next round, one of TLS on that after it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
