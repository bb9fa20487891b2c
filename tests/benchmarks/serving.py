"""Serve one scikit-learn model with polyserve and with its peers, one process each, side by side in one run.

    python tests/benchmarks/serving.py                 # a table
    python tests/benchmarks/serving.py --markdown      # the table of docs/benchmarks.md
    python tests/benchmarks/serving.py --json

Needs `wrk` (Debian: apt-get install wrk) and `pip install uv`; every peer gets an environment of its own, kept in
the cache directory. Rounds are interleaved and figures are medians, but machines are noisy: read the ratios of one
run, not the absolute numbers. Ratios are taken round by round, against whichever peer was best in that round; a
request that fails anywhere fails the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("POLYSERVE_CACHE", Path.home() / ".cache" / "polyserve")) / "benchmarks"
PEERS = {
    "fastapi": ["fastapi", "uvicorn[standard]"],
    "litserve": ["litserve"],
    "bentoml": ["bentoml"],
    # Its worker crashes under newer uvloop.
    "mlserver": ["mlserver", "mlserver-sklearn", "uvloop==0.21.0"],
}
# The same server, told to batch.
BATCHING = {"mlserver-batch": "mlserver", "bentoml-batch": "bentoml"}
CLIENTS = (1, 32)


@dataclass
class Served:
    name: str
    url: str
    body: str
    headers: dict[str, str]
    pids: list[int]
    start_seconds: float
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50: dict[int, list[float]] = field(default_factory=dict)
    p99: dict[int, list[float]] = field(default_factory=dict)
    failed: int = 0


def train(name: str, directory: Path) -> tuple[object, Path, list[float]]:
    """Return a small model, where it is saved, and one row for it: 4 floats of iris, 64 of digits."""
    import joblib
    from sklearn.datasets import load_digits, load_iris
    from sklearn.linear_model import LogisticRegression

    rows, labels = {"iris": load_iris, "digits": load_digits}[name](return_X_y=True)
    if name == "digits":
        rows /= 16.0
    model = LogisticRegression(max_iter=500).fit(rows, labels)
    path = directory / f"{name}.joblib"
    joblib.dump(model, path)
    return model, path, rows[0].tolist()


def environment(name: str) -> Path:
    """Return the interpreter of a peer's environment, made on first use with this interpreter's scikit-learn."""
    import joblib
    import numpy as np
    import sklearn

    name = BATCHING.get(name, name)
    home = CACHE / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}-sklearn{sklearn.__version__}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(home)], check=True)
        pins = [f"scikit-learn=={sklearn.__version__}", f"joblib=={joblib.__version__}", f"numpy=={np.__version__}"]
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *PEERS[name], *pins], check=True)
        (home / "complete").touch()
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url: str, body: str, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(url, body.encode(), {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@contextmanager
def peer(name: str, model: Path, row: list[float], work: Path) -> Iterator[Served]:
    port, python = free_port(), environment(name)
    body, path = json.dumps({"rows": [row]}), "/predict"
    environ = {**os.environ, "MODEL": str(model), "PORT": str(port), "BENTOML_DO_NOT_TRACK": "true"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ["PATH"] = f"{python.parent}:{environ['PATH']}"
    loopback = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "fastapi":
        command = [python, "-m", "uvicorn", "fastapi_app:app", *loopback, "--log-level", "warning", "--no-access-log"]
    elif name == "litserve":
        command = [python, HERE / "peers" / "litserve_app.py"]
    elif name == "bentoml":
        command = [python, "-m", "bentoml", "serve", "bentoml_app:Digits", *loopback]
    elif name == "bentoml-batch":
        command = [python, "-m", "bentoml", "serve", "bentoml_batch_app:Batching", *loopback]
    else:
        settings = work / name
        settings.mkdir()
        common = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        # In one process: with workers of its own it is slower on a model this small.
        (settings / "settings.json").write_text(json.dumps({**common, "parallel_workers": 0, "debug": False}))
        described = {
            "name": "model",
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(model)},
        }
        if name == "mlserver-batch":
            described |= {"max_batch_size": 32, "max_batch_time": 0.002}
        (settings / "model-settings.json").write_text(json.dumps(described))
        command, path = [python.with_name("mlserver"), "start", str(settings)], "/v2/models/model/infer"
        tensor = {"name": "x", "datatype": "FP64", "shape": [1, len(row)], "data": row}
        body = json.dumps({"inputs": [tensor]})
    log = (work / f"{name}.log").open("wb")
    begun = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], cwd=HERE / "peers", env=environ, stdout=log, stderr=log, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}{path}"
        while True:
            try:
                ask(url, body, {})
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - begun > 90:
                    sys.exit(f"{name} did not start:\n{(work / f'{name}.log').read_text()[-2000:]}")
                time.sleep(0.02)
        yield Served(name, url, body, {}, [process.pid], time.perf_counter() - begun)
    finally:
        # The whole group: some of them start workers.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


@contextmanager
def polyserve_local(model: object, row: list[float], work: Path) -> Iterator[Served]:
    import numpy as np

    import polyserve
    from polyserve import registry
    from polyserve.settings import resolve

    options = {"home": str(work / "home")}
    package = polyserve.package(model, name="benchmark", sample=np.array([row, row]))
    deployment = polyserve.deploy(package, provider="local", options=options, min_instances=1, max_instances=1)
    try:
        provider = registry.load("local", resolve(provider="local", options=options).options)
        address = provider.invoker.resolve("benchmark")
        body = json.dumps({"rows": [row]})
        begun = time.perf_counter()
        ask(f"{address.url}/invocations", body, dict(address.headers))
        yield Served(
            "polyserve", f"{address.url}/invocations", body, dict(address.headers), [], time.perf_counter() - begun
        )
    finally:
        deployment.destroy()


def load(served: Served, clients: int, seconds: int, work: Path) -> None:
    """Run one round of wrk and keep what it measured."""
    script = work / f"{served.name}.lua"
    quoted = "".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}\n" for k, v in served.headers.items())
    headers = f'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\n{quoted}'
    script.write_text(f"{headers}wrk.body = {json.dumps(served.body)}\n")
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", str(script), served.url]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}

    def percentile(percent: int) -> float:
        value, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", out).groups()
        return float(value) * scale[unit]

    served.rates.setdefault(clients, []).append(float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)))
    served.p50.setdefault(clients, []).append(percentile(50))
    served.p99.setdefault(clients, []).append(percentile(99))
    for bad in re.findall(r"Non-2xx or 3xx responses: (\d+)|(?:connect|read|write|timeout) (\d+)", out):
        served.failed += sum(int(count) for count in bad if count)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=2, help="length of one round")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--model", choices=("iris", "digits"), default="digits", help="4 or 64 floats a request")
    every = [*PEERS, *BATCHING]
    options.add_argument("--peers", nargs="*", default=every, choices=[*every, []])
    options.add_argument("--json", action="store_true")
    options.add_argument("--markdown", action="store_true")
    chosen = options.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk (Debian), brew install wrk (macOS)")
    with tempfile.TemporaryDirectory(prefix="polyserve-bench-") as name, ExitStack() as stack:
        work = Path(name)
        model, path, row = train(chosen.model, work)
        servers = [stack.enter_context(polyserve_local(model, row, work))]
        servers += [stack.enter_context(peer(each, path, row, work)) for each in chosen.peers]
        for served in servers:
            for clients in CLIENTS:
                load(served, clients, 1, work)
            served.rates.clear(), served.p50.clear(), served.p99.clear()
        for _ in range(chosen.rounds):
            for clients in CLIENTS:
                for served in servers:
                    load(served, clients, chosen.seconds, work)
    report(servers, chosen)
    if failed := [f"{served.name}: {served.failed}" for served in servers if served.failed]:
        sys.exit(f"requests failed, so the figures mean nothing: {', '.join(failed)}")


def ratios_of(servers: list[Served]) -> dict[str, object]:
    """Return how we stand beside the best peer of each round: the median of the rounds, and all of them."""
    ours, others = servers[0], servers[1:]
    ratios: dict[str, object] = {}
    for clients in CLIENTS if others else ():
        best = [max(each) for each in zip(*(peer.rates[clients] for peer in others), strict=True)]
        quickest = [min(each) for each in zip(*(peer.p99[clients] for peer in others), strict=True)]
        rates = [round(own / peer, 2) for own, peer in zip(ours.rates[clients], best, strict=True)]
        tails = [round(peer / own, 2) for own, peer in zip(ours.p99[clients], quickest, strict=True)]
        for what, rounds in (("throughput_over_best", rates), ("p99_best_over_ours", tails)):
            ratios[f"{what}_{clients}"] = statistics.median(rounds)
            ratios[f"{what}_{clients}_rounds"] = rounds
    return ratios


def report(servers: list[Served], chosen: argparse.Namespace) -> None:
    middle = statistics.median
    rows = []
    for served in servers:
        row: dict[str, object] = {"server": served.name, "failed": served.failed}
        for clients in CLIENTS:
            row[f"requests_per_s_{clients}"] = round(middle(served.rates[clients]))
            row[f"p50_ms_{clients}"] = round(middle(served.p50[clients]), 3)
            row[f"p99_ms_{clients}"] = round(middle(served.p99[clients]), 3)
        rows.append(row)
    ratios = ratios_of(servers)
    # Instances run under this interpreter, whose packages they see: the figures are for the standard library alone.
    reader = "orjson" if importlib.util.find_spec("orjson") else "standard library"
    if chosen.json:
        print(json.dumps({"model": chosen.model, "polyserve_json": reader, "servers": rows, "ratios": ratios}))
        return
    titles = [
        "server",
        *(f"{what}, {n} client{'s' * (n > 1)}" for n in CLIENTS for what in ("req/s", "p50 ms", "p99 ms")),
    ]
    keys = ["server", *(f"{what}_{n}" for n in CLIENTS for what in ("requests_per_s", "p50_ms", "p99_ms"))]
    if chosen.markdown:
        print("| " + " | ".join(titles) + " |\n| " + " | ".join("---" for _ in titles) + " |")
        for row in rows:
            print("| " + " | ".join(str(row[key]) for key in keys) + " |")
    else:
        for line in (titles, *([str(row[key]) for key in keys] for row in rows)):
            print("".join(part.rjust(20) if i else part.ljust(15) for i, part in enumerate(line)))
    print(f"\nmodel: {chosen.model}; polyserve reads JSON with: {reader}")
    for what, value in ratios.items():
        print(f"{what}: {value}")


if __name__ == "__main__":
    main()
