"""Measure storage: `Bucket` beside boto3's own transfer and obstore on the same loopback server, in one run, as ratios.

`Bucket` stores the sha256 of everything and compares it after every download. boto3 and obstore, as they come, do nothing of the kind, so
obstore is there a second time with as little around it as does the same.

    python tests/benchmarks/aws_storage.py [--json] [--rounds N] [--large-mb N] [--small N]

The server speaks enough of S3, keeps what objects are but not what is in them, and answers from memory: it is a process of its own, so that
the clients are what is measured. Everything goes from files to files. Rounds of all cases are interleaved; a ratio is the median of the
ratios within rounds, because other work on the machine makes rounds differ more than clients do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import obstore
from botocore.config import Config
from obstore.store import S3Store

from polyserve.bucket import Bucket
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

SMALL_BYTES = 10_000
THREADS = 8
CREDENTIALS = {"access_key_id": "AKIDBENCHMARK", "secret_access_key": "benchmark"}
REGION = "eu-central-1"
BUCKET = "benchmark"


def content(size: int) -> bytes:
    """Return the one content that objects of that size have."""
    block = random.Random(1).randbytes(1 << 20)
    return (block * (size // len(block) + 1))[:size]


class Server:
    """As much of S3 as the clients ask for.

    Args:
        largest: Size of the largest object.
    """

    def __init__(self, largest: int) -> None:
        self.content = memoryview(content(largest))
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, list[Any]] = {}
        self.lock = threading.Lock()

    def serve(self) -> None:
        """Answer on a free port, which goes to standard output, until the parent is gone."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()
        sys.stdin.read()

    def accept(self, listener: socket.socket) -> None:
        while True:
            connection = listener.accept()[0]
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.converse, args=(connection,), daemon=True).start()

    def converse(self, connection: socket.socket) -> None:
        scratch = memoryview(bytearray(1 << 20))
        left = b""
        with connection:
            while True:
                while (end := left.find(b"\r\n\r\n")) < 0:
                    more = connection.recv(65536)
                    if not more:
                        return
                    left += more
                head, left = left[:end], left[end + 4 :]
                fields = head.lower()
                found = re.search(rb"\r\ncontent-length: *(\d+)", fields)
                size = int(found[1]) if found else 0
                if b"\r\nexpect: 100-continue" in fields:
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body, left = left[:size], left[size:]
                missing = size - len(body)
                while missing:
                    count = connection.recv_into(scratch, min(missing, len(scratch)))
                    if not count:
                        return
                    missing -= count
                answer, data = self.answer(head, fields, size)
                if len(data) < 65536:
                    connection.sendall(answer + bytes(data))
                else:
                    connection.sendall(answer)
                    connection.sendall(data)

    def answer(self, head: bytes, fields: bytes, size: int) -> tuple[bytes, memoryview | bytes]:
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        key, _, query = target.partition("?")
        if method == "POST" and query.startswith("uploads"):
            with self.lock:
                upload = str(len(self.uploads) + 1)
                self.uploads[upload] = [0, self.metadata(head)]
            return self.xml(
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
        found = re.search(r"uploadId=(\d+)", query)
        if found:
            if method == "PUT":
                with self.lock:
                    self.uploads[found[1]][0] += size
                return b'HTTP/1.1 200 OK\r\nETag: "part"\r\nContent-Length: 0\r\n\r\n', b""
            total, metadata = self.uploads.pop(found[1])
            self.objects[key] = (total, metadata)
            return self.xml('<CompleteMultipartUploadResult><ETag>"whole-1"</ETag></CompleteMultipartUploadResult>')
        if method == "PUT":
            self.objects[key] = (size, self.metadata(head))
            return b'HTTP/1.1 200 OK\r\nETag: "whole"\r\nContent-Length: 0\r\n\r\n', b""
        if key not in self.objects:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b""
        return self.read(method, key, fields)

    def read(self, method: str, key: str, fields: bytes) -> tuple[bytes, memoryview | bytes]:
        size, metadata = self.objects[key]
        start, end, status, extra = 0, size, b"200 OK", b""
        wanted = re.search(rb"\r\nrange: *bytes=(\d+)-(\d*)", fields)
        if wanted:
            start = int(wanted[1])
            end = min(size, int(wanted[2]) + 1) if wanted[2] else size
            status, extra = b"206 Partial Content", b"Content-Range: bytes %d-%d/%d\r\n" % (start, end - 1, size)
        answer = (
            b'HTTP/1.1 %b\r\nContent-Length: %d\r\nContent-Type: application/octet-stream\r\nETag: "whole"\r\n'
            b"Accept-Ranges: bytes\r\nLast-Modified: Sat, 21 Nov 2026 07:00:00 GMT\r\n%b%b\r\n"
        ) % (status, end - start, extra, metadata)
        return answer, b"" if method == "HEAD" else self.content[start:end]

    @staticmethod
    def metadata(head: bytes) -> bytes:
        return b"".join(line + b"\r\n" for line in head.split(b"\r\n") if line.lower().startswith(b"x-amz-meta-"))

    @staticmethod
    def xml(text: str) -> tuple[bytes, bytes]:
        body = text.encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body), body


class Boto3:
    """boto3's managed transfer, as it comes."""

    def __init__(self, url: str) -> None:
        session = boto3.Session(CREDENTIALS["access_key_id"], CREDENTIALS["secret_access_key"], region_name=REGION)
        self.s3 = session.client("s3", endpoint_url=url, config=Config(s3={"addressing_style": "path"}))

    def upload(self, path: Path, key: str) -> None:
        self.s3.upload_file(str(path), BUCKET, key)

    def download(self, key: str, path: Path) -> None:
        self.s3.download_file(BUCKET, key, str(path))


class Obstore:
    """obstore, as it comes."""

    def __init__(self, url: str) -> None:
        options: Any = {"allow_http": True}
        self.store = S3Store(BUCKET, endpoint=url, region=REGION, client_options=options, **CREDENTIALS)

    def upload(self, path: Path, key: str) -> None:
        obstore.put(self.store, key, path)

    def download(self, key: str, path: Path) -> None:
        with path.open("wb") as file:
            for chunk in obstore.get(self.store, key).stream():
                file.write(chunk)


class DigestingObstore(Obstore):
    """obstore, and the least that anybody could write who wants what `Bucket` does: a digest with everything, and no file that is wrong."""

    def upload(self, path: Path, key: str) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        obstore.put(self.store, key, path, attributes={"sha256": digest})

    def download(self, key: str, path: Path) -> None:
        partial = path.with_suffix(".part")
        found = obstore.get(self.store, key)
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for chunk in found.stream():
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != found.attributes["sha256"]:
            raise ValueError(f"{key} is damaged")
        partial.replace(path)


class Ours:
    """`Bucket`, which also computes and compares the sha256 of everything."""

    def __init__(self, url: str, home: Path, *, fast: bool) -> None:
        credentials = home / "credentials"
        credentials.write_text("[default]\naws_access_key_id = AKIDBENCHMARK\naws_secret_access_key = benchmark\n")
        settings = AwsSettings(
            endpoint_url=url, region=REGION, shared_credentials_file=str(credentials), fast_transfers=fast
        )
        self.bucket = Bucket(AwsProvider(settings), BUCKET)

    def upload(self, path: Path, key: str) -> None:
        self.bucket.put(key, path)

    def download(self, key: str, path: Path) -> None:
        self.bucket.download(key, path)


def timed(work: Callable[[], object]) -> float:
    """Return seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(url: str, home: Path, *, rounds: int, large: int, small: int) -> dict[str, dict[str, list[float]]]:
    """Run every case with every client in turn, `rounds` times; returns seconds by case and client."""
    clients: dict[str, Any] = {
        "boto3": Boto3(url),
        "obstore": Obstore(url),
        "obstore with a digest": DigestingObstore(url),
        "Bucket": Ours(url, home, fast=False),
        "Bucket, fast": Ours(url, home, fast=True),
    }
    source, target = home / "large", home / "target"
    source.write_bytes(content(large))
    files = [home / f"small-{number}" for number in range(small)]
    for file in files:
        file.write_bytes(content(SMALL_BYTES))

    def one_by_one(work: Callable[[Path], object]) -> None:
        for file in files:
            work(file)

    def side_by_side(work: Callable[[Path], object]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(work, files):
                pass

    def down(client: Any) -> Callable[[Path], object]:
        return lambda file: client.download(f"kept/{file.name}", home / f"down-{file.name}")

    def up(client: Any) -> Callable[[Path], object]:
        return lambda file: client.upload(file, file.name)

    cases: dict[str, Callable[[Any], object]] = {
        "upload large": lambda client: client.upload(source, "large"),
        "download large": lambda client: client.download("kept/large", target),
        "upload small": lambda client: one_by_one(up(client)),
        "download small": lambda client: one_by_one(down(client)),
        f"upload small, {THREADS} threads": lambda client: side_by_side(up(client)),
        f"download small, {THREADS} threads": lambda client: side_by_side(down(client)),
    }
    for client in clients.values():
        # Imports and connections that happen once.
        client.upload(files[0], "first")
        client.download("first", target)
    # Everybody reads what `Bucket` wrote, digest included.
    for file in [*files, source]:
        clients["Bucket"].upload(file, f"kept/{file.name}")
    times: dict[str, dict[str, list[float]]] = {case: {name: [] for name in clients} for case in cases}
    order: Sequence[str] = list(clients)
    for _ in range(rounds):
        for case, work in cases.items():
            for name in order:
                times[case][name].append(timed(lambda work=work, name=name: work(clients[name])))
                if target.exists():
                    target.unlink()
        # Nobody is always the first.
        order = [*order[1:], order[0]]
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the median, the least and the most of how many times the seconds of theirs ours are, round by round."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [round(value, 2) for value in (statistics.median(each), min(each), max(each))]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-mb", type=int, default=256)
    parser.add_argument("--small", type=int, default=1000, help="how many objects of 10 kB")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    large = options.large_mb << 20
    if options.serve:
        Server(max(large, SMALL_BYTES)).serve()
        return
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    server = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--serve", "--large-mb", str(options.large_mb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    # In memory where there is a file system for that: disks are not what is measured.
    memory = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        times = measure(url, home, rounds=options.rounds, large=large, small=options.small)
    finally:
        server.communicate()
        shutil.rmtree(home)
    result = {
        case: {
            "seconds": {name: round(statistics.median(each), 3) for name, each in by_client.items()},
            "Bucket over boto3": ratio(by_client["Bucket"], by_client["boto3"]),
            **{
                f"Bucket, fast over the better of boto3 and {other}": ratio(
                    by_client["Bucket, fast"],
                    [min(pair) for pair in zip(by_client["boto3"], by_client[other], strict=True)],
                )
                for other in ("obstore", "obstore with a digest")
            },
        }
        for case, by_client in times.items()
    }
    if options.json:
        print(json.dumps(result))
        return
    for case, each in result.items():
        seconds = ", ".join(f"{name} {value:.3f} s" for name, value in each["seconds"].items())
        print(f"{case}: {seconds}")
        for name in list(each)[1:]:
            median, least, most = each[name]
            print(f"    {name}: {median} ({least} to {most})")


if __name__ == "__main__":
    main()
