"""Processes that run already and become an instance when one is needed, as the placeholders of a platform do.

Most of what an instance takes to start is Python, and what it imports before it comes to the code that was deployed. A
placeholder has done that, and a copy of it, made by `fork`, becomes the instance. What runs in it is `copies.py` with a program of
the emulator's, under the interpreter of the code: its last argument is the descriptor of a socket, on which each byte asks for a
copy and brings the descriptors that the copy is to have. It answers with a line of JSON, `{"pid": 1}`, once the copy leads a group
of its own, and with another when the copy has ended, `{"pid": 1, "code": 0}`. It ends when the socket does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyserve.emulation.lifeline import life_line

PATIENCE_S = 30.0
"""How long a copy may take; what takes longer hangs."""
COPIES = Path(__file__).with_name("copies.py")
BOOT = """\
import sys
sys.path[:] = [place for place in sys.path if place]
with open(sys.argv[1], "rb") as file:
    code = compile(file.read(), sys.argv[1], "exec")
exec(code, {"__name__": "__main__"})
"""
"""Runs the first argument without putting its directory, which is the emulator's, on the search path, nor where it runs."""
KILLED = -9
"""What an instance is said to have ended with when its placeholder ended first, which takes it along."""


@dataclass(slots=True, eq=False)
class Process:
    """A process that is an instance.

    Attributes:
        pid: Its number, and that of its group.
        gone: What it exited with, once it has.
    """

    pid: int
    gone: asyncio.Future[int]

    def kill(self) -> None:
        """End it, and everything in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, and nothing of its group is left
            os.killpg(self.pid, signal.SIGKILL)


def command_of(python: Sequence[str], program: Path, *arguments: str) -> list[str]:
    """Return what a placeholder runs.

    Args:
        python: The interpreter of what is deployed, and its options.
        program: What is made ready and what copies become: see `copies`.
        arguments: Of the program.
    """
    return [*python, "-c", BOOT, str(COPIES), str(program), *arguments]


class Placeholders:
    """The placeholders of an emulator, each started when the first instance needs it.

    Args:
        directory: Where they run, so that whose they are can be seen; it may not be there yet.
        most: How many stay when no instance is a copy of them.
    """

    def __init__(self, directory: Path, most: int = 8) -> None:
        self._directory, self._most = directory, most
        self._all: dict[tuple[object, ...], Placeholder] = {}

    async def take(self, command: Sequence[str], variables: Mapping[str, str], descriptors: Sequence[int]) -> Process:
        """Return a new process that has what a command has made ready.

        Args:
            command: What a placeholder runs, without its last argument.
            variables: All environment variables that it starts with.
            descriptors: What the process is to have; they stay open here.

        Raises:
            OSError: The command does not run.
        """
        key = (*command, *sorted(variables.items()))
        found = self._all.pop(key, None)
        leaving: list[Placeholder] = []
        try:
            if found is None or not found.alive:
                leaving += [] if found is None else [found]
                found = Placeholder(self._directory, command, variables)
                found.start()
            # The last one is the one that was needed last.
            self._all[key] = found
            idle = [name for name, one in self._all.items() if one.idle and one is not found]
            leaving += [self._all.pop(name) for name in idle[: max(0, len(self._all) - self._most)]]
            return await found.take(descriptors)
        finally:
            for one in leaving:
                await one.stop()

    async def close(self) -> None:
        """End all of them, and with them what they became."""
        for found in self._all.values():
            await found.stop()
        self._all.clear()


class Placeholder:
    """One process that has made ready what instances need.

    Args:
        directory: Where it runs.
        command: What it runs, without its last argument.
        variables: All environment variables that it starts with.
    """

    def __init__(self, directory: Path, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self._directory, self._command, self._variables = directory, command, variables
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._rest = b""
        self._asked: deque[asyncio.Future[Process]] = deque()
        self._made: dict[int, Process] = {}
        self._taking = 0

    @property
    def alive(self) -> bool:
        """Whether it runs and listens."""
        return self._control is not None

    @property
    def idle(self) -> bool:
        """Whether nobody has a copy of it, or waits for one."""
        return not (self._made or self._taking)

    def start(self) -> None:
        """Start it; what is asked of it before it is there waits.

        Raises:
            OSError: It cannot be run.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        # What it writes to is of the kind that instances write to, and nobody reads it.
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*life_line(), *self._command, str(theirs.fileno())], cwd=self._directory, env=self._variables,
                stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, start_new_session=True, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(reading)
            os.close(writing)
        ours.setblocking(False)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._read)

    async def take(self, descriptors: Sequence[int]) -> Process:
        """Have a copy made, and return it.

        Args:
            descriptors: What it is to have; they stay open here.

        Raises:
            OSError: It does not run any more.
        """
        asked: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._taking += 1
        try:
            if self._control is not None:
                socket.send_fds(self._control, [b"+"], descriptors)
            await asyncio.wait({asked}, timeout=PATIENCE_S if self._control is not None else 0)
        except ConnectionError:
            pass
        except asyncio.CancelledError:
            # Nobody waits for it any more. What is there already is ended here, and what is still to come when it comes.
            if not asked.cancel() and asked.exception() is None:
                asked.result().kill()
            raise
        finally:
            self._taking -= 1
        if not asked.done():
            self._end()
        return asked.result()

    async def stop(self) -> None:
        """End it; the system ends its copies with it."""
        self._end()
        if self._process is not None:
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
            if asked.done():
                made.kill()
            else:
                asked.set_result(made)
        else:
            self._made.pop(pid).gone.set_result(code)

    def _end(self) -> None:
        """Give up on it: it ended, or is to end."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
        while self._asked:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_exception(OSError(f"{self._command[0]} does not start"))
        for made in self._made.values():
            made.gone.set_result(KILLED)
            made.kill()
        self._made.clear()
