"""XGBoost and LightGBM: the rounds of a booster are shared out in order, and their sums added before the objective's own function."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polyserve.errors import PackageError
from polyserve.model.deriving import MODEL, Change
from polyserve.model.partition.split import Split, shares
from polyserve.model.storage import ModelPackage
from polyserve.runtime.combining import PARALLEL, SUM

_LINKS: Mapping[str, str] = {
    "binary": "sigmoid",
    "binary:logistic": "sigmoid",
    "count:poisson": "exp",
    "multi:softmax": "softmax",
    "multi:softprob": "softmax",
    "multiclass": "softmax",
    "poisson": "exp",
    "reg:absoluteerror": "",
    "reg:gamma": "exp",
    "reg:logistic": "sigmoid",
    "reg:pseudohubererror": "",
    "reg:squarederror": "",
    "reg:tweedie": "exp",
    "regression": "",
    "regression_l1": "",
    "tweedie": "exp",
}
"""What an objective makes of the sum of the trees; of the objectives for which that is all."""


def split(original: ModelPackage, parts: int) -> Split:
    """Share out the rounds of a booster.

    Raises:
        PackageError: Its trees are not simply added up, or it has fewer rounds than parts.
    """
    of = original.manifest.flavor
    path = original.root / str(original.manifest.loader["path"])
    return (_xgboost if of == "xgboost" else _lightgbm)(original, path, parts)


def _xgboost(original: ModelPackage, path: Path, parts: int) -> Split:
    from xgboost import Booster

    from polyserve.runtime.loaders.xgboost import learner

    loader: Mapping[str, Any] = original.manifest.loader
    booster = Booster(model_file=str(path))
    config = learner(booster)
    objective, kind = config["objective"]["name"], config["gradient_booster"]["name"]
    if kind != "gbtree":
        raise _refusal(
            f"{original.name!r} is a {kind} booster, whose rounds are not simply added up: train a gbtree", kind
        )
    link = _link(original, objective)
    classes = int(config["learner_model_param"]["num_class"])
    is_classifier = loader["estimator"] == "classifier"
    if objective == "multi:softmax" and not is_classifier:
        raise _refusal(f"{original.name!r} answers numbers of classes: train it with multi:softprob", objective)
    rounds = loader["rounds"] or booster.num_boosted_rounds()

    def writer(place: int, begin: int, end: int) -> Callable[[Path], Change]:
        def write(root: Path) -> Change:
            (root / str(loader["path"])).unlink()
            inside = f"{MODEL}/rounds.ubj"
            booster[begin:end].save_model(root / inside)
            described = {
                "of": "xgboost",
                "path": inside,
                "first": place == 0,
                "missing": loader["missing"],
                "classes": classes,
            }
            return Change(loader=described, flavor="rounds", output_name=SUM)

        return write

    labels = {"values": list(range(max(2, classes))), "dtype": "int32" if objective == "multi:softmax" else "int64"}
    combining = _combining(original, link, labels if is_classifier else None, "FP32")
    return Split(writers=_writers(original, writer, rounds, parts), combining=combining)


def _lightgbm(original: ModelPackage, path: Path, parts: int) -> Split:
    import lightgbm

    loader: Mapping[str, Any] = original.manifest.loader
    text = path.read_text(encoding="utf-8")
    booster = lightgbm.Booster(model_str=text)
    told = re.search(r"^objective=(\S+)(?: (.*))?$", text, re.MULTILINE)
    objective = told[1] if told else "none"
    factor = re.search(r"sigmoid:(\S+)", told[2] or "") if told else None
    if (
        re.search(r"^average_output$", text, re.MULTILINE)
        or "linear_tree: 1" in text
        or (factor and float(factor[1]) != 1)
    ):
        message = f"{original.name!r} is a booster whose trees are not simply added up: train it with boosting gbdt and sigmoid 1"
        raise _refusal(message, objective)
    link = _link(original, objective) if "sqrt" not in (told[2] or "" if told else "") else _link(original, "sqrt")

    def writer(place: int, begin: int, end: int) -> Callable[[Path], Change]:
        def write(root: Path) -> Change:
            (root / str(loader["path"])).unlink()
            inside = f"{MODEL}/rounds.txt"
            part = booster.model_to_string(start_iteration=begin, num_iteration=end - begin)
            (root / inside).write_text(part, encoding="utf-8", newline="\n")
            return Change(
                loader={"of": "lightgbm", "path": inside, "first": place == 0}, flavor="rounds", output_name=SUM
            )

        return write

    combining = _combining(original, link, loader["labels"], "FP64")
    return Split(writers=_writers(original, writer, booster.current_iteration(), parts), combining=combining)


def _writers(
    original: ModelPackage, writer: Callable[[int, int, int], Callable[[Path], Change]], rounds: int, parts: int
) -> list[Callable[[Path], Change]]:
    if rounds < parts:
        raise _refusal(
            f"{original.name!r} has {rounds} rounds, and {parts} parts were asked for: ask for fewer", original.name
        )
    return [writer(place, begin, end) for place, (begin, end) in enumerate(shares(rounds, parts))]


def _combining(original: ModelPackage, link: str, labels: object, datatype: str) -> dict[str, Any]:
    methods = list(original.manifest.loader["methods"])  # type: ignore[call-overload]
    return {"how": PARALLEL, "divide": 1.0, "methods": methods, "labels": labels, "link": link, "datatype": datatype}


def _link(original: ModelPackage, objective: str) -> str:
    if objective not in _LINKS:
        message = f"{original.name!r} has objective {objective!r}, whose parts cannot be added up; those that can are {', '.join(_LINKS)}"
        raise _refusal(message, objective)
    return _LINKS[objective]


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="partition", resource=resource)
