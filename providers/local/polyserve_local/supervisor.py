"""One function in the gateway: its listening sockets, its revisions and its traffic.

The gateway accepts no request here. It watches listening sockets that no instance accepts on, and starts an instance when a connection
waits; the connection stays in the kernel's backlog meanwhile. Everything here runs on the event loop's thread; `settle` may be called at
any time and brings what runs in line with what is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec

from polyserve.driver import ErrorCode, FunctionSpec, FunctionStatus, Phase, Scaling
from polyserve_local.errors import GatewayError
from polyserve_local.front import Front
from polyserve_local.instances import InstanceProcess
from polyserve_local.places import Places, remove_tree
from polyserve_local.revisions import Revision
from polyserve_local.settings import LocalSettings
from polyserve_local.state import FunctionState, RevisionState

BACKLOG = 4096


def listen(port: int) -> socket.socket:
    """Return a listening socket on loopback; on another port where that one was taken meanwhile."""
    for wanted in (port, 0):
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("127.0.0.1", wanted))
        except OSError:
            door.close()
            if not wanted:
                raise
            continue
        door.listen(BACKLOG)
        door.setblocking(False)
        return door
    raise AssertionError("port 0 is always free or raises")


class Function:
    """One function: public listener, revisions, traffic.

    Args:
        places: The home's files.
        state: What is wanted.
        listeners: Listening sockets that instances handed back: `"public"`, or a revision's number.
        most_instances: Most instances of a revision where the function's scaling leaves it open.
        woken: Set when there is something to look after.
    """

    def __init__(
        self,
        places: Places,
        state: FunctionState,
        *,
        listeners: Mapping[str | int, socket.socket],
        most_instances: int,
        woken: asyncio.Event,
    ) -> None:
        self.places = places
        self.state = state
        self.most_instances = most_instances
        self.woken = woken
        # What an older version wrote may lack the options that came since.
        state.options = {**msgspec.to_builtins(LocalSettings()), **state.options}
        self.changing = asyncio.Lock()
        self.listener = listeners.get("public") or listen(state.port)
        self.listener.setblocking(False)
        state.port = self.listener.getsockname()[1]
        self.revisions: dict[int, Revision] = {}
        for number, revision in state.revisions.items():
            self._add(revision, listeners.get(number))
        self.front = Front(self)
        self._watched: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def _add(self, state: RevisionState, listener: socket.socket | None = None) -> Revision:
        listener = listener or listen(state.port)
        listener.setblocking(False)
        state.port = listener.getsockname()[1]
        revision = self.revisions[state.number] = Revision(self, state, listener)
        return revision

    # --- what the gateway asks ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write down what is wanted."""
        if not self.state.deleting or self.places.state(self.state.name).exists():
            self.state.save(self.places)

    def status(self) -> FunctionStatus:
        """Describe the function."""
        state = self.state
        return FunctionStatus(
            name=state.name,
            phase=Phase.DELETING if state.deleting else Phase.READY,
            url=f"http://127.0.0.1:{state.port}",
            revisions=tuple(self.revisions[number].status() for number in sorted(self.revisions)),
            weights=dict(state.weights),
            scaling=state.scaling,
            labels=state.labels,
            native_id=str(self.places.state(state.name)),
        )

    def resume(self) -> None:
        """Go on with what a gateway before this one had not finished."""
        for revision in self.revisions.values():
            if revision.state.phase is Phase.PROVISIONING and not revision.running:
                revision.provision()
            elif any(instance.ready for instance in revision.instances):
                revision.state.phase, revision.state.reason = Phase.READY, None
        self.settle()

    def apply(self, spec: FunctionSpec, digest: str, interpreter: str, installer: Mapping[str, str]) -> None:
        """Make a revision exist, or try one anew that failed.

        Raises:
            GatewayError: The number is taken by another spec.
        """
        known = self.revisions.get(spec.revision)
        if known is None:
            state = RevisionState(spec=spec, digest=digest, interpreter=interpreter, installer=installer)
            revision = self._add(state)
            self.state.revisions[spec.revision] = state
            self.state.revisions = dict(sorted(self.state.revisions.items()))
        elif known.state.digest != digest:
            message = f"revision {spec.revision} of {spec.name!r} exists with other settings: apply the next number"
            raise GatewayError(ErrorCode.ALREADY_EXISTS, message)
        elif known.state.phase is Phase.FAILED:
            revision = known
            revision.state.interpreter, revision.state.installer = interpreter, installer
        else:
            return
        revision.state.phase, revision.state.reason = Phase.PROVISIONING, None
        self.save()
        revision.provision()

    async def route(self, weights: Mapping[int, int]) -> None:
        """Move the traffic; loses no request, and is done when it returns.

        Raises:
            GatewayError: A revision of that number does not exist.
        """
        for number in weights:
            if number not in self.revisions:
                message = f"{self.state.name!r} has no revision {number}: it has {sorted(self.revisions) or 'none'}"
                raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)
        self.state.weights = {number: weight for number, weight in sorted(weights.items()) if weight > 0}
        self.save()
        # Those that are to have the public socket get it before those that had it give it up.
        target = self.target()
        if target is not None:
            await asyncio.gather(*(self._tell(instance, target) for instance in target.serving))
        self.settle(accepting=False)
        await asyncio.gather(
            *(self._tell(instance, revision) for revision in self.revisions.values() for instance in revision.running)
        )
        self.settle()

    async def scale(self, scaling: Scaling) -> None:
        """Set the bounds of the instances."""
        self.state.scaling = scaling
        self.save()
        for revision in self.revisions.values():
            least, most = revision.bounds()
            revision.wanted = min(max(revision.wanted, len(revision.running), least), most)
        self.settle()

    async def remove_revision(self, number: int) -> None:
        """Remove one revision.

        Raises:
            GatewayError: It does not exist, or has traffic.
        """
        if number not in self.revisions:
            raise GatewayError(ErrorCode.NOT_FOUND, f"{self.state.name!r} has no revision {number}")
        if self.state.weights.get(number, 0) > 0:
            message = f"revision {number} of {self.state.name!r} has {self.state.weights[number]} % of the traffic: route it away first"
            raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)
        revision = self.revisions.pop(number)
        del self.state.revisions[number]
        self.save()
        self._unwatch(revision.listener)
        await revision.stop()
        revision.listener.close()
        for log in (self.places.logs / self.state.name).glob(f"{number}-*"):
            log.unlink(missing_ok=True)

    async def delete(self) -> None:
        """End and remove everything that was made for the function, but for the file that says so."""
        self.state.deleting = True
        self.save()
        for timer in self._timers:
            timer.cancel()
        for door in self._doors():
            self._unwatch(door)
        self.front.close()
        await asyncio.gather(*(revision.stop() for revision in self.revisions.values()))
        for task in list(self._tasks):
            task.cancel()
        for door in self._doors():
            door.close()
        await asyncio.to_thread(remove_tree, self.places.logs / self.state.name)

    # --- bringing what runs in line with what is wanted ------------------------------------------------------------------

    def target(self) -> Revision | None:
        """Return the revision that has all the traffic, if one has."""
        if len(self.state.weights) != 1:
            return None
        return self.revisions.get(next(iter(self.state.weights)))

    def accepts(self, revision: Revision) -> tuple[str, ...]:
        """Return the listeners that the instances of a revision accept on themselves."""
        return ("revision", "public") if revision is self.target() else ("revision",)

    def settle(self, *, accepting: bool = True) -> None:
        """Start, stop and watch what is to be started, stopped and watched now."""
        if self.state.deleting:
            return
        now = time.monotonic()
        for revision in list(self.revisions.values()):
            least, most = revision.bounds()
            wanted = min(max(revision.wanted, least), most)
            while len(revision.running) < wanted and revision.startable and now >= revision.not_before:
                before = len(revision.instances)
                revision.start(self.accepts(revision))
                if len(revision.instances) == before:
                    break
            for instance in self._surplus(revision, wanted):
                revision.drain(instance)
            if accepting:
                for instance in revision.running:
                    if instance.accepting != set(self.accepts(revision)) and not instance.telling.locked():
                        self.run(self._tell(instance, revision))
        self._watch(now)

    def rehome(self, source: InstanceProcess, connection: socket.socket) -> None:
        """Find somebody who goes on with a public connection that an instance parts with."""
        if self.state.deleting:
            connection.close()
            return
        target = self.target()
        others = [] if target is None else [each for each in target.serving if each is not source]
        if not others or not min(others, key=InstanceProcess.crowd).give(connection):
            # While traffic is split, and while nothing runs: an instance is started once the caller sends something.
            self.front.take(connection)

    @staticmethod
    def _surplus(revision: Revision, wanted: int) -> list[InstanceProcess]:
        extra = len(revision.running) - wanted
        if extra <= 0 or len(revision.serving) < len(revision.running):
            return []
        return revision.serving[-extra:]

    async def _tell(self, instance: InstanceProcess, revision: Revision) -> None:
        """Make an instance accept on what its revision accepts on; it may have been told otherwise before."""
        # One after the other, so that whoever comes back from here knows that it is done, whoever began.
        async with instance.telling:
            wanted = set(self.accepts(revision))
            told = instance.accepting
            await instance.order("share", share=self.state.weights.get(revision.number, 0))
            for name in sorted(wanted - told):
                await instance.order("accept", listener=name)
            for name in sorted(told - wanted):
                await instance.order("refuse", listener=name)
            instance.accepting = wanted

    def _watch(self, now: float) -> None:
        """Watch those listeners that no instance accepts on, or will soon."""
        target = self.target()
        for revision in self.revisions.values():
            self._set_watch(revision.listener, self._waits(revision, now))
        if target is None:
            self._set_watch(self.listener, True)
        else:
            self._set_watch(self.listener, self._waits(target, now))

    def _waits(self, revision: Revision, now: float) -> bool:
        if revision.running:
            return False
        # While it is being made, or between two attempts, connections wait without waking us.
        return revision.state.phase is Phase.FAILED or (revision.startable and now >= revision.not_before)

    def _set_watch(self, door: socket.socket, wanted: bool) -> None:
        if wanted and door.fileno() not in self._watched:
            self._watched.add(door.fileno())
            asyncio.get_running_loop().add_reader(door.fileno(), self._on_waiting, door)
        elif not wanted:
            self._unwatch(door)

    def _unwatch(self, door: socket.socket) -> None:
        if door.fileno() in self._watched:
            self._watched.discard(door.fileno())
            asyncio.get_running_loop().remove_reader(door.fileno())

    def _on_waiting(self, door: socket.socket) -> None:
        """Act upon a connection that waits on a listener that nobody accepts on."""
        if door is self.listener and self.target() is None:
            self.front.accept(door)
            return
        revision = next((each for each in self.revisions.values() if each.listener is door), self.target())
        if revision is None:
            return
        if revision.state.phase is Phase.FAILED and time.monotonic() < revision.not_before:
            self.front.refuse(door, revision)
        elif revision.startable:
            revision.demand()
        else:
            revision.provision()
            self.settle()

    def tick(self, now: float) -> None:
        """Look after limits and scale."""
        for revision in list(self.revisions.values()):
            revision.tick(now)
        self.settle()

    def busy(self) -> bool:
        """Return whether there is anything to look after."""
        return any(revision.instances for revision in self.revisions.values())

    def settle_later(self, delay: float) -> None:
        """Settle again after some seconds."""

        def act() -> None:
            self._timers.discard(timer)
            self.settle()

        timer = asyncio.get_running_loop().call_later(max(0.0, delay) + 0.001, act)
        self._timers.add(timer)

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _doors(self) -> list[socket.socket]:
        return [self.listener, *(revision.listener for revision in self.revisions.values())]

    def detach(self) -> None:
        """Stop looking after it, and leave everything running."""
        with contextlib.suppress(OSError):
            for door in self._doors():
                self._unwatch(door)
