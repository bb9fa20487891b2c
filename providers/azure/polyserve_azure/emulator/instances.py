"""One instance of an app: a process under the Functions engine, and the wire to it.

Life of an instance: `start` waits until the engine has indexed the app; `invoke` has one of its functions answer, several
at a time; `stop` ends it with everything it has started.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyserve.emulation.placeholders import Placeholders, Process, command_of
from polyserve_azure.emulator.worker import FRAME

WORKER = Path(__file__).with_name("worker.py")
START_PATIENCE_S = 60.0
"""How long an instance may take to start: the host's own `functions.worker.startupTimeout`."""
MEASURE_S = 0.1
"""How often the memory of a process that works is looked at."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
Line = tuple[float, str, int]
"""When, what, and how severe: 0 to 4, as Application Insights has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an instance is started from.

    Attributes:
        root: The unpacked package.
        interpreter: The program of Python.
        engine: Directories of the engine, after everything else on the search path.
        variables: All environment variables of the process.
        memory_mb: What the process may take before it is ended.
    """

    root: Path
    interpreter: str
    engine: Sequence[str]
    variables: Mapping[str, str]
    memory_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function that the engine found."""

    name: str
    identifier: str
    bindings: Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Reply:
    """What a function answered; `error` where it did not."""

    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    cookies: Sequence[str] = ()
    body: bytes = b""
    error: str = ""


class Instance:
    """One instance.

    Args:
        recipe: What it is started from.
        scratch: Directory that is its own: `/tmp` on Azure.
        log: Takes its lines.
        placeholders: What it is made from.

    Attributes:
        functions: What the engine found in the app.
        failure: Why it did not start.
        indexed: Whether the engine came as far as to say so itself.
        busy: Requests that it answers at the moment.
        rests: How often it has run out of work.
        retired: Whether it was ended by the platform, not by itself.
    """

    def __init__(
        self, recipe: Recipe, scratch: Path, log: Callable[[str, list[Line]], None], placeholders: Placeholders
    ) -> None:
        self.identifier = secrets.token_hex(16)
        self.functions: list[Function] = []
        self.busy = 0
        self.rests = 0
        self.retired = False
        self.failure = ""
        self.indexed = False
        self._recipe, self._scratch, self._log = recipe, scratch, log
        self._placeholders = placeholders
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._heard: asyncio.Future[None] | None = None
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._numbers = itertools.count(1)
        self._pipe, self._rest = -1, b""

    @property
    def alive(self) -> bool:
        """Whether its process runs and listens."""
        hung_up = self._reading is not None and self._reading.done()
        return self._process is not None and not self._process.gone.done() and not hung_up

    async def start(self) -> bool:
        """Start the process and wait until the app is indexed; whether it is. `failure` says why it is not."""
        loop = asyncio.get_running_loop()
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._heard = loop.create_future()
        ours, theirs = socket.socketpair()
        self._pipe, write_end = os.pipe()
        os.set_blocking(self._pipe, False)
        loop.add_reader(self._pipe, self._read_output)
        recipe = self._recipe
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=2**20)
        self._reading = loop.create_task(self._read_wire(reader))
        try:
            # -I and -S keep site directories and the caller's variables out; -B because the package cannot be written on Azure.
            command = command_of([recipe.interpreter, "-I", "-S", "-B", "-u"], WORKER, *recipe.engine)
            variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
            self._process = await self._placeholders.take(command, variables, [theirs.fileno(), write_end])
        except OSError as error:
            self.failure = str(error)
            return False
        finally:
            os.close(write_end)
            theirs.close()
        home = {"HOME": str(self._scratch), "TMPDIR": str(self._scratch), "WEBSITE_INSTANCE_ID": self.identifier}
        become = {"root": str(recipe.root), "variables": {**recipe.variables, **home}, "engine": list(recipe.engine)}
        data = json.dumps(become).encode()
        self._writer.write(FRAME.pack(len(data), 0) + data)
        gone = self._process.gone
        both: set[asyncio.Future[Any]] = {self._heard, gone}
        await asyncio.wait(both, timeout=START_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        self.indexed = self._heard.done()
        if not self.indexed:
            self.failure = (
                f"python exited with code {gone.result()}" if gone.done() else "the worker did not start in time"
            )
        return not self.failure

    async def invoke(self, function: Function, header: Mapping[str, Any], body: bytes) -> Reply:
        """Have a function answer a request.

        Args:
            function: The function.
            header: `method`, `url`, `headers`, `query`, `params` and the name of the `binding`.
            body: The request's body.
        """
        if self._writer is None or not self.alive:
            return Reply(error="the instance is gone")
        number = next(self._numbers)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        frame = {**header, "id": number, "function": function.identifier, "invocation": str(uuid.uuid4())}
        data = json.dumps(frame).encode()
        try:
            self._writer.write(FRAME.pack(len(data), len(body)) + data)
            self._writer.write(body)
            await self._writer.drain()
            return await self._watched(answer)
        except ConnectionError:
            return Reply(error="the instance is gone")
        finally:
            self._waiting.pop(number, None)

    async def _watched(self, answer: asyncio.Future[Reply]) -> Reply:
        """Wait for an answer, and end the process where it takes more memory than an instance has."""
        while not answer.done():
            # The first look comes late: most calls are over before anything needs to be measured.
            await asyncio.wait({answer}, timeout=MEASURE_S)
            if self._memory_mb() > self._recipe.memory_mb and self._process is not None and self.alive:
                limit = self._recipe.memory_mb
                self._log(
                    self.identifier, [(time.time(), f"python exited with code 137: over {limit} MB of memory", 3)]
                )
                self._process.kill()
        return answer.result()

    def _memory_mb(self) -> float:
        try:
            with open(f"/proc/{self._process.pid if self._process else 0}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE / 2**20
        except (OSError, IndexError):
            return 0.0  # gone, or not on Linux: nothing can be said

    async def stop(self) -> None:
        """End the process, everything in its group, and its scratch directory."""
        if self._process is not None:
            self._process.kill()
            await asyncio.wait({self._process.gone})
        elif self._writer is not None:
            # Its start was given up: what is at the other end of the wire is to end, too.
            self._writer.close()
        if self._reading is not None:
            await asyncio.wait({self._reading})
        if self._writer is not None:
            self._writer.close()
        if self._pipe >= 0:
            self._read_output()
            if self._rest:
                self._take([self._rest])
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def _read_wire(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                head, size = FRAME.unpack(await reader.readexactly(FRAME.size))
                header = json.loads(await reader.readexactly(head))
                self._note(header, await reader.readexactly(size))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
        # Those that wait are told in the next round, when this task is done and the instance counts as gone.
        asyncio.get_running_loop().call_soon(self._give_up)

    def _give_up(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(Reply(error="the worker process ended"))

    def _note(self, header: dict[str, Any], body: bytes) -> None:
        if "log" in header:
            severity = min(4, max(0, header["level"] // 10 - 1))
            self._log(self.identifier, [(time.time(), header["log"], severity)])
            return
        if "id" in header:
            if header.get("error"):
                self._log(self.identifier, [(time.time(), f"{header['error']}\n{header['trace']}", 3)])
            answer = self._waiting.get(header["id"])
            if answer is not None and not answer.done():
                names = ("status", "headers", "cookies", "error")
                answer.set_result(Reply(body=body, **{name: header[name] for name in names if name in header}))
            return
        if "failed" in header:
            self.failure = header["failed"]
            self._log(self.identifier, [(time.time(), f"{header['failed']}\n{header['trace']}", 3)])
        else:
            self.functions = [
                Function(name=one["name"], identifier=one["id"], bindings=one["bindings"]) for one in header["ready"]
            ]
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    def _read_output(self) -> None:
        while self._pipe >= 0:
            try:
                chunk = os.read(self._pipe, 65536)
            except BlockingIOError:
                return
            if not chunk:
                asyncio.get_running_loop().remove_reader(self._pipe)
                return
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            self._take(whole)

    def _take(self, lines: list[bytes]) -> None:
        now = time.time()
        self._log(self.identifier, [(now, line.decode("utf-8", "replace"), 1) for line in lines if line])
