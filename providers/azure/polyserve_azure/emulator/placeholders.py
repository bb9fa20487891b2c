"""Workers that run already and become an app's instance when one is needed: the platform's placeholders.

Azure keeps workers that have started and have no app yet; one that is needed is specialised, which is why a start from nothing takes
less time than a start of Python. Here one process for each interpreter has the engine imported, and a copy of it, made by `fork`,
becomes the instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
BOOT = "import sys;del sys.argv[0];name=sys.argv[0];exec(compile(open(name,'rb').read(),name,'exec'),{'__name__':'__main__'})"
"""Runs the worker without putting its directory, which is the emulator's, on the search path."""
PARENT_DEATH = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);"
    "sys.exit(0) if os.getppid()==1 else os.execv(sys.argv[1],sys.argv[1:])"
)
KILLED = -9
"""What an instance is said to have ended with when its placeholder ended first, which takes it along."""


@dataclass(slots=True, eq=False)
class Process:
    """A process that became an instance.

    Attributes:
        pid: Its number, and that of its group.
        gone: What it exited with, once it has.
    """

    pid: int
    gone: asyncio.Future[int]


class Placeholders:
    """The placeholders of this machine, one for each interpreter and engine, started when the first instance needs it."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, ...], Placeholder] = {}

    async def take(self, interpreter: str, engine: Sequence[str], wire: socket.socket, output: int) -> Process:
        """Return a process that waits at its wire for what it is to become.

        Args:
            interpreter: The program of Python.
            engine: Directories of the engine.
            wire: The process's end of the wire; stays open here.
            output: Descriptor of what it writes to; stays open here.

        Raises:
            OSError: The interpreter does not start.
        """
        key = (interpreter, *engine)
        found = self._all.get(key)
        if found is None or not found.alive:
            found = self._all[key] = Placeholder(interpreter, engine)
            found.start()
        return await found.take(wire, output)

    async def close(self) -> None:
        """End all of them, and with them what they became."""
        for found in self._all.values():
            await found.stop()
        self._all.clear()


class Placeholder:
    """One process that has the engine imported.

    Args:
        interpreter: The program of Python.
        engine: Directories of the engine, after everything else on the search path.
    """

    def __init__(self, interpreter: str, engine: Sequence[str]) -> None:
        self._interpreter, self._engine = interpreter, engine
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._rest = b""
        self._asked: deque[asyncio.Future[Process]] = deque()
        self._made: dict[int, Process] = {}

    @property
    def alive(self) -> bool:
        """Whether it runs and listens."""
        return self._control is not None

    def start(self) -> None:
        """Start it; what is asked of it before it is there waits."""
        ours, theirs = socket.socketpair()
        # -I and -S keep site directories and the caller's variables out; -B because the package cannot be written on Azure.
        command = [
            *life_line(), self._interpreter, "-I", "-S", "-B", "-u", "-c", BOOT, str(WORKER), str(theirs.fileno()), *self._engine,
        ]  # fmt: skip
        variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
        with theirs:
            self._process = subprocess.Popen(
                command, cwd="/", env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        ours.setblocking(False)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._read)

    async def take(self, wire: socket.socket, output: int) -> Process:
        """Have a copy made, and return it."""
        asked: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        assert self._control is not None
        try:
            socket.send_fds(self._control, [b"+"], [wire.fileno(), output])
        except ConnectionError:
            self._end()
        return await asked

    async def stop(self) -> None:
        """End it; the system ends its copies with it."""
        self._end()
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _read(self) -> None:
        assert self._control is not None
        try:
            chunk = self._control.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            chunk = b""
        if not chunk:
            self._end()
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._note(**json.loads(line))

    def _note(self, pid: int, code: int | None = None) -> None:
        if code is None:
            made = self._made[pid] = Process(pid, asyncio.get_running_loop().create_future())
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_result(made)
        else:
            self._made.pop(pid).gone.set_result(code)

    def _end(self) -> None:
        """Give up on it: it ended, or is to end."""
        if self._control is None:
            return
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = None
        while self._asked:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_exception(OSError(f"{self._interpreter} does not start"))
        for made in self._made.values():
            made.gone.set_result(KILLED)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(made.pid, KILLED * -1)
        self._made.clear()


@lru_cache(maxsize=1)
def life_line() -> list[str]:
    """Return the command that has its command killed when the emulator ends, however that happens; Linux only."""
    if sys.platform != "linux":
        return []  # the worker ends by itself when its wire does
    setpriv = shutil.which("setpriv")
    if setpriv:
        return [setpriv, "--pdeathsig", "KILL"]
    return [str(Path(sys.executable).resolve()), "-S", "-E", "-s", "-c", PARENT_DEATH]
