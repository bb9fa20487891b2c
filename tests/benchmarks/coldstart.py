"""Measure how much sooner a compiled model answers: from the start of a process to its first answer, original beside compiled.

    python tests/benchmarks/coldstart.py [--json | --markdown] [--rounds N] [--no-local]

Two models of scikit-learn's digits: a forest of 100 trees, and a network of PyTorch with one hidden layer. Each is packaged twice, as it
is and as ONNX. *process*: a new interpreter loads the package as an instance does and answers one image; *local*: a deployment whose
instances have stopped answers one image, over HTTP. Rounds of all cases take turns, a first one is not counted; the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHILD = """
import sys
from pathlib import Path
from polyserve.runtime.host import Host
from polyserve.runtime.messages import Request
host = Host(Path(sys.argv[1]), revision=1, sink=lambda lines: None)
host.load()
request = Request(path="/invocations", headers={"content-type": "application/json"}, body=sys.argv[2].encode())
answer = host.handle(request)
if answer.status != 200:
    sys.exit(f"the host answered {answer.status}: {answer.body!r}")
"""
IDLE_S = 0.5


def packages() -> tuple[dict[str, tuple[Any, Any]], str]:
    """Return each model's two packages, and one image as the body of a request."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    import polyserve

    images, labels = load_digits(return_X_y=True)
    forest = RandomForestClassifier(100, random_state=0).fit(images[:1000], labels[:1000])
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    pixels, numbers = torch.from_numpy(images[:1000].astype("f4")), torch.from_numpy(labels[:1000])
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(pixels), numbers).backward()
        optimizer.step()
    made = {}
    for name, model, sample in (
        ("forest", forest, images[1000:1100]),
        ("network", network.eval(), images[1000:1100].astype("f4")),
    ):
        plain, compiled = (polyserve.package(model, name=name, sample=sample, compile=how) for how in ("off", "onnx"))
        print(f"{name}: {compiled.compilation}", file=sys.stderr)
        check(plain, compiled, images if name == "forest" else images.astype("f4"))
        made[name] = plain, compiled
    return made, json.dumps(np.round(images[:1]).tolist())


def check(plain: Any, compiled: Any, rows: Any) -> None:
    """Have both packages answer all rows, and stop where an answer differs: labels at all, numbers by more than a deployment allows."""
    import numpy as np

    from polyserve.runtime import loaders, values

    answers = []
    for package in (plain, compiled):
        inputs = values.to_tensors(rows, package.signature.inputs, package.signature.input_kind)
        answers.append(
            [tensor.numpy() for tensor in loaders.load(package.root, package.manifest).predict(inputs, None)]
        )
    tolerance = compiled.manifest.tolerance
    for want, have in zip(*answers, strict=True):
        if not np.allclose(
            have, want, rtol=0 if want.dtype.kind in "iu" else tolerance.relative, atol=tolerance.absolute
        ):
            sys.exit(f"{plain.name} answers differently once it is compiled")
        if want.ndim == 2 and not np.array_equal(want.argmax(axis=1), have.argmax(axis=1)):
            sys.exit(f"{plain.name} names another digit once it is compiled")


def started(package: Any, body: str) -> float:
    """Return the seconds from the start of a process to its answer."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", CHILD, str(package.root), body], check=True)
    return time.perf_counter() - began


def called_cold(deployment: Any, rows: Any) -> float:
    """Return the seconds that the first call takes after the last instance has stopped."""
    deadline = time.monotonic() + 60
    while any(revision.instances for revision in deployment.status().function.revisions):
        if time.monotonic() > deadline:
            sys.exit(f"{deployment.name} has instances still")
        time.sleep(0.05)
    began = time.perf_counter()
    deployment.invoke(rows)
    return time.perf_counter() - began


def taking_turns(
    made: dict[str, tuple[Any, Any]], ways: dict[str, Callable[[Any], float]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of the original and of the compiled package, by case and round."""
    found: dict[str, list[tuple[float, float]]] = {f"{name}, {way}": [] for name in made for way in ways}
    for turn in range(rounds + 1):
        for name, (plain, compiled) in made.items():
            for way, call in ways.items():
                pair = call(plain), call(compiled)
                if turn:
                    found[f"{name}, {way}"].append(pair)
    return found


def measure(rounds: int, *, local: bool) -> dict[str, dict[str, float]]:
    """Return the medians by case, and how many times sooner the compiled package answers, by the round."""
    import numpy as np

    import polyserve

    made, body = packages()
    ways: dict[str, Callable[[Any], float]] = {"process": lambda package: started(package, body)}
    deployments = {}
    if local:
        options = {"idle_timeout_s": IDLE_S}
        for name, pair in made.items():
            for how, package in zip(("original", "compiled"), pair, strict=True):
                deployments[package.digest] = polyserve.deploy(
                    package, name=f"{name}-{how}", provider="local", min_instances=0, options=options
                )
        image = np.array(json.loads(body))
        ways["local"] = lambda package: called_cold(deployments[package.digest], image)
    try:
        found = taking_turns(made, ways, rounds)
    finally:
        for deployment in deployments.values():
            deployment.destroy()
    return {
        case: {
            "original_ms": statistics.median(before for before, _ in pairs) * 1000,
            "compiled_ms": statistics.median(after for _, after in pairs) * 1000,
            "times": statistics.median(before / after for before, after in pairs),
            "least": min(before / after for before, after in pairs),
            "most": max(before / after for before, after in pairs),
        }
        for case, pairs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-local", action="store_true")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    # Byte-code is written, and homes of its own are used: what is measured is what a user's second start is.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="ps-") as home:
        os.environ |= {"POLYSERVE_HOME": str(Path(home, "h")), "POLYSERVE_CACHE": str(Path(home, "c"))}
        found = measure(given.rounds, local=not given.no_local)
    if given.json:
        print(json.dumps(found))
        return
    start, between, end = ("| ", " | ", " |") if given.markdown else ("", "  ", "")
    print(start + between.join(("case", "original", "compiled", "times sooner")) + end)
    if given.markdown:
        print("| --- | --- | --- | --- |")
    for case, of in found.items():
        times = f"{of['times']:.1f} ({of['least']:.1f} to {of['most']:.1f})"
        print(start + between.join((case, f"{of['original_ms']:.0f} ms", f"{of['compiled_ms']:.0f} ms", times)) + end)


if __name__ == "__main__":
    main()
