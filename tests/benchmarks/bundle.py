"""Measure how long a bundle of scikit-learn takes, beside `uv pip install --target` and Python's `zipfile`, in one run.

    python tests/benchmarks/bundle.py [--json | --markdown] [--rounds N]

Wheels are in uv's own cache throughout. `plain` is what a recipe does: install into a directory, compress it with `zipfile`. `first` is a
bundle with nothing of polyserve's in its cache: fetched, slimmed, compiled and compressed. `dependencies known` is the first bundle of a
machine that has the tree, but nothing compiled or compressed. `next model` has the dependencies of the one before, as every new version
of a model has. `again` is the same once more. Rounds are interleaved; the median counts: of seconds, and of the processor's, children's
included, which is what other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def cloud() -> Any:
    """Return a platform that installs nothing, with this Python and the C library of Lambda's from 3.12 on."""
    from polyserve import registry
    from polyserve.driver import BundleForm

    form = BundleForm(dependencies=".", glibc={PYTHON: (2, 34)})
    return dataclasses.replace(registry.info("local"), title="A cloud", bundle=form)


def processor_seconds() -> float:
    """Return what this process and its children have taken so far."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def cases(folder: Path) -> dict[str, Callable[[], int]]:
    """Return what to time, in the order of a round; each returns the size of its archive."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    import polyserve
    from polyserve.bundle import Target, build, machine
    from polyserve.bundle.installers import find_uv

    rows, labels = load_digits(return_X_y=True)
    models = [
        polyserve.package(
            RandomForestClassifier(trees, random_state=0).fit(rows, labels),
            name="digits",
            sample=rows[:5],
            compile="off",
            into=folder / "packages",
        )
        for trees in (10, 11)
    ]
    info = cloud()
    target = Target.of(info, python=PYTHON, architecture=machine())
    uv, cache = find_uv(), Path(os.environ["POLYSERVE_CACHE"])
    if uv is None:
        sys.exit("this compares with uv: pip install uv")

    def plain() -> int:
        tree, archive = folder / "plain", folder / "plain.zip"
        shutil.rmtree(tree, ignore_errors=True)
        where = ["--python-platform", target.uv_platform, "--python-version", PYTHON, "--python", sys.executable]
        command = [uv, "pip", "install", "-q", "--no-deps", "--only-binary", ":all:", *where, "--target", str(tree)]
        subprocess.run([*command, *models[0].manifest.requirements], check=True)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for path in sorted(tree.rglob("*")):
                if path.is_file():
                    out.write(path, path.relative_to(tree))
        return archive.stat().st_size

    def bundle(model: int, *gone: str) -> Callable[[], int]:
        def run() -> int:
            for name in gone:
                shutil.rmtree(cache / name, ignore_errors=True)
            return build(models[model], info, python=PYTHON, architecture=machine()).size

        return run

    return {
        "plain": plain,
        "first": bundle(0, "wheels", "packs", "bundles"),
        "dependencies known": bundle(0, "packs", "bundles"),
        "next model": bundle(1, "bundles"),
        "again": bundle(1),
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print a table for the documentation")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polyserve-bench-") as folder:
        os.environ["POLYSERVE_CACHE"] = str(Path(folder, "cache"))
        timed = cases(Path(folder))
        timed["first"]()  # so that uv has the wheels
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
        sizes: dict[str, int] = {}
        for _ in range(options.rounds):
            for name, run in timed.items():
                began, used = time.perf_counter(), processor_seconds()
                sizes[name] = run()
                seconds[name].append((time.perf_counter() - began, processor_seconds() - used))
    medians = {name: tuple(map(statistics.median, zip(*values, strict=True))) for name, values in seconds.items()}
    plain = medians["plain"]
    table = [
        (name, f"{whole:.2f}", f"{used:.2f}", f"{plain[0] / whole:.1f}", f"{sizes[name] / 1e6:.1f}")
        for name, (whole, used) in medians.items()
    ]
    if options.json:
        print(
            json.dumps(
                {
                    name: {"s": round(whole, 3), "processor_s": round(used, 3), "bytes": sizes[name]}
                    for name, (whole, used) in medians.items()
                }
            )
        )
    elif options.markdown:
        print("| bundle | s | processor s | times faster than plain | MB |\n| --- | --- | --- | --- | --- |")
        print("\n".join(f"| {' | '.join(row)} |" for row in table))
    else:
        for row in (("", "s", "cpu s", "x plain", "MB"), *table):
            print(f"{row[0]:20} {row[1]:>8} {row[2]:>8} {row[3]:>8} {row[4]:>8}")


if __name__ == "__main__":
    main()
