"""One instance of a function on this machine: load the model, answer on inherited listening sockets, obey the gateway.

This file travels in the bundle as `polyserve_entrypoint.py` and is started as `python -I polyserve_entrypoint.py FD`. `FD` is one end of a
socket pair: its first message is the configuration, with the listening sockets attached. The same conversation can be held over a unix
socket, so that a gateway that was started anew takes this instance over and gets the very same listening sockets back.

The gateway is not in the way of requests, and this process does without one: it goes on answering, and ends itself when it has been idle.
Standard library and `polyserve.runtime` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import json
import mmap
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:
    from polyserve.runtime.remote import Remote
    from polyserve.runtime.server import Server

PULSE_BYTES = 4096
"""Size of the shared page that the server writes its pulse to; the pulse itself is the first bytes of it."""
MOST_LISTENERS = 8
"""Most listening sockets in one message."""


class Instance:
    """The state of this process, as the control conversation sees it.

    Args:
        config: What the gateway asked for.
        listeners: Listening sockets by name: `"revision"`, and `"public"` where the function has traffic at all.
        gateway: The connection to the gateway that started this process.
    """

    def __init__(self, config: dict[str, Any], listeners: dict[str, socket.socket], gateway: socket.socket) -> None:
        self._config = config
        self._listeners = listeners
        self._wanted = set(config["accept"])
        self._accepting: dict[str, socket.socket] = {}
        self._share = int(config["share"])
        self._gateway: socket.socket | None = gateway
        self._sending = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._ended: asyncio.Event | None = None
        self._ready = False
        self._draining = False
        self._alone_since = time.monotonic()
        self._doors = selectors.DefaultSelector()
        self._given: deque[int] = deque()
        self._public = listeners["public"].getsockname() if "public" in listeners else None

    # --- the control conversation: a thread of its own, so that it goes on while a model loads or computes ----------

    def converse(self) -> None:
        """Listen to gateways until the process ends."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = self._config["control"]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        door.bind(path)
        door.listen(8)
        self._doors.register(door, selectors.EVENT_READ, None)
        assert self._gateway is not None
        self._doors.register(self._gateway, selectors.EVENT_READ, bytearray())
        threading.Thread(target=self._talk, name="polyserve-control", daemon=True).start()

    def _talk(self) -> None:
        while True:
            for key, _ in self._doors.select(timeout=1.0):
                door = key.fileobj
                assert isinstance(door, socket.socket)
                if key.data is None:
                    self._doors.register(door.accept()[0], selectors.EVENT_READ, bytearray())
                else:
                    self._hear(door, key.data)
            rotate(Path(self._config["log"]), self._config["log_bytes"])

    def _hear(self, door: socket.socket, heard: bytearray) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(door, 65536, MOST_LISTENERS)
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._doors.unregister(door)
            door.close()
            if door is self._gateway:
                self._lost_gateway()
            return
        heard += data
        # Those of one message may arrive with the line before theirs, and never out of order.
        self._given += descriptors
        while b"\n" in heard:
            line, _, rest = bytes(heard).partition(b"\n")
            heard[:] = rest
            self._obey(door, json.loads(line))

    def _obey(self, door: socket.socket, order: dict[str, Any]) -> None:
        verb = order["op"]
        if verb == "adopt":
            self._adopted(door, order)
            return
        # Only the gateway that proved itself gives orders; the one that started us has.
        if door is not self._gateway:
            self._say(door, {"id": order.get("id"), "error": "adopt first"})
            return
        if verb == "take":
            if self._given:
                connection = socket.socket(fileno=self._given.popleft())
                self._in_loop(lambda: self._take(connection), lambda: None)
            return
        if verb == "accept":
            self._wanted.add(order["listener"])
        elif verb == "refuse":
            self._wanted.discard(order["listener"])
        elif verb == "share":
            self._share = order["share"]
        elif verb == "drain":
            self._draining = True
            self._wanted.clear()
        fraction = order["fraction"] if verb == "rebalance" else None
        answer = {"id": order.get("id"), "ok": True}
        self._in_loop(lambda: self._follow(fraction), lambda: self._say(door, answer))

    def _adopted(self, door: socket.socket, order: dict[str, Any]) -> None:
        if not hmac.compare_digest(str(order.get("token")), self._config["token"]):
            self._say(door, {"id": order.get("id"), "error": "wrong token"})
            return
        self._gateway = door
        names = sorted(self._listeners)
        answer = {
            "id": order.get("id"),
            "ok": True,
            "pid": os.getpid(),
            "function": self._config["function"],
            "revision": self._config["revision"],
            "instance": self._config["instance"],
            "ready": self._ready,
            "draining": self._draining,
            "accepting": sorted(self._wanted),
            "listeners": names,
        }
        self._say(door, answer, [self._listeners[name].fileno() for name in names])

    def _lost_gateway(self) -> None:
        """Go on without: nobody else accepts public connections now, so those with a share of the traffic do."""
        self._gateway = None
        self._alone_since = time.monotonic()
        if self._share > 0 and "public" in self._listeners and not self._draining:
            self._wanted.add("public")
            self._in_loop(lambda: self._follow(None), lambda: None)

    def _say(self, door: socket.socket | None, words: dict[str, Any], descriptors: list[int] | None = None) -> bool:
        if door is None:
            return False
        line = json.dumps(words).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):
            if descriptors:
                socket.send_fds(door, [line], descriptors)
            else:
                door.sendall(line)
            return True
        return False

    # --- connections that go from instance to instance: callers keep theirs, and lose nothing that they sent meanwhile ---------

    def hand_over(self, connection: socket.socket) -> bool:
        """Give a public connection to the gateway, which knows who is to answer it now; false where there is none."""
        try:
            if connection.getsockname() != self._public:
                return False
        except OSError:
            return False
        return self._say(self._gateway, {"event": "moved"}, [connection.fileno()])

    def _take(self, connection: socket.socket) -> None:
        """Go on with a connection that another instance had."""
        if self._server is None or self._draining:
            self.hand_over(connection)
            connection.close()
        elif "public" not in self._accepting and self.hand_over(connection):
            # The traffic was moved meanwhile: kept here, it would stay here, since it came through no listener.
            connection.close()
        else:
            self._server.take(connection, self._accepting.get("public"))

    def _in_loop(self, act: Callable[[], None], then: Callable[[], object]) -> None:
        """Act in the event loop, then reply; before there is one, what is wanted is only remembered."""
        loop = self._loop

        def both() -> None:
            act()
            then()

        if loop is None:
            then()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended: so will the process
                loop.call_soon_threadsafe(both)

    # --- the event loop -------------------------------------------------------------------------------------------------

    def _follow(self, fraction: float | None) -> None:
        """Make the server accept where it is wanted to."""
        server = self._server
        if server is None:
            return
        for name in sorted(self._wanted - self._accepting.keys()):
            # A copy, because the server closes what it is told to leave, and ours goes back to the next gateway.
            self._accepting[name] = self._listeners[name].dup()
            server.add_listener(self._accepting[name])
        for name in sorted(self._accepting.keys() - self._wanted):
            server.remove_listener(self._accepting.pop(name))
        if fraction is not None:
            server.rebalance(fraction)
        if self._draining and self._ended is not None:
            self._ended.set()

    async def serve(self, make_server: Callable[[], Server]) -> None:
        """Answer until told to drain, or idle for too long without a gateway."""
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGTERM, self._terminate)
        self._server = make_server()
        self._ready = True
        self._follow(None)
        self._say(self._gateway, {"event": "ready"})
        idle_timeout = self._config["idle_timeout_s"]
        while not self._draining:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), timeout=min(1.0, idle_timeout / 4))
            if self._gateway is None and self._idle_for() > idle_timeout:
                self._terminate()
        await self._server.drain()

    def _terminate(self) -> None:
        self._draining = True
        self._wanted.clear()
        self._follow(None)

    def _idle_for(self) -> float:
        assert self._server is not None
        if self._server.inflight:
            return 0.0
        return time.monotonic() - max(self._server.last_activity, self._alone_since)

    def refuse_to_start(self, reason: str) -> None:
        """Tell the gateway why the model does not load."""
        self._say(self._gateway, {"event": "failed", "reason": reason})


def rotate(log: Path, limit: int) -> None:
    """Begin a new log where the present one has grown over the limit; one older part is kept.

    Done in the process that writes it: nothing is lost, which a copy and a truncation from outside cannot promise.
    """
    try:
        if os.fstat(1).st_size < limit:
            return
        os.replace(log, f"{log}.1")
        fresh = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return
    os.dup2(fresh, 1)
    os.dup2(fresh, 2)
    os.close(fresh)


def limit_memory(memory_mb: int) -> None:
    """Make one huge allocation fail with MemoryError instead of taking the machine down.

    A backstop only: address space is no measure of memory (threads of numeric libraries reserve far more than they touch), so the true
    limit is kept by the gateway, which watches resident memory.
    """
    import resource

    wanted = (2 * memory_mb + 2048) << 20
    for kind in (resource.RLIMIT_DATA,):
        with contextlib.suppress(ValueError, OSError):
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def settle_memory() -> None:
    """Take what was loaded out of the garbage collector's sight, and let it look less often.

    A framework and its model are hundreds of thousands of objects that live as long as the process; walking them would stop every caller
    for tens of milliseconds. A batch of requests makes some thousand objects that its end frees by itself: what is left for the collector
    are cycles, which a model may make, so it stays on.
    """
    import gc

    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def receive(gateway: socket.socket) -> tuple[dict[str, Any], dict[str, socket.socket]]:
    """Read the configuration and the listening sockets that come with it."""
    heard = b""
    descriptors: list[int] = []
    while b"\n" not in heard:
        data, more, _, _ = socket.recv_fds(gateway, 65536, MOST_LISTENERS)
        if not data:
            sys.exit("polyserve: the gateway ended before it said what to run")
        heard += data
        descriptors += more
    config = json.loads(heard.partition(b"\n")[0])
    listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for listener in listeners:
        # A copy blocks as its original believes to, and that is a mode of the one socket that all processes share: were it blocking for a
        # moment, another instance could stay within `accept`, its callers unanswered.
        listener.setblocking(False)
    return config, dict(zip(config["listeners"], listeners, strict=True))


class Content(io.RawIOBase):
    """The content of an object: the first bytes of its file."""

    def __init__(self, path: str, size: int) -> None:
        self._file = io.FileIO(path)
        self._left = size

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes came."""
        with memoryview(buffer)[: self._left] as view:
            count = self._file.readinto(view) or 0
        self._left -= count
        return count

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._file.close()


def remote_of(models: dict[str, Any] | None) -> Remote | None:
    """Return how the files of the model that the bundle left to the bucket are read, where there are any."""
    if models is None:
        return None
    from polyserve.runtime.remote import Remote

    objects = models["objects"]
    return Remote(fetch=lambda sha256: cast("BinaryIO", Content(*objects[sha256])), into=Path(models["into"]))


def open_pulse(path: str) -> mmap.mmap:
    """Map the page that the gateway reads this instance's pulse from."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(descriptor, PULSE_BYTES)
        return mmap.mmap(descriptor, PULSE_BYTES)
    finally:
        os.close(descriptor)


def main() -> None:
    """Run one instance until it is told to end."""
    root = Path(__file__).resolve().parent
    sys.path.insert(0, str(root))
    gateway = socket.socket(fileno=int(sys.argv[1]))
    gateway.set_inheritable(False)
    config, listeners = receive(gateway)
    limit_memory(config["memory_mb"])
    pulse = open_pulse(config["pulse"])
    instance = Instance(config, listeners, gateway)
    instance.converse()
    status = 1
    try:
        from polyserve.runtime.host import Host
        from polyserve.runtime.server import Server

        host = Host(
            root / "package",
            revision=config["revision"],
            request_bytes=config["request_bytes"],
            remote=remote_of(config.get("models")),
        )
        host.load()
        settle_memory()
    except Exception as error:
        import traceback

        traceback.print_exc()
        instance.refuse_to_start(f"{type(error).__name__}: {error}")
    else:
        asyncio.run(
            instance.serve(
                lambda: Server(
                    host,
                    token=config["token"],
                    timeout=config["timeout_s"],
                    request_bytes=config["request_bytes"],
                    pulse=memoryview(pulse)[:32],
                    hand_over=instance.hand_over,
                )
            )
        )
        status = 0
    for path in (config["control"], config["pulse"]):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    sys.stdout.flush()
    sys.stderr.flush()
    # A model's own threads would keep the interpreter from ending.
    os._exit(status)


if __name__ == "__main__":
    main()
