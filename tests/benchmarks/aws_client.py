"""Measure the client on AWS: `Endpoint` beside raw boto3 on the same loopback server, in one run, as ratios.

    python tests/benchmarks/aws_client.py [--json] [--rounds N]

The server is a minimal asyncio protocol in a process of its own. It answers like Lambda's Invoke API, or like a function URL, with the same
small binary prediction and without looking at the signature, so that the client is what is measured. Every request is signed. Rounds of
all cases are interleaved and medians are taken over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
from botocore.config import Config

from polyserve.driver import Address
from polyserve.endpoint import Endpoint
from polyserve.runtime import protocol
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.runtime.tensors import Tensor
from polyserve_aws.invoker import Way
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings
from polyserve_aws.signing import Signer

IN_FLIGHT, THREADS = 32, 16
FUNCTION = "polyserve-iris"
SIGNATURE = Signature(
    input_kind="array",
    output_kind="array",
    inputs=(TensorSpec(name="input", datatype="FP64", shape=(-1, 4)),),
    outputs=(TensorSpec(name="predict", datatype="INT64", shape=(-1,)),),
)
ROW = np.array([[5.1, 3.5, 1.4, 0.2]])


def serve() -> None:
    """Answer every POST on a free port, as Invoke or as a function URL by its path; tell the port. Ends with its parent."""
    tensors = [Tensor.from_numpy("predict", np.array([0]))]
    body, headers = protocol.format_infer(tensors, model="iris", version="1", binary=frozenset({"predict"}))
    headers |= {"x-request-id": "0" * 24, "x-polyserve-revision": "1", "server-timing": "total;dur=0.1"}
    event = {"status": 200, "headers": headers, "body": base64.b64encode(body).decode()}
    answers = {
        b"POST /2015": _http(
            {"content-type": "application/json", "x-amz-executed-version": "1"}, json.dumps(event).encode()
        ),
        b"POST /v2/m": _http(headers, body),
    }

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.buffer = b""

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
                at = self.buffer.lower().index(b"\ncontent-length:") + 16
                size = end + 4 + int(self.buffer[at : self.buffer.index(b"\r\n", at)])
                if len(self.buffer) < size:
                    return
                answer = answers[self.buffer[:10]]
                self.buffer = self.buffer[size:]
                self.transport.write(answer)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        # The parent holds the other end of standard input: when it goes, this ends.
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(run())


def _http(headers: dict[str, str], body: bytes) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "content-length": str(len(body))}.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body


class Found:
    """The adapter's own invoker, with the address that `resolve` would find."""

    def __init__(self, provider: AwsProvider, url: str, *, direct: bool) -> None:
        invoker: Any = provider.invoker
        self.prepare, self.parse = invoker.prepare, invoker.parse
        signer = Signer("AKIDEXAMPLE", "secret", None, region="eu-central-1", service="lambda")
        path = f"/2015-03-31/functions/{FUNCTION}/invocations" if direct else ""
        way = Way(
            signer=signer,
            host=urlsplit(url).netloc,
            path=path,
            query="Qualifier=live" if direct else "",
            direct=direct,
            public=False,
            storage=signer.for_service("s3"),
            payloads=(url, "/bucket/payloads/"),
        )
        self._address = Address(url=url, context=way)

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        return self._address


class Wired:
    """The provider with that invoker."""

    def __init__(self, provider: AwsProvider, url: str, *, direct: bool) -> None:
        self._provider = provider
        self.invoker = Found(provider, url, direct=direct)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)


def connect(url: str, *, direct: bool) -> Endpoint:
    provider: Any = Wired(AwsProvider(AwsSettings(region="eu-central-1")), url, direct=direct)
    return Endpoint(provider, "iris", model="iris", signature=SIGNATURE, timeout=timedelta(seconds=30))


def timed(calls: int, work: Callable[[], object]) -> float:
    """Return microseconds per call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / calls * 1e6


def measure(url: str, *, rounds: int, calls: int, in_flight_calls: int) -> dict[str, list[float]]:
    """Run every case in turn, `rounds` times."""
    raw = boto3.client(
        "lambda", endpoint_url=url, region_name="eu-central-1", aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret", config=Config(max_pool_connections=IN_FLIGHT),
    )  # fmt: skip
    times: dict[str, list[float]] = {}

    def invoked() -> Any:
        """Do with boto3 what an invoke does: tensors in, tensors out."""
        body, headers = protocol.format_request([Tensor.from_numpy("input", ROW)], binary=True)
        event = {"path": "/v2/models/iris/infer", "headers": headers, "body": base64.b64encode(body).decode()}
        answer = raw.invoke(FunctionName=FUNCTION, Qualifier="live", Payload=json.dumps(event))
        told = json.loads(answer["Payload"].read())
        tensors, _ = protocol.parse_response(base64.b64decode(told["body"]), told["headers"])
        return tensors[0].numpy()

    def repeatedly(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                call()

        return run

    def threads() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda _: invoked(), range(in_flight_calls // 4)):
                pass

    def mapped(endpoint: Endpoint) -> None:
        for _ in endpoint.map((ROW for _ in range(in_flight_calls)), concurrency=IN_FLIGHT, progress=False):
            pass

    with connect(url, direct=True) as api, connect(url, direct=False) as by_url:
        for call in (invoked, lambda: api.invoke(ROW), lambda: by_url.invoke(ROW)):
            # First answers, and imports that happen once.
            for _ in range(50):
                assert call() == [0]
        mapped(by_url)
        for _ in range(rounds):
            times.setdefault("boto3 invoke", []).append(timed(calls, repeatedly(invoked)))
            times.setdefault("Endpoint.invoke, Invoke API", []).append(
                timed(calls, repeatedly(lambda: api.invoke(ROW)))
            )
            times.setdefault("Endpoint.invoke, function URL", []).append(
                timed(calls, repeatedly(lambda: by_url.invoke(ROW)))
            )
            times.setdefault(f"boto3 invoke, {THREADS} threads", []).append(timed(in_flight_calls // 4, threads))
            times.setdefault("Endpoint.map, function URL", []).append(timed(in_flight_calls, lambda: mapped(by_url)))
            times.setdefault("Endpoint.map, Invoke API", []).append(timed(in_flight_calls, lambda: mapped(api)))
    return times


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=300, help="calls per round, one after the other")
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
    raw, threaded = medians["boto3 invoke"], medians[f"boto3 invoke, {THREADS} threads"]
    result = {
        "microseconds_per_call": {name: round(value, 1) for name, value in medians.items()},
        "api_over_boto3": round(medians["Endpoint.invoke, Invoke API"] / raw, 3),
        "url_over_boto3": round(medians["Endpoint.invoke, function URL"] / raw, 3),
        "map_url_times_boto3": round(threaded / medians["Endpoint.map, function URL"], 2),
        "map_api_times_boto3": round(threaded / medians["Endpoint.map, Invoke API"], 2),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'case':32} {'us/call':>9} {'calls/s':>9}")
    for name, value in medians.items():
        print(f"{name:32} {value:9.1f} {1e6 / value:9.0f}")
    print(
        f"\ninvoke beside boto3's: x{result['api_over_boto3']} by the Invoke API, x{result['url_over_boto3']} by the function URL"
    )
    in_flight = (
        f"x{result['map_url_times_boto3']} by the function URL, x{result['map_api_times_boto3']} by the Invoke API"
    )
    print(f"calls/s with {IN_FLIGHT} in flight beside boto3 on {THREADS} threads: {in_flight}")


if __name__ == "__main__":
    main()
