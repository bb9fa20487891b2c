"""The HTTP/1.1 server that every local instance runs: many callers, one model, answered in batches that nobody waits for.

Requests that have arrived by the time the event loop comes round go to the host together; there is no timer, so one caller alone pays
nothing. A model that is quick is called on the loop itself; a slow one on a worker thread, so that health checks and new requests are
answered and read meanwhile. A watchdog thread answers for a predict that overruns its time, whatever the loop is doing.

It knows sockets and times, and hands `Request`s to a host; what a route means is the host's business. Measured in the project's benchmarks
beside the servers that people deploy models with today.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import os
import queue
import select
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from polyserve.runtime import logs
from polyserve.runtime.acceptor import Acceptor
from polyserve.runtime.connection import Connection, Exchange, Limits
from polyserve.runtime.http1 import Head
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response
from polyserve.runtime.refusals import Refusals, Revision
from polyserve.runtime.watchdog import Pulse, Watchdog

EXIT_STUCK = 70
"""Exit status of a process whose predict did not return in time: EX_SOFTWARE of sysexits.h."""

# How long a process that is about to end waits for its last answers to leave.
LAST_WORDS_SECONDS = 1.0
SWEEP_SECONDS = 0.5

NO_REQUEST = Request(path="")


class RequestHost(Revision, Protocol):
    """What the server needs of a host."""

    def handle(self, request: Request, /) -> Response:
        """Answer one request; callable from any thread."""

    def handle_many(self, requests: Sequence[Request], /) -> list[Response]:
        """Answer several requests, in order, together where that is faster."""


class _Batch:
    """Exchanges that are with the model."""

    __slots__ = ("exchanges", "expired", "requests", "responses", "started", "took")

    def __init__(self, exchanges: list[Exchange]) -> None:
        self.exchanges = exchanges
        self.requests = [exchange.request for exchange in exchanges]
        self.responses: list[Response] = []
        self.started = time.perf_counter()
        self.took = 0.0
        self.expired = False


def _exit_stuck() -> None:
    os._exit(EXIT_STUCK)


class Server:
    """Serves one host on listening sockets.

    Build it anywhere, then call its methods on the thread of the event loop that serves it; the counters may be read from any thread.

    Args:
        host: Answers the requests.
        token: What callers must send as `authorization: Bearer`; None lets everybody in.
        timeout: Seconds from a request's arrival to its answer, the time in the queue included. Beyond them the caller gets 504; a
            predict that itself takes longer ends in `on_stuck`.
        request_bytes: The largest body that is accepted.
        on_stuck: Called from the watchdog's thread once the callers of a predict that does not return have their answers. The default
            ends the process with `EXIT_STUCK`, because a thread cannot be stopped.
        pulse: 32 writable bytes that are kept up to date for other processes, laid out as `watchdog.PULSE`.
        limits: What callers are allowed.
        sink: Takes the log's lines about requests that never reach the host; standard output unless given.

    Raises:
        ValueError: The timeout is not positive.
    """

    def __init__(
        self,
        host: RequestHost,
        *,
        token: str | None,
        timeout: float,
        request_bytes: int = 64 * 1024 * 1024,
        on_stuck: Callable[[], None] = _exit_stuck,
        pulse: memoryview | None = None,
        limits: Limits | None = None,
        sink: logs.Sink | None = None,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        self._host = host
        self._refusals = Refusals(host, sink or logs.standard_output)
        self._token = None if token is None else token.encode()
        self._timeout = timeout
        self._request_bytes = request_bytes
        self._on_stuck = on_stuck
        self._limits = limits or Limits()
        self._pulse = Pulse(pulse)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._acceptor: Acceptor | None = None
        self._connections: dict[int, Connection] = {}
        self._waiting: deque[Exchange] = deque()
        self._waiting_bytes = 0
        self._running: _Batch | None = None
        self._scheduled = False
        self._sweeping: asyncio.TimerHandle | None = None
        # Seconds the next predict will take, judged by the last ones. The first call of a model is slow more often than not.
        self._estimate = math.inf
        # While a predict runs on the loop's own thread, `_blocked` is set and whoever holds the lock owns every connection; at any other
        # time the loop owns them.
        self._ownership = threading.Lock()
        self._blocked: _Batch | None = None
        self._work: queue.SimpleQueue[_Batch | None] | None = None
        self._watchdog: Watchdog | None = None
        self._empty: asyncio.Event | None = None

    # ---- counters

    @property
    def inflight(self) -> int:
        """Requests that were read and not answered yet."""
        return self._pulse.inflight

    @property
    def connections(self) -> int:
        """Open connections."""
        return self._pulse.connections

    @property
    def completed(self) -> int:
        """Answers given since the start."""
        return self._pulse.completed

    @property
    def busy_since(self) -> float:
        """`time.monotonic()` when the predict that is running began; 0.0 when none is."""
        return self._pulse.busy_since

    @property
    def last_activity(self) -> float:
        """`time.monotonic()` of the last request or answer."""
        return self._pulse.last_activity

    # ---- listeners

    def add_listener(self, sock: socket.socket) -> None:
        """Accept on a bound, listening socket, which other processes may share; the server owns this copy of it from now on.

        Must be called on a running event loop.
        """
        self._start().add(sock)

    def remove_listener(self, sock: socket.socket) -> int:
        """Stop accepting on a socket and close this copy of it, and its connections after their current answers.

        Returns:
            How many connections are closing.

        Raises:
            KeyError: The socket was not added, or was removed before.
        """
        number = self._start().remove(sock)
        leaving = [connection for connection in self._connections.values() if connection.listener == number]
        for connection in leaving:
            # The descriptor's number may be given to the next listener.
            connection.listener = -1
            connection.retire(grace=self._limits.grace_seconds)
        return len(leaving)

    def rebalance(self, fraction: float) -> int:
        """Close a share of the keep-alive connections politely, so that their callers spread over the processes on the same socket.

        Args:
            fraction: Which share, from 0.0 to 1.0.

        Returns:
            How many connections are closing.
        """
        staying = [connection for connection in self._connections.values() if not connection.retiring]
        leaving = staying[: math.ceil(len(staying) * min(max(fraction, 0.0), 1.0))]
        for connection in leaving:
            connection.retire(grace=self._limits.grace_seconds)
        return len(leaving)

    async def drain(self, limit: float = 30.0) -> None:
        """Stop accepting, answer everything that was read, close every connection, then stop.

        Args:
            limit: Seconds after which connections are closed whatever they wait for.
        """
        self._empty = asyncio.Event()
        if self._acceptor is not None:
            for sock in self._acceptor.listeners:
                self.remove_listener(sock)
        for connection in list(self._connections.values()):
            connection.retire(grace=0.0)
        self._check_empty()
        if not self._empty.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), limit)
        self.close()

    def close(self) -> None:
        """Stop at once; requests without an answer lose their connection."""
        if self._acceptor is not None:
            for sock in self._acceptor.listeners:
                self._acceptor.remove(sock)
            self._acceptor = None
        for connection in list(self._connections.values()):
            connection.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        if self._work is not None:
            self._work.put(None)
            self._work = None
        self._pulse.busy_since = 0.0
        self._pulse.publish()
        self._pulse.detach()

    def _start(self) -> Acceptor:
        if self._acceptor is None:
            self._loop = asyncio.get_running_loop()
            self._acceptor = Acceptor(self._loop, self._accepted, has_room=self._has_room, at_once=self._limits.accepts)
            self._watchdog = Watchdog(remaining=self._remaining, expired=self._expired, longest=min(1.0, self._timeout))
            self._watchdog.start()
        return self._acceptor

    def _accepted(self, sock: socket.socket, listener: int) -> None:
        assert self._loop is not None
        connection = Connection(
            sock,
            self,
            self._loop,
            listener=listener,
            limits=self._limits,
            request_bytes=self._request_bytes,
        )
        self._connections[connection.fileno] = connection
        self._pulse.connections = len(self._connections)
        self._pulse.publish()
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(min(SWEEP_SECONDS, self._timeout), self._sweep)

    def _has_room(self) -> bool:
        return len(self._connections) < self._limits.connections

    # ---- what connections report

    def admit(self, head: Head) -> RequestError | None:
        """Return why a caller is refused, or None: its bearer token is compared in constant time."""
        if self._token is None:
            return None
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        # Encoded as it was received, since compare_digest takes text in ASCII only.
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token):
            return None
        message = "this deployment needs its token: send the header `authorization: Bearer <token>`"
        return RequestError(ErrorCode.UNAUTHENTICATED, message)

    def arrived(self, connection: Connection, head: Head, body: bytes | memoryview, now: float) -> None:
        """Take a whole request: answer what needs no model, queue what does."""
        # To the host HEAD is a GET; the connection leaves out the body.
        method = "GET" if head.method == "HEAD" else head.method
        request = Request(method=method, path=head.path, headers=head.headers, body=body, received=now)
        exchange = Exchange(connection, request, head)
        connection.pending.append(exchange)
        self._pulse.inflight += 1
        if method != "POST":
            self._answer(exchange, self._ask([request])[0])
        elif len(self._waiting) >= self._limits.queue_requests or self._waiting_bytes > self._limits.queue_bytes:
            message = f"{len(self._waiting)} requests are waiting already: try again later, or raise max_instances"
            error = RequestError(ErrorCode.RESOURCE_EXHAUSTED, message)
            self._answer(exchange, self._refusals.answer(error, request))
        else:
            self._waiting.append(exchange)
            self._waiting_bytes += len(body)

    def refusal(self, error: RequestError) -> Response:
        """Return the answer to bytes that never became a request."""
        self._pulse.completed += 1
        return self._refusals.answer(error, NO_REQUEST)

    def dropped(self, exchanges: int) -> None:
        """Learn that so many requests will not be answered: their caller is gone."""
        self._pulse.inflight -= exchanges

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.pop(connection.fileno, None)
        self._pulse.connections = len(self._connections)
        self._pulse.publish()
        self._check_empty()

    def leaving(self) -> None:
        """Learn that a connection has sent all it will ever send."""
        self._check_empty()

    def _check_empty(self) -> None:
        if self._empty is not None and all(connection.done for connection in self._connections.values()):
            self._empty.set()

    def settled(self) -> None:
        """Learn that a connection has handed over all that had arrived, and see to it that the model gets to work."""
        if self._waiting and self._running is None and not self._scheduled:
            if len(self._connections) == 1:
                # Nobody else is there to join in.
                self._dispatch()
            else:
                self._schedule()

    # ---- batches

    def _schedule(self) -> None:
        assert self._loop is not None
        self._scheduled = True
        # One turn of the loop: whatever is in the sockets by then joins the batch.
        self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        if self._running is not None:
            return
        exchanges, size = self._next_batch()
        if not exchanges:
            return
        batch = self._running = _Batch(exchanges)
        pulse = self._pulse
        pulse.busy_since = pulse.last_activity = time.monotonic()
        pulse.publish()
        if self._estimate > self._limits.inline_seconds or size > self._limits.inline_bytes:
            self._worker().put(batch)
            return
        self._blocked = batch
        try:
            self._predict(batch)
        finally:
            with self._ownership:
                self._blocked = None
        self._finish(batch)

    def _next_batch(self) -> tuple[list[Exchange], int]:
        waiting = self._waiting
        limits = self._limits
        exchanges: list[Exchange] = []
        size = 0
        oldest = time.perf_counter() - self._timeout
        while waiting and len(exchanges) < limits.batch_requests:
            exchange = waiting[0]
            length = len(exchange.request.body)
            if exchanges and size + length > limits.batch_bytes:
                break
            waiting.popleft()
            self._waiting_bytes -= length
            # Those whose caller has gone have an answer already; those whose time is over get it here, without troubling the model.
            if exchange.answer is None:
                if exchange.request.received <= oldest:
                    self._expire(exchange)
                else:
                    exchanges.append(exchange)
                    size += length
        return exchanges, size

    def _ask(self, requests: list[Request]) -> list[Response]:
        """Ask the host; whatever goes wrong in it is logged and becomes an answer."""
        try:
            if len(requests) == 1:
                return [self._host.handle(requests[0])]
            responses = self._host.handle_many(requests)
            if len(responses) != len(requests):
                raise RuntimeError(f"the host gave {len(responses)} answers to {len(requests)} requests")
        except Exception:
            traceback.print_exc(file=sys.stderr)
            error = RequestError(ErrorCode.INTERNAL, "the service failed; its log has the reason")
            return [self._refusals.answer(error, request) for request in requests]
        return responses

    def _predict(self, batch: _Batch) -> None:
        # Measured where it runs: handing over to the worker and back does not make a model slow.
        started = time.perf_counter()
        batch.responses = self._ask(batch.requests)
        batch.took = time.perf_counter() - started

    def _worker(self) -> queue.SimpleQueue[_Batch | None]:
        if self._work is None:
            self._work = queue.SimpleQueue()
            threading.Thread(target=self._work_off, args=(self._work,), name="polyserve-predict", daemon=True).start()
        return self._work

    def _work_off(self, work: queue.SimpleQueue[_Batch | None]) -> None:
        assert self._loop is not None
        while (batch := work.get()) is not None:
            self._predict(batch)
            try:
                self._loop.call_soon_threadsafe(self._finish, batch)
            except RuntimeError:
                # The loop has closed, and with it everybody who waited.
                return

    def _finish(self, batch: _Batch) -> None:
        if batch is not self._running:
            return
        self._running = None
        # A slow one counts at once, quick ones win back slowly: one pause on the loop is enough to learn from.
        took = batch.took
        known = self._estimate
        self._estimate = took if took > known or known == math.inf else known + (took - known) * 0.2
        for exchange, response in zip(batch.exchanges, batch.responses, strict=True):
            if exchange.answer is None:
                self._answer(exchange, response)
        for exchange in batch.exchanges:
            exchange.connection.flush()
        pulse = self._pulse
        pulse.last_activity = time.monotonic()
        pulse.busy_since = 0.0
        pulse.publish()
        if self._waiting and not self._scheduled:
            self._schedule()

    # ---- answers

    def _answer(self, exchange: Exchange, response: Response) -> None:
        try:
            exchange.connection.answer(exchange, response)
        except ValueError:
            traceback.print_exc(file=sys.stderr)
            error = RequestError(ErrorCode.INTERNAL, "the service failed; its log has the reason")
            exchange.connection.answer(exchange, self._refusals.answer(error, exchange.request))
        self._pulse.inflight -= 1
        self._pulse.completed += 1

    def _expire(self, exchange: Exchange) -> None:
        message = f"no answer within the timeout of {self._timeout:g} s: send fewer rows at once, or raise timeout"
        error = RequestError(ErrorCode.DEADLINE_EXCEEDED, message)
        self._answer(exchange, self._refusals.answer(error, exchange.request))

    # ---- time

    def _sweep(self) -> None:
        """Act upon every limit that has passed, then sleep until the next one can."""
        assert self._loop is not None
        now = time.perf_counter()
        pause = min(SWEEP_SECONDS, self._timeout)
        overdue: list[Exchange] = []
        running = [] if self._running is None else self._running.exchanges
        for exchange in (*running, *self._waiting):
            if exchange.answer is None:
                remaining = exchange.request.received + self._timeout - now
                if remaining > 0.0:
                    pause = min(pause, remaining)
                else:
                    overdue.append(exchange)
        for exchange in overdue:
            self._expire(exchange)
            exchange.connection.flush()
        for connection in list(self._connections.values()):
            connection.sweep(now)
        self._sweeping = self._loop.call_later(pause, self._sweep) if self._connections else None

    # ---- called from the watchdog's thread

    def _remaining(self) -> float:
        batch = self._running
        return math.inf if batch is None or batch.expired else batch.started + self._timeout - time.perf_counter()

    def _expired(self) -> None:
        batch = self._running
        if batch is None or batch.expired:
            return
        batch.expired = True
        with self._ownership:
            blocked = self._blocked is batch
            if blocked:
                # The loop is inside this predict and cannot come out of it before the lock is free: the connections are ours.
                self._give_up(batch)
                self._write_out()
        if not blocked:
            assert self._loop is not None
            written = threading.Event()
            try:
                self._loop.call_soon_threadsafe(self._give_up_on_loop, batch, written)
                written.wait(2 * LAST_WORDS_SECONDS)
            except RuntimeError:
                return
            if batch.responses:
                # It came back after all, in the last moment.
                return
        self._on_stuck()

    def _give_up_on_loop(self, batch: _Batch, written: threading.Event) -> None:
        if self._running is batch and not batch.responses:
            self._give_up(batch)
            self._write_out()
        written.set()

    def _give_up(self, batch: _Batch) -> None:
        """Answer everybody, because this process is about to end: the callers of the stuck predict, and those who only waited for it."""
        for exchange in batch.exchanges:
            if exchange.answer is None:
                self._expire(exchange)
        message = "the instance is restarting after a predict that did not return: try again"
        for exchange in self._waiting:
            if exchange.answer is None:
                error = RequestError(ErrorCode.UNAVAILABLE, message)
                self._answer(exchange, self._refusals.answer(error, exchange.request))
        for exchange in (*batch.exchanges, *self._waiting):
            exchange.connection.flush()

    def _write_out(self) -> None:
        """Wait, for a limited time, until the sockets have taken the answers."""
        until = time.perf_counter() + LAST_WORDS_SECONDS
        while unsent := {number: one for number, one in self._connections.items() if one.unsent}:
            left = until - time.perf_counter()
            if left <= 0.0:
                return
            # Not select(), which knows no descriptor above 1023.
            poll = select.poll()
            for number in unsent:
                poll.register(number, select.POLLOUT)
            for number, _ in poll.poll(left * 1000):
                unsent[number].on_writable()
