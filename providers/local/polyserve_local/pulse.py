"""What an instance says of itself through shared memory: read by the gateway as often as it likes, without a word to the instance."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from polyserve.runtime.watchdog import PULSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How an instance is doing; times are `time.monotonic()`, which all processes of a machine share.

    Attributes:
        busy_since: When the predict that is running began; 0.0 when none is.
        last_activity: When a request or an answer last passed; 0.0 before the server started.
        inflight: Requests read and not answered.
        connections: Open connections.
        completed: Answers given since the start.
    """

    busy_since: float
    last_activity: float
    inflight: int
    connections: int
    completed: int


def read_pulse(page: mmap.mmap) -> Pulse:
    """Read the pulse from the page that the instance writes."""
    busy_since, last_activity, inflight, connections, completed = PULSE.unpack_from(page, 0)
    return Pulse(
        busy_since=busy_since,
        last_activity=last_activity,
        inflight=inflight,
        connections=connections,
        completed=completed,
    )
