"""One instance as the gateway sees it: start its process, or take a running one over; give it orders; hear that it is ready or has ended.

An instance is found again after the gateway was killed through its record in the run directory: pid and start time say whether the process
still is the one that was started, the control socket and the function's token that it is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import mmap
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyserve_local import processes
from polyserve_local.entrypoint import MOST_LISTENERS, PULSE_BYTES
from polyserve_local.places import Places, write_atomic
from polyserve_local.pulse import Pulse, read_pulse

ORDER_TIMEOUT_S = 5.0
ADOPT_TIMEOUT_S = 2.0
CROWD_S = 0.1
"""How long it may take until an instance's pulse tells of the connections that it was given."""
# What of the gateway's own environment an instance sees: where programs and temporary files are, and the language. Nothing else, so that
# it does not depend on who happened to start the gateway.
PASSED_ON = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)
# One thread each: the same wall time for one request as with all cores, and a fifth to half of the CPU. Instances are what scales.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the run directory remembers of an instance."""

    instance: str
    function: str
    revision: int
    pid: int
    started: str
    log: str

    def save(self, places: Places) -> None:
        """Write the record to its file."""
        write_atomic(places.run / f"{self.instance}.json", json.dumps(asdict(self)).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How an instance is started."""

    function: str
    revision: int
    python: str
    bundle: Path
    environment: Mapping[str, str]
    token: str
    timeout_s: float
    request_bytes: int
    memory_mb: int
    idle_timeout_s: float
    log_bytes: int
    accept: tuple[str, ...]
    share: int
    listeners: Mapping[str, socket.socket]
    models: Mapping[str, Any] | None = None


class InstanceProcess:
    """A running instance. All methods belong to the event loop's thread.

    Attributes:
        record: Who it is.
        ready: Whether its model is loaded.
        draining: Whether it was told to end.
        accepting: The listeners that it was last told to accept on.
        telling: Held while it is told to accept elsewhere.
        born: `time.monotonic()` when this gateway started it or took it over.
        ready_at: The same for when it became ready; 0.0 before.
        failure: Why it ended or was ended, once known.
    """

    def __init__(self, places: Places, record: Record, channel: socket.socket) -> None:
        self.record = record
        self.ready = False
        self.draining = False
        self.accepting: set[str] = set()
        self.born = time.monotonic()
        self.ready_at = 0.0
        self.failure: str | None = None
        self.clean_failure = False
        self.telling = asyncio.Lock()
        self.ended = asyncio.Event()
        self.popen: subprocess.Popen[bytes] | None = None
        self._places = places
        self._channel = channel
        self._heard = bytearray()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._page: mmap.mmap | None = None
        self._on_ready: Callable[[InstanceProcess], None] = lambda _: None
        self._on_end: Callable[[InstanceProcess], None] = lambda _: None
        self._on_moved: Callable[[InstanceProcess, socket.socket], None] = lambda _, connection: connection.close()
        self._given: deque[int] = deque()
        self._crowd = 0
        self._crowd_at = 0.0

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.record.pid

    @property
    def serving(self) -> bool:
        """Return whether it answers requests and will go on to."""
        return self.ready and not self.draining

    def watch(
        self,
        *,
        on_ready: Callable[[InstanceProcess], None],
        on_end: Callable[[InstanceProcess], None],
        on_moved: Callable[[InstanceProcess, socket.socket], None],
    ) -> None:
        """Begin to hear from it: that it is ready, that it has ended, and that it parts with a connection."""
        self._on_ready, self._on_end, self._on_moved = on_ready, on_end, on_moved
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._hear)

    def pulse(self) -> Pulse | None:
        """Return how it is doing; `None` before it first told."""
        if self._page is None:
            try:
                with open(self._places.run / f"{self.record.instance}.pulse", "rb") as file:
                    self._page = mmap.mmap(file.fileno(), PULSE_BYTES, access=mmap.ACCESS_READ)
            except (FileNotFoundError, ValueError):
                return None
        return read_pulse(self._page)

    async def order(self, verb: str, **details: Any) -> bool:
        """Give an order and wait until it is carried out; false where the instance ended instead, or does not answer."""
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._channel.send(json.dumps({"op": verb, "id": number, **details}).encode() + b"\n")
            return bool((await asyncio.wait_for(answer, ORDER_TIMEOUT_S)).get("ok"))
        except (OSError, TimeoutError):
            return False
        finally:
            self._waiting.pop(number, None)

    def crowd(self) -> int:
        """Return how many connections it has, those that it was given just now included."""
        now = time.monotonic()
        if now - self._crowd_at > CROWD_S:
            pulse = self.pulse()
            self._crowd, self._crowd_at = 0 if pulse is None else pulse.connections, now
        return self._crowd

    def give(self, connection: socket.socket) -> bool:
        """Let it go on with a connection that another instance had; false where it cannot."""
        try:
            socket.send_fds(self._channel, [b'{"op": "take"}\n'], [connection.fileno()])
        except OSError:
            return False
        connection.close()
        self._crowd += 1
        return True

    def kill(self, reason: str) -> None:
        """End it at once; `reason` goes to its log."""
        if self.failure is None:
            self.failure = reason
            self.note("killed", reason)
        processes.kill(self.pid, self.record.started)

    def note(self, event: str, reason: str) -> None:
        """Append a line of the gateway's to the instance's log."""
        words = {
            "event": event,
            "at": time.time(),
            "revision": self.record.revision,
            "pid": self.pid,
            "error": reason,
        }
        with contextlib.suppress(OSError), open(self.record.log, "ab") as file:
            file.write(json.dumps(words).encode() + b"\n")

    def lost(self) -> bool:
        """Return whether its process is gone although nobody said so (a child of it may hold the channel open)."""
        if self.popen is not None:
            return self.popen.poll() is not None
        return processes.started_at(self.pid) != self.record.started

    def finish(self) -> None:
        """Clear away what is left of it; called once, when it has ended."""
        if self.ended.is_set():
            return
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        if self.popen is not None:
            # The end of the channel comes a moment before the end of the process, and what the model forked ends with it.
            processes.kill(self.pid, self.record.started)
            status = self.popen.wait()
            if self.failure is None and status != 0:
                self.failure = f"ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result({})
        if self._page is not None:
            self._page.close()
        forget(self._places, self.record.instance)
        self.ended.set()

    def _hear(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, 65536, MOST_LISTENERS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._given += descriptors
        if not data:
            self.finish()
            self._on_end(self)
            return
        self._heard += data
        while b"\n" in self._heard:
            line, _, rest = bytes(self._heard).partition(b"\n")
            self._heard[:] = rest
            words = json.loads(line)
            answer = self._waiting.get(words.get("id", 0))
            if answer is not None and not answer.done():
                answer.set_result(words)
            elif words.get("event") == "ready":
                self.ready, self.ready_at = True, time.monotonic()
                self._on_ready(self)
            elif words.get("event") == "moved" and self._given:
                self._on_moved(self, socket.socket(fileno=self._given.popleft()))
            elif words.get("event") == "failed":
                self.failure, self.clean_failure = words["reason"], True


def forget(places: Places, instance: str) -> None:
    """Remove an instance's files from the run directory."""
    for ending in ("json", "sock", "pulse"):
        with contextlib.suppress(FileNotFoundError):
            (places.run / f"{instance}.{ending}").unlink()


def end(places: Places, record: Record) -> None:
    """End a process that no function wants, and clear its files away."""
    processes.kill(record.pid, record.started)
    forget(places, record.instance)


def launch(places: Places, plan: Launch) -> InstanceProcess:
    """Start the process of an instance.

    Raises:
        OSError: The interpreter cannot be started.
    """
    instance = secrets.token_hex(4)
    directory = places.logs / plan.function
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = directory / f"{plan.revision}-{instance}.log"
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= THREADS | dict(plan.environment)
    ours, theirs = socket.socketpair()
    with theirs, open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            # Isolated: nothing but the bundle and the interpreter's own packages is imported. No byte-code is written beside
            # the package's files: they are verified, and an extra file would be refused.
            [plan.python, "-I", "-B", str(plan.bundle / "polyserve_entrypoint.py"), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=tempfile.gettempdir(),
            start_new_session=True,
        )
    record = Record(
        instance=instance,
        function=plan.function,
        revision=plan.revision,
        pid=process.pid,
        started=processes.started_at(process.pid) or "",
        log=str(log),
    )
    # Before the configuration is sent: a process that was never told what to run ends when its gateway does.
    record.save(places)
    config = {
        "instance": instance,
        "function": plan.function,
        "revision": plan.revision,
        "token": plan.token,
        "timeout_s": plan.timeout_s,
        "request_bytes": plan.request_bytes,
        "memory_mb": plan.memory_mb,
        "idle_timeout_s": plan.idle_timeout_s,
        "control": str(places.run / f"{instance}.sock"),
        "pulse": str(places.run / f"{instance}.pulse"),
        "log": str(log),
        "log_bytes": plan.log_bytes,
        "accept": list(plan.accept),
        "share": plan.share,
        "listeners": list(plan.listeners),
        "models": plan.models,
    }
    descriptors = [listener.fileno() for listener in plan.listeners.values()]
    with contextlib.suppress(BrokenPipeError):  # it ended already: heard when the channel is read
        socket.send_fds(ours, [json.dumps(config).encode() + b"\n"], descriptors)
    started = InstanceProcess(places, record, ours)
    started.popen = process
    started.accepting = set(plan.accept)
    return started


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A running instance that a new gateway took over, with the listening sockets it handed back."""

    record: Record
    channel: socket.socket
    answer: Mapping[str, Any]
    listeners: Mapping[str, socket.socket]

    def process(self, places: Places) -> InstanceProcess:
        """Return the instance, for the event loop."""
        instance = InstanceProcess(places, self.record, self.channel)
        instance.ready = self.answer["ready"]
        instance.ready_at = time.monotonic() if instance.ready else 0.0
        instance.draining = self.answer["draining"]
        instance.accepting = set(self.answer["accepting"])
        return instance


def find_records(places: Places) -> list[Record]:
    """Return what the run directory remembers, of processes that live and of those that do not."""
    records = []
    for path in sorted(places.run.glob("*.json")):
        if not path.name.startswith("."):
            records.append(Record(**json.loads(path.read_bytes())))
    return records


def adopt(places: Places, record: Record, token: str) -> Adopted | None:
    """Take a running instance over; `None` where it is gone, or had to be ended because it does not answer. Blocks."""
    if processes.started_at(record.pid) != record.started:
        forget(places, record.instance)
        return None
    deadline = time.monotonic() + ADOPT_TIMEOUT_S
    while time.monotonic() < deadline:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.settimeout(ADOPT_TIMEOUT_S)
        try:
            channel.connect(str(places.run / f"{record.instance}.sock"))
            channel.sendall(json.dumps({"op": "adopt", "id": 0, "token": token}).encode() + b"\n")
            heard, descriptors, _, _ = socket.recv_fds(channel, 65536, MOST_LISTENERS)
            answer = json.loads(heard)
        except (OSError, ValueError):
            # Just started, and its control socket is not there yet; or ending right now.
            channel.close()
            if processes.started_at(record.pid) != record.started:
                break
            time.sleep(0.01)
            continue
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if answer.get("ok") and answer["pid"] == record.pid:
            listeners = dict(zip(answer["listeners"], sockets, strict=True))
            return Adopted(record=record, channel=channel, answer=answer, listeners=listeners)
        channel.close()
        break
    # Stuck so badly that not even its control thread runs: it holds the listening sockets, and nobody could ever stop it.
    end(places, record)
    return None


if sys.platform == "win32":  # pragma: no cover
    raise ImportError("the local provider needs Linux or macOS: it hands listening sockets from process to process")
