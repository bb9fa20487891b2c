"""Many calls in flight, answers in order, memory bounded: what `Endpoint.map` and `Endpoint.amap` are made of.

Knows only an asynchronous function of one argument. `map_in_loop` runs on the event loop of its caller; `map_in_thread` has a loop on a
thread of its own, so that it works where a loop already runs (a notebook) and answers come in while the caller is busy with the last one.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable, Iterator
from operator import length_hint
from typing import Any, TypeVar

__all__ = ["map_in_loop", "map_in_thread", "tracked"]

Answer = TypeVar("Answer")
Call = Callable[[object], Coroutine[Any, Any, Answer]]


class _Slot:
    """The place of one input in the order: its answer or its error, once there is one."""

    __slots__ = ("answer", "data", "done", "error")

    def __init__(self, data: object) -> None:
        self.data = data
        self.answer: Any = None
        self.error: BaseException | None = None
        self.done = False


class _Source:
    """Inputs as slots, up to an error of their own, which is kept until the answers to those before it have been given."""

    def __init__(self, inputs: Iterator[object]) -> None:
        self._inputs = inputs
        self._ended = False
        self.error: Exception | None = None

    def take(self, most: int) -> list[_Slot]:
        slots: list[_Slot] = []
        while len(slots) < most and not self._ended:
            try:
                slots.append(_Slot(next(self._inputs)))
            except StopIteration:
                self._ended = True
            except Exception as error:
                self.error, self._ended = error, True
        return slots


class _Worker:
    """An event loop on a thread, that keeps up to `concurrency` calls in flight."""

    def __init__(self, call: Call[Any], concurrency: int) -> None:
        self._call = call
        self._concurrency = concurrency
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Slot] = deque()
        # The slot that the caller waits for: it is woken for no other.
        self._awaited: _Slot | None = None
        self._woken = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="polyserve-map", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            asyncio.set_event_loop(None)
            self._loop.close()

    def submit(self, slots: list[_Slot]) -> None:
        self._loop.call_soon_threadsafe(self._take, slots)

    def wait(self, slot: _Slot) -> None:
        """Wait until a slot is done."""
        # In this order: whatever the loop does in between, either the slot is seen done or the event is set.
        self._woken.clear()
        self._awaited = slot
        while not slot.done:
            self._woken.wait()
            self._woken.clear()
        self._awaited = None

    def close(self) -> None:
        """Cancel what is in flight, end the thread, close the loop."""
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join()

    def _take(self, slots: list[_Slot]) -> None:
        self._waiting.extend(slots)
        while self._waiting and len(self._running) < self._concurrency:
            task = self._loop.create_task(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self) -> None:
        """Answer slots until none waits."""
        while self._waiting:
            slot = self._waiting.popleft()
            try:
                slot.answer = await self._call(slot.data)
            except Exception as error:
                slot.error = error
            slot.data = None
            slot.done = True
            if self._awaited is slot:
                # After whatever else the loop has at hand: the two threads take turns, and each turn costs more than an answer.
                self._loop.call_soon(self._woken.set)

    def _end(self) -> None:
        self._waiting.clear()

        async def cancel() -> None:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            self._loop.stop()

        self._ending = self._loop.create_task(cancel())


def map_in_thread(call: Call[Answer], inputs: Iterable[object], *, concurrency: int) -> Generator[Answer]:
    """Yield `await call(each)` for each input, in order.

    Up to `concurrency` calls are in flight, and up to twice as many inputs are read whose answers the caller does not have. The inputs are
    read in the caller's thread.
    """
    source = _Source(iter(inputs))
    window: deque[_Slot] = deque()
    worker: _Worker | None = None
    try:
        while True:
            # Refilled by the half window, so that the loop's thread is woken once for many inputs.
            if len(window) <= concurrency:
                fresh = source.take(2 * concurrency - len(window))
                window.extend(fresh)
                if fresh:
                    worker = worker or _Worker(call, concurrency)
                    worker.submit(fresh)
            if not window or worker is None:
                break
            slot = window.popleft()
            if not slot.done:
                worker.wait(slot)
            if slot.error is not None:
                raise slot.error
            yield slot.answer
    finally:
        if worker is not None:
            worker.close()
    if source.error is not None:
        raise source.error


async def map_in_loop(
    call: Call[Answer], inputs: Iterable[object] | AsyncIterable[object], *, concurrency: int
) -> AsyncGenerator[Answer]:
    """Yield `await call(each)` for each input, in order, on the running loop; bounded as `map_in_thread`."""
    source = _as_async(inputs)
    window: deque[asyncio.Task[Answer]] = deque()
    limit = asyncio.Semaphore(concurrency)
    failure: Exception | None = None
    ended = False

    async def one(data: object) -> Answer:
        async with limit:
            return await call(data)

    try:
        while window or not ended:
            # A slow source must not hold back an answer that is there.
            if not ended and len(window) < 2 * concurrency and not (window and window[0].done()):
                try:
                    window.append(asyncio.create_task(one(await anext(source))))
                except StopAsyncIteration:
                    ended = True
                except Exception as error:
                    failure, ended = error, True
                continue
            # Popped only when it is done: were the wait cancelled, it would be cancelled below with the others.
            await asyncio.wait((window[0],))
            yield window.popleft().result()
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
        await source.aclose()
    if failure is not None:
        raise failure


async def _as_async(inputs: Iterable[object] | AsyncIterable[object]) -> AsyncGenerator[object]:
    if isinstance(inputs, AsyncIterable):
        async for data in inputs:
            yield data
    else:
        for data in inputs:
            yield data


def tracked(answers: Generator[Answer], inputs: object, *, name: str, progress: bool | None) -> Generator[Answer]:
    """Pass answers on, with a progress bar on standard error where that is a terminal, or where it is asked for."""
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        return answers
    return _tracked(answers, length_hint(inputs, 0) or None, name)


def _tracked(answers: Generator[Answer], total: int | None, name: str) -> Generator[Answer]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total)
            for answer in answers:
                bar.advance(task)
                yield answer
    finally:
        answers.close()
