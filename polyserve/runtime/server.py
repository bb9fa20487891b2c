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
import socket
import time
from collections.abc import Callable

from polyserve.runtime import logs
from polyserve.runtime.acceptor import Acceptor
from polyserve.runtime.batches import EXIT_STUCK, Batches, RequestHost, exit_stuck
from polyserve.runtime.connection import Connection
from polyserve.runtime.exchange import Exchange
from polyserve.runtime.http1 import Head
from polyserve.runtime.limits import Limits
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response
from polyserve.runtime.readiness import Readiness
from polyserve.runtime.refusals import Refusals
from polyserve.runtime.watchdog import Pulse

__all__ = ["EXIT_STUCK", "RequestHost", "Server"]

SWEEP_SECONDS = 0.5

NO_REQUEST = Request(path="")


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
        hand_over: Takes a copy of an idle connection's socket that this server parts with, for another process to `take`; returns whether
            it did. Else, and without it, such connections are closed politely. May be called from the watchdog's thread.
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
        on_stuck: Callable[[], None] = exit_stuck,
        pulse: memoryview | None = None,
        limits: Limits | None = None,
        hand_over: Callable[[socket.socket], bool] | None = None,
        sink: logs.Sink | None = None,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        self._refusals = Refusals(host, sink or logs.standard_output)
        self._token = None if token is None else token.encode()
        self._timeout = timeout
        self._request_bytes = request_bytes
        self._limits = limits or Limits()
        self._pulse = Pulse(pulse)
        self._hand_over = hand_over
        self._connections: dict[int, Connection] = {}
        self._batches = Batches(
            host,
            self._refusals,
            self._pulse,
            self._connections,
            limits=self._limits,
            timeout=timeout,
            on_stuck=on_stuck,
            leave=self._leave,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._acceptor: Acceptor | None = None
        self._readiness: Readiness | None = None
        self._sweeping: asyncio.TimerHandle | None = None
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
        """Stop accepting on a socket and close this copy of it; part with its connections, after their current answers.

        Returns:
            How many connections are leaving.

        Raises:
            KeyError: The socket was not added, or was removed before.
        """
        number = self._start().remove(sock)
        leaving = [connection for connection in self._connections.values() if connection.listener == number]
        for connection in leaving:
            # The descriptor's number may be given to the next listener.
            connection.listener = -1
            self._part(connection)
        return len(leaving)

    def take(self, sock: socket.socket, listener: socket.socket | None = None) -> None:
        """Go on with a connection that another process parts with; it is ours from now on.

        Args:
            sock: Connected, and nothing of a request has been read from it.
            listener: The listener of this server that it belongs to.
        """
        self._start()
        sock.setblocking(False)
        self._accepted(sock, -1 if listener is None else listener.fileno())

    def _part(self, connection: Connection) -> None:
        if self._hand_over is None or not connection.leave(self._hand_over):
            connection.retire(grace=self._limits.grace_seconds)

    def _leave(self) -> None:
        """Stop accepting, and part with whatever nothing is under way on: this process is about to end, and another takes it."""
        if self._hand_over is None:
            return
        if self._acceptor is not None:
            for sock in self._acceptor.listeners:
                self._acceptor.remove(sock)
        for connection in list(self._connections.values()):
            connection.leave(self._hand_over)

    def rebalance(self, fraction: float) -> int:
        """Part with a share of the keep-alive connections, so that their callers spread over the processes on the same socket.

        Args:
            fraction: Which share, from 0.0 to 1.0.

        Returns:
            How many connections are leaving.
        """
        staying = [connection for connection in self._connections.values() if not connection.retiring]
        leaving = staying[: math.ceil(len(staying) * min(max(fraction, 0.0), 1.0))]
        for connection in leaving:
            self._part(connection)
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
        self._batches.stop()
        if self._readiness is not None:
            self._readiness.close()
            self._readiness = None
        self._pulse.busy_since = 0.0
        self._pulse.publish()
        self._pulse.detach()

    def _start(self) -> Acceptor:
        if self._acceptor is None:
            self._loop = asyncio.get_running_loop()
            self._acceptor = Acceptor(self._loop, self._accepted, has_room=self._has_room, at_once=self._limits.accepts)
            self._readiness = Readiness(self._loop, self.settled)
            self._batches.start(self._loop)
        return self._acceptor

    def _accepted(self, sock: socket.socket, listener: int) -> None:
        assert self._loop is not None
        assert self._readiness is not None
        connection = Connection(
            sock,
            self,
            self._loop,
            self._readiness,
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
        if method == "POST":
            self._batches.add(exchange)
        else:
            self._batches.answer(exchange, self._batches.ask([request])[0])

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
        """Learn that all that had arrived was handed over, and see to it that the model gets to work."""
        self._batches.work()

    # ---- time

    def _sweep(self) -> None:
        """Act upon every limit that has passed, then sleep until the next one can."""
        assert self._loop is not None
        now = time.perf_counter()
        pause = min(SWEEP_SECONDS, self._timeout, self._batches.sweep(now))
        for connection in list(self._connections.values()):
            connection.sweep(now)
        self._sweeping = self._loop.call_later(pause, self._sweep) if self._connections else None
