"""One instance of a revision: a process that listens on a port, and what it prints.

Life of an instance: `start` waits until it listens; then requests go to `url`, several at a time; `stop` ends it with
everything it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

LOOK_EVERY_S = 0.01
"""How often is looked whether an instance listens by now."""
ENDING_S = 0.1
"""How long an instance that has dropped a request is looked at before it gets another."""
STDOUT, STDERR = "stdout", "stderr"
PARENT_DEATH = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);"
    "sys.exit(0) if os.getppid()==1 else os.execvp(sys.argv[1],sys.argv[1:])"
)
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
    """

    command: tuple[str, ...]
    root: Path
    variables: Mapping[str, str]
    memory_mb: float
    start_s: float


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
    identifier: str = field(default_factory=lambda: secrets.token_hex(48))
    url: str = ""
    failure: str = ""
    busy: int = 0
    rests: int = 0
    watched: bool = False
    over_memory_mb: float = 0.0
    _process: subprocess.Popen[bytes] | None = None
    _gone: asyncio.Future[int] | None = None
    _pipes: list[_Pipe] = field(default_factory=lambda: [_Pipe(STDOUT), _Pipe(STDERR)])

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._gone is not None and not self._gone.done()

    @property
    def pid(self) -> int:
        """Its process; 0 before it is started."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> bool:
        """Start the process and wait until it listens; whether it does. `failure` says why it does not."""
        loop = asyncio.get_running_loop()
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._gone = loop.create_future()
        host, port = _place()
        self.url = f"http://{host}:{port}"
        recipe = self.recipe
        # HOST is what functions-framework listens on: on Google Cloud all addresses, of which there are too many here.
        own = {"HOME": str(self.scratch), "TMPDIR": str(self.scratch), "HOST": host, "PORT": str(port)}
        ends = [os.pipe() for _ in self._pipes]
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220
                [*life_line(), *recipe.command], cwd=recipe.root, env={**recipe.variables, **own},
                stdin=subprocess.DEVNULL, stdout=ends[0][1], stderr=ends[1][1], start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self.failure = f"{recipe.command[0]} cannot be run: {error.strerror}"
            self._gone.set_result(127)
        finally:
            for pipe, (reading, writing) in zip(self._pipes, ends, strict=True):
                os.close(writing)
                os.set_blocking(reading, False)
                pipe.descriptor = reading
                loop.add_reader(reading, self._read, pipe)
        if self._process is None:
            return False
        threading.Thread(target=self._watch, args=(loop, self._process), daemon=True, name="instance").start()
        await self._listening(host, port)
        return not self.failure

    async def stop(self, grace_s: float = 0.0) -> None:
        """End the process, everything in its group, and its scratch directory.

        Args:
            grace_s: How long it has after SIGTERM, in seconds; none at all unless given.
        """
        if self._process is not None:
            assert self._gone is not None
            if grace_s:
                self._signal(signal.SIGTERM, group=False)
                await asyncio.wait({self._gone}, timeout=grace_s)
            self._signal(signal.SIGKILL)
            await self._gone
        for pipe in self._pipes:
            if pipe.descriptor >= 0:
                self._read(pipe)
            if pipe.descriptor >= 0:
                self._close(pipe)
        shutil.rmtree(self.scratch, ignore_errors=True)

    async def ending(self) -> None:
        """Wait for a moment whether it ends: what has dropped a request may be on its way out."""
        if self._gone is not None:
            await asyncio.wait({self._gone}, timeout=ENDING_S)

    def measure(self) -> bool:
        """End the instance where it takes more memory than it may; whether that was so."""
        taken = _memory_mb(self.pid)
        if taken <= self.recipe.memory_mb or not self.alive:
            return False
        self.over_memory_mb = taken
        self._signal(signal.SIGKILL)
        return True

    def _signal(self, number: int, *, group: bool = True) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, and nothing of its group is left
            (os.killpg if group else os.kill)(self.pid, number)

    async def _listening(self, host: str, port: int) -> None:
        assert self._gone is not None
        until = time.monotonic() + self.recipe.start_s
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return
            if self._gone.done():
                self.failure = f"Container called exit({self._gone.result()})."
                return
            if time.monotonic() > until:
                self.failure = f"It does not listen on its port after {self.recipe.start_s:g} seconds."
                return
            await asyncio.wait({self._gone}, timeout=LOOK_EVERY_S)

    def _watch(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(self._note_end, code)

    def _note_end(self, code: int) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(code)

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
    """Return what a process and those that it started take; shared pages count for each by its part."""
    total, waiting = 0.0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_bytes()
            children = Path(f"/proc/{one}/task/{one}/children").read_bytes()
        except OSError:
            continue  # gone, or not on Linux: nothing can be said
        waiting.extend(int(child) for child in children.split())
        found = rollup.partition(b"\nPss:")[2].split(None, 1)
        total += int(found[0]) / 1024 if found else 0.0
    return total


@lru_cache(maxsize=1)
def life_line() -> list[str]:
    """Return the command that has its command killed when the emulator ends, however that happens; Linux only."""
    if sys.platform != "linux":
        return []  # an instance there outlives an emulator that is killed
    setpriv = shutil.which("setpriv")
    if setpriv:
        return [setpriv, "--pdeathsig", "KILL"]
    return [str(Path(sys.executable).resolve()), "-S", "-E", "-s", "-c", PARENT_DEATH]
