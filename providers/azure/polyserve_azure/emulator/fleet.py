"""The instances of one app: which takes a request, when one more is started, and how an update replaces them.

Everything here runs on the emulator's event loop, so nothing needs a lock. What one update made is a generation; the
instances of a generation that is not current any more take no new request.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyserve.emulation.placeholders import Placeholders
from polyserve_azure.emulator.instances import Instance, Line, Recipe

TRY_AGAIN_S = 1.0
"""How long an app that did not start is left alone before a request starts it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How an app may grow.

    Attributes:
        maximum: Most instances at a time.
        concurrency: Requests that one instance takes at a time.
        always_ready: Instances that are kept without work.
    """

    maximum: int = 100
    concurrency: int = 1
    always_ready: int = 0


@dataclass(slots=True, eq=False)
class Generation:
    """What one update made.

    Attributes:
        recipe: What its instances are started from.
        instances: Those that take requests.
        starting: How many are on their way.
        failure: Why the app does not start; empty where it does.
        indexed: Whether the engine came as far as to refuse the app: the host runs then, and has no functions.
        failed_at: When it did not start.
    """

    recipe: Recipe
    instances: list[Instance] = field(default_factory=list)
    starting: int = 0
    failure: str = ""
    indexed: bool = False
    failed_at: float = 0.0


class NotRunning(Exception):
    """No instance can take the request."""


class App:
    """The instances of one app.

    Args:
        scratch: Directory for what instances write.
        log: Takes the lines of an instance, with its identifier.
        placeholders: What instances are made from.
        most: Most instances that this machine runs for an app, whatever its scale says.
        idle_s: How long an instance is kept without work.
    """

    def __init__(
        self,
        scratch: Path,
        log: Callable[[str, list[Line]], None],
        placeholders: Placeholders,
        *,
        most: int,
        idle_s: float,
    ) -> None:
        self.scale = Scale()
        self.rolling = False
        self.stopped = False
        self._scratch, self._log, self._most, self._idle_s = scratch, log, most, idle_s
        self._placeholders = placeholders
        self._current: Generation | None = None
        self._queue: deque[asyncio.Future[Instance]] = deque()
        self._owners: dict[Instance, Generation] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def instances(self) -> int:
        """How many instances there are, draining ones included."""
        return len(self._owners)

    @property
    def current(self) -> Generation | None:
        """What answers requests now; `None` before the first update."""
        return self._current

    async def acquire(self) -> Instance:
        """Return an instance that has room for a request, started where there is none; `release` gives it back.

        Raises:
            NotRunning: The app does not start.
        """
        generation = self._current
        if generation is None or self.stopped:
            raise NotRunning
        free = None if self._queue else self._free(generation)
        if free is not None:
            free.busy += 1
            return free
        given_up = generation.failure and not generation.instances
        if given_up and time.monotonic() - generation.failed_at < TRY_AGAIN_S:
            raise NotRunning
        waiting: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()
        self._queue.append(waiting)
        self._grow_for_queue()
        try:
            return await waiting
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
        generation = self._owners.get(instance)
        if generation is None:
            return
        if not instance.alive or (generation is not self._current and instance.busy == 0):
            self._drop(instance)
        elif instance.busy == 0:
            asyncio.get_running_loop().call_later(self._idle_s, self._reap, instance, self._idle_since(instance))
        self._dispatch()

    async def update(self, recipe: Recipe, *, keep_on_failure: bool) -> str:
        """Replace what runs; returns when the new instance is there, or empty-handed.

        Rolling, the old instances answer until the new one is ready, and finish what they do; otherwise they are ended
        at once, and what they do with them ("Site update strategies in Flex Consumption").

        Args:
            recipe: What is started from now on.
            keep_on_failure: Whether, rolling, the old instances stay where the new one does not start.

        Returns:
            Empty, or why the app does not start.
        """
        new = Generation(recipe)
        if not self.rolling:
            await self._replace(new)
        new.starting += 1
        first = self._make(new)
        try:
            ready = await first.start()
        finally:
            new.starting -= 1
        if not ready:
            new.failure, new.indexed, new.failed_at = first.failure, first.indexed, time.monotonic()
            await self._end(first)
            if self.rolling and not keep_on_failure:
                await self._replace(new)
            self._refuse_queue(new)
            return new.failure
        if self.rolling:
            await self._replace(new)
        self._join(new, first)
        return ""

    async def restart(self, recipe: Recipe) -> None:
        """Replace what runs because a setting changed; from nothing to nothing where nothing runs."""
        if self._current is None:
            return
        if self._current.instances or self.scale.always_ready:
            await self.update(recipe, keep_on_failure=True)
        else:
            await self._replace(Generation(recipe))

    def resize(self, scale: Scale) -> None:
        """Take another scale on."""
        self.scale = scale
        self._dispatch()
        self._keep_ready()

    async def close(self) -> None:
        """End every instance."""
        self._current = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(instance) for instance in list(self._owners)))
        self._refuse_queue(None)

    async def halt(self) -> None:
        """Take no requests any more, and end every instance; `restart` is what `stopped` being taken back needs."""
        self.stopped = True
        if self._current is not None:
            await self._replace(Generation(self._current.recipe), at_once=True)

    async def _replace(self, new: Generation, *, at_once: bool = False) -> None:
        old, self._current = self._current, new
        leaving = [one for one, owner in self._owners.items() if owner is old and old is not None]
        for instance in leaving:
            if at_once or not self.rolling or instance.busy == 0:
                self._drop(instance)
        if old is not None:
            old.instances.clear()
        if self._queue and not self.rolling:
            self._grow_for_queue()

    def _free(self, generation: Generation) -> Instance | None:
        """Return the busiest instance that has room, so that the others can become idle."""
        for dead in [one for one in generation.instances if not one.alive]:
            self._drop(dead)
        room = [one for one in generation.instances if one.busy < self.scale.concurrency]
        return max(room, key=lambda one: one.busy, default=None)

    def _dispatch(self) -> None:
        generation = self._current
        while self._queue and generation is not None:
            free = self._free(generation)
            if free is None:
                break
            waiting = self._queue.popleft()
            if not waiting.done():
                free.busy += 1
                waiting.set_result(free)
        if self._queue:
            self._grow_for_queue()

    def _grow_for_queue(self) -> None:
        generation = self._current
        if generation is None:
            return
        wanted = -(-len(self._queue) // self.scale.concurrency)
        while generation.starting < wanted and self._may_grow(generation):
            self._spawn(self._grow(generation))

    def _keep_ready(self) -> None:
        generation = self._current
        if generation is None or generation.failure:
            return
        while len(generation.instances) + generation.starting < self.scale.always_ready and self._may_grow(generation):
            self._spawn(self._grow(generation))

    def _may_grow(self, generation: Generation) -> bool:
        return len(generation.instances) + generation.starting < min(self.scale.maximum, self._most)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._current is not None:
            # Counted before the task runs, so that a loop over this ends.
            self._current.starting += 1
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _grow(self, generation: Generation) -> None:
        instance = self._make(generation)
        try:
            ready = await instance.start()
        finally:
            generation.starting -= 1
        if generation is not self._current:
            await self._end(instance)
        elif ready:
            self._join(generation, instance)
        else:
            generation.failure, generation.indexed = instance.failure, instance.indexed
            generation.failed_at = time.monotonic()
            await self._end(instance)
            if not generation.instances and not generation.starting:
                self._refuse_queue(generation)

    def _join(self, generation: Generation, instance: Instance) -> None:
        generation.failure = ""
        generation.instances.append(instance)
        self._dispatch()
        if instance.busy == 0:
            asyncio.get_running_loop().call_later(self._idle_s, self._reap, instance, self._idle_since(instance))
        self._keep_ready()

    def _make(self, generation: Generation) -> Instance:
        instance = Instance(generation.recipe, self._scratch / secrets.token_hex(8), self._log, self._placeholders)
        self._owners[instance] = generation
        return instance

    def _idle_since(self, instance: Instance) -> int:
        instance.rests += 1
        return instance.rests

    def _reap(self, instance: Instance, rest: int) -> None:
        generation = self._owners.get(instance)
        if generation is None or instance.busy or instance.rests != rest:
            return
        if generation is self._current and len(generation.instances) <= self.scale.always_ready:
            return
        self._drop(instance)

    def _drop(self, instance: Instance) -> None:
        generation = self._owners.get(instance)
        if generation is not None and instance in generation.instances:
            generation.instances.remove(instance)
        instance.retired = True
        self._spawn_end(self._end(instance))

    def _spawn_end(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, instance: Instance) -> None:
        await instance.stop()
        self._owners.pop(instance, None)

    def _refuse_queue(self, generation: Generation | None) -> None:
        if generation is not self._current:
            return
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_exception(NotRunning())
