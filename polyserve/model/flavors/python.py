"""Python code: a function, any other callable, or a predictor with load, preprocess, predict and postprocess.

A function or a class travels by its name, an object as a pickle beside it; either way the module that it is from goes along, with
the modules of the user's own which that one imports.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import reduce
from inspect import isclass, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

from polyserve.errors import PackageError
from polyserve.model import canonical
from polyserve.model.flavors import Saved
from polyserve.model.sources import MAIN, main_name, travelling_name

NAME = "python"
SUFFIXES: tuple[str, ...] = ()
SAFE = False

_PICKLE = "model/predictor.pickle"
_FILES = "model/files"


def recognises(model: object) -> bool:
    """Tell whether the object can be called or has `predict`."""
    if isclass(model):
        return hasattr(model, "predict")
    return not isinstance(model, ModuleType) and (callable(model) or callable(getattr(model, "predict", None)))


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Note how the model is imported, or pickle it to `model/predictor.pickle`; copy `files` to `model/files/`.

    Raises:
        PackageError: It is local, a lambda or from an interactive session, cannot be pickled, or `files` does not fit it.
    """
    if methods is not None:
        message = (
            f"methods={list(methods)!r}: a Python model has predict() alone; return a dict from it for several outputs"
        )
        raise _refusal(message, NAME)
    if not recognises(model):
        raise _refusal(
            f"{_title(model)} has no predict(): pass a function, or a class or object with predict(inputs)",
            _title(model),
        )
    model_dir = _copy_files(model, root, files)
    renamed = {}
    if isclass(model) or isfunction(model):
        check_importable(model)
        module = model.__module__
        if module == MAIN:
            renamed[MAIN] = module = travelling_name(_title(model))
        kind = "class" if isclass(model) else "function"
        loader = {"format": kind, "module": module, "attribute": model.__qualname__, "model_dir": model_dir}
        modules = frozenset({model.__module__})
    else:
        renamed[MAIN] = main_name() or MAIN
        raw, modules = _pickle(model, renamed)
        if MAIN in modules:
            travelling_name(_title(model))
        (root / _PICKLE).parent.mkdir(parents=True, exist_ok=True)
        (root / _PICKLE).write_bytes(raw)
        loader = {"format": "pickle", "path": _PICKLE, "model_dir": model_dir}
    return Saved(loader=loader, name=_title(model), modules=modules, renamed=renamed)


def _copy_files(model: object, root: Path, files: Path | None) -> str | None:
    """Copy what the predictor loads, and return where it is in the package; `None` where nothing is to be loaded."""
    loads = callable(getattr(model, "load", None))
    if files is None:
        # An object was loaded when it was made; a class still has to be, even from nothing.
        return _FILES if loads and isclass(model) else None
    if not loads:
        message = (
            f"files={str(files)!r}: {_title(model)} has no load(model_dir), so nothing would read them; give it one"
        )
        raise _refusal(message, str(files))
    target = root / _FILES
    target.mkdir(parents=True)
    if files.is_file():
        shutil.copyfile(files, target / files.name)
    elif files.is_dir():
        for file in sorted(files.rglob("*")):
            if file.is_file():
                (target / file.relative_to(files)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / file.relative_to(files))
    else:
        raise _refusal(
            f"files={str(files)!r} is neither a file nor a directory: name what the predictor's load() reads",
            str(files),
        )
    return _FILES


def check_importable(model: Any) -> None:
    """Refuse a function or class that no import would find where the model is served.

    Raises:
        PackageError: It is a lambda, local, or not what its module has under its name.
    """
    where = model.__qualname__
    if "<lambda>" in where or "<locals>" in where:
        what = (
            "a lambda"
            if "<lambda>" in where
            else f"{where.rpartition('.')[2]!r}, which is local to {where.partition('.')[0]!r},"
        )
        message = f"{what} cannot be imported where the model is served: define a function or a class at the top of a module and pass that"
        raise _refusal(message, where)
    try:
        found = reduce(getattr, where.split("."), sys.modules[model.__module__])
    except (AttributeError, KeyError):
        found = None
    if found is not model:
        message = (
            f"{model.__module__}.{where} is something else than what was passed (decorated or defined twice?): pass "
            "what is found there"
        )
        raise _refusal(message, where)


def _pickle(model: object, renamed: dict[str, str]) -> tuple[bytes, frozenset[str]]:
    try:
        return canonical.dumps(model, renamed=renamed)
    except Exception as error:
        message = (
            f"{_title(model)} cannot be pickled, so it cannot travel ({error}): pass its class, and make in "
            "load(model_dir) what cannot be pickled"
        )
        raise _refusal(message, _title(model)) from error


def _title(model: object) -> str:
    return str(getattr(model, "__name__", None) or type(model).__name__)


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
