"""One keep-alive connection: bytes in, exchanges in order, bytes out.

It keeps the limits that stop a slow or hostile caller from hurting the others. It owns its socket and is only told when the socket is
ready: an asyncio transport would cost more, and would hide the socket from the watchdog, which must answer while the loop is blocked.
Knows no model and no route.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from polyserve.runtime import http1
from polyserve.runtime.exchange import Exchange
from polyserve.runtime.http1 import Head, RequestReader, Stage
from polyserve.runtime.limits import Limits
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response
from polyserve.runtime.readiness import Readiness

RECEIVE_BYTES = 64 * 1024
# A body of at least this size is sent by itself: joining it to its head would copy it.
SEPARATE_BYTES = 64 * 1024


class Owner(Protocol):
    """What a connection asks of the server."""

    def admit(self, head: Head) -> RequestError | None:
        """Return why this caller is refused, or None."""

    def arrived(self, connection: Connection, head: Head, body: bytes | memoryview, now: float) -> None:
        """Take a whole request."""

    def refusal(self, error: RequestError) -> Response:
        """Return the answer to bytes that never became a request."""

    def dropped(self, exchanges: int) -> None:
        """Learn that so many requests will not be answered: their caller is gone."""

    def settled(self) -> None:
        """Learn that a connection has handed over all that had arrived, other than when the socket was ready."""

    def leaving(self) -> None:
        """Learn that a connection has sent all it will ever send."""

    def closed(self, connection: Connection) -> None:
        """Forget the connection."""


class Connection:
    """One accepted socket.

    Args:
        sock: Non-blocking.
        owner: The server.
        loop: Takes what is to be done a little later.
        readiness: Tells when the socket is ready.
        listener: Descriptor of the listening socket it came through.
        limits: What the caller is allowed.
        request_bytes: The largest body that is accepted.
    """

    __slots__ = (
        "_admitted",
        "_continue",
        "_held_bytes",
        "_input_open",
        "_limits",
        "_loop",
        "_out",
        "_out_bytes",
        "_owner",
        "_reader",
        "_readiness",
        "_reading",
        "_request_bytes",
        "_since",
        "_sock",
        "closed",
        "fileno",
        "lingering",
        "listener",
        "pending",
        "retiring",
    )

    def __init__(
        self,
        sock: socket.socket,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        readiness: Readiness,
        *,
        listener: int,
        limits: Limits,
        request_bytes: int,
    ) -> None:
        self._sock = sock
        self.fileno = sock.fileno()
        self.listener = listener
        self._owner = owner
        self._loop = loop
        self._readiness = readiness
        self._limits = limits
        self._request_bytes = request_bytes
        self._reader = RequestReader(request_bytes=request_bytes, head_bytes=limits.head_bytes)
        # Requests that were read and not yet written, oldest first: answers leave in this order whatever is ready.
        self.pending: deque[Exchange] = deque()
        self._held_bytes = 0
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0
        self._admitted: Head | None = None
        self._continue = False
        self._input_open = True
        self._reading = False
        self.retiring = False
        self.lingering = False
        self.closed = False
        # When the current phase began: idle, head, body, lingering, or the last progress of a write.
        self._since = time.perf_counter()
        self._read(True)

    # ---- in

    def _read(self, wanted: bool) -> None:
        if wanted is not self._reading:
            self._reading = wanted
            self._watch()

    def _watch(self) -> None:
        on_readable = self._on_readable if self._reading else None
        self._readiness.watch(self.fileno, on_readable, self.on_writable if self._out else None)

    def _on_readable(self) -> None:
        reader = self._reader
        room = reader.room() if reader.head is not None else None
        try:
            if room is None:
                data = self._sock.recv(RECEIVE_BYTES)
                count = len(data)
            else:
                data = b""
                count = self._sock.recv_into(room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        finally:
            # The reader may not grow the body while this view of it exists.
            if room is not None:
                room.release()
        if count == 0:
            self._on_end()
            return
        if self.lingering or not self._input_open:
            return
        now = time.perf_counter()
        if room is not None:
            reader.filled(count)
        else:
            if reader.idle:
                self._since = now
            reader.feed(data)
        self._pull(now)

    def _on_end(self) -> None:
        self._read(False)
        self._input_open = False
        if self.lingering or not self.pending:
            self.close()
        else:
            # A caller that has only shut its sending side still wants its answers.
            self.pending[-1].keep_alive = False

    def _pull(self, now: float) -> None:
        """Hand over every whole request that has arrived, as far as the limits let this connection run ahead."""
        reader = self._reader
        while self._input_open:
            if self._full():
                self._read(False)
                break
            try:
                found = reader.next()
            except RequestError as error:
                self.refuse(error)
                break
            head = reader.head if found is None else found[0]
            if head is not None and head is not self._admitted:
                # Asked as soon as the head is there, so that a stranger cannot make us hold a body.
                refused = self._owner.admit(head)
                if refused is not None:
                    self.refuse(refused)
                    break
                self._admitted = head
            if found is None:
                if head is not None and head.expects_continue and reader.received == 0:
                    self._continue = True
                break
            self._since = now
            self._continue = False
            self._held_bytes += len(found[1])
            if not found[0].keep_alive:
                self._input_open = False
            self._owner.arrived(self, found[0], found[1], now)
            if reader.idle:
                break
        self.flush()

    def _full(self) -> bool:
        return (
            len(self.pending) >= self._limits.pipelined
            or self._held_bytes > self._request_bytes
            or self._out_bytes > self._limits.write_bytes
        )

    def refuse(self, error: RequestError) -> None:
        """Answer after what is pending, then close: what follows on this connection has no meaning."""
        self._input_open = False
        exchange = Exchange(self, Request(path=""), None)
        self.pending.append(exchange)
        self.answer(exchange, self._owner.refusal(error))
        self.flush()

    # ---- out

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Give an exchange its answer; `flush` sends it when its turn comes."""
        if exchange.answer is not None:
            return
        self._held_bytes -= len(exchange.request.body)
        if self.retiring and exchange is self.pending[-1] and self._reader.stage is Stage.IDLE:
            exchange.keep_alive = False
            self._input_open = False
        body = response.body
        head = http1.format_head(
            response.status, response.headers, len(body), keep_alive=exchange.keep_alive, minor=exchange.minor
        )
        if exchange.without_body:
            exchange.answer = (head,)
        elif len(body) < SEPARATE_BYTES:
            exchange.answer = (head + body,)
        else:
            exchange.answer = (head, body)

    def flush(self) -> None:
        """Send, in order, every answer whose turn has come, with one call to the socket where they fit."""
        if self.pending and self.pending[0].answer is not None:
            last = self._send_answers()
            if self.closed:
                return
            if last:
                self._finish()
                return
            if not self._reading and self._input_open and not self._full():
                self._read(True)
                self._loop.call_soon(self._resume)
        if self._continue and not self.pending:
            # Only now: an interim answer may not overtake the answers before it.
            self._continue = False
            self._send(http1.CONTINUE)

    def _send_answers(self) -> bool:
        pending = self.pending
        if len(pending) == 1 and (answer := pending[0].answer) is not None and len(answer) == 1:
            # By far the most common case.
            exchange = pending.popleft()
            self._since = time.perf_counter()
            self._send(answer[0])
            return not exchange.keep_alive
        parts: list[bytes] = []
        last = False
        while pending and (answer := pending[0].answer) is not None:
            parts += answer
            last = not pending.popleft().keep_alive
            if last:
                break
        self._since = time.perf_counter()
        if len(parts) == 1:
            self._send(parts[0])
        elif sum(map(len, parts)) < self._limits.write_bytes:
            self._send(b"".join(parts))
        else:
            for part in parts:
                self._send(part)
        return last

    def _resume(self) -> None:
        if not self.closed and not self.lingering:
            self._pull(time.perf_counter())
            self._owner.settled()

    def _send(self, data: bytes) -> None:
        if self.closed:
            return
        sent = 0
        if not self._out:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
        self._out.append(memoryview(data)[sent:])
        self._out_bytes += len(data) - sent
        if len(self._out) == 1:
            self._watch()

    def on_writable(self) -> None:
        """Send what is left of the answers."""
        while self._out:
            data = self._out[0]
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            self._since = time.perf_counter()
            self._out_bytes -= sent
            if sent < len(data):
                self._out[0] = data[sent:]
                return
            self._out.popleft()
        self._watch()
        if self.lingering:
            self._shut()
        elif not self._input_open and not self.pending:
            self.close()
        elif not self._reading and self._input_open and not self._full():
            self._read(True)
            self._resume()

    @property
    def done(self) -> bool:
        """Whether it has sent all it will ever send."""
        return self.lingering and not self._out

    @property
    def unsent(self) -> int:
        """Bytes of answers that the socket has not taken yet."""
        return self._out_bytes

    # ---- the end

    def _finish(self) -> None:
        """Close after the last answer without losing it: a close with unread input would reset the connection under the answer."""
        self._drop_pending()
        self.lingering = True
        if not self._out:
            self._shut()

    def _shut(self) -> None:
        self._since = time.perf_counter()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._read(True)
        self._owner.leaving()

    def leave(self, hand_over: Callable[[socket.socket], bool]) -> bool:
        """Let another process go on with the connection, if nothing of it is under way here; the caller notices nothing.

        Args:
            hand_over: Takes a copy of the socket; returns whether it did. What the caller has sent meanwhile is read there.
        """
        under_way = (
            self.pending or self._out or self._continue or self.lingering or self._reader.stage is not Stage.IDLE
        )
        if self.closed or not self._input_open or under_way or not hand_over(self._sock):
            return False
        # Only this copy: never shut down.
        self.close()
        return True

    def retire(self, *, grace: float) -> None:
        """Close once nothing is under way: after the current answer, or when idle for `grace` seconds."""
        self.retiring = True
        idle = not self.pending and not self._out and self._reader.stage is Stage.IDLE
        if idle and not self.lingering and time.perf_counter() - self._since >= grace:
            self._input_open = False
            self._finish()

    def sweep(self, now: float) -> None:
        """Act upon the limits that have passed."""
        limits = self._limits
        age = now - self._since
        if self._out or self.lingering:
            if age > (limits.write_seconds if self._out else limits.linger_seconds):
                self.close()
        elif not self.pending:
            self._sweep_input(age)

    def _sweep_input(self, age: float) -> None:
        limits = self._limits
        stage = self._reader.stage
        if stage is Stage.IDLE:
            if age > (limits.grace_seconds if self.retiring else limits.idle_seconds):
                self._input_open = False
                self._finish()
        elif stage is Stage.HEAD:
            if age > limits.head_seconds:
                self._too_slow("head", limits.head_seconds)
        elif age > limits.body_seconds + self._reader.received / limits.body_rate:
            self._too_slow("body", limits.body_seconds)

    def _too_slow(self, part: str, seconds: float) -> None:
        message = f"the {part} of the request did not arrive within {seconds:g} s"
        self.refuse(RequestError(ErrorCode.DEADLINE_EXCEEDED, message, status=408))

    def _drop_pending(self) -> None:
        lost = 0
        for exchange in self.pending:
            if exchange.answer is None:
                exchange.answer = ()
                lost += 1
        self.pending.clear()
        if lost:
            self._owner.dropped(lost)

    def close(self) -> None:
        """Close the socket now."""
        if self.closed:
            return
        self.closed = True
        self._input_open = False
        self._reading = False
        self._out.clear()
        self._out_bytes = 0
        self._watch()
        self._drop_pending()
        self._sock.close()
        self._owner.closed(self)
