"""Measure the client: `Endpoint` beside httpx on the same loopback server, in one run, as ratios.

    python tests/benchmarks/client.py [--json] [--rounds N]

The server is a minimal asyncio protocol in a process of its own that answers every request with the same small binary answer, so that the
client is what is measured. Rounds of all cases are interleaved and medians are taken over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from polyserve.driver import Address, ErrorCode, HttpCall, HttpReply, Request, Response
from polyserve.endpoint import Endpoint
from polyserve.runtime import protocol
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.runtime.tensors import Tensor

IN_FLIGHT = 32
SIGNATURE = Signature(
    input_kind="array",
    output_kind="array",
    inputs=(TensorSpec(name="input", datatype="FP64", shape=(-1, 4)),),
    outputs=(TensorSpec(name="predict", datatype="INT64", shape=(-1,)),),
)
ROW = np.array([[5.1, 3.5, 1.4, 0.2]])


def serve() -> None:
    """Answer every POST on a free port with one prediction; the port goes to standard output. Ends with its parent."""
    head, body = _answer()
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.buffer = b""

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
                at = self.buffer.lower().index(b"content-length:") + 15
                size = end + 4 + int(self.buffer[at : self.buffer.index(b"\r\n", at)])
                if len(self.buffer) < size:
                    return
                self.buffer = self.buffer[size:]
                self.transport.write(answer)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        # The parent holds the other end of standard input: when it goes, this ends.
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(run())


def _answer() -> tuple[bytes, bytes]:
    tensors = [Tensor.from_numpy("predict", np.array([0]))]
    body, headers = protocol.format_infer(tensors, model="iris", version="1", binary=frozenset({"predict"}))
    headers = {
        **headers,
        "content-length": str(len(body)),
        "x-polyserve-revision": "1",
        "server-timing": "total;dur=0.1",
    }
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode(), body


class Invoker:
    """Calls a plain HTTP address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        return Address(url=self.url, headers={"authorization": "Bearer benchmark"})

    def prepare(self, address: Address, request: Request) -> HttpCall:
        headers = {**request.headers, **address.headers}
        return HttpCall(method=request.method, url=address.url + request.path, headers=headers, body=request.body)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        return Response(status=reply.status, headers=reply.headers, body=reply.body)


def connect(url: str) -> Endpoint:
    provider: Any = SimpleNamespace(
        info=SimpleNamespace(name="benchmark"),
        invoker=Invoker(url),
        classify=lambda error: ErrorCode.UNKNOWN,
        retry_after=lambda error: None,
    )
    return Endpoint(provider, "iris", model="iris", signature=SIGNATURE, timeout=timedelta(seconds=30))


def timed(calls: int, work: Callable[[], object]) -> float:
    """Return microseconds per call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / calls * 1e6


async def gathered(call: Callable[[], Any], calls: int) -> None:
    """Await `call()` that many times, `IN_FLIGHT` at once."""
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


def measure(url: str, *, rounds: int, calls: int, in_flight_calls: int) -> dict[str, list[float]]:
    """Run every case in turn, `rounds` times."""
    times: dict[str, list[float]] = {}
    target = f"{url}/v2/models/iris/infer"
    body, headers = protocol.format_request([Tensor.from_numpy("input", ROW)], binary=True)

    def post(client: httpx.Client) -> None:
        for _ in range(calls):
            client.post(target, content=body, headers=headers)

    def invoke(endpoint: Endpoint) -> None:
        for _ in range(calls):
            endpoint.invoke(ROW)

    def lists(endpoint: Endpoint) -> None:
        rows = ROW.tolist()
        for _ in range(calls):
            endpoint.invoke(rows)

    async def plain() -> float:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=IN_FLIGHT)) as client:
            await gathered(lambda: client.post(target, content=body, headers=headers), IN_FLIGHT)
            start = time.perf_counter()
            await gathered(lambda: client.post(target, content=body, headers=headers), in_flight_calls // 4)
            return (time.perf_counter() - start) / (in_flight_calls // 4) * 1e6

    async def ainvoke(endpoint: Endpoint) -> float:
        await gathered(lambda: endpoint.ainvoke(ROW), IN_FLIGHT)
        start = time.perf_counter()
        await gathered(lambda: endpoint.ainvoke(ROW), in_flight_calls)
        return (time.perf_counter() - start) / in_flight_calls * 1e6

    def mapped(endpoint: Endpoint) -> None:
        for _ in endpoint.map((ROW for _ in range(in_flight_calls)), concurrency=IN_FLIGHT, progress=False):
            pass

    with httpx.Client() as client, connect(url) as endpoint:
        # The server's first answers, and imports that happen once.
        for _ in range(50):
            client.post(target, content=body, headers=headers)
            endpoint.invoke(ROW)
        asyncio.run(ainvoke(endpoint))
        for _ in range(rounds):
            times.setdefault("httpx.Client.post", []).append(timed(calls, lambda: post(client)))
            times.setdefault("Endpoint.invoke", []).append(timed(calls, lambda: invoke(endpoint)))
            times.setdefault("Endpoint.invoke, lists", []).append(timed(calls, lambda: lists(endpoint)))
            times.setdefault("httpx.AsyncClient", []).append(asyncio.run(plain()))
            times.setdefault("Endpoint.ainvoke", []).append(asyncio.run(ainvoke(endpoint)))
            times.setdefault("Endpoint.map", []).append(timed(in_flight_calls, lambda: mapped(endpoint)))
    return times


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=500, help="calls per round, one after the other")
    parser.add_argument("--in-flight-calls", type=int, default=2000, help="calls per round, with 32 in flight")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    server = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        times = measure(url, rounds=options.rounds, calls=options.calls, in_flight_calls=options.in_flight_calls)
    finally:
        server.communicate()
    medians = {name: statistics.median(each) for name, each in times.items()}
    result = {
        "microseconds_per_call": {name: round(value, 1) for name, value in medians.items()},
        "calls_per_second": {name: round(1e6 / value) for name, value in medians.items()},
        "invoke_over_httpx": round(medians["Endpoint.invoke"] / medians["httpx.Client.post"], 3),
        "invoke_adds_us": round(medians["Endpoint.invoke"] - medians["httpx.Client.post"], 1),
        "ainvoke_times_httpx": round(medians["httpx.AsyncClient"] / medians["Endpoint.ainvoke"], 2),
        "map_times_httpx": round(medians["httpx.AsyncClient"] / medians["Endpoint.map"], 2),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'case':26} {'us/call':>9} {'calls/s':>9}")
    for name, value in medians.items():
        print(f"{name:26} {value:9.1f} {1e6 / value:9.0f}")
    print(f"\ninvoke takes {result['invoke_over_httpx']} of a bare httpx.Client.post ({result['invoke_adds_us']:+} us)")
    beside = f"ainvoke x{result['ainvoke_times_httpx']}, map x{result['map_times_httpx']}"
    print(f"with {IN_FLIGHT} in flight, calls/s beside a plain httpx.AsyncClient: {beside}")


if __name__ == "__main__":
    main()
