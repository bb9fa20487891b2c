"""How many instances a revision should have, judged from their pulses. Pure: no clock, no process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

SATURATED_S = 0.2
"""How long load must be too high before another instance is started: a burst that is over sooner is not worth a process."""
WINDOW_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One instance at one moment: requests it has, answers it gave since its start, seconds since it last had anything to do."""

    inflight: int
    completed: int
    quiet_s: float


class Scaler:
    """Remembers the load of a revision's instances.

    Args:
        concurrency: Requests in flight on each instance from which on there is one more.
        queue_s: Seconds that a request may take on average while several wait.
        idle_s: Seconds without work after which an instance is one too many.
    """

    def __init__(self, *, concurrency: int, queue_s: float, idle_s: float) -> None:
        self._concurrency = concurrency
        self._queue_s = queue_s
        self._idle_s = idle_s
        self._history: deque[tuple[float, int, int]] = deque()
        self._high_since: float | None = None
        self._needed_at = 0.0
        self._count = 0

    def wanted(self, now: float, samples: Sequence[Sample], *, least: int, most: int) -> int:
        """Return how many instances there should be.

        Args:
            now: Any clock that only goes forward, in seconds.
            samples: One for each instance that answers.
            least: Fewest there may be.
            most: Most there may be.
        """
        count = len(samples)
        inflight = sum(sample.inflight for sample in samples)
        self._remember(now, count, inflight, sum(sample.completed for sample in samples))
        if self._high(inflight, count):
            self._high_since = now if self._high_since is None else self._high_since
            self._needed_at = now
            if now - self._high_since >= SATURATED_S and count < most:
                self._high_since = None
                return count + 1
            return max(count, least)
        self._high_since = None
        if inflight > count - 1:
            self._needed_at = now
        if count > least and all(sample.quiet_s > self._idle_s and not sample.inflight for sample in samples):
            return least
        # With less work than fewer instances could do at once for a whole idle time, the last one is one too many.
        if count > max(least, 1) and now - self._needed_at > self._idle_s:
            self._needed_at = now
            return count - 1
        return max(count, least)

    def _remember(self, now: float, count: int, inflight: int, completed: int) -> None:
        if count != self._count:
            self._history.clear()
            self._count, self._needed_at = count, now
        self._history.append((now, inflight, completed))
        while self._history[0][0] < now - WINDOW_S:
            self._history.popleft()

    def _high(self, inflight: int, count: int) -> bool:
        if inflight >= self._concurrency * count:
            return True
        if inflight <= count:
            return False
        first_at, _, first_completed = self._history[0]
        last_at, _, last_completed = self._history[-1]
        elapsed = last_at - first_at
        if elapsed < SATURATED_S:
            return False
        # Little's law: requests there are, divided by answers a second, is how long each of them takes.
        answered = max(last_completed - first_completed, 0)
        present = sum(each[1] for each in self._history) / len(self._history)
        return present * elapsed > self._queue_s * max(answered, 1)
