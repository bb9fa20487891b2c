"""One instance of a revision: a process that listens on a port, and what it prints.

Life of an instance: `start` waits until it listens; then requests go to `url`, several at a time; `stop` ends it with
everything it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyserve.emulation.lifeline import life_line
from polyserve.emulation.placeholders import Placeholders, Process
from polyserve_gcp.emulator.starting import copy

LOOK_EVERY_S = 0.01
"""How often is looked whether an instance listens by now."""
ENDING_S = 0.1
"""How long an instance that has dropped a request is looked at before it gets another."""
STDOUT, STDERR = "stdout", "stderr"
_SIZES = re.compile(rb"^(Pss|Pss_Anon|Anonymous|Private_Dirty): +(\d+) kB$", re.MULTILINE)
Line = tuple[float, str, str]
"""When, `stdout` or `stderr`, and what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an instance is started from.

    Attributes:
        command: The program and its arguments; the program is looked for in the `PATH` of the variables.
        root: Where it runs.
        variables: All environment variables of the process but those of the instance itself.
        memory_mb: What its processes may take together before they are ended.
        start_s: How long it may take until it listens, in seconds.
        prepared: Whether it is a function under functions-framework, which a placeholder can have made ready.
    """

    command: tuple[str, ...]
    root: Path
    variables: Mapping[str, str]
    memory_mb: float
    start_s: float
    prepared: bool = False


@dataclass(slots=True)
class _Pipe:
    stream: str
    descriptor: int = -1
    rest: bytes = b""


@dataclass(slots=True, eq=False)
class Instance:
    """One instance.

    Attributes:
        recipe: What it is started from.
        scratch: Directory that is its own: `/tmp` on Google Cloud.
        log: Takes its lines, with its identifier.
        placeholders: What it is made from, where it can be.
        identifier: Its identifier.
        url: Where it listens.
        failure: Why it did not start.
        busy: Requests that it answers at the moment.
        rests: How often it has run out of work.
        watched: Whether somebody looks at its memory.
        over_memory_mb: What it took, where it was ended for that.
    """

    recipe: Recipe
    scratch: Path
    log: Callable[[str, list[Line]], None]
    placeholders: Placeholders
    identifier: str = field(default_factory=lambda: secrets.token_hex(48))
    url: str = ""
    failure: str = ""
    busy: int = 0
    rests: int = 0
    watched: bool = False
    over_memory_mb: float = 0.0
    _process: Process | None = None
    _pipes: list[_Pipe] = field(default_factory=lambda: [_Pipe(STDOUT), _Pipe(STDERR)])

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and not self._process.gone.done()

    @property
    def pid(self) -> int:
        """Its process; 0 before it is started."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> bool:
        """Start the process and wait until it listens; whether it does. `failure` says why it does not."""
        loop = asyncio.get_running_loop()
        self.scratch.mkdir(parents=True, exist_ok=True)
        host, port = _place()
        self.url = f"http://{host}:{port}"
        recipe = self.recipe
        # HOST is what functions-framework listens on: on Google Cloud all addresses, of which there are too many here.
        own = {"HOME": str(self.scratch), "TMPDIR": str(self.scratch), "HOST": host, "PORT": str(port)}
        variables = {**recipe.variables, **own}
        ends = [os.pipe() for _ in self._pipes]
        outputs = [writing for _, writing in ends]
        try:
            if recipe.prepared:
                self._process = await copy(self.placeholders, recipe.command, recipe.root, variables, outputs)
            if self._process is None:
                self._process = self._run(variables, outputs)
        except OSError as error:
            self.failure = f"{recipe.command[0]} cannot be run: {error.strerror}"
        finally:
            for pipe, (reading, writing) in zip(self._pipes, ends, strict=True):
                os.close(writing)
                os.set_blocking(reading, False)
                pipe.descriptor = reading
                loop.add_reader(reading, self._read, pipe)
        if self._process is None:
            return False
        await self._listening(self._process, host, port)
        return not self.failure

    async def stop(self, grace_s: float = 0.0) -> None:
        """End the process, everything in its group, and its scratch directory.

        Args:
            grace_s: How long it has after SIGTERM, in seconds; none at all unless given.
        """
        if self._process is not None:
            gone = self._process.gone
            if grace_s:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGTERM)
                await asyncio.wait({gone}, timeout=grace_s)
            self._process.kill()
            await asyncio.wait({gone})
        for pipe in self._pipes:
            if pipe.descriptor >= 0:
                self._read(pipe)
            if pipe.descriptor >= 0:
                self._close(pipe)
        shutil.rmtree(self.scratch, ignore_errors=True)

    async def ending(self) -> None:
        """Wait for a moment whether it ends: what has dropped a request may be on its way out."""
        if self._process is not None:
            await asyncio.wait({self._process.gone}, timeout=ENDING_S)

    def measure(self) -> bool:
        """End the instance where it takes more memory than it may; whether that was so."""
        taken = _memory_mb(self.pid)
        if taken <= self.recipe.memory_mb or self._process is None or not self.alive:
            return False
        self.over_memory_mb = taken
        self._process.kill()
        return True

    def _run(self, variables: Mapping[str, str], outputs: Sequence[int]) -> Process:
        """Start the process from nothing."""
        loop = asyncio.get_running_loop()
        started = subprocess.Popen(
            [*life_line(), *self.recipe.command], cwd=self.recipe.root, env=variables,
            stdin=subprocess.DEVNULL, stdout=outputs[0], stderr=outputs[1], start_new_session=True,
        )  # fmt: skip
        made = Process(started.pid, loop.create_future())
        threading.Thread(target=_watch, args=(loop, started, made), daemon=True, name="instance").start()
        return made

    async def _listening(self, process: Process, host: str, port: int) -> None:
        until = time.monotonic() + self.recipe.start_s
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return
            if process.gone.done():
                self.failure = f"Container called exit({process.gone.result()})."
                return
            if time.monotonic() > until:
                self.failure = f"It does not listen on its port after {self.recipe.start_s:g} seconds."
                return
            await asyncio.wait({process.gone}, timeout=LOOK_EVERY_S)

    def _read(self, pipe: _Pipe) -> None:
        while pipe.descriptor >= 0:
            try:
                chunk = os.read(pipe.descriptor, 65536)
            except BlockingIOError:
                return
            if not chunk:
                self._close(pipe)
                return
            *whole, pipe.rest = (pipe.rest + chunk).split(b"\n")
            self._take(pipe.stream, whole)

    def _close(self, pipe: _Pipe) -> None:
        asyncio.get_running_loop().remove_reader(pipe.descriptor)
        os.close(pipe.descriptor)
        pipe.descriptor = -1
        if pipe.rest:
            self._take(pipe.stream, [pipe.rest])

    def _take(self, stream: str, lines: list[bytes]) -> None:
        now = time.time()
        found = [(now, stream, line.decode("utf-8", "replace")) for line in lines if line.strip()]
        if found:
            self.log(self.identifier, found)


def _watch(loop: asyncio.AbstractEventLoop, started: subprocess.Popen[bytes], made: Process) -> None:
    code = started.wait()
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
        loop.call_soon_threadsafe(made.gone.set_result, code)


def _place() -> tuple[str, int]:
    """Return an address and a free port for an instance.

    On Linux all of 127.0.0.0/8 is loopback. An address of its own keeps the port from being taken by somebody else before
    the instance listens.
    """
    host = "127.0.0.1"
    if sys.platform == "linux":
        host = f"127.{64 + secrets.randbelow(128)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
    with socket.socket() as probe:
        probe.bind((host, 0))
        return host, int(probe.getsockname()[1])


def _memory_mb(pid: int) -> float:
    """Return what a process and those that it started take; shared pages count for each by its part.

    A copy of a placeholder shares its memory with that, too, and counts like an instance that does not: with all that the first
    process has of its own, and what each other one has for itself alone.
    """
    parts = own = 0.0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_bytes()
            children = Path(f"/proc/{one}/task/{one}/children").read_bytes()
        except OSError:
            continue  # gone, or not on Linux: nothing can be said
        waiting.extend(int(child) for child in children.split())
        sizes = {name: int(size) / 1024 for name, size in _SIZES.findall(rollup)}
        part = sizes.get(b"Pss", 0.0)
        files = part - sizes.get(b"Pss_Anon", part)
        parts += part
        own += files + sizes.get(b"Anonymous" if one == pid else b"Private_Dirty", 0.0)
    return max(parts, own)
