"""What a crash costs the people who call: nothing, or one error that says it may be tried again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import polyserve
from polyserve import registry
from polyserve.driver import Address
from polyserve.metrics import request_line
from polyserve.settings import resolve

CLIENTS, REQUESTS = 32, 1000

MODEL = """
import time


def predict(rows):
    time.sleep(0.02)
    return [[2.0 * value for value in row] for row in rows]
"""


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[polyserve.Deployment]:
    (tmp_path / "survivor.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    package = polyserve.package("survivor:predict", name="doubling", sample=[[1.0], [2.0]])
    deployment = polyserve.deploy(package, memory_mb=256, min_instances=1, max_instances=3)
    yield deployment
    deployment.destroy()
    deployment.close()


def address() -> Address:
    return registry.load("local", resolve().options).invoker.resolve("doubling")


def instances(deployment: polyserve.Deployment) -> list[int]:
    """Return the process ids of the instances that run, newest first: every instance logs its own at its start."""
    lines = [request_line(event.message) for event in deployment.logs()]
    pids = [line["pid"] for line in reversed(lines) if line and line["event"] == "start"]
    return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


class Killer:
    """Kills one instance every second until it is stopped."""

    def __init__(self, deployment: polyserve.Deployment) -> None:
        self.killed = 0
        self._deployment = deployment
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            for pid in instances(self._deployment)[:1]:
                os.kill(pid, signal.SIGKILL)
                self.killed += 1


def test_with_an_instance_killed_every_second_every_request_gets_an_answer_or_one_documented_error(deployment):
    where = address()
    seen: Counter[str] = Counter()
    numbers = iter(range(REQUESTS))
    lock = threading.Lock()

    def call_until_done(client: int) -> None:
        with httpx.Client(timeout=30, trust_env=False, headers=dict(where.headers)) as http:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                seen[_outcome(http, where.url, float(number))] += 1
                # So that the thousand take several seconds, and several instances die meanwhile.
                time.sleep(0.1)

    with Killer(deployment) as killer, ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(call_until_done, range(CLIENTS)))

    assert killer.killed >= 2
    assert sum(seen.values()) == REQUESTS
    assert set(seen) <= {"answered", "UNAVAILABLE", "connection lost"}, seen
    assert seen["answered"] > REQUESTS * 0.8, seen


def _outcome(http: httpx.Client, url: str, number: float) -> str:
    """Return what became of one request; what is documented is an answer, an UNAVAILABLE, or a connection that ends."""
    try:
        response = http.post(f"{url}/invocations", json=[[number]])
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.ConnectError):
        return "connection lost"
    if response.status_code == 200:
        return "answered" if response.json() == [[2.0 * number]] else f"wrong answer {response.text}"
    return json.loads(response.text)["code"]


def test_callers_who_go_through_polyserve_do_not_notice_that_instances_are_killed(deployment):
    def paced() -> Iterator[list[list[float]]]:
        for number in range(300):
            time.sleep(0.01)
            yield [[float(number)]]

    with Killer(deployment) as killer:
        answers = list(deployment.map(paced(), concurrency=CLIENTS))

    assert killer.killed >= 2
    assert answers == [[[2.0 * number]] for number in range(300)]
