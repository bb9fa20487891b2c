"""Measure storage on AWS: `Bucket` beside boto3's own transfer, and obstore where it is installed, against one emulator, as ratios.

    python tests/benchmarks/storage.py [--json] [--rounds N] [--megabytes N] [--objects N]

One large object up and down, and many small ones. `Bucket` also computes and compares the sha256 of everything, which the others do not.
Rounds of all cases are interleaved and medians are taken over rounds. The emulator shares the machine, so ratios mean more than figures.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.config import Config

from polyserve.bucket import Bucket
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

NAME = "benchmark"
SMALL_BYTES = 10_000
THREADS = 8


def timed(work: Callable[[], object]) -> float:
    """Return seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cases(settings: AwsSettings, large: Path, small: list[str]) -> dict[str, tuple[Callable[[], object], ...]]:
    """Return by name of a client what uploads and downloads one large object, and what writes and reads small ones."""
    provider = AwsProvider(settings)
    bucket = Bucket(provider, NAME)
    import boto3

    session = provider.unwrap(boto3.Session)
    assert session is not None
    config = Config(max_pool_connections=32, s3={"addressing_style": "path"})
    s3: Any = session.client("s3", endpoint_url=settings.endpoint_url, config=config)
    body, target = b"x" * SMALL_BYTES, large.with_suffix(".down")

    def each(call: Callable[[str], object]) -> Callable[[], object]:
        def run() -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                for _ in pool.map(call, small):
                    pass

        return run

    found: dict[str, tuple[Callable[[], object], ...]] = {
        "Bucket": (
            lambda: bucket.put("ours", large),
            lambda: bucket.download("ours", target),
            each(lambda key: bucket.put(f"ours/{key}", body)),
            each(lambda key: bucket.get(f"ours/{key}")),
        ),
        "boto3": (
            lambda: s3.upload_file(str(large), NAME, "theirs"),
            lambda: s3.download_file(NAME, "theirs", str(target)),
            each(lambda key: s3.put_object(Bucket=NAME, Key=f"theirs/{key}", Body=body)),
            each(lambda key: s3.get_object(Bucket=NAME, Key=f"theirs/{key}")["Body"].read()),
        ),
    }
    try:
        from obstore.store import S3Store
    except ImportError:
        return found
    keys = session.get_credentials().get_frozen_credentials()
    store: Any = S3Store(
        NAME, endpoint=settings.endpoint_url, region=settings.region, access_key_id=keys.access_key,
        secret_access_key=keys.secret_key, virtual_hosted_style_request=False, client_options={"allow_http": True},
    )  # fmt: skip

    def pulled() -> None:
        with target.open("wb") as file:
            for chunk in store.get("obstore").stream(min_chunk_size=8 << 20):
                file.write(chunk)

    found["obstore"] = (
        lambda: store.put("obstore", large),
        pulled,
        each(lambda key: store.put(f"obstore/{key}", io.BytesIO(body))),
        each(lambda key: store.get(f"obstore/{key}").bytes()),
    )
    return found


def measure(directory: Path, *, rounds: int, megabytes: int, objects: int) -> dict[str, dict[str, float]]:
    """Return medians of seconds by work and client."""
    large = directory / "large"
    with large.open("wb") as file:
        for _ in range(megabytes):
            file.write(bytes(range(256)) * 4096)
    ready = directory / "emulator" / "ready.json"
    emulator = subprocess.Popen([sys.executable, "-m", "polyserve_aws.emulator", str(ready.parent)])
    try:
        while not ready.exists():
            # It tells by this file alone.
            time.sleep(0.05)
        settings = AwsSettings(**json.loads(ready.read_text())["options"])
        AwsProvider(settings).ensure_bucket(NAME)
        clients = cases(settings, large, [f"{number:05}" for number in range(objects)])
        names = (
            f"upload {megabytes} MB",
            f"download {megabytes} MB",
            f"write {objects} x 10 kB",
            f"read {objects} x 10 kB",
        )
        times: dict[str, dict[str, list[float]]] = {name: {client: [] for client in clients} for name in names}
        for _ in range(rounds):
            for number, name in enumerate(names):
                for client, works in clients.items():
                    times[name][client].append(timed(works[number]))
    finally:
        emulator.terminate()
        emulator.wait()
    return {name: {client: statistics.median(each) for client, each in found.items()} for name, found in times.items()}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--objects", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), rounds=options.rounds, megabytes=options.megabytes, objects=options.objects)
    ratios = {
        name: {client: round(each["Bucket"] / value, 3) for client, value in each.items() if client != "Bucket"}
        for name, each in found.items()
    }
    if options.json:
        print(json.dumps({"seconds": found, "bucket_over": ratios}))
        return
    for name, each in found.items():
        shown = "  ".join(f"{client} {value:7.3f} s" for client, value in each.items())
        beside = ", ".join(f"x{ratio} of {client}" for client, ratio in ratios[name].items())
        print(f"{name:20} {shown}   Bucket takes {beside}")


if __name__ == "__main__":
    sys.exit(main())
