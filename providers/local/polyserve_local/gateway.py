"""The gateway of one home: a process of its own that keeps functions as they are wanted, and outlives whoever started it.

    python -m polyserve_local.gateway HOME

It takes the home's lock or leaves at once, takes over what a gateway before it left running, then answers the control
interface on loopback. The process that was started returns when its child answers (exit 0), or cannot (exit 1, the reason
in the log): that is the readiness event. Nothing is lost when it is killed: what is wanted is in files, instances answer
without it and hand their sockets to the next one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import resource
import secrets
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polyserve
from polyserve.driver import ErrorCode, Scaling
from polyserve_local import environment, instances
from polyserve_local.controlling import ControlServer
from polyserve_local.errors import GatewayError
from polyserve_local.files import FileStore
from polyserve_local.places import Places, remove_trees
from polyserve_local.state import FunctionState, load_all, spec_from_dict, status_to_dict
from polyserve_local.supervisor import Function

TICK_S = 0.05
"""How often pulses are read while anything runs: a page of shared memory each, some microseconds."""
IDLE_TICK_S = 60.0
MOST_FILES = 16_384
FIRST_LINGER_S = 10.0
"""How long a gateway that was just started waits for its first function."""


class Gateway:
    """All functions of one home.

    Args:
        places: The home's files.
        linger_s: Seconds to stay after the last function was deleted.
        ours: Tells whether the home's lock still is the one that was taken.
    """

    def __init__(self, places: Places, *, linger_s: float, ours: Callable[[], bool]) -> None:
        self._places = places
        self._ours = ours
        self._linger_s = linger_s
        self._functions: dict[str, Function] = {}
        self._woken = asyncio.Event()
        self._control = ControlServer(self._act, version=polyserve.__version__, answered=self._woken.set)
        self._over = False
        self._empty_since = time.monotonic()
        self._had_functions = False
        self._most_instances = max(1, os.cpu_count() or 1)

    async def run(self, answering: Any) -> None:
        """Serve until there is nothing left to do.

        Args:
            answering: Called once the control interface answers.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        await self._take_over()
        await self._control.start(self._places.contact)
        answering()
        try:
            while not self._over:
                self._woken.clear()
                pause = self._tick()
                if not self._over:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), pause)
                if self._busy():
                    # Woken by a call or by an instance: those are many, pulses are read at their own pace.
                    await asyncio.sleep(TICK_S)
        finally:
            # Callers that are not answered yet lose their connection and ask the next gateway.
            self._control.close(self._places.contact)
            for function in self._functions.values():
                function.detach()

    def _end(self) -> None:
        self._over = True
        self._woken.set()

    def _busy(self) -> bool:
        return any(function.busy() for function in self._functions.values())

    def _tick(self) -> float:
        """Look after everything; returns for how long nothing needs to be looked at unless something happens."""
        now = time.monotonic()
        if not self._ours():
            # The home was removed behind our back: nobody can ever reach what runs here, or stop it.
            self._abandon()
            return 0.0
        for function in list(self._functions.values()):
            try:
                function.tick(now)
            except Exception:
                # One function's trouble is not to end all the others.
                traceback.print_exc()
        if self._functions:
            self._empty_since, self._had_functions = now, True
            return 0.0 if self._busy() else IDLE_TICK_S
        patience = self._linger_s if self._had_functions else max(self._linger_s, FIRST_LINGER_S)
        left = self._empty_since + patience - now
        if left <= 0 and not self._control.busy:
            self._end()
        return max(left, 0.01)

    def _abandon(self) -> None:
        for function in self._functions.values():
            function.state.deleting = True
            for revision in function.revisions.values():
                for instance in revision.instances:
                    instance.kill("the home of the deployment was removed")
        self._end()

    # --- taking over ------------------------------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """Adopt what runs, and go on with what is wanted."""
        states = {state.name: state for state in load_all(self._places)}
        records = instances.find_records(self._places)
        known = [record for record in records if record.function in states]
        found = await asyncio.gather(
            *(
                asyncio.to_thread(instances.adopt, self._places, record, states[record.function].token)
                for record in known
            )
        )
        adopted = [each for each in found if each is not None]
        for record in records:
            if record.function not in states:
                instances.end(self._places, record)
        self._sweep({record.instance for record in records})
        for name, state in states.items():
            mine = [each for each in adopted if each.record.function == name]
            self._adopt(state, mine)
        for function in list(self._functions.values()):
            if function.state.deleting:
                await self._delete(function)
            else:
                function.resume()
        await self._collect()

    def _adopt(self, state: FunctionState, mine: list[instances.Adopted]) -> None:
        listeners: dict[str | int, socket.socket] = {}
        for each in mine:
            for name, door in each.listeners.items():
                key = each.record.revision if name == "revision" else name
                if key in listeners:
                    door.close()
                else:
                    listeners[key] = door
        function = Function(
            self._places, state, listeners=listeners, most_instances=self._most_instances, woken=self._woken
        )
        self._functions[state.name] = function
        for each in mine:
            revision = function.revisions.get(each.record.revision)
            if revision is None:
                each.channel.close()
                instances.end(self._places, each.record)
                continue
            process = each.process(self._places)
            revision.take(process)
            revision.wanted = len(revision.running)
            if process.draining:
                process.draining = False
                revision.drain(process)
        function.save()

    def _sweep(self, known: set[str]) -> None:
        """Remove what a crash left half-made."""
        for path in self._places.run.iterdir():
            if path.name.partition(".")[0] not in known:
                path.unlink(missing_ok=True)
        environment.sweep(self._places)
        places = self._places
        for directory in (places.functions, places.bundles, places.models, places.environments, places.root):
            for path in directory.glob(".*"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    async def _collect(self) -> None:
        """Remove bundles, environments and logs that no function needs."""
        places = self._places
        specs = [
            revision.spec for function in self._functions.values() for revision in function.state.revisions.values()
        ]
        needed = {
            places.bundles: {spec.artifact.sha256 for spec in specs},
            places.models: {spec.artifact.sha256 for spec in specs if spec.models},
            places.environments: {environment.key_of(spec) for spec in specs},
            places.logs: set(self._functions),
        }
        gone = []
        for directory, names in needed.items():
            for path in directory.iterdir():
                if path.name not in names and path.suffix != ".making" and not path.name.startswith("."):
                    # Out of the way at once: a function that is made meanwhile makes its own. Removing it may take a while.
                    gone.append(path.with_name(f".{secrets.token_hex(6)}"))
                    path.rename(gone[-1])
        await asyncio.to_thread(remove_trees, gone)

    # --- the control interface ------------------------------------------------------------------------------------------

    async def _act(self, verb: str, body: Mapping[str, Any]) -> Any:
        if verb == "apply":
            try:
                return await self._apply(body)
            finally:
                # What it was started for was tried: from now on it stays no longer than it was told to.
                self._had_functions, self._empty_since = True, time.monotonic()
        if verb == "list":
            return [status_to_dict(self._functions[name].status()) for name in sorted(self._functions)]
        if verb == "retire":
            say(f"leaving to a gateway of version {body['version']}")
            asyncio.get_running_loop().call_soon(self._end)
            return {}
        function = self._functions.get(body["name"])
        if function is None or function.state.deleting:
            raise GatewayError(ErrorCode.NOT_FOUND, f"there is no function {body['name']!r}")
        if verb == "describe":
            return status_to_dict(function.status())
        if verb == "resolve":
            return self._resolve(function, body["revision"])
        return await self._change(function, verb, body)

    async def _change(self, function: Function, verb: str, body: Mapping[str, Any]) -> Any:
        async with function.changing:
            if function.state.deleting:
                raise GatewayError(ErrorCode.NOT_FOUND, f"there is no function {body['name']!r}")
            if verb == "route":
                await function.route({int(number): weight for number, weight in body["weights"].items()})
            elif verb == "scale":
                await function.scale(Scaling(**body["scaling"]))
            elif verb == "remove_revision":
                await function.remove_revision(body["number"])
                await self._collect()
            elif verb == "delete":
                await self._delete(function)
            else:
                raise GatewayError(ErrorCode.UNSUPPORTED, f"the gateway knows no verb {verb!r}")
        return {}

    async def _apply(self, body: Mapping[str, Any]) -> Any:
        spec = spec_from_dict(body["spec"])
        function = self._functions.get(spec.name)
        if function is not None and function.state.deleting:
            raise GatewayError(ErrorCode.CONFLICT, f"{spec.name!r} is being deleted: deploy again when it is gone")
        known = function is not None and spec.revision in function.revisions
        if not known:
            # Refused before anything is written, where the bundle or a file of the model is not there at all.
            for artifact in (spec.artifact, *spec.models):
                await asyncio.to_thread(FileStore(self._places.store, artifact.bucket).head, artifact.key)
        function = self._functions.get(spec.name)
        if function is None:
            state = FunctionState(
                name=spec.name,
                token=secrets.token_urlsafe(32),
                options=body["options"],
                scaling=spec.scaling,
                labels=spec.labels,
            )
            function = Function(
                self._places, state, listeners={}, most_instances=self._most_instances, woken=self._woken
            )
            self._functions[spec.name] = function
        async with function.changing:
            function.state.options = body["options"]
            function.state.labels = spec.labels
            function.apply(spec, spec.digest(), body["interpreter"], body["installer"])
        return status_to_dict(function.status())

    async def _delete(self, function: Function) -> None:
        await function.delete()
        del self._functions[function.state.name]
        await self._collect()
        # Last: as long as it is there, a gateway that is started anew goes on with the deletion.
        self._places.state(function.state.name).unlink(missing_ok=True)
        self._empty_since = time.monotonic()

    def _resolve(self, function: Function, number: int | None) -> Any:
        port = function.state.port
        if number is not None:
            revision = function.revisions.get(number)
            if revision is None:
                raise GatewayError(ErrorCode.NOT_FOUND, f"{function.state.name!r} has no revision {number}")
            port = revision.state.port
        return {"url": f"http://127.0.0.1:{port}", "token": function.state.token}


def say(words: str) -> None:
    """Write a line to the gateway's log, which its standard error is."""
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {words}\n")
    sys.stderr.flush()


def take_lock(places: Places) -> int | None:
    """Take the home's lock; `None` where another gateway has it. Held until the process ends, however it ends."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A gateway that ends takes its lock's file with it: locking that one would lock out nobody.
            if _is_at(places.lock, descriptor):
                return descriptor
            os.close(descriptor)
            continue
        # Drivers look with a shared lock, for microseconds. Who does not share is another gateway.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            break
        finally:
            os.close(descriptor)
        time.sleep(0.002)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def raise_limit() -> None:
    """Let this process, and the instances that inherit it, hold as many connections as the system allows, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(places: Places, *, linger_s: float, answering: Any) -> None:
    """Be the gateway of a home, or return at once where there is one."""
    os.umask(0o077)
    raise_limit()
    lock = take_lock(places)
    if lock is None:
        answering()
        return
    # Again: a gateway that ended just now may have removed them.
    places.make()
    # What it says is of a gateway that is gone.
    places.contact.unlink(missing_ok=True)
    say(f"gateway of {places.home}: pid {os.getpid()}, version {polyserve.__version__}")

    def ours() -> bool:
        return _is_at(places.lock, lock)

    try:
        asyncio.run(Gateway(places, linger_s=linger_s, ours=ours).run(answering))
    finally:
        # Last, and as long as the lock is held: whoever comes next makes what it needs anew.
        if ours():
            places.unmake()
            places.lock.unlink(missing_ok=True)
        os.close(lock)


def main() -> None:
    """Go into the background as the gateway of a home; return when it answers."""
    parser = argparse.ArgumentParser(prog="python -m polyserve_local.gateway")
    parser.add_argument("home", type=Path)
    parser.add_argument("--linger", type=float, default=0.0)
    asked = parser.parse_args()
    places = Places(asked.home.absolute())
    places.make()
    ready_out, ready_in = os.pipe()
    if os.fork():
        os.close(ready_in)
        # The end of the pipe without a byte: the child ended before it answered.
        sys.exit(0 if os.read(ready_out, 1) else 1)
    os.close(ready_out)
    os.setsid()
    os.chdir(places.root)

    def answering() -> None:
        os.write(ready_in, b"1")
        os.close(ready_in)

    serve(places, linger_s=asked.linger, answering=answering)


if __name__ == "__main__":
    main()
