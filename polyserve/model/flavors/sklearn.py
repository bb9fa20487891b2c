"""scikit-learn: an estimator or Pipeline in memory, or a file of joblib, pickle or skops that holds one.

What is in memory or comes from a pickle travels as a pickle, which runs code when it is loaded. A `.skops` file stays one: it is
loaded without, as long as it holds only types that are trusted; any other is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError, PolyserveError
from polyserve.model import canonical, skopsfile
from polyserve.model.flavors import Saved, model_suffix
from polyserve.model.sources import MAIN, main_name, travelling_name
from polyserve.runtime.loaders.sklearn import TRUSTED
from polyserve.runtime.signature import TensorSpec

NAME = "sklearn"
SUFFIXES = (".joblib", ".pkl", ".pickle", ".skops")
SAFE = False
SAFER = "save it with skops.io.dump, or convert it to ONNX where it has trees, and package that file, which is loaded without running any"

_PATH = "model/model.pickle"
_SKOPS_PATH = "model/model.skops"
_METHODS = ("predict",)
_FORMATS = {".skops": "skops"}
_WRITERS = {".skops": "skops.io.dump"}


def recognises(model: object) -> bool:
    """Tell whether one of the object's classes is scikit-learn's."""
    kind = model if isinstance(model, type) else type(model)
    return any(parent.__module__.partition(".")[0] == "sklearn" for parent in kind.__mro__)


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Pickle the estimator canonically to `model/model.pickle`: a file and the object read from it become the same package.

    A `.skops` file goes to `model/model.skops`, without what differs each time it is saved.

    Raises:
        PackageError: It is no fitted estimator, lacks a method, was saved by another scikit-learn, cannot be pickled, or is a skops file
            with types that are not trusted.
        MissingDependencyError: scikit-learn is not installed.
    """
    if files is not None:
        message = f"files={str(files)!r}: a scikit-learn model takes no further files; write a predictor class with load(model_dir)"
        raise _refusal(message, NAME)
    if find_spec("sklearn") is None or find_spec("joblib") is None:
        message = (
            "a scikit-learn model needs scikit-learn to be packaged, which is not installed: pip install scikit-learn"
        )
        raise MissingDependencyError(message, operation="package", resource=NAME)
    what = repr(model.name) if isinstance(model, Path) else type(model).__name__
    is_skops = isinstance(model, Path) and model_suffix(model) == ".skops"
    estimator = model if not isinstance(model, Path) else _read(model, _load_skops if is_skops else _load_joblib)
    _check_fitted(estimator, what)
    names = _check_methods(estimator, methods)
    if is_skops and isinstance(model, Path):
        return _save_skops(model, root, estimator, names)
    renamed = {MAIN: main_name() or MAIN}
    try:
        raw, modules = canonical.dumps(estimator, renamed=renamed)
    except Exception as error:
        message = (
            f"{what} cannot be pickled, so it cannot travel ({error}): use functions that are defined at the top of a "
            "module instead of lambdas, "
            "local functions and open resources"
        )
        raise _refusal(message, what) from error
    if MAIN in modules:
        travelling_name(what)
    (root / _PATH).parent.mkdir(parents=True)
    (root / _PATH).write_bytes(raw)
    return Saved(
        loader={"format": "pickle", "path": _PATH, "methods": list(names)},
        name=model.stem if isinstance(model, Path) else type(estimator).__name__,
        modules=modules,
        distributions=("scikit-learn",),
        renamed=renamed,
        inputs=_inputs(estimator),
        output_name=names[0],
    )


def _save_skops(path: Path, root: Path, estimator: object, names: tuple[str, ...]) -> Saved:
    (root / _SKOPS_PATH).parent.mkdir(parents=True)
    (root / _SKOPS_PATH).write_bytes(skopsfile.canonical(path.read_bytes()))
    return Saved(
        loader={"format": "skops", "path": _SKOPS_PATH, "methods": list(names)},
        name=path.stem,
        modules=frozenset(),
        distributions=("scikit-learn", "skops"),
        renamed={},
        inputs=_inputs(estimator),
        output_name=names[0],
        safe=True,
    )


def _load_joblib(path: Path) -> object:
    import joblib

    estimator: object = joblib.load(path)
    return estimator


def _load_skops(path: Path) -> object:
    if find_spec("skops") is None:
        message = f"{path.name!r} needs skops to be packaged, which is not installed: pip install skops"
        raise MissingDependencyError(message, operation="package", resource=path.name)
    import skops.io

    untrusted = sorted(set(skops.io.get_untrusted_types(file=path)).difference(TRUSTED))
    if untrusted:
        message = (
            f"{path.name!r} holds types that are not safe to load from a file ({', '.join(untrusted)}): convert the model to ONNX "
            "with skl2onnx and package that, or save it with joblib.dump, which is packaged and marked as unsafe"
        )
        raise _refusal(message, path.name)
    estimator: object = skops.io.load(path, trusted=list(TRUSTED))
    return estimator


def _unreadable(path: Path, error: Exception) -> PackageError:
    message = (
        f"{path.name!r} is no readable {_FORMATS.get(model_suffix(path), 'joblib or pickle')} file "
        f"({type(error).__name__}: {error}): save the model again with {_WRITERS.get(model_suffix(path), 'joblib.dump')}"
    )
    return _refusal(message, path.name)


def _read(path: Path, load: Callable[[Path], object]) -> object:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator = load(path)
    except PolyserveError:
        raise
    except ModuleNotFoundError as error:
        message = (
            f"{path.name!r} refers to module {error.name!r}, which cannot be imported here: put its directory on "
            "PYTHONPATH, or install it"
        )
        raise _refusal(message, path.name) from error
    except AttributeError as error:
        # What pickle says of a class that its module does not have: "Can't get attribute 'Mine' on <module '__main__' from ...>".
        found = re.match(r"Can't get attribute '([^']+)' on <module '([^']+)'", str(error))
        if found is None:
            raise _unreadable(path, error) from error
        where = "the script that saved it" if found[2] == "__main__" else f"module {found[2]!r}, which has it no more"
        message = (
            f"{path.name!r} needs {found[1]!r} of {where}: put it in a module that can be imported here, and save the model "
            "again with that"
        )
        raise _refusal(message, path.name) from error
    except Exception as error:
        raise _unreadable(path, error) from error
    for warning in caught:
        saved_by = getattr(warning.message, "original_sklearn_version", None)
        if saved_by is not None:
            from sklearn import __version__

            message = (
                f"{path.name!r} was saved by scikit-learn {saved_by}, and {__version__} is installed here, under "
                "which it may answer differently: "
                f"pip install scikit-learn=={saved_by}, or train and save it again"
            )
            raise _refusal(message, path.name)
    return estimator


def _check_fitted(estimator: object, what: str) -> None:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if isinstance(estimator, type):
        message = f"{estimator.__name__} is a class: pass a fitted object of it"
        raise _refusal(message, what)
    if not isinstance(estimator, BaseEstimator):
        kind = type(estimator)
        message = (
            f"{what} holds a {kind.__module__}.{kind.__qualname__}, not a scikit-learn estimator: pass a fitted estimator or Pipeline, or "
            "write a predictor class"
        )
        raise _refusal(message.replace(" builtins.", " "), what)
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        message = f"{type(estimator).__name__} is not fitted: call fit() on it, then package it"
        raise _refusal(message, what) from error


def _check_methods(estimator: Any, methods: Sequence[str] | None) -> tuple[str, ...]:
    names = _METHODS if methods is None else (methods,) if isinstance(methods, str) else tuple(methods)
    if not names or len(set(names)) != len(names):
        message = f"methods={list(names)!r} must name at least one method, and each one once"
        raise _refusal(message, NAME)
    for name in names:
        # A Pipeline has only those methods that its last step has; hasattr asks it.
        if not isinstance(name, str) or name.startswith("_") or not callable(getattr(estimator, name, None)):
            known = ("predict", "predict_proba", "decision_function", "transform", "score_samples")
            there = [method for method in known if hasattr(estimator, method)]
            message = f"{type(estimator).__name__} has no method {name!r}: pass methods= with some of {', '.join(there) or 'its own'}"
            raise _refusal(message, str(name))
    return names


def _inputs(estimator: Any) -> tuple[str, tuple[TensorSpec, ...]] | None:
    """Return what a fitted estimator knows of its input: a number of features, or columns' names."""
    count = getattr(estimator, "n_features_in_", None)
    if count is None or any("ColumnTransformer" in type(part).__name__ for part in _parts(estimator)):
        # Columns are chosen by name there, and nothing says which of them are text.
        return None
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return "array", (TensorSpec(name="input", datatype="FP64", shape=(-1, int(count))),)
    return "frame", tuple(TensorSpec(name=str(name), datatype="FP64", shape=(-1,)) for name in names)


def _parts(estimator: Any) -> Iterator[object]:
    yield estimator
    for _, step in getattr(estimator, "steps", ()):
        yield from _parts(step)


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
