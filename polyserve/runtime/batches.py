"""What waits for the model, and the one batch that is with it.

A model that is quick is called on the event loop itself; a slow one on a worker thread, so that health checks and new requests are answered
and read meanwhile. A predict that does not return is given up: everybody gets an answer, from the watchdog's thread where the loop is
blocked, and the process ends.

Knows exchanges and times, and no HTTP; what a request means is the host's business.
"""

from __future__ import annotations

import asyncio
import math
import os
import queue
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from polyserve.runtime.connection import Connection
from polyserve.runtime.exchange import Exchange
from polyserve.runtime.limits import Limits
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response
from polyserve.runtime.refusals import Refusals, Revision
from polyserve.runtime.watchdog import Pulse, Watchdog

EXIT_STUCK = 70
"""Exit status of a process whose predict did not return in time: EX_SOFTWARE of sysexits.h."""

# How long a process that is about to end waits for its last answers to leave.
LAST_WORDS_SECONDS = 1.0


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


def exit_stuck() -> None:
    """End the process at once: a thread that does not return cannot be stopped."""
    os._exit(EXIT_STUCK)


class Batches:
    """The queue in front of one host.

    Args:
        host: Answers the requests.
        refusals: Makes the answers that need no host.
        pulse: Kept up to date for other threads and processes.
        connections: The open connections, which are written out before the process ends.
        limits: Of the queue, and of one batch.
        timeout: Seconds from a request's arrival to its answer, and for one predict.
        on_stuck: Called from the watchdog's thread once the callers of a predict that does not return have their answers.
        leave: Called before they get them: stops accepting, and parts with the connections that nothing is under way on.
    """

    def __init__(
        self,
        host: RequestHost,
        refusals: Refusals,
        pulse: Pulse,
        connections: Mapping[int, Connection],
        *,
        limits: Limits,
        timeout: float,
        on_stuck: Callable[[], None],
        leave: Callable[[], None],
    ) -> None:
        self._host = host
        self._refusals = refusals
        self._pulse = pulse
        self._connections = connections
        self._limits = limits
        self._timeout = timeout
        self._on_stuck = on_stuck
        self._leave = leave
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[Exchange] = deque()
        self._waiting_bytes = 0
        self._running: _Batch | None = None
        self._scheduled = False
        # Seconds the next predict will take, judged by the last ones. The first call of a model is slow more often than not.
        self._estimate = math.inf
        # While a predict runs on the loop's own thread, `_blocked` is set and whoever holds the lock owns every connection; at any other
        # time the loop owns them.
        self._ownership = threading.Lock()
        self._blocked: _Batch | None = None
        self._work: queue.SimpleQueue[_Batch | None] | None = None
        self._watchdog: Watchdog | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work on an event loop, under the eyes of a watchdog."""
        self._loop = loop
        self._watchdog = Watchdog(remaining=self._remaining, expired=self._expired, longest=min(1.0, self._timeout))
        self._watchdog.start()

    def stop(self) -> None:
        """End the threads, without waiting for them."""
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        if self._work is not None:
            self._work.put(None)
            self._work = None

    # ---- in

    def add(self, exchange: Exchange) -> None:
        """Queue a request for the model, or refuse it where too many wait."""
        limits = self._limits
        if len(self._waiting) >= limits.queue_requests or self._waiting_bytes > limits.queue_bytes:
            message = f"{len(self._waiting)} requests are waiting already: try again later, or raise max_instances"
            error = RequestError(ErrorCode.RESOURCE_EXHAUSTED, message)
            self.answer(exchange, self._refusals.answer(error, exchange.request))
        else:
            self._waiting.append(exchange)
            self._waiting_bytes += len(exchange.request.body)

    def work(self) -> None:
        """Hand what waits to the model, unless it is busy: it comes back for more by itself."""
        if not self._waiting or self._running is not None:
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

    # ---- the model

    def ask(self, requests: list[Request]) -> list[Response]:
        """Ask the host; whatever goes wrong in it is logged and becomes an answer."""
        try:
            if len(requests) == 1:
                return [self._host.handle(requests[0])]
            responses = self._host.handle_many(requests)
            if len(responses) != len(requests):
                raise RuntimeError(f"the host gave {len(responses)} answers to {len(requests)} requests")
        except Exception:
            return [self._failure(request) for request in requests]
        return responses

    def _failure(self, request: Request) -> Response:
        """Log the exception that is being handled, and return what its caller gets."""
        traceback.print_exc(file=sys.stderr)
        error = RequestError(ErrorCode.INTERNAL, "the service failed; its log has the reason")
        return self._refusals.answer(error, request)

    def _predict(self, batch: _Batch) -> None:
        # Measured where it runs: handing over to the worker and back does not make a model slow.
        started = time.perf_counter()
        batch.responses = self.ask(batch.requests)
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

    # ---- out

    def _finish(self, batch: _Batch) -> None:
        if batch is not self._running:
            return
        self._running = None
        # A slow one counts at once, quick ones win back slowly: one pause on the loop is enough to learn from.
        took = batch.took
        known = self._estimate
        self._estimate = took if took > known or known == math.inf else known + (took - known) * 0.2
        before: Connection | None = None
        for exchange, response in zip(batch.exchanges, batch.responses, strict=True):
            connection = exchange.connection
            # Answers leave as they are made, so that callers have theirs in hand while the next are made; those of one connection together.
            if before is not None and connection is not before:
                before.flush()
            before = connection
            if exchange.answer is None:
                self.answer(exchange, response)
        if before is not None:
            before.flush()
        pulse = self._pulse
        pulse.last_activity = time.monotonic()
        pulse.busy_since = 0.0
        pulse.publish()
        if self._waiting and not self._scheduled:
            assert self._loop is not None
            self._scheduled = True
            self._loop.call_soon(self._work_again)

    def _work_again(self) -> None:
        self._scheduled = False
        self.work()

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Give an exchange its answer, and count it."""
        try:
            exchange.connection.answer(exchange, response)
        except ValueError:
            exchange.connection.answer(exchange, self._failure(exchange.request))
        self._pulse.inflight -= 1
        self._pulse.completed += 1

    def _expire(self, exchange: Exchange) -> None:
        message = f"no answer within the timeout of {self._timeout:g} s: send fewer rows at once, or raise timeout"
        error = RequestError(ErrorCode.DEADLINE_EXCEEDED, message)
        self.answer(exchange, self._refusals.answer(error, exchange.request))

    # ---- time

    def sweep(self, now: float) -> float:
        """Answer every request whose time is over; return the seconds until the next one's is."""
        soonest = math.inf
        overdue: list[Exchange] = []
        running = [] if self._running is None else self._running.exchanges
        for exchange in (*running, *self._waiting):
            if exchange.answer is None:
                remaining = exchange.request.received + self._timeout - now
                if remaining > 0.0:
                    soonest = min(soonest, remaining)
                else:
                    overdue.append(exchange)
        for exchange in overdue:
            if exchange in running and exchange.connection.pending:
                # The process may be about to end: who sends another request here could lose it.
                exchange.connection.pending[-1].keep_alive = False
            self._expire(exchange)
            exchange.connection.flush()
        return soonest

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
        # First, so that nobody else comes to us.
        self._leave()
        for exchange in (*batch.exchanges, *self._waiting):
            if exchange.connection.pending:
                # Said with the answer: who sends another request here would lose it.
                exchange.connection.pending[-1].keep_alive = False
        for exchange in batch.exchanges:
            if exchange.answer is None:
                self._expire(exchange)
        message = "the instance is restarting after a predict that did not return: try again"
        for exchange in self._waiting:
            if exchange.answer is None:
                error = RequestError(ErrorCode.UNAVAILABLE, message)
                self.answer(exchange, self._refusals.answer(error, exchange.request))
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
