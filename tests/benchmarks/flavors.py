"""Measure every flavor: the sizes of its package and bundle, its cold start and its warm latency, original beside compiled.

    python tests/benchmarks/flavors.py [--json | --markdown] [--rounds N] [--flavors NAME ...]

One model of scikit-learn's digits for each framework that is installed, packaged as it is and as ONNX, bundled with all that it needs for a
platform that installs nothing, with this Python and this processor: a pickle stays with its Python. *cold*: from the start of an
interpreter that sees the unpacked bundle and the standard library alone to its first answer; *warm*: one image more, as JSON through the
host. Every case is in every round; of cold starts the median counts, and of warm answers the median of a process, the best of the rounds.

PyTorch is bundled as uv finds it: point it at a build without CUDA (UV_FIND_LINKS, or UV_TORCH_BACKEND=cpu).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bundle
import coldstart

ROWS, CALLS = 1000, 300
# Runs in the tree of a bundle and nothing else, which is read-only where functions are.
ALONE = (sys.executable, "-I", "-S", "-B", "-c")
WARM = """
print("answered", flush=True)
import statistics, time
taken = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    host.handle(request)
    taken.append(time.perf_counter() - began)
print(statistics.median(taken[len(taken) // 4 :]))
"""


def digits() -> tuple[Any, Any]:
    """Return what the models are trained on: brightness from 0 to 16, and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images[:ROWS], labels[:ROWS]


def forest(folder: Path) -> object:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(100, random_state=0).fit(*digits())


def regression(folder: Path) -> object:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000).fit(*digits())


def skops(folder: Path) -> object:
    import skops.io

    skops.io.dump(regression(folder), folder / "regression.skops")
    return folder / "regression.skops"


def xgboost(folder: Path) -> object:
    import xgboost

    return xgboost.XGBClassifier(n_estimators=50, n_jobs=1).fit(*digits())


def lightgbm(folder: Path) -> object:
    import lightgbm

    return lightgbm.LGBMClassifier(n_estimators=50, n_jobs=1, verbose=-1).fit(*digits())


def module(folder: Path) -> Any:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    return network.eval()


def torchscript(folder: Path) -> object:
    import torch

    torch.jit.script(module(folder)).save(str(folder / "network.ts"))
    return folder / "network.ts"


def exported(folder: Path) -> object:
    import torch

    rows = {0: torch.export.Dim("rows")}
    return torch.export.export(module(folder), (torch.zeros(2, 64),), dynamic_shapes=(rows,))


def onnx(folder: Path) -> object:
    import torch

    torch.onnx.export(
        module(folder), (torch.zeros(2, 64),), folder / "network.onnx", dynamo=False, dynamic_axes={"x": {0: "rows"}},
        input_names=["x"], output_names=["y"],
    )  # fmt: skip
    return folder / "network.onnx"


def keras(folder: Path) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
    return keras.Sequential(layers)


def tflite(folder: Path) -> object:
    import tensorflow as tf

    # Keras says what it exports where the figures go.
    with contextlib.redirect_stdout(sys.stderr):
        return tf.lite.TFLiteConverter.from_keras_model(keras(folder)).convert()


def python(folder: Path) -> object:
    (folder / "brightest.py").write_text("def predict(rows):\n    return rows.argmax(axis=1)\n")
    sys.path.insert(0, str(folder))
    return "brightest:predict"


# What makes each model in a folder of its own, and the datatype of its rows.
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "sklearn, forest": (forest, "f8"),
    "sklearn, regression": (regression, "f8"),
    "sklearn, skops": (skops, "f8"),
    "xgboost": (xgboost, "f4"),
    "lightgbm": (lightgbm, "f8"),
    "torch, module": (module, "f4"),
    "torch, TorchScript": (torchscript, "f4"),
    "torch, exported": (exported, "f4"),
    "onnx": (onnx, "f4"),
    "python": (python, "f8"),
    "tflite": (tflite, "f4"),
    "tensorflow, Keras": (keras, "f4"),
}


@dataclass
class Measured:
    """One package in its bundle; bytes and seconds."""

    root: Path
    package: int
    zipped: int
    unpacked: int
    tree: Path
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)


def packaged(name: str, folder: str) -> list[str]:
    """Package one model as it is and, where it can be, as ONNX, which must answer alike; return the packages' directories."""
    import warnings

    import polyserve

    warnings.simplefilter("ignore")
    images, _labels = digits()
    model, datatype = CASES[name]
    sample = images[:100].astype(datatype)
    short = name.replace(",", "").replace(" ", "-").lower()

    made = [polyserve.package(model(Path(folder)), name=short, sample=sample, compile="off", into=Path(folder, "kept"))]
    try:
        compiled = polyserve.package(made[0], compile="onnx")
    except polyserve.PackageError as error:
        print(f"{name}: not compiled, {error}", file=sys.stderr)
    else:
        # What is ONNX already is the same package.
        if compiled != made[0]:
            made.append(compiled)
            coldstart.check(*made, images.astype(datatype))
    return [str(each.root) for each in made]


def bundled(root: Path, trees: Path) -> Measured:
    """Build the bundle of a package, and unpack it as a platform does."""
    from polyserve.bundle import PACKAGE, build, machine
    from polyserve.model import ModelPackage

    package = ModelPackage.open(root)
    began = time.perf_counter()
    made = build(package, bundle.cloud(), python=bundle.PYTHON, architecture=machine())
    print(f"{package.name}: bundled in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    tree = trees / package.digest[:16]
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(tree)
    return Measured(tree / PACKAGE, package.size_bytes, made.size, made.unpacked_size, tree)


def answered(measured: Measured, body: str) -> tuple[float, float]:
    """Return the seconds from the start of a process in the bundle's tree to its first answer, and those of a later one."""
    program = f"import sys\nsys.path.insert(0, {str(measured.tree)!r})\n{coldstart.CHILD}{WARM}"
    command = [*ALONE, program, str(measured.root), body, str(CALLS)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        cold = time.perf_counter() - began
        warm = process.stdout.readline()
    if process.returncode:
        sys.exit(f"{measured.root} was not answered for")
    return cold, float(warm)


def measure(names: Sequence[str], rounds: int, folder: Path) -> dict[str, list[Measured]]:
    """Return the original and, where there is one, the compiled package of each flavor that is installed."""
    from polyserve.errors import PackageError

    found: dict[str, list[Measured]] = {}
    for number, name in enumerate(names):
        own = folder / str(number)
        own.mkdir()
        # A process for each: frameworks do not all get on with each other.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                roots = pool.submit(packaged, name, str(own)).result()
            except ImportError as error:
                print(f"{name}: left out, {error}", file=sys.stderr)
                continue
        try:
            found[name] = [bundled(Path(root), folder / "trees") for root in roots]
        except PackageError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    body = json.dumps(digits()[0][:1].tolist())
    for turn in range(rounds + 1):
        for each in (one for pair in found.values() for one in pair):
            cold, warm = answered(each, body)
            # The first round reads the files from the disk.
            if turn:
                each.cold.append(cold)
                each.warm.append(warm)
    return found


def figures(pair: Sequence[Measured]) -> dict[str, list[float]]:
    """Return each column's figures: one for the original, and one for the compiled where there is one."""
    return {
        "package_kb": [each.package / 1e3 for each in pair],
        "zipped_mb": [each.zipped / 1e6 for each in pair],
        "unpacked_mb": [each.unpacked / 1e6 for each in pair],
        "cold_ms": [statistics.median(each.cold) * 1e3 for each in pair],
        "warm_us": [min(each.warm) * 1e6 for each in pair],
    }


def sooner(pair: Sequence[Measured]) -> str:
    """Return how many times sooner the compiled package answers from cold: the median of the rounds, the least and the most."""
    if len(pair) == 1:
        return ""
    times = [before / after for before, after in zip(pair[0].cold, pair[1].cold, strict=True)]
    return f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flavors", nargs="+", metavar="NAME", default=[*CASES], help="those that begin with these")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print a table for the documentation")
    given = parser.parse_args()
    chosen = [name for name in CASES if name.startswith(tuple(given.flavors))]
    folder = Path(tempfile.mkdtemp(prefix="polyserve-bench-"))
    try:
        found = measure(chosen, given.rounds, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        print(json.dumps({name: figures(pair) for name, pair in found.items()}))
        return
    start, between, end = ("| ", " | ", " |") if given.markdown else ("", "  ", "")
    titles = ("flavor", "package kB", "bundle MB", "unpacked MB", "cold ms", "times sooner", "warm µs")
    print(start + between.join(titles) + end)
    if given.markdown:
        print("| --- " * len(titles) + "|")
    for name, pair in found.items():
        package, zipped, unpacked, cold, warm = (
            " → ".join(f"{value:,.{digits_of}f}" for value in values)
            for digits_of, values in zip((0, 1, 0, 0, 0), figures(pair).values(), strict=True)
        )
        print(start + between.join((name, package, zipped, unpacked, cold, sooner(pair), warm)) + end)


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
