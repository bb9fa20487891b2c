"""HTTP/1.1 to a deployed function from an event loop: aiohttp, many calls in flight on one thread.

`httpx.AsyncClient` gets slower the more calls are in flight; aiohttp does not. One `LoopConnections` belongs to one event loop and is
closed with it. The promise is that of `polyserve.transport`: the same arguments, answers and errors.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncGenerator

import aiohttp
from yarl import URL

from polyserve.driver import HttpCall, HttpReply
from polyserve.transport import IDLE_SECONDS, proxy_of, route, tls_context

__all__ = ["LoopConnections"]

_LIMIT = 1024
"""Connections of one loop; more calls than that wait their turn."""
_URLS = 512
_WHOLE_BYTES = 256 << 10
"""Bodies up to this size are written at once; larger ones in pieces, so that the loop comes round in between."""

# Sessions that a fork brought into this process. Destroying them would reach into the parent's event loop through its shared descriptor.
_INHERITED: list[object] = []


class LoopConnections:
    """The connections of one event loop, made within it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._life: AsyncGenerator[None] | None = None
        self._urls: dict[str, tuple[URL, str | None, ssl.SSLContext | bool]] = {}

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
        if self._session is None:
            await self._open()
        assert self._session is not None
        url, proxy, verify = self._urls.get(call.url) or self._route(call.url)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed")
        data: bytes | AsyncGenerator[memoryview]
        if len(call.body) <= _WHOLE_BYTES:
            data, headers = bytes(call.body), call.headers
        else:
            data, headers = _pieces(call.body), {**call.headers, "content-length": str(len(call.body))}
        try:
            async with self._session.request(
                call.method,
                url,
                data=data,
                headers=headers,
                allow_redirects=False,
                proxy=proxy,
                ssl=verify,
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

    def _route(self, text: str) -> tuple[URL, str | None, ssl.SSLContext | bool]:
        if len(self._urls) >= _URLS:
            self._urls.clear()
        origin, _, _ = route(text)
        # Already encoded, and signed as it is: not to be touched.
        found = self._urls[text] = (
            URL(text, encoded=True),
            proxy_of(origin),
            tls_context() if origin.scheme == "https" else True,
        )
        return found

    async def _open(self) -> None:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_LIMIT, keepalive_timeout=IDLE_SECONDS, resolver=aiohttp.ThreadedResolver()
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        )
        self._session = session
        # The loop closes the asynchronous generators that it has seen, before it ends: that is how the connections end with it.
        self._life = _living(session)
        await anext(self._life)

    async def close(self) -> None:
        """Close every connection; the next call opens new ones."""
        life, self._life, self._session = self._life, None, None
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
        _INHERITED.extend((self._session, self._life))
        self._session = self._life = None


_closing: set[asyncio.Task[None]] = set()


async def _pieces(body: bytes | memoryview) -> AsyncGenerator[memoryview]:
    view = memoryview(body).cast("B")
    for at in range(0, len(view), _WHOLE_BYTES):
        yield view[at : at + _WHOLE_BYTES]


def _told(error: aiohttp.ClientError) -> str:
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


async def _living(session: aiohttp.ClientSession) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await session.close()
        # A transport closes its socket on the loop's next round.
        await asyncio.sleep(0)
