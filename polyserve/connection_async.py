"""One connection of HTTP/1.1 on an event loop: one call at a time, over and over, with nothing between it and the socket.

What a small call costs here is what many calls in flight cost: a general client spends four times as much on each. Requests go whole;
answers may come in any form that HTTP/1.1 has. The promise is that of `polyserve.transport`, whose rules for heads these are.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Generator, Sequence
from typing import cast

from aiohappyeyeballs import AddrInfoType, start_connection

from polyserve.driver import HttpReply
from polyserve.transport import Closed, Origin, parse_head, tls_context

__all__ = ["LoopConnection", "connect"]

_HEAD_BYTES = 64 << 10
_HEAD_START_SECONDS = 0.25
"""What an address has before the next one is tried beside it, as RFC 8305 recommends."""
# What is waited for: more data, which is empty at the end of the connection.
_Reading = Generator[None, bytes, HttpReply]


class LoopConnection(asyncio.Protocol):
    """One connection. Made by `connect`, used by one task at a time.

    Attributes:
        open: Whether it can take another call.
        idle_since: When its last call ended, as `time.monotonic()` counts.
    """

    __slots__ = ("_answer", "_loop", "_reading", "_transport", "idle_since", "open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open = False
        self.idle_since = 0.0
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[HttpReply] | None = None
        self._reading: _Reading | None = None

    async def exchange(self, request: bytes, deadline: float) -> HttpReply:
        """Send a whole request and return its answer.

        Raises:
            Closed: The other side closed the connection before the first byte of its answer.
            ConnectionError: The connection ended before the answer was complete, or the answer is none of HTTP/1.1.
            TimeoutError: The deadline passed.
        """
        transport = self._transport
        if transport is None or not self.open:
            raise Closed("the server closed the connection without an answer")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed")
        answer: asyncio.Future[HttpReply] = self._loop.create_future()
        self._answer = answer
        timer = self._loop.call_later(left, self._expire)
        try:
            transport.write(request)
            return await answer
        except BaseException:
            # Also where its task was cancelled: whoever used it next would read the rest of this answer.
            self.abort()
            raise
        finally:
            timer.cancel()
            self._answer = self._reading = None
            self.idle_since = time.monotonic()

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()
        self._fail(ConnectionError("the connection was closed"))

    def close(self) -> None:
        """Close it; what is to be sent still goes out."""
        self.open = False
        if self._transport is not None:
            self._transport.close()

    # --- what the loop calls ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Read on in the answer; nearly every one comes in one piece."""
        if self._answer is None or self._answer.done():
            # Said unasked: nobody knows what of.
            self.close()
            return
        try:
            if self._reading is None:
                reply = self._whole(data)
                if reply is not None:
                    self._answer.set_result(reply)
                    return
                self._reading = self._piecewise()
                next(self._reading)
            self._reading.send(data)
        except StopIteration as ended:
            self._answer.set_result(ended.value)
        except ConnectionError as error:
            self.open = False
            self._fail(error)

    def eof_received(self) -> bool:
        """Note that nothing more comes; the connection closes by itself."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Note that it is gone, and tell who waits."""
        self.open = False
        answer = self._answer
        if answer is None or answer.done():
            return
        if self._reading is None:
            self._fail(Closed(str(error) if error else "the server closed the connection without an answer"))
            return
        if error is not None:
            self._fail(ConnectionError(f"the connection broke: {error}"))
            return
        try:
            self._reading.send(b"")
        except StopIteration as ended:
            answer.set_result(ended.value)
        except ConnectionError as cut:
            self._fail(cut)

    def _expire(self) -> None:
        self._fail(TimeoutError("the deadline passed"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # --- reading ----------------------------------------------------------------------------------------------------------

    def _whole(self, data: bytes) -> HttpReply | None:
        """Return the answer that a piece of data is, or `None` where it is not one whole answer of known length."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        status, modern, headers = parse_head(data[:end])
        length = headers.get("content-length", "")
        if (
            status < 200
            or status in {204, 304}
            or "transfer-encoding" in headers
            or not (length.isascii() and length.isdigit())
            or int(length) != len(data) - end - 4
        ):
            return None
        self._keep(modern, headers.get("connection", ""))
        return HttpReply(status=status, headers=headers, body=data[end + 4 :])

    def _keep(self, modern: bool, connection: str) -> None:
        connection = connection.lower()
        if "close" in connection or not (modern or "keep-alive" in connection):
            self.open = False

    def _piecewise(self) -> _Reading:
        """Read an answer that comes in pieces: is sent data, ends with the reply."""
        buffer = bytearray((yield))
        while True:
            while (end := buffer.find(b"\r\n\r\n")) < 0:
                if len(buffer) > _HEAD_BYTES:
                    raise ConnectionError(f"the head of the answer is over {_HEAD_BYTES} bytes")
                buffer += yield from _more("in its head")
            status, modern, headers = parse_head(bytes(buffer[:end]))
            del buffer[: end + 4]
            if status >= 200:
                break
            # 100 Continue and 103 Early Hints announce the real answer.
            if not buffer:
                buffer += yield from _more("after an interim answer")
        self._keep(modern, headers.get("connection", ""))
        body = b""
        if status not in {204, 304}:
            if "chunked" in headers.get("transfer-encoding", "").lower():
                body = yield from _chunked(buffer)
            elif "content-length" in headers:
                body = yield from _counted(buffer, headers["content-length"])
            else:
                self.open = False
                while data := (yield):
                    buffer += data
                body = bytes(buffer)
        return HttpReply(status=status, headers=headers, body=body)


def _more(where: str) -> Generator[None, bytes, bytes]:
    data = yield
    if not data:
        raise ConnectionResetError(f"the answer was cut off {where}")
    return data


def _counted(buffer: bytearray, text: str) -> Generator[None, bytes, bytes]:
    if not text.isascii() or not text.isdigit():
        raise ConnectionError(f"the answer has content-length {text!r}")
    length = int(text)
    while len(buffer) < length:
        buffer += yield from _more(f"after {len(buffer)} of {length} bytes")
    if len(buffer) > length:
        raise ConnectionError(f"the answer is longer than its content-length of {length} bytes")
    return bytes(buffer)


def _chunked(buffer: bytearray) -> Generator[None, bytes, bytes]:
    pieces: list[bytes] = []

    def line() -> Generator[None, bytes, bytes]:
        while (end := buffer.find(b"\r\n")) < 0:
            if len(buffer) > _HEAD_BYTES:
                raise ConnectionError("the answer has a malformed chunk")
            buffer.extend((yield from _more("between two chunks")))
        text = bytes(buffer[:end])
        del buffer[: end + 2]
        return text

    while True:
        text = (yield from line()).partition(b";")[0].strip()
        try:
            size = int(text, 16)
        except ValueError:
            raise ConnectionError(f"the answer has a chunk of size {text[:20]!r}") from None
        if size == 0:
            while (yield from line()):
                pass
            return b"".join(pieces)
        while len(buffer) < size + 2:
            buffer.extend((yield from _more("within a chunk")))
        pieces.append(bytes(buffer[:size]))
        del buffer[: size + 2]


async def connect(origin: Origin, deadline: float) -> LoopConnection:
    """Open a connection from the running loop.

    Raises:
        ConnectionError: Nothing listens there.
        TimeoutError: The deadline passed.
        ssl.SSLCertVerificationError: The server is not who it says.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline passed")
    loop = asyncio.get_running_loop()
    secure = origin.scheme == "https"
    try:
        async with asyncio.timeout(left):
            # `loop.create_connection` can do both by itself, but where it is cancelled in the moment in which a connection is made, that
            # socket stays open until the garbage is collected.
            connected = await start_connection(await _addresses(loop, origin), happy_eyeballs_delay=_HEAD_START_SECONDS)
            _, connection = await loop.create_connection(
                lambda: LoopConnection(loop),
                sock=connected,
                ssl=tls_context() if secure else None,
                server_hostname=origin.host if secure else None,
            )
    except (TimeoutError, ssl.SSLCertVerificationError):
        raise
    except OSError as error:
        raise ConnectionError(f"cannot connect to {origin.host}:{origin.port}: {_reason(error)}") from error
    return connection


async def _addresses(loop: asyncio.AbstractEventLoop, origin: Origin) -> Sequence[AddrInfoType]:
    try:
        # An address asks nobody, and needs no thread to wait in.
        return socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)


def _reason(error: OSError) -> str:
    # asyncio puts the address where the reason should be.
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return error.strerror or str(error)
