"""XGBoost: a Booster or one of its scikit-learn estimators in memory, or a `.ubj` or `.json` file of its own.

It is saved in XGBoost's own format, which holds trees and no code. An estimator answers as it did: a classifier with labels, with the
rounds of its early stopping and its number for missing values. A Booster answers what its `predict` answers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import tabular
from polyserve.model.flavors import Saved

NAME = "xgboost"
SUFFIXES = (".ubj", ".json")
SAFE = True

_PATH = "model/model.ubj"
_HEAD_BYTES = 256


def recognises(model: object) -> bool:
    """Tell whether the object's own class is XGBoost's: a class derived from one may do anything, so scikit-learn's flavor has it."""
    kind = model if isinstance(model, type) else type(model)
    names = {parent.__name__ for parent in kind.__mro__}
    return kind.__module__.partition(".")[0] == "xgboost" and bool(names & {"Booster", "XGBModel"})


def reads(path: Path) -> bool:
    """Tell whether a file begins as XGBoost's do."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if path.suffix.lower() == ".json":
        return re.match(rb'\s*\{\s*"(?:learner"\s*:\s*\{|version"\s*:\s*\[)', head) is not None
    return head[:1] == b"{"


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Write the booster to `model/model.ubj`: an estimator and the file that it saved become the same package.

    Raises:
        PackageError: It is no trained model, was trained on columns of categories, or lacks a method.
        MissingDependencyError: XGBoost is not installed.
    """
    if files is not None:
        message = f"files={str(files)!r}: an XGBoost model takes no further files; write a predictor class with load(model_dir)"
        raise _refusal(message, NAME)
    if find_spec("xgboost") is None:
        message = (
            "an XGBoost model needs xgboost to be packaged, which is not installed: pip install xgboost-cpu, or "
            "xgboost where there is a GPU"
        )
        raise MissingDependencyError(message, operation="package", resource=NAME)
    what = repr(model.name) if isinstance(model, Path) else type(model).__name__
    booster, estimator, missing = _read(model, what) if isinstance(model, Path) else _take(model, what)
    _check_features(booster, what)
    names = _check_methods(methods, estimator, what)
    stopped = booster.attr("best_iteration")
    features, count = booster.feature_names or None, booster.num_features()
    (root / _PATH).parent.mkdir(parents=True)
    (root / _PATH).write_bytes(booster.save_raw("ubj"))
    return Saved(
        loader={
            "format": "ubj",
            "path": _PATH,
            "methods": list(names),
            "estimator": estimator,
            "missing": None if math.isnan(missing) else missing,
            "rounds": int(stopped) + 1 if stopped is not None and estimator != "booster" else 0,
        },
        name=model.stem if isinstance(model, Path) else type(model).__name__,
        modules=frozenset({"xgboost"}),
        # Without the libraries for GPUs that the distribution for all machines asks for: no function has one.
        distributions=("numpy", "scipy"),
        bare=frozenset({"xgboost", "xgboost-cpu"}),
        renamed={},
        inputs=tabular.inputs(features, count),
        takes=lambda sample: tabular.takes(sample, features, count),
        output_name=names[0],
    )


def _read(path: Path, what: str) -> tuple[Any, str, float]:
    """Return the booster in a file, which estimator saved it, and its number for missing values."""
    import xgboost

    try:
        booster = xgboost.Booster(model_file=str(path))
        booster.num_features()
    except Exception as error:
        # The rest of the message is where in XGBoost's own source it was raised.
        reason = re.sub(r"^\[[\d:]+\] \S+: ", "", str(error).strip().split("\n", 1)[0])
        message = f"{what} cannot be read by XGBoost {xgboost.__version__} ({reason}): save it again with save_model"
        raise _refusal(message, what) from error
    described = json.loads(booster.attr("scikit_learn") or "{}")
    booster.set_attr(scikit_learn=None)
    return booster, described.get("_estimator_type") or "booster", math.nan


def _take(model: Any, what: str) -> tuple[Any, str, float]:
    """Return the booster in memory, of which estimator it is, and its number for missing values."""
    import xgboost

    if isinstance(model, type):
        raise _refusal(f"{model.__name__} is a class: pass a trained object of it", model.__name__)
    if isinstance(model, xgboost.Booster):
        return model, "booster", math.nan
    if not isinstance(model, xgboost.XGBModel):
        kind = type(model)
        message = f"a {kind.__module__}.{kind.__qualname__} is no XGBoost model: pass a Booster or a fitted XGBModel"
        raise _refusal(message.replace(" builtins.", " "), what)
    if not model.__sklearn_is_fitted__():
        raise _refusal(f"{what} is not fitted: call fit() on it, then package it", what)
    kinds = {"classifier": xgboost.XGBClassifier, "ranker": xgboost.XGBRanker}
    estimator = next((name for name, kind in kinds.items() if isinstance(model, kind)), "regressor")
    return model.get_booster(), estimator, float(model.missing)


def _check_features(booster: Any, what: str) -> None:
    """Refuse a model trained on a frame's categories: what reaches it are values, and it would need the categories' dtype."""
    if "c" in (booster.feature_types or ()) and not booster.get_categories().empty():
        names = booster.feature_names or []
        columns = [name for name, sort in zip(names, booster.feature_types, strict=True) if sort == "c"]
        message = (
            f"{what} was trained on columns of categories ({', '.join(columns)}), whose dtype no request carries: train it on their "
            "codes, such as those of scikit-learn's OrdinalEncoder, or write a predictor class"
        )
        raise _refusal(message, what)


def _check_methods(methods: Sequence[str] | None, estimator: str, what: str) -> tuple[str, ...]:
    known = ("predict", "predict_proba") if estimator == "classifier" else ("predict",)
    names = known[:1] if methods is None else (methods,) if isinstance(methods, str) else tuple(methods)
    if not names or len(set(names)) != len(names):
        raise _refusal(f"methods={list(names)!r} must name at least one method, and each one once", NAME)
    for name in names:
        if name not in known:
            raise _refusal(f"{what} has no method {name!r}: pass methods= with some of {', '.join(known)}", str(name))
    return names


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
