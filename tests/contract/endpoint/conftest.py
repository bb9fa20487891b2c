"""A loopback server that does what a test tells it to, badly behaved if need be, and endpoints that call it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from polyserve.driver import Address, ErrorCode, HttpCall, HttpReply, Request, Response
from polyserve.endpoint import Endpoint
from polyserve.runtime import protocol
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.runtime.tensors import Tensor

SIGNATURE = Signature(
    input_kind="array",
    output_kind="array",
    inputs=(TensorSpec(name="input", datatype="FP64", shape=(-1, 4)),),
    outputs=(TensorSpec(name="predict", datatype="FP64", shape=(-1,)),),
)


@dataclass
class Exchange:
    """One request as the server read it, and the socket to answer on."""

    number: int
    connection: int
    path: str
    headers: Mapping[str, str]
    body: bytes
    socket: socket.socket

    @property
    def rows(self) -> Any:
        return protocol.parse_infer(self.body, self.headers).inputs[0].numpy()

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
        self.raw(f"HTTP/1.1 {status} Whatever\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def fail(self, status: int, code: str, message: str, **headers: str) -> None:
        self.answer(status, json.dumps({"error": message, "code": code, "request_id": "r"}).encode(), **headers)

    def predict(self) -> None:
        """Answer with the sum of each row."""
        tensor = Tensor.from_numpy("predict", self.rows.sum(axis=1))
        body, headers = protocol.format_infer([tensor], model="m", version="1", binary=frozenset({"predict"}))
        self.answer(200, body, **headers)

    def hang_up(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)


Behaviour = Callable[[Exchange], None]


class Server:
    """One thread per connection; `behaviour` answers each request. `seen` has all of them, `connections` how many came."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.seen: list[Exchange] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self.connections += 1
                    self._sockets.append(connection)
                    thread = threading.Thread(target=self._serve, args=(connection, self.connections))
                    self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        buffer = b""
        with connection, suppress(OSError):
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = connection.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                size = int(headers.get("content-length", 0))
                exchange = Exchange(0, number, first.split(" ")[1], headers, b"", connection)
                if headers.get("x-refuse-early"):
                    self.behaviour(exchange)
                    return
                while len(buffer) < size:
                    data = connection.recv(1 << 20)
                    if not data:
                        return
                    buffer += data
                exchange.body, buffer = buffer[:size], buffer[size:]
                with self._lock:
                    self.seen.append(exchange)
                    exchange.number = len(self.seen)
                self.behaviour(exchange)

    def hang_up(self) -> None:
        """Close every connection, as a server does with idle ones."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
            threads, self._threads = self._threads, []
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Listen no more, and hang up."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.hang_up()


@dataclass
class Invoker:
    """Calls whatever `url` says now, and counts who asked."""

    url: str
    token: str = "good"
    expires_at: Any = None
    resolved: list[str] = field(default_factory=list)
    prepared_headers: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        self.resolved.append(self.url)
        headers = {"authorization": f"Bearer {self.token}", **self.prepared_headers}
        return Address(url=self.url, headers=headers, expires_at=self.expires_at)

    def prepare(self, address: Address, request: Request) -> HttpCall:
        headers = {**request.headers, **address.headers}
        return HttpCall(method=request.method, url=address.url + request.path, headers=headers, body=request.body)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        return Response(status=reply.status, headers=reply.headers, body=reply.body)


class Bench:
    """Makes servers and endpoints, and takes them down again."""

    def __init__(self) -> None:
        self._down: list[Callable[[], None]] = []

    def server(self, behaviour: Behaviour = Exchange.predict) -> Server:
        server = Server(behaviour)
        self._down.append(server.stop)
        return server

    def endpoint(
        self, target: Server | Invoker, *, signature: Signature = SIGNATURE, timeout: float = 20.0
    ) -> Endpoint:
        provider: Any = SimpleNamespace(
            info=SimpleNamespace(name="fake"),
            invoker=target if isinstance(target, Invoker) else Invoker(target.url),
            classify=lambda error: ErrorCode.NOT_FOUND if isinstance(error, KeyError) else ErrorCode.UNKNOWN,
            retry_after=lambda error: None,
        )
        endpoint = Endpoint(provider, "sums", model="m", signature=signature, timeout=timedelta(seconds=timeout))
        self._down.append(endpoint.close)
        return endpoint

    def invoker(self, server: Server, **fields: Any) -> Invoker:
        return Invoker(server.url, **fields)

    def down(self) -> None:
        for each in reversed(self._down):
            each()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Yield a maker of servers and endpoints."""
    bench = Bench()
    yield bench
    bench.down()


@pytest.fixture(params=["invoke", "ainvoke"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Yield `Endpoint.invoke`, and `Endpoint.ainvoke` on an event loop of its own: one promise, two clients."""
    import asyncio

    if request.param == "invoke":
        return lambda endpoint, data, **options: endpoint.invoke(data, **options)
    return lambda endpoint, data, **options: asyncio.run(endpoint.ainvoke(data, **options))
