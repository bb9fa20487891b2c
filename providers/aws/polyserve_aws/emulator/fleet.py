"""The execution environments there are: which is free, which has to be started, and which is let go.

Everything here runs on the emulator's event loop, so nothing needs a lock. An environment serves one event at a time.
It is kept warm after an invocation until it has been idle for a while, its function changed, or it broke.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from polyserve_aws.emulator.environments import INIT_PATIENCE_S, Ended, Environment
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.releases import Release
from polyserve_aws.emulator.runtime_api import Event

ACCOUNT_CONCURRENCY = 1000
"""How many events an account handles at once in a region by default (Lambda quotas, read 2026-11-20)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an invocation ended.

    Attributes:
        payload: The function's answer, or its error as JSON.
        error: Value of `X-Amz-Function-Error`; empty where there was none.
        log: Everything that the invocation logged, the START, END and REPORT lines included.
        version: The version that ran.
        request_id: Identifier of the invocation.
    """

    payload: bytes
    error: str
    log: str
    version: str
    request_id: str


class Fleet:
    """All execution environments of the emulator.

    Args:
        make: Makes an environment for a release; it is not started yet. The second argument says how it is
            initialised: `on-demand`, `provisioned-concurrency` or `snap-start`.
        log: Takes the lines of an environment: milliseconds since 1970, and the text.
        idle_s: How long a warm environment is kept without work.
    """

    def __init__(
        self,
        make: Callable[[Release, str], Awaitable[Environment]],
        log: Callable[[Release, str, list[tuple[int, str]]], None],
        idle_s: float,
    ) -> None:
        self._make, self._log, self._idle_s = make, log, idle_s
        self._idle: dict[Release, list[Environment]] = defaultdict(list)
        self._busy: dict[str, int] = defaultdict(int)
        self._timers: dict[Environment, asyncio.TimerHandle] = {}
        self._all: set[Environment] = set()
        self._retired: set[Release] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something in the background; it is cancelled when the emulator ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def invoke(
        self, release: Release, payload: bytes, arn: str, *, reserved: int | None = None, client_context: str = ""
    ) -> Outcome:
        """Have a function handle one event.

        Args:
            release: The version that runs.
            payload: The event, as JSON.
            arn: ARN that was invoked.
            reserved: Reserved concurrency of the function; `None` where it has none.
            client_context: The caller's context, as JSON.

        Raises:
            ServiceError: There is no concurrency left.
        """
        self._check_concurrency(release.name, reserved)
        self._busy[release.name] += 1
        try:
            return await self._handle(release, payload, arn, client_context)
        finally:
            self._busy[release.name] -= 1

    def _check_concurrency(self, name: str, reserved: int | None) -> None:
        if reserved is not None:
            if self._busy[name] >= reserved:
                raise ServiceError(429, "TooManyRequestsException", "Rate Exceeded.")
        elif sum(self._busy.values()) >= ACCOUNT_CONCURRENCY:
            raise ServiceError(429, "TooManyRequestsException", "Rate Exceeded.")

    async def _handle(self, release: Release, payload: bytes, arn: str, client_context: str) -> Outcome:
        request_id = str(uuid.uuid4())
        timeout = float(release.settings.timeout)
        environment = self._take(release)
        cold = environment is None
        before: list[tuple[int, str]] = []
        if environment is None:
            environment, before, failure = await self._start(release, request_id, timeout)
            if failure is not None:
                return self._report(environment, request_id, failure, before, cold=True)
        first = not environment.used
        before += environment.take_lines()
        event = Event(
            request_id=request_id, payload=payload, arn=arn, deadline_ms=int((time.time() + timeout) * 1000),
            client_context=client_context,
        )  # fmt: skip
        began = time.time_ns() // 1_000_000
        try:
            ended = await environment.invoke(event, timeout)
        except asyncio.CancelledError:
            self._drop(environment)
            raise
        outcome = self._report(environment, request_id, ended, before, cold=cold and first, began=began)
        if ended.fate or not environment.alive:
            self._drop(environment)
        else:
            self._keep(environment)
        return outcome

    async def _start(
        self, release: Release, request_id: str, patience_s: float
    ) -> tuple[Environment, list[tuple[int, str]], Ended | None]:
        """Start an environment for an invocation; returns it, what was logged, and how it failed if it did."""
        environment = await self._make(release, _initialization(release))
        self._all.add(environment)
        why = await environment.start(INIT_PATIENCE_S)
        lines = environment.take_lines()
        if why == "timeout":
            # The developer guide: an init phase that takes longer is run again within the first invocation's timeout.
            lines.append(
                (
                    time.time_ns() // 1_000_000,
                    f"INIT_REPORT Init Duration: {environment.init_ms:.2f} ms\tPhase: init\tStatus: timeout\n",
                )
            )
            self._drop(environment)
            environment = await self._make(release, _initialization(release))
            self._all.add(environment)
            why = await environment.start(patience_s)
            lines += environment.take_lines()
        if not why:
            return environment, lines, None
        payload = environment.init_failure(request_id, why)
        self._drop(environment)
        return environment, lines, Ended(payload=payload, error="Unhandled", fate=why, duration_ms=environment.init_ms)

    def _report(
        self,
        environment: Environment,
        request_id: str,
        ended: Ended,
        before: list[tuple[int, str]],
        *,
        cold: bool,
        began: int = 0,
    ) -> Outcome:
        """Write the log of an invocation as Lambda does, and sum the invocation up."""
        release = environment.release
        now = time.time_ns() // 1_000_000
        lines = [
            *before,
            (began or now, f"START RequestId: {request_id} Version: {release.version}\n"),
            *environment.take_lines(),
        ]
        if ended.fate == "timeout":
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now / 1000))
            text = f"{stamp}.{now % 1000:03d}Z {request_id} Task timed out after {release.settings.timeout:.2f} seconds\n\n"
            lines.append((now, text))
        lines.append((now, f"END RequestId: {request_id}\n"))
        init = environment.init_ms if cold else 0.0
        memory = release.settings.memory
        used = min(memory, max(1, environment.peak_bytes // (1024 * 1024)))
        report = (
            f"REPORT RequestId: {request_id}\tDuration: {ended.duration_ms:.2f} ms\tBilled Duration: "
            f"{-int(-(ended.duration_ms + init) // 1)} ms\tMemory Size: {memory} MB\tMax Memory Used: {used} MB\t"
        )
        if cold:
            report += f"Init Duration: {init:.2f} ms\t"
        status = {
            "timeout": "timeout",
            "memory": "error\tError Type: Runtime.OutOfMemory",
            "exit": "error\tError Type: Runtime.ExitError",
        }
        if ended.fate in status:
            report += f"Status: {status[ended.fate]}"
        lines.append((now, report + "\n"))
        # The answer does not wait for its log; whoever asks for the log afterwards comes after it.
        asyncio.get_running_loop().call_soon(self._log, release, environment.stream, lines)
        return Outcome(
            payload=ended.payload, error=ended.error, log="".join(text for _, text in lines), version=release.version,
            request_id=request_id,
        )  # fmt: skip

    def _take(self, release: Release) -> Environment | None:
        idle = self._idle.get(release, [])
        while idle:
            environment = idle.pop()
            timer = self._timers.pop(environment, None)
            if timer is not None:
                timer.cancel()
            if environment.alive:
                return environment
            self._drop(environment)
        return None

    def _keep(self, environment: Environment) -> None:
        """Keep a free environment warm, if its function is still the same."""
        if environment.release in self._retired:
            self._drop(environment)
            return
        self._idle[environment.release].append(environment)
        if not environment.provisioned:
            loop = asyncio.get_running_loop()
            self._timers[environment] = loop.call_later(self._idle_s, self._reap, environment)

    def _reap(self, environment: Environment) -> None:
        self._timers.pop(environment, None)
        idle = self._idle.get(environment.release, [])
        if environment in idle:
            idle.remove(environment)
            self._drop(environment)

    def _drop(self, environment: Environment) -> None:
        if environment in self._all:
            self._all.discard(environment)
            task = asyncio.get_running_loop().create_task(self._stop(environment))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _stop(self, environment: Environment) -> None:
        await environment.stop()
        lines = environment.take_lines()
        if lines:
            self._log(environment.release, environment.stream, lines)

    async def provision(self, release: Release, count: int) -> str:
        """Start as many environments as are wanted, before there is anything to do for them.

        Returns:
            Empty, or why they could not be started.
        """
        have = [one for one in self._all if one.release is release and one.provisioned]
        for extra in have[count:]:
            extra.provisioned = False
            self._reap(extra)
        for _ in range(count - len(have)):
            environment = await self._make(release, "provisioned-concurrency")
            environment.provisioned = True
            self._all.add(environment)
            why = await environment.start(max(INIT_PATIENCE_S, release.settings.timeout))
            if why:
                lines = environment.take_lines()
                self._log(release, environment.stream, lines)
                self._drop(environment)
                return "FUNCTION_ERROR_INIT_FAILURE"
            self._keep(environment)
        return ""

    def ready_of(self, release: Release) -> int:
        """Return how many provisioned environments a release has."""
        return sum(1 for one in self._all if one.release is release and one.provisioned and one.alive)

    def retire(self, release: Release) -> None:
        """Let go of a release's environments: the free ones now, the busy ones when they are done."""
        self._retired.add(release)
        for environment in self._idle.pop(release, []):
            timer = self._timers.pop(environment, None)
            if timer is not None:
                timer.cancel()
            self._drop(environment)

    async def close(self) -> None:
        """End every environment."""
        for timer in self._timers.values():
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        # What is being stopped is stopped to its end.
        await asyncio.gather(*self._tasks, *self._stopping, return_exceptions=True)
        await asyncio.gather(*(environment.stop() for environment in list(self._all)))
        self._all.clear()


def _initialization(release: Release) -> str:
    """Return how an environment says that it was started: by a snapshot only for published versions that want it."""
    return "snap-start" if release.settings.snap_start != "None" and release.version != "$LATEST" else "on-demand"
