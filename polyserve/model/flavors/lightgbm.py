"""LightGBM: a Booster or one of its scikit-learn estimators in memory, or a text file of its own.

It is saved in LightGBM's text format, which holds trees and no code. A classifier answers with the labels it was trained on, which
go into the manifest; a Booster, and a file, which knows no labels, answer what `Booster.predict` answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import tabular
from polyserve.model.flavors import Saved
from polyserve.runtime.loaders.lightgbm import feature_names

NAME = "lightgbm"
SUFFIXES = (".txt",)
SAFE = True

_PATH = "model/model.txt"
_FIRST_LINES = re.compile(rb"tree\r?\nversion=v\d")


def recognises(model: object) -> bool:
    """Tell whether the object's own class is LightGBM's: a class derived from one may do anything, so scikit-learn's flavor has it."""
    kind = model if isinstance(model, type) else type(model)
    names = {parent.__name__ for parent in kind.__mro__}
    return kind.__module__.partition(".")[0] == "lightgbm" and bool(names & {"Booster", "LGBMModel"})


def reads(path: Path) -> bool:
    """Tell whether a file begins as LightGBM's do."""
    with path.open("rb") as file:
        return _FIRST_LINES.match(file.read(64)) is not None


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Write the booster to `model/model.txt`, up to its best round where it has one, as LightGBM itself saves and predicts.

    Raises:
        PackageError: It is no trained model, was trained on columns of categories, lacks a method, or has labels of no sort that an
            answer can carry.
        MissingDependencyError: LightGBM is not installed.
    """
    if files is not None:
        message = f"files={str(files)!r}: a LightGBM model takes no further files; write a predictor class with load(model_dir)"
        raise _refusal(message, NAME)
    if find_spec("lightgbm") is None:
        message = "a LightGBM model needs lightgbm to be packaged, which is not installed: pip install lightgbm"
        raise MissingDependencyError(message, operation="package", resource=NAME)
    what = repr(model.name) if isinstance(model, Path) else type(model).__name__
    booster, labels = (_read(model, what), None) if isinstance(model, Path) else _take(model, what)
    if booster.pandas_categorical:
        message = (
            f"{what} was trained on {len(booster.pandas_categorical)} columns of categories, whose dtype no request carries: train it on "
            "their codes, such as those of scikit-learn's OrdinalEncoder, or write a predictor class"
        )
        raise _refusal(message, what)
    names = _check_methods(methods, is_classifier=labels is not None, what=what)
    features, count = feature_names(booster), booster.num_feature()
    (root / _PATH).parent.mkdir(parents=True)
    (root / _PATH).write_text(_text(booster), encoding="utf-8", newline="\n")
    return Saved(
        loader={"format": "text", "path": _PATH, "methods": list(names), "labels": labels},
        name=model.stem if isinstance(model, Path) else type(model).__name__,
        modules=frozenset({"lightgbm"}),
        renamed={},
        inputs=tabular.inputs(features, count),
        takes=lambda sample: tabular.takes(sample, features, count, known_as=_known_as),
        output_name=names[0],
    )


def _known_as(name: str) -> str:
    # LightGBM keeps names with underscores for spaces.
    return re.sub(r"\s", "_", name)


def _text(booster: Any) -> str:
    # How many processors the model was trained with is of that machine, and one is what it is served with.
    return re.sub(r"^\[num_threads: -?\d+\]$", "[num_threads: 1]", booster.model_to_string(), flags=re.MULTILINE)


def _read(path: Path, what: str) -> Any:
    import lightgbm

    try:
        return lightgbm.Booster(model_file=str(path))
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        message = f"{what} cannot be read by LightGBM {lightgbm.__version__} ({reason}): save it again with save_model"
        raise _refusal(message, what) from error


def _take(model: Any, what: str) -> tuple[Any, dict[str, object] | None]:
    """Return the booster in memory, and the labels where it is a classifier's."""
    import lightgbm

    if isinstance(model, type):
        raise _refusal(f"{model.__name__} is a class: pass a trained object of it", model.__name__)
    if isinstance(model, lightgbm.Booster):
        return model, None
    if not isinstance(model, lightgbm.LGBMModel):
        kind = type(model)
        message = f"a {kind.__module__}.{kind.__qualname__} is no LightGBM model: pass a Booster or a fitted LGBMModel"
        raise _refusal(message.replace(" builtins.", " "), what)
    if not model.__sklearn_is_fitted__():
        raise _refusal(f"{what} is not fitted: call fit() on it, then package it", what)
    # With an objective of the user's own it answers raw scores, whatever it is.
    if not isinstance(model, lightgbm.LGBMClassifier) or callable(model.objective):
        return model.booster_, None
    return model.booster_, _labels(model.classes_, what)


def _labels(classes: Any, what: str) -> dict[str, object]:
    values = classes.tolist()
    if classes.dtype.kind in "biuf":
        return {"values": values, "dtype": classes.dtype.name}
    if all(isinstance(value, str) for value in values):
        return {"values": values, "dtype": "str"}
    message = f"{what} has labels of {classes.dtype}, and an answer carries numbers, booleans or text: train it on one of these"
    raise _refusal(message, what)


def _check_methods(methods: Sequence[str] | None, *, is_classifier: bool, what: str) -> tuple[str, ...]:
    known = ("predict", "predict_proba") if is_classifier else ("predict",)
    names = known[:1] if methods is None else (methods,) if isinstance(methods, str) else tuple(methods)
    if not names or len(set(names)) != len(names):
        raise _refusal(f"methods={list(names)!r} must name at least one method, and each one once", NAME)
    for name in names:
        if name not in known:
            raise _refusal(f"{what} has no method {name!r}: pass methods= with some of {', '.join(known)}", str(name))
    return names


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
