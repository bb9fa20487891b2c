"""scikit-learn: an ensemble whose members are averaged or vote becomes parts with some members each, which are summed.

The sum is what a part answers, not a mean: of fully grown trees it is a whole number, so that not even the last bit of the answer
depends on how the trees are shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyserve.errors import PackageError
from polyserve.model import canonical
from polyserve.model.deriving import MODEL, Change
from polyserve.model.partition.split import Split, shares
from polyserve.model.storage import ModelPackage
from polyserve.runtime.combining import PARALLEL, SUM
from polyserve.runtime.loaders.members import VOTES
from polyserve.runtime.loading import LoadError, load

ENSEMBLES = (
    "RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor, BaggingClassifier, "
    "BaggingRegressor, VotingClassifier and VotingRegressor"
)

_PATH = f"{MODEL}/members.pickle"
_Member = tuple[Any, Any, Any, float]


def split(original: ModelPackage, parts: int) -> Split:
    """Share out the members of an ensemble.

    Raises:
        PackageError: It is no ensemble whose members are summed, or has fewer members than parts.
    """
    try:
        estimator: Any = load(original.root).model.estimator  # type: ignore[attr-defined]
    except LoadError as error:
        raise _refusal(f"package {original.name!r} cannot be loaded: {error}", original.name) from error
    what = type(estimator).__name__
    if getattr(estimator, "n_outputs_", 1) != 1:
        raise _refusal(f"{what} answers several targets at once: train one model for each, and partition those", what)
    members, method, divide, as_array = _members(estimator, what)
    if len(members) < parts:
        raise _refusal(f"{what} has {len(members)} members, and {parts} parts were asked for: ask for fewer", what)
    classes = getattr(estimator, "classes_", None)
    known = ("predict",) if classes is None or method == VOTES else ("predict", "predict_proba")
    methods = [str(name) for name in original.manifest.loader["methods"]]  # type: ignore[attr-defined]
    if not set(methods) <= set(known):
        message = (
            f"the parts of {what} can answer {' and '.join(known)}, not {', '.join(methods)}: package it with those"
        )
        raise _refusal(message, what)
    loader = {
        "format": "pickle",
        "path": _PATH,
        "method": method,
        "classes": 0 if classes is None else len(classes),
        "as_array": as_array,
        "trees": any(parent.__name__ == "BaseForest" for parent in type(estimator).__mro__),
    }
    return Split(
        writers=[_writer(original, members[begin:end], loader) for begin, end in shares(len(members), parts)],
        combining={
            "how": PARALLEL,
            "divide": divide,
            "methods": methods,
            "labels": None if classes is None else _labels(classes, what),
        },
    )


def _writer(original: ModelPackage, members: Sequence[_Member], loader: dict[str, Any]) -> Callable[[Path], Change]:
    def write(root: Path) -> Change:
        for path in original.manifest.files:
            if path.startswith(f"{MODEL}/"):
                (root / path).unlink()
        raw, _ = canonical.dumps(list(members), renamed={})
        (root / _PATH).write_bytes(raw)
        return Change(loader=loader, flavor="members", output_name=SUM)

    return write


def _members(estimator: Any, what: str) -> tuple[list[_Member], str, float, bool]:
    """Return the members, what they are asked, what their sum is divided by, and whether they take arrays only."""
    kinds = {parent.__name__ for parent in type(estimator).__mro__ if parent.__module__.startswith("sklearn.ensemble")}
    if "BaseForest" in kinds and kinds & {"ForestClassifier", "ForestRegressor"}:
        method = "predict_proba" if "ForestClassifier" in kinds else "predict"
        return (
            [(tree, None, None, 1.0) for tree in estimator.estimators_],
            method,
            float(len(estimator.estimators_)),
            True,
        )
    if kinds & {"BaggingClassifier", "BaggingRegressor"}:
        return _bagged(estimator, what, is_classifier="BaggingClassifier" in kinds)
    if kinds & {"VotingClassifier", "VotingRegressor"}:
        weights = [1.0] * len(estimator.estimators_) if estimator.weights is None else estimator._weights_not_none
        members = [
            (member, None, None, float(weight)) for member, weight in zip(estimator.estimators_, weights, strict=True)
        ]
        if "VotingRegressor" in kinds:
            return members, "predict", float(sum(weights)), False
        if estimator.voting == "soft":
            return members, "predict_proba", float(sum(weights)), False
        return members, VOTES, 1.0, False
    message = f"{what} has no members that could be summed: the ensembles that can are {ENSEMBLES}; an ONNX model can be cut in sequence"
    raise _refusal(message, what)


def _bagged(estimator: Any, what: str, *, is_classifier: bool) -> tuple[list[_Member], str, float, bool]:
    pairs = list(zip(estimator.estimators_, estimator.estimators_features_, strict=True))
    count = float(len(pairs))
    if not is_classifier:
        return [(member, columns, None, 1.0) for member, columns in pairs], "predict", count, True
    if not all(hasattr(member, "predict_proba") for member, _ in pairs):
        message = (
            f"the members of {what} give no probabilities to be summed: use base estimators that have predict_proba"
        )
        raise _refusal(message, what)
    every = len(estimator.classes_)
    # A member whose rows lacked a class knows fewer.
    known = [None if len(member.classes_) == every else member.classes_.astype("i8") for member, _ in pairs]
    members = [(member, columns, classes, 1.0) for (member, columns), classes in zip(pairs, known, strict=True)]
    return members, "predict_proba", count, True


def _labels(classes: Any, what: str) -> dict[str, object]:
    if classes.dtype.kind in "biuf":
        return {"values": classes.tolist(), "dtype": classes.dtype.name}
    if all(isinstance(value, str) for value in classes.tolist()):
        return {"values": classes.tolist(), "dtype": "str"}
    raise _refusal(f"{what} has labels of {classes.dtype}, and a group answers numbers, booleans or text", what)


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="partition", resource=resource)
