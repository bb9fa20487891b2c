"""Measure the runtime host and the start of the command line, each beside its floor, in one run.

    python tests/benchmarks/runtime.py [--json | --markdown] [--rounds N]

What the host adds to one bare `model.predict`: a request that has arrived as bytes, to an answer and a line in the log, for one row of four
floats, as JSON and as a binary tensor, alone and 32 together. What `import polyserve` and the command line take to start, beside
`python -c pass` and `import click`. Rounds of all cases are interleaved; of calls the best round counts, since noise only adds, and of
starts the median.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TOGETHER = 32


def host_cases() -> tuple[dict[str, tuple[Callable[[], object], int]], Callable[[], None]]:
    """Return what to call, with the requests that each call answers, and how to tidy up."""
    import numpy as np
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    import polyserve
    from polyserve.runtime import protocol
    from polyserve.runtime.host import Host
    from polyserve.runtime.messages import Request
    from polyserve.runtime.tensors import Tensor

    rows, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(rows, labels)
    row = rows[:1]
    log = os.open(os.devnull, os.O_WRONLY)
    host = Host(
        polyserve.package(model, name="iris", sample=rows[:2]).root, revision=1, sink=lambda lines: os.write(log, lines)
    )
    host.load()
    headers = {"content-type": "application/json", "host": "127.0.0.1"}
    body, more = protocol.format_request([Tensor.from_numpy("input", row)], binary=True)
    plain = Request(path="/invocations", headers=headers, body=json.dumps({"rows": row.tolist()}).encode())
    binary = Request(path="/v2/models/iris/infer", headers={**headers, **more}, body=body)
    for answer in (host.handle(plain), host.handle(binary), *host.handle_many([plain, binary])):
        if answer.status != 200:
            sys.exit(f"the host answered {answer.status}: {answer.body!r}")
    many = np.repeat(row, TOGETHER, axis=0)
    return {
        "predict, 1 row": (lambda: model.predict(row), 1),
        f"predict, {TOGETHER} rows": (lambda: model.predict(many), TOGETHER),
        "handle, JSON": (lambda: host.handle(plain), 1),
        "handle, binary": (lambda: host.handle(binary), 1),
        f"handle_many of {TOGETHER}, JSON": (lambda: host.handle_many([plain] * TOGETHER), TOGETHER),
        f"handle_many of {TOGETHER}, binary": (lambda: host.handle_many([binary] * TOGETHER), TOGETHER),
    }, lambda: os.close(log)


def measure_host(rounds: int, calls: int) -> dict[str, float]:
    """Return microseconds per call of each case."""
    cases, close = host_cases()
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, (call, answers) in cases.items():
            times = max(1, calls // answers)
            started = time.perf_counter()
            for _ in range(times):
                call()
            best[name] = min(best[name], (time.perf_counter() - started) / times * 1e6)
    close()
    return best


def measure_starts(rounds: int) -> dict[str, float]:
    """Return milliseconds of whole processes."""
    program = str(Path(sys.executable).with_name("polyserve"))
    cases = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import click": [sys.executable, "-c", "import click"],
        "import polyserve": [sys.executable, "-c", "import polyserve"],
        "polyserve --version": [program, "--version"],
        "polyserve --help": [program, "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    # Without byte-code every import takes two to three times as long as users see.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for number in range(rounds + 1):
        for name, command in cases.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environ)
            # The first round writes byte-code and fills the page cache.
            if number:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(each) for name, each in times.items()}


def ratios_of(calls: dict[str, float], starts: dict[str, float]) -> dict[str, float]:
    """Return what the goals are about."""
    alone, together = calls["predict, 1 row"], calls[f"predict, {TOGETHER} rows"]
    many = f"handle_many of {TOGETHER}"
    return {
        "handle_json_adds_us": round(calls["handle, JSON"] - alone, 1),
        "handle_binary_adds_us": round(calls["handle, binary"] - alone, 1),
        "handle_many_json_adds_us_per_request": round((calls[f"{many}, JSON"] - together) / TOGETHER, 1),
        "handle_many_binary_adds_us_per_request": round((calls[f"{many}, binary"] - together) / TOGETHER, 1),
        "handle_json_over_predict": round(calls["handle, JSON"] / alone, 2),
        "handle_many_json_over_32_predicts": round(calls[f"{many}, JSON"] / (TOGETHER * alone), 3),
        "import_over_bare_python": round(starts["import polyserve"] / starts["python -c pass"], 2),
        "help_over_import_click": round(starts["polyserve --help"] / starts["import click"], 2),
        "version_over_import_click": round(starts["polyserve --version"] / starts["import click"], 2),
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print tables for the documentation")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=320, help="requests per case and round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polyserve-bench-") as cache:
        os.environ["POLYSERVE_CACHE"] = cache
        calls = measure_host(options.rounds, options.calls)
    starts = measure_starts(options.rounds)
    ratios = ratios_of(calls, starts)
    reader = "orjson" if importlib.util.find_spec("orjson") else "standard library"
    if options.json:
        rounded = ({name: round(value, 1) for name, value in each.items()} for each in (calls, starts))
        print(json.dumps({"json": reader, "us": next(rounded), "ms": next(rounded), "ratios": ratios}))
        return
    lines = [(name, f"{value:.1f} us") for name, value in calls.items()]
    lines += [(name, f"{value:.1f} ms") for name, value in starts.items()]
    lines += [(name, str(value)) for name, value in ratios.items()]
    if options.markdown:
        print("| what | measured |\n| --- | --- |")
    for name, value in lines:
        print(f"| {name} | {value} |" if options.markdown else f"{name:40} {value:>12}")
    print(f"\nJSON is read with: {reader}")


if __name__ == "__main__":
    main()
