"""Seen from outside the event loop: the pulse that other processes read, and the thread that ends a predict which does not return.

Knows nothing of HTTP.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

PULSE = struct.Struct("@ddIIQ")
"""busy since (`time.monotonic()`, 0.0 when idle), last activity (same clock), requests in flight, open connections, answers given."""


class Pulse:
    """Counters that are readable from another thread and, through shared memory, from another process.

    Args:
        buffer: 32 writable bytes, 8-byte aligned, laid out as `PULSE`; or None.

    Attributes:
        busy_since: `time.monotonic()` when the current predict began; 0.0 when none runs.
        last_activity: `time.monotonic()` of the last request or answer.
        inflight: Requests read and not answered.
        connections: Open connections.
        completed: Answers given since the start.
    """

    __slots__ = ("_buffer", "busy_since", "completed", "connections", "inflight", "last_activity")

    def __init__(self, buffer: memoryview | None = None) -> None:
        self._buffer = buffer
        self.busy_since = 0.0
        self.last_activity = time.monotonic()
        self.inflight = 0
        self.connections = 0
        self.completed = 0
        self.publish()

    def publish(self) -> None:
        """Write the counters into the buffer, where there is one."""
        if self._buffer is not None:
            PULSE.pack_into(
                self._buffer, 0, self.busy_since, self.last_activity, self.inflight, self.connections, self.completed
            )

    def detach(self) -> None:
        """Stop writing into the buffer, so that its owner may close it."""
        self._buffer = None


class Watchdog:
    """A thread that asks again and again how long the current predict may still take, and acts when that is over.

    It sleeps up to `longest` seconds while there is nothing to watch: what begins meanwhile has at least that long. A predict that never
    releases the interpreter stops this thread too; whoever reads the pulse from another process has the last word.

    Args:
        remaining: Returns the seconds left for what runs now; infinity when nothing does. Called from the thread.
        expired: Called from the thread when nothing is left. Called once for each thing that expires.
        longest: The longest sleep in seconds; at most the timeout itself.
    """

    def __init__(self, *, remaining: Callable[[], float], expired: Callable[[], None], longest: float) -> None:
        self._remaining = remaining
        self._expired = expired
        self._longest = longest
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="polyserve-watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, without waiting for the thread."""
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(max(0.001, min(self._remaining(), self._longest))):
            if self._remaining() <= 0.0:
                self._expired()
