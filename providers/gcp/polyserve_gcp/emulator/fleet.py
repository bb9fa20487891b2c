"""The instances of one revision: which takes a request, and when one more is started.

Everything here runs on the emulator's event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyserve.emulation.placeholders import Placeholders
from polyserve_gcp.emulator.instances import Instance, Line, Recipe
from polyserve_gcp.emulator.limits import Limits

GRACE_S = 10.0
"""How long an instance that is not needed any more has after SIGTERM ("Container runtime contract", read 2026-11-21)."""
MEASURE_S = 0.1
"""How often the memory of an instance that works is looked at."""
TRY_AGAIN_S = 1.0
"""How long a revision whose instances do not start any more is left alone before a request starts one again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a revision may grow.

    Attributes:
        maximum: Most instances at a time.
        concurrency: Requests that one instance takes at a time.
    """

    maximum: int
    concurrency: int


class NotRunning(Exception):
    """No instance starts."""


class NoInstance(Exception):
    """All instances there may be are busy, and stayed so."""


class Fleet:
    """The instances of one revision.

    Args:
        recipe: What they are started from.
        scale: How many there may be, and what each takes.
        scratch: Directory for what they write.
        log: Takes the lines of an instance, with its identifier.
        limits: What this machine allows, whatever the scale says.
        placeholders: What instances are made from, where they can be.

    Attributes:
        kept: How many instances stay without work.
        most: How many there may be.
    """

    def __init__(
        self,
        recipe: Recipe,
        scale: Scale,
        scratch: Path,
        log: Callable[[str, list[Line]], None],
        limits: Limits,
        *,
        placeholders: Placeholders,
    ) -> None:
        self.recipe, self.scale = recipe, scale
        self._scratch, self._log, self._limits, self._placeholders = scratch, log, limits, placeholders
        self._running: list[Instance] = []
        self._leaving: list[Instance] = []
        self._starting = 0
        self.kept, self.most = 0, min(scale.maximum, limits.instances)
        self._queue: deque[asyncio.Future[Instance]] = deque()
        self._starts: set[asyncio.Task[Any]] = set()
        self._others: set[asyncio.Task[Any]] = set()
        self._failed_at = float("-inf")
        self._closed = False

    @property
    def instances(self) -> list[Instance]:
        """Those that run."""
        return [one for one in self._running if one.alive]

    async def begin(self) -> str:
        """Start the first instance; returns empty, or why it does not start."""
        self._starting += 1
        first = self._make()
        try:
            ready = await first.start()
        finally:
            self._starting -= 1
        if not ready or self._closed:
            await first.stop()
            return first.failure
        self._join(first)
        return ""

    def keep(self, instances: int, most: int = 0) -> None:
        """Keep as many instances without work; others go when they have been idle.

        Args:
            instances: How many.
            most: Most instances that the service may have; as many as the revision may unless given.
        """
        self.most = min(self.scale.maximum, most or self.scale.maximum, self._limits.instances)
        self.kept = min(instances, self.most)
        while len(self.instances) + self._starting < self.kept and not self._closed:
            self._grow()
        for idle in [one for one in self._running if not one.busy]:
            self._rest(idle)

    async def acquire(self) -> Instance:
        """Return an instance that has room for a request, started where there is none; `release` gives it back.

        Raises:
            NotRunning: None starts.
            NoInstance: There may be no more, and none had room in time.
        """
        free = None if self._queue else self._free()
        if free is not None:
            self._take(free)
            return free
        if self._closed or (not self.instances and time.monotonic() - self._failed_at < TRY_AGAIN_S):
            raise NotRunning
        waiting: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()
        self._queue.append(waiting)
        self._grow_for_queue()
        try:
            return await self._patiently(waiting)
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self.release(waiting.result())
            raise
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    def release(self, instance: Instance) -> None:
        """Give an instance back after a request."""
        instance.busy -= 1
        if not instance.alive:
            self._drop(instance)
        elif instance.busy == 0:
            self._rest(instance)
        self._dispatch()

    async def close(self) -> None:
        """End every instance."""
        self._closed = True
        for task in self._starts:
            task.cancel()
        running, self._running = [*self._running, *self._leaving], []
        ends = [*self._starts, *self._others, *(instance.stop() for instance in running)]
        await asyncio.gather(*ends, return_exceptions=True)
        self._refuse_queue()

    async def _patiently(self, waiting: asyncio.Future[Instance]) -> Instance:
        """Wait for an instance: without end while one starts for it, else as long as a request is held."""
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=self._limits.queue_s)
            if done:
                return waiting.result()
            if not self._starting:
                raise NoInstance

    def _free(self) -> Instance | None:
        """Return the busiest instance that has room, so that the others can become idle."""
        for dead in [one for one in self._running if not one.alive]:
            self._drop(dead)
        room = [one for one in self._running if one.busy < self.scale.concurrency]
        return max(room, key=lambda one: one.busy, default=None)

    def _take(self, instance: Instance) -> None:
        instance.busy += 1
        if not instance.watched:
            instance.watched = True
            self._spawn(self._others, self._watch(instance))

    async def _watch(self, instance: Instance) -> None:
        """Look at an instance's memory as long as it works."""
        while instance.busy and instance.alive:
            # The first look comes late: most requests are over before anything needs to be measured.
            await asyncio.sleep(MEASURE_S)
            await asyncio.to_thread(instance.measure)
        instance.watched = False

    def _dispatch(self) -> None:
        while self._queue:
            free = self._free()
            if free is None:
                break
            waiting = self._queue.popleft()
            if not waiting.done():
                self._take(free)
                waiting.set_result(free)
        if self._queue:
            self._grow_for_queue()

    def _grow_for_queue(self) -> None:
        wanted = -(-len(self._queue) // self.scale.concurrency)
        while self._starting < wanted and len(self.instances) + self._starting < self.most and not self._closed:
            self._grow()

    def _grow(self) -> None:
        # Counted before the task runs, so that a loop over this ends.
        self._starting += 1
        self._spawn(self._starts, self._start_one())

    async def _start_one(self) -> None:
        instance = self._make()
        ready = False
        try:
            ready = await instance.start()
        finally:
            self._starting -= 1
            if not ready:
                await instance.stop()
        if ready:
            self._join(instance)
            return
        self._failed_at = time.monotonic()
        if not self.instances and not self._starting:
            self._refuse_queue()

    def _join(self, instance: Instance) -> None:
        self._failed_at = float("-inf")
        self._running.append(instance)
        self._dispatch()
        if instance.busy == 0:
            self._rest(instance)

    def _make(self) -> Instance:
        return Instance(self.recipe, self._scratch / secrets.token_hex(8), self._log, self._placeholders)

    def _rest(self, instance: Instance) -> None:
        instance.rests += 1
        asyncio.get_running_loop().call_later(self._limits.idle_s, self._reap, instance, instance.rests)

    def _reap(self, instance: Instance, rest: int) -> None:
        if instance not in self._running or instance.busy or instance.rests != rest or self._closed:
            return
        if len(self.instances) > self.kept:
            self._drop(instance)

    def _drop(self, instance: Instance) -> None:
        self._running.remove(instance)
        self._leaving.append(instance)
        self._spawn(self._others, self._end(instance))
        if len(self.instances) + self._starting < self.kept and not self._closed:
            self._grow()

    async def _end(self, instance: Instance) -> None:
        await instance.stop(GRACE_S if instance.alive else 0.0)
        self._leaving.remove(instance)

    def _spawn(self, tasks: set[asyncio.Task[Any]], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _refuse_queue(self) -> None:
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_exception(NotRunning())
