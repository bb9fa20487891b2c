"""XGBoost's and LightGBM's trees as ONNX nodes, read from the text that each writes of itself.

XGBoost rounds rows to float32, compares with `<` and adds up in float32; here the sum is float64, so answers differ in their last digit.
LightGBM compares float64 with `<=` and adds up in float64, as the nodes do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from polyserve.model.compile.forests import label_of, two_columns
from polyserve.model.compile.graph import PREFIX, Converted, of_trees
from polyserve.model.compile.trees import CannotConvert, Nodes, Tree, as_float32, ensemble
from polyserve.runtime.loaders.sklearn import SklearnModel
from polyserve.runtime.signature import Signature

NEEDS = ("onnx", "onnxruntime")

_ROWS = f"{PREFIX}rows"

# What becomes of the sum of the trees, by objective.
_XGBOOST = {
    **dict.fromkeys(("binary:logistic", "reg:logistic"), "Sigmoid"),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie"), "Exp"),
    **dict.fromkeys(("multi:softprob", "multi:softmax"), "Softmax"),
    **dict.fromkeys(("reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "binary:logitraw"), ""),
    **dict.fromkeys(("rank:ndcg", "rank:map", "rank:pairwise"), ""),
}
_LIGHTGBM = {
    **dict.fromkeys(("binary", "cross_entropy", "multiclassova"), "Sigmoid"),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "Exp"),
    **dict.fromkeys(("multiclass",), "Softmax"),
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank"), ""),
}
_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_SHIFT, _MISSING_ZERO, _MISSING_NAN = 2, 1, 2


def candidates(model: SklearnModel, signature: Signature) -> Iterator[Converted]:
    """Yield what the booster is converted to.

    Raises:
        CannotConvert: Something of it has no counterpart; the message says what.
    """
    wrong = [spec for spec in signature.inputs if spec.datatype in {"BYTES", "BF16"} or len(spec.shape) > 2]
    if wrong or signature.input_kind not in {"array", "list", "frame", "rows"}:
        raise CannotConvert("it takes something else than one table of numbers")
    estimator: Any = model.estimator
    nodes = Nodes(f"{PREFIX}model/")
    is_lightgbm = type(estimator).__module__.endswith("lightgbm")
    made = (_lightgbm if is_lightgbm else _xgboost)(nodes, estimator)
    yield of_trees(nodes, _ROWS, {method: made[method] for method in model.methods})


# --- XGBoost ----------------------------------------------------------------------------------------------------------------------------


def _xgboost(nodes: Nodes, estimator: Any) -> dict[str, str]:
    learner = json.loads(bytes(estimator._booster.save_raw("json")))["learner"]
    objective = learner["objective"]["name"]
    booster = learner["gradient_booster"]
    if booster["name"] != "gbtree" or objective not in _XGBOOST:
        raise CannotConvert(f"XGBoost's {booster['name']} with objective {objective}")
    if not math.isnan(estimator._missing):
        raise CannotConvert(f"{estimator._missing} stands for a missing value in it")
    model, parameters = booster["model"], learner["learner_model_param"]
    classes = max(1, int(parameters["num_class"]))
    if int(parameters.get("num_target", 1)) > 1:
        raise CannotConvert(f"it answers {parameters['num_target']} targets")
    rounds = estimator._range[1]
    count = rounds * classes * int(model["gbtree_model_param"]["num_parallel_tree"]) or len(model["trees"])
    trees = zip(model["trees"][:count], model["tree_info"][:count], strict=True)
    total = ensemble(
        nodes, as_float32(nodes, _ROWS), (_xgboost_tree(t, k) for t, k in trees), targets=classes, mode="<"
    )
    start = np.array(json.loads(f"[{parameters['base_score'].strip('[]')}]"), "f8")
    becomes = _XGBOOST[objective]
    if becomes == "Sigmoid":
        start = np.log(start / (1 - start))
    elif becomes == "Exp":
        start = np.log(start)
    margin = nodes.add("Add", [total, nodes.constant(np.broadcast_to(start, (classes,))[None, :].copy())])
    value = _transformed(nodes, margin, becomes)
    return _xgboost_outputs(nodes, estimator, objective, value)


def _xgboost_outputs(nodes: Nodes, estimator: Any, objective: str, value: str) -> dict[str, str]:
    best = nodes.add("ArgMax", [value], axis=1, keepdims=0)
    if type(estimator).__name__ != "Classifier":
        return {"predict": best if objective == "multi:softmax" else value}
    if objective.startswith("multi:"):
        return {"predict": best, "predict_proba": value}
    # In float32, as there: what rounds to a half is no more than a half, and what is left of 1 is rounded, too.
    single = nodes.cast(value, "f4")
    above = nodes.add("Greater", [single, nodes.constant(np.float32(0.5))])
    return {"predict": nodes.cast(above, "i8"), "predict_proba": two_columns(nodes, single, "f4")}


def _xgboost_tree(tree: Mapping[str, Any], target: int) -> Tree:
    if tree.get("categories"):
        raise CannotConvert("it was trained on columns of categories")
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise CannotConvert("each of its trees answers several targets")
    conditions = np.array(tree["split_conditions"], "f4").astype("f8")
    return Tree(
        left=tree["left_children"],
        right=tree["right_children"],
        feature=tree["split_indices"],
        threshold=conditions,
        value=conditions,
        missing_left=tree["default_left"],
        target=int(target),
    )


def _transformed(nodes: Nodes, margin: str, becomes: str) -> str:
    if becomes == "Softmax":
        return nodes.add("Softmax", [margin], axis=1)
    return nodes.add(becomes, [margin]) if becomes else margin


# --- LightGBM ---------------------------------------------------------------------------------------------------------------------------


def _lightgbm(nodes: Nodes, estimator: Any) -> dict[str, str]:
    text: str = estimator._booster.model_to_string()
    head, *blocks = re.split(r"^Tree=\d+$", text.partition("end of trees")[0], flags=re.MULTILINE)
    facts = _facts(head)
    objective, *options = facts.get("objective", "none").split(" ")
    if objective not in _LIGHTGBM or "average_output" in head.splitlines() or "sqrt" in options:
        raise CannotConvert(f"LightGBM's objective {facts.get('objective', 'of your own')!r}, or its mean of trees")
    classes = int(facts["num_tree_per_iteration"])
    trees = (_lightgbm_tree(_facts(block), index % classes) for index, block in enumerate(blocks))
    total = ensemble(nodes, _ROWS, trees, targets=classes)
    slope = next((float(option[8:]) for option in options if option.startswith("sigmoid:")), 1.0)
    margin = total if slope == 1 else nodes.add("Mul", [total, nodes.constant(np.float64(slope))])
    value = _transformed(nodes, margin, _LIGHTGBM[objective])
    labels = getattr(estimator, "_labels", None)
    if labels is None:
        return {"predict": value}
    probabilities = two_columns(nodes, value) if classes == 1 else value
    best = nodes.add("ArgMax", [probabilities], axis=1, keepdims=0)
    return {"predict": label_of(nodes, best, labels), "predict_proba": probabilities}


def _facts(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _lightgbm_tree(facts: Mapping[str, str], target: int) -> Tree:
    if facts.get("is_linear", "0") != "0":
        raise CannotConvert("its leaves are linear models")
    leaves = _numbers(facts["leaf_value"])
    if int(facts["num_leaves"]) == 1:
        return Tree(left=[-1], right=[-1], feature=[0], threshold=[0], value=leaves, target=target)
    kinds = _numbers(facts["decision_type"]).astype("i8")
    missing = kinds >> _MISSING_SHIFT
    if (kinds & _CATEGORICAL).any():
        raise CannotConvert("it was trained on columns of categories")
    if (missing == _MISSING_ZERO).any():
        raise CannotConvert("a zero stands for a missing value in it")
    thresholds = _numbers(facts["threshold"])
    # Where none was missing while it was trained, a missing value counts as 0.
    missing_left = np.where(missing == _MISSING_NAN, kinds & _DEFAULT_LEFT, thresholds >= 0)
    inner = len(thresholds)
    left, right = (_children(facts[side], inner) for side in ("left_child", "right_child"))
    filled = np.zeros(len(leaves))
    return Tree(
        left=np.concatenate([left, np.full(len(leaves), -1)]),
        right=np.concatenate([right, np.full(len(leaves), -1)]),
        feature=np.concatenate([_numbers(facts["split_feature"]), filled]),
        threshold=np.concatenate([thresholds, filled]),
        value=np.concatenate([np.zeros(inner), leaves]),
        missing_left=np.concatenate([missing_left.astype(bool), filled.astype(bool)]),
        target=target,
    )


def _children(text: str, inner: int) -> Any:
    """Return the places of children: leaves have numbers of their own, written as -1, -2, ..."""
    children = _numbers(text).astype("i8")
    return np.where(children < 0, inner + ~children, children)


def _numbers(text: str) -> Any:
    return np.array(text.split(" "), "f8")
