"""Model packages for the contract: real ones, of plain Python, that start in a moment and need nothing installed.

The environment variables of the function can make them misbehave there while they were sound when they were packaged, as a real model
does on a machine that is not quite the same. A negative number makes them slow.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from polyserve.model import ModelPackage, package

BREAKS_IMPORT = "CONTRACT_BREAKS_IMPORT"
"""Environment variable that makes the model's module raise when it is imported."""
ANSWERS_WRONG = "CONTRACT_ANSWERS_WRONG"
"""Environment variable that makes the model answer something else than when it was packaged."""

SOURCE = '''
"""Multiplies rows by {factor}, and takes as many seconds as its most negative number."""
import os
import time

if os.environ.get("{breaks}"):
    raise RuntimeError("broken on purpose")


def predict(rows):
    time.sleep(max([0.0, *(-value for row in rows for value in row)]))
    factor = {factor} + bool(os.environ.get("{wrong}"))
    return [[factor * value for value in row] for row in rows]
'''


WEIGHTED = '''
"""Multiplies rows by what the first file of its model says, and adds what the second one does."""


class Weighted:
    def load(self, model_dir):
        self.factor, self.bias = ((model_dir / name).read_bytes()[0] for name in ("weights.bin", "bias.bin"))

    def predict(self, rows):
        return [[self.factor * value + self.bias for value in row] for row in rows]
'''
FACTOR, BIAS = 7, 5


_SAMPLE = [[1.0, 2.0], [3.0, 4.0]]
_made: dict[int, ModelPackage] = {}
_weighted: list[ModelPackage] = []


def times(factor: int) -> ModelPackage:
    """Return a package that multiplies every number of its rows by `factor`; shape (n, 2) to (n, 2)."""
    # A test may have a cache directory of its own, which goes when it ends.
    if factor not in _made or not _made[factor].root.exists():
        _made[factor] = _make(factor)
    return _made[factor]


def weighted() -> ModelPackage:
    """Return a package that answers `FACTOR * value + BIAS`, and has the two numbers in two files of some MiB each."""
    if not _weighted or not _weighted[0].root.exists():
        with tempfile.TemporaryDirectory(prefix="polyserve-contract-") as directory:
            for name, number, size in (("weights.bin", FACTOR, 3 << 20), ("bias.bin", BIAS, 2 << 20)):
                # As good as random: no compression makes the difference between the bucket and the bundle.
                (Path(directory) / name).write_bytes(bytes([number]) + random.Random(number).randbytes(size))
            with _imported("contract_weighted", WEIGHTED) as module:
                _weighted[:] = [package(module.Weighted, name="contract-times", sample=_SAMPLE, files=directory)]
    return _weighted[0]


def _make(factor: int) -> ModelPackage:
    source = SOURCE.format(factor=factor, breaks=BREAKS_IMPORT, wrong=ANSWERS_WRONG)
    with _imported(f"contract_times_{factor}", source) as module:
        return package(module.predict, name="contract-times", sample=_SAMPLE)


@contextmanager
def _imported(name: str, source: str) -> Iterator[ModuleType]:
    """Import a module of that source for as long as it takes to package something of it."""
    with tempfile.TemporaryDirectory(prefix="polyserve-contract-") as directory:
        path = Path(directory) / f"{name}.py"
        path.write_text(source)
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise AssertionError(f"{path} is no module")
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
            yield module
        finally:
            del sys.modules[name]
