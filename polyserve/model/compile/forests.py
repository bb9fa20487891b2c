"""scikit-learn's trees, forests and boosted trees as ONNX nodes.

What they add up to and how they decide is scikit-learn's own arithmetic, in its order: the mean of the trees' shares and the first of the
largest for a forest; a starting value, the scaled sum and the loss's link for boosting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from polyserve.model.compile.trees import CannotConvert, Nodes, Tree, as_float32, ensemble


def classes() -> Mapping[type, Callable[[Nodes, str, Any], list[str]]]:
    """Return what adds an estimator's nodes, by its class: of a classifier labels and probabilities, of a regressor values."""
    from sklearn import ensemble as several
    from sklearn import tree

    return {
        tree.DecisionTreeClassifier: _forest_classifier,
        tree.ExtraTreeClassifier: _forest_classifier,
        several.RandomForestClassifier: _forest_classifier,
        several.ExtraTreesClassifier: _forest_classifier,
        tree.DecisionTreeRegressor: _forest_regressor,
        tree.ExtraTreeRegressor: _forest_regressor,
        several.RandomForestRegressor: _forest_regressor,
        several.ExtraTreesRegressor: _forest_regressor,
        several.GradientBoostingClassifier: _boosting_classifier,
        several.GradientBoostingRegressor: _boosting_regressor,
        several.HistGradientBoostingClassifier: _histogram_classifier,
        several.HistGradientBoostingRegressor: _histogram_regressor,
    }


def _trees(estimator: Any) -> list[Any]:
    if getattr(estimator, "n_outputs_", 1) != 1:
        raise CannotConvert(f"{type(estimator).__name__} answers {estimator.n_outputs_} targets")
    return [member.tree_ for member in getattr(estimator, "estimators_", [estimator])]


def _tree(tree: Any, value: Any, *, target: Any = 0) -> Tree:
    missing = tree.__getstate__()["nodes"]["missing_go_to_left"]
    return Tree(
        left=tree.children_left,
        right=tree.children_right,
        feature=tree.feature,
        threshold=tree.threshold,
        value=value,
        missing_left=missing.astype(bool),
        target=target,
    )


def _forest_regressor(nodes: Nodes, rows: str, estimator: Any) -> list[str]:
    trees = _trees(estimator)
    total = ensemble(nodes, as_float32(nodes, rows), (_tree(t, t.value[:, 0, 0]) for t in trees), targets=1)
    return [_mean(nodes, total, len(trees))]


def _forest_classifier(nodes: Nodes, rows: str, estimator: Any) -> list[str]:
    trees = _trees(estimator)
    count = len(estimator.classes_)
    rounded = as_float32(nodes, rows)
    shares = [tree.value[:, 0, :count] for tree in trees]
    if all(_is_pure(tree, share) for tree, share in zip(trees, shares, strict=True)):
        # Every leaf is one class's: it votes.
        votes = (_tree(t, s.max(axis=1), target=s.argmax(axis=1)) for t, s in zip(trees, shares, strict=True))
        total = ensemble(nodes, rounded, votes, targets=count)
    else:
        total = _sum_of_shares(nodes, rounded, trees, shares)
    probabilities = _mean(nodes, total, len(trees))
    return [_first_of_largest(nodes, probabilities, estimator.classes_), probabilities]


def _is_pure(tree: Any, shares: Any) -> bool:
    leaves = shares[tree.children_left < 0]
    return bool((np.count_nonzero(leaves, axis=1) <= 1).all())


def _sum_of_shares(nodes: Nodes, rows: str, trees: list[Any], shares: list[Any]) -> str:
    """Add the sum of what each tree's leaf has of every class: each tree says which leaf, and the leaf's shares are looked up."""
    leaves = [np.flatnonzero(tree.children_left < 0) for tree in trees]
    starts = np.cumsum([0, *map(len, leaves)])
    numbered = []
    for index, (tree, where) in enumerate(zip(trees, leaves, strict=True)):
        number = np.zeros(tree.node_count)
        number[where] = starts[index] + np.arange(len(where))
        numbered.append(_tree(tree, number, target=index))
    found = nodes.cast(ensemble(nodes, rows, numbered, targets=len(trees)), "i8")
    table = np.concatenate([share[where] for share, where in zip(shares, leaves, strict=True)])
    looked_up = nodes.add("Gather", [nodes.constant(table), found], axis=0)
    return nodes.add("ReduceSum", [looked_up, nodes.constant(np.array([1]))], keepdims=0)


def _mean(nodes: Nodes, total: str, count: int) -> str:
    return total if count == 1 else nodes.add("Div", [total, nodes.constant(np.float64(count))])


def _first_of_largest(nodes: Nodes, values: str, labels: Any) -> str:
    return label_of(nodes, nodes.add("ArgMax", [values], axis=1, keepdims=0), labels)


def label_of(nodes: Nodes, index: str, labels: Any) -> str:
    """Add what looks labels up by their index.

    Raises:
        CannotConvert: They are neither numbers nor booleans nor text.
    """
    array = np.asarray(labels)
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array):
        array = array.astype(np.str_)
    if array.dtype.kind not in "biufU":
        raise CannotConvert(f"its labels are of {array.dtype}")
    return nodes.add("Gather", [nodes.constant(array), index], axis=0)


def two_columns(nodes: Nodes, positive: str, dtype: str = "f8") -> str:
    """Add probabilities of both classes, of a column of those of the second."""
    negative = nodes.add("Sub", [nodes.constant(np.ones((), dtype)), positive])
    return nodes.add("Concat", [negative, positive], axis=1)


# --- boosting ---------------------------------------------------------------------------------------------------------------------------


def _boosted(nodes: Nodes, rows: str, trees: Iterator[Tree], start: Any, targets: int) -> str:
    total = ensemble(nodes, rows, trees, targets=targets)
    return nodes.add("Add", [total, nodes.constant(np.asarray(start, "f8").reshape(1, targets))])


def _boosting_raw(nodes: Nodes, rows: str, estimator: Any) -> str:
    targets = estimator.estimators_.shape[1]
    one = np.zeros((1, estimator.n_features_in_), "f4")
    if estimator.init_ != "zero" and not type(estimator.init_).__name__.startswith("Dummy"):
        raise CannotConvert(f"it starts from a {type(estimator.init_).__name__}")
    start = estimator._raw_predict_init(one)
    trees = (
        _tree(member.tree_, estimator.learning_rate * member.tree_.value[:, 0, 0], target=target)
        for stage in estimator.estimators_
        for target, member in enumerate(stage)
    )
    return _boosted(nodes, as_float32(nodes, rows), trees, start, targets)


def _boosting_regressor(nodes: Nodes, rows: str, estimator: Any) -> list[str]:
    return [_boosting_raw(nodes, rows, estimator)]


def _boosting_classifier(nodes: Nodes, rows: str, estimator: Any) -> list[str]:
    raw = _boosting_raw(nodes, rows, estimator)
    if estimator.estimators_.shape[1] > 1:
        return [_first_of_largest(nodes, raw, estimator.classes_), nodes.add("Softmax", [raw], axis=1)]
    above = nodes.add("GreaterOrEqual", [raw, nodes.constant(np.float64(0))])
    factor = 2.0 if estimator.loss == "exponential" else 1.0
    positive = nodes.add("Sigmoid", [nodes.add("Mul", [raw, nodes.constant(np.float64(factor))])])
    return [_either(nodes, above, estimator.classes_), two_columns(nodes, positive)]


def _either(nodes: Nodes, condition: str, labels: Any) -> str:
    index = nodes.add("Reshape", [nodes.cast(condition, "i8"), nodes.constant(np.array([-1]))])
    return label_of(nodes, index, labels)


def _histogram_raw(nodes: Nodes, rows: str, estimator: Any) -> str:
    def trees() -> Iterator[Tree]:
        for stage in estimator._predictors:
            for target, predictor in enumerate(stage):
                made = predictor.nodes
                if made["is_categorical"].any():
                    raise CannotConvert("it was trained on columns of categories")
                is_leaf = made["is_leaf"].astype(bool)
                yield Tree(
                    left=np.where(is_leaf, -1, made["left"].astype("i8")),
                    right=made["right"].astype("i8"),
                    feature=made["feature_idx"].astype("i8"),
                    threshold=made["num_threshold"],
                    value=made["value"],
                    missing_left=made["missing_go_to_left"].astype(bool),
                    target=target,
                )

    if getattr(estimator, "_preprocessor", None) is not None:
        raise CannotConvert("it was trained on columns of categories")
    start = estimator._baseline_prediction
    return _boosted(nodes, rows, trees(), start, estimator.n_trees_per_iteration_)


def _histogram_regressor(nodes: Nodes, rows: str, estimator: Any) -> list[str]:
    raw = _histogram_raw(nodes, rows, estimator)
    return [nodes.add("Exp", [raw]) if estimator.loss in {"poisson", "gamma"} else raw]


def _histogram_classifier(nodes: Nodes, rows: str, estimator: Any) -> list[str]:
    raw = _histogram_raw(nodes, rows, estimator)
    if estimator.n_trees_per_iteration_ > 1:
        return [_first_of_largest(nodes, raw, estimator.classes_), nodes.add("Softmax", [raw], axis=1)]
    above = nodes.add("Greater", [raw, nodes.constant(np.float64(0))])
    return [_either(nodes, above, estimator.classes_), two_columns(nodes, nodes.add("Sigmoid", [raw]))]
