"""One revision in the gateway: making what it needs, its instances, and the limits that they are held to."""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from polyserve.driver import Phase, RevisionStatus
from polyserve_local import environment
from polyserve_local.instances import InstanceProcess, Launch, launch
from polyserve_local.lines import prune
from polyserve_local.places import tail
from polyserve_local.processes import resident_bytes
from polyserve_local.scaling import SATURATED_S, Sample, Scaler
from polyserve_local.state import RevisionState

if TYPE_CHECKING:
    from polyserve_local.supervisor import Function

GRACE_S = 1.0
"""How long after its timeout an instance is left to its own watchdog, which answers its callers, before it is killed."""
DRAIN_S = 30.0
LONGEST_RETRY_S = 60.0
QUICK_CRASH_S = 1.0
LOOK_S = 1.0
"""How often the system is asked about processes, where asking costs a process."""
CHEAP_LOOK = sys.platform == "linux"


class Revision:
    """One revision of a function, and its instances.

    Args:
        function: The function that it is of.
        state: What is wanted.
        listener: Its own listening socket.
    """

    def __init__(self, function: Function, state: RevisionState, listener: socket.socket) -> None:
        self.function = function
        self.state = state
        self.listener = listener
        self.instances: list[InstanceProcess] = []
        self.failures = 0
        self.given_up = 0
        self.not_before = 0.0
        self.provisioning: asyncio.Task[None] | None = None
        self.stopping = threading.Event()
        self._looked_at = 0.0
        self.scaler = Scaler(
            concurrency=function.state.options["concurrency"],
            queue_s=function.state.options["queue_ms"] / 1000,
            idle_s=function.state.options["idle_timeout_s"],
        )
        self.wanted = 0

    @property
    def number(self) -> int:
        """Return its number."""
        return self.state.number

    @property
    def running(self) -> list[InstanceProcess]:
        """Return the instances that answer, or will once they have loaded."""
        return [instance for instance in self.instances if not instance.draining]

    @property
    def serving(self) -> list[InstanceProcess]:
        """Return the instances that answer now."""
        return [instance for instance in self.instances if instance.serving]

    @property
    def startable(self) -> bool:
        """Return whether an instance could be started."""
        return bool(self.state.python)

    def status(self) -> RevisionStatus:
        """Describe it."""
        return RevisionStatus(
            number=self.number,
            spec_digest=self.state.digest,
            phase=self.state.phase,
            reason=self.state.reason,
            instances=len(self.running),
        )

    def provision(self) -> None:
        """Begin to make what an instance needs, and start one: a revision is ready once one of its instances was."""
        self.state.phase, self.state.reason = Phase.PROVISIONING, None
        self.failures, self.given_up, self.not_before = 0, 0, 0.0
        if self.provisioning is None or self.provisioning.done():
            self.provisioning = asyncio.create_task(self._provision())

    async def _provision(self) -> None:
        places, spec = self.function.places, self.state.spec
        try:
            bundle = await asyncio.to_thread(environment.unpack, places, spec, self.stopping)
            python = await asyncio.to_thread(
                environment.provide, places, spec, self.state.interpreter, self.state.installer, self.stopping
            )
            await asyncio.to_thread(environment.compile_runtime, python, bundle)
        except Exception as error:
            if not self.stopping.is_set():
                self.fail(str(error) or type(error).__name__)
            return
        if self.stopping.is_set():
            return
        self.state.python, self.state.installer = python, {}
        self.function.save()
        self.wanted = max(self.wanted, 1)
        self.function.settle()

    def fail(self, reason: str) -> None:
        """Note that it cannot start, and when it may be tried again."""
        first = self.function.state.options["retry_s"]
        self.not_before = time.monotonic() + min(LONGEST_RETRY_S, first * 2 ** min(self.given_up, 16))
        self.given_up += 1
        self.wanted = 0
        self.state.phase, self.state.reason = Phase.FAILED, reason
        self.function.save()
        self.function.settle_later(self.not_before - time.monotonic())
        self.function.settle()

    def demand(self) -> None:
        """Start an instance because a connection waits."""
        self.wanted = max(self.wanted, 1)
        self.function.settle()

    def start(self, accept: Iterable[str]) -> None:
        """Start one instance."""
        function, spec, options = self.function, self.state.spec, self.function.state.options
        try:
            instance = launch(
                function.places,
                Launch(
                    function=spec.name,
                    revision=spec.revision,
                    python=self.state.python,
                    bundle=function.places.bundle(spec.artifact.sha256),
                    environment=spec.environment,
                    token=function.state.token,
                    timeout_s=spec.timeout.total_seconds(),
                    request_bytes=spec.request_bytes,
                    memory_mb=spec.memory_mb,
                    idle_timeout_s=options["idle_timeout_s"],
                    log_bytes=options["log_bytes"],
                    accept=tuple(accept),
                    share=function.state.weights.get(spec.revision, 0),
                    listeners={"revision": self.listener, "public": function.listener},
                    models=environment.models_of(function.places, spec),
                ),
            )
        except OSError as error:
            self.fail(f"{self.state.python} could not be started: {error}")
            return
        self.take(instance)

    def take(self, instance: InstanceProcess) -> None:
        """Count a started or adopted instance in."""
        self.instances.append(instance)
        self.function.woken.set()
        instance.watch(on_ready=self._on_ready, on_end=self.ended, on_moved=self.function.rehome)

    def _on_ready(self, instance: InstanceProcess) -> None:
        self.failures, self.given_up = 0, 0
        if self.state.phase is not Phase.READY:
            self.state.phase, self.state.reason = Phase.READY, None
            self.function.save()
        others = [other for other in self.serving if other is not instance]
        for other in others:
            # Those that were there have all the connections: each gives up its share of them to the new one.
            self.function.run(other.order("rebalance", fraction=1 / (len(others) + 1)))
        self.function.settle()

    def ended(self, instance: InstanceProcess) -> None:
        """Count an instance out that has ended."""
        self.instances.remove(instance)
        if not instance.draining:
            self._crashed(instance)
        running = {each.record.log for other in self.function.revisions.values() for each in other.instances}
        prune(self.function.places.logs / self.function.state.name, running, self.function.state.options["log_bytes"])
        self.function.settle()

    def _crashed(self, instance: InstanceProcess) -> None:
        now, options = time.monotonic(), self.function.state.options
        reason = instance.failure or "ended without a reason"
        # What it wrote itself: our own notes say no more than the reason does.
        log = "" if instance.clean_failure else _without_notes(tail(Path(instance.record.log)))
        if instance.failure is not None and not instance.clean_failure:
            instance.note("ended", instance.failure)
        if instance.ready_at and now - instance.ready_at >= QUICK_CRASH_S:
            # It had answered for a while: whoever waits gets another one at once.
            return
        if instance.clean_failure or (not instance.ready_at and self.failures + 1 >= options["start_attempts"]):
            self.fail(f"{reason}\n{log}".strip())
            return
        self.failures += 1
        pause = min(LONGEST_RETRY_S, 0.1 * 2 ** min(self.failures, 16))
        self.not_before = now + pause
        self.wanted = max(self.wanted, 0 if instance.ready_at else 1)
        self.function.settle_later(pause)

    def tick(self, now: float) -> None:
        """Keep the limits of the instances, and judge how many there should be."""
        spec = self.state.spec
        samples = []
        look = self._look(now)
        for instance in list(self.instances):
            pulse = instance.pulse()
            overdue = spec.timeout.total_seconds() + GRACE_S
            if pulse is not None and pulse.busy_since and now - pulse.busy_since > overdue:
                instance.kill(f"timeout: a predict ran for more than {spec.timeout.total_seconds():g} s")
            elif not instance.ready and now - instance.born > self.function.state.options["start_timeout_s"]:
                instance.kill(f"the model did not load within {self.function.state.options['start_timeout_s']:g} s")
            elif (look or CHEAP_LOOK) and (held := resident_bytes(instance.pid)) > spec.memory_mb << 20:
                instance.kill(f"out of memory: {held >> 20} MB over limit {spec.memory_mb} MB: raise it with --memory")
            elif instance.serving and pulse is not None:
                quiet = now - max(pulse.last_activity, instance.ready_at)
                samples.append(Sample(inflight=pulse.inflight, completed=pulse.completed, quiet_s=quiet))
        starting = len(self.running) - len(self.serving)
        least, most = self.bounds()
        if samples and not starting:
            self.wanted = self.scaler.wanted(now, samples, least=least, most=most)
            if len(samples) == self.wanted < most and self._nobody_accepts(now):
                self.wanted += 1
        elif not self.running and self.state.phase is Phase.READY and not self.wanted and least:
            self.wanted = least

    def _look(self, now: float) -> bool:
        """Count out, once in a while, what has ended unheard; returns whether it is that time."""
        if now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        for instance in [each for each in self.instances if each.lost()]:
            instance.finish()
            self.ended(instance)
        return True

    def _nobody_accepts(self, now: float) -> bool:
        """Return whether a connection waits that no instance accepts, since all have been within one predict for long."""
        for instance in self.serving:
            pulse = instance.pulse()
            if pulse is None or not pulse.busy_since or now - pulse.busy_since < SATURATED_S:
                return False
        doors = [self.listener, self.function.listener] if self.function.target() is self else [self.listener]
        poll = select.poll()
        for door in doors:
            poll.register(door, select.POLLIN)
        return bool(poll.poll(0))

    def bounds(self) -> tuple[int, int]:
        """Return the least and most instances that it is to have."""
        scaling = self.function.state.scaling
        with_traffic = self.function.state.weights.get(self.number, 0) > 0
        least = scaling.min_instances if with_traffic and self.state.phase is Phase.READY else 0
        return least, max(least, 1, scaling.max_instances or self.function.most_instances)

    def drain(self, instance: InstanceProcess) -> None:
        """End an instance once it has answered what it has."""
        if not instance.draining:
            instance.draining = True
            self.function.run(self._drain(instance))

    async def _drain(self, instance: InstanceProcess) -> None:
        await instance.order("drain")
        try:
            await asyncio.wait_for(instance.ended.wait(), DRAIN_S + self.state.spec.timeout.total_seconds())
        except TimeoutError:
            instance.kill("it did not end when told to")

    async def stop(self) -> None:
        """End every instance at once and wait until they are gone."""
        self.stopping.set()
        for instance in list(self.instances):
            instance.draining = True
            instance.kill("the revision was removed")
        await asyncio.gather(*(instance.ended.wait() for instance in list(self.instances)))
        if self.provisioning is not None:
            # It sees the event at its next step, and kills the program that it waits for.
            await self.provisioning


def _without_notes(log: str) -> str:
    """Return a log without the lines that the gateway put there."""
    return "\n".join(line for line in log.splitlines() if not line.startswith('{"event": "killed"')).strip()
