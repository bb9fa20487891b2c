"""Model packages for the contract: real ones, of plain Python, that start in a moment and need nothing installed.

The environment variables of the function can make them misbehave there while they were sound when they were packaged, as a real model
does on a machine that is not quite the same. A negative number makes them slow.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

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


_made: dict[int, ModelPackage] = {}


def times(factor: int) -> ModelPackage:
    """Return a package that multiplies every number of its rows by `factor`; shape (n, 2) to (n, 2)."""
    # A test may have a cache directory of its own, which goes when it ends.
    if factor not in _made or not _made[factor].root.exists():
        _made[factor] = _make(factor)
    return _made[factor]


def _make(factor: int) -> ModelPackage:
    name = f"contract_times_{factor}"
    with tempfile.TemporaryDirectory(prefix="polyserve-contract-") as directory:
        path = Path(directory) / f"{name}.py"
        path.write_text(SOURCE.format(factor=factor, breaks=BREAKS_IMPORT, wrong=ANSWERS_WRONG))
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise AssertionError(f"{path} is no module")
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
            return package(module.predict, name="contract-times", sample=[[1.0, 2.0], [3.0, 4.0]])
        finally:
            del sys.modules[name]
