"""Ensembles of trees as ONNX nodes that answer to the bit: `TreeEnsemble` of ai.onnx.ml 5, in float64 throughout.

The converters that exist write an older operator, whose answers are float32 whatever goes in, so that two classes a hair apart come out
level. Here the thresholds, the weights and the sums are the model's own. A threshold is compared with what the framework compares it with:
scikit-learn's trees and XGBoost round a row to float32 first, LightGBM and histogram boosting do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DOMAIN, VERSION = "ai.onnx.ml", 5

_MODES = {"<=": 0, "<": 1}
_SUM = 1
_NO_TRANSFORM = 0


Numbers = Sequence[Any] | np.ndarray[Any, Any]


class CannotConvert(Exception):
    """A model that has no counterpart in ONNX here; the message says what of it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One tree: arrays with one entry for each node, the root first. Leaves are where `left` is negative.

    Attributes:
        left: Where a row goes whose feature is below the threshold.
        right: Where any other goes.
        feature: Index of the feature that is compared.
        threshold: What it is compared with.
        value: What a leaf adds.
        missing_left: Whether a row without the feature goes left.
        target: To which output a leaf adds.
    """

    left: Numbers
    right: Numbers
    feature: Numbers
    threshold: Numbers
    value: Numbers
    missing_left: Numbers | None = None
    target: Numbers | int = 0


@dataclass(slots=True)
class Nodes:
    """ONNX nodes in the making, each with a name of its own for what it gives.

    Attributes:
        prefix: How names begin.
        made: The nodes so far.
        thresholds: What features were compared with: pairs of an index and a number.
    """

    prefix: str
    made: list[Any] = field(default_factory=list)
    thresholds: list[tuple[int, float]] = field(default_factory=list)

    def add(self, operator: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        from onnx import helper

        name = f"{self.prefix}{len(self.made)}"
        self.made.append(helper.make_node(operator, list(inputs), [name], domain=domain, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add a constant of an array's dtype and shape, and return its name."""
        from onnx import numpy_helper

        array = np.asarray(value)
        if array.dtype.kind == "U":
            array = array.astype(object)
        return self.add("Constant", [], value=numpy_helper.from_array(array))

    def cast(self, name: str, dtype: str) -> str:
        """Add a cast to a numpy dtype, and return the output's name."""
        from onnx import helper

        return self.add("Cast", [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def give(self, name: str, output: str) -> None:
        """Call a value by a name that others know."""
        from onnx import helper

        self.made.append(helper.make_node("Identity", [name], [output]))


def as_float32(nodes: Nodes, rows: str) -> str:
    """Add what rounds rows to float32 and gives them as float64: what was between two float32 numbers is one of them."""
    return nodes.cast(nodes.cast(rows, "f4"), "f8")


def ensemble(nodes: Nodes, rows: str, trees: Iterable[Tree], *, targets: int, mode: str = "<=") -> str:
    """Add the sum of trees over rows of float64, one column for each target, and return its name.

    Args:
        nodes: Where to add.
        rows: Name of the rows.
        trees: The trees.
        targets: Number of columns.
        mode: `"<="` or `"<"`: which comparison leads to the left.

    Raises:
        CannotConvert: There are no trees.
    """
    from onnx import numpy_helper

    build = _Ensemble()
    for tree in trees:
        build.add(tree)
    if not build.roots:
        raise CannotConvert("it has no trees")
    nodes.thresholds.extend(zip(build.features, build.splits, strict=True))
    return nodes.add(
        "TreeEnsemble",
        [rows],
        domain=DOMAIN,
        aggregate_function=_SUM,
        post_transform=_NO_TRANSFORM,
        n_targets=targets,
        tree_roots=build.roots,
        nodes_featureids=build.features,
        nodes_modes=numpy_helper.from_array(np.full(len(build.splits), _MODES[mode], "u1"), "modes"),
        nodes_splits=numpy_helper.from_array(np.array(build.splits, "f8"), "splits"),
        nodes_truenodeids=build.left,
        nodes_trueleafs=build.left_is_leaf,
        nodes_falsenodeids=build.right,
        nodes_falseleafs=build.right_is_leaf,
        leaf_targetids=build.targets,
        leaf_weights=numpy_helper.from_array(np.array(build.weights, "f8"), "weights"),
        **({"nodes_missing_value_tracks_true": build.missing} if any(build.missing) else {}),
    )


@dataclass(slots=True)
class _Ensemble:
    roots: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    splits: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    left_is_leaf: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    right_is_leaf: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, tree: Tree) -> None:
        inner = [node for node, child in enumerate(tree.left) if child >= 0]
        first = len(self.features)
        self.roots.append(first)
        if not inner:
            # The operator has no tree without a comparison: one whose both ways lead to the same leaf.
            leaf = self._leaf(tree, 0)
            self._node(0, 0.0, (leaf, 1), (leaf, 1), missing=False)
            return
        places = {node: first + index for index, node in enumerate(inner)}
        for node in inner:
            self._node(
                int(tree.feature[node]),
                float(tree.threshold[node]),
                self._child(tree, places, int(tree.left[node])),
                self._child(tree, places, int(tree.right[node])),
                missing=tree.missing_left is not None and bool(tree.missing_left[node]),
            )

    def _child(self, tree: Tree, places: dict[int, int], node: int) -> tuple[int, int]:
        return (places[node], 0) if node in places else (self._leaf(tree, node), 1)

    def _leaf(self, tree: Tree, node: int) -> int:
        self.targets.append(tree.target if isinstance(tree.target, int) else int(tree.target[node]))
        self.weights.append(float(tree.value[node]))
        return len(self.weights) - 1

    def _node(
        self, feature: int, split: float, left: tuple[int, int], right: tuple[int, int], *, missing: bool
    ) -> None:
        self.features.append(feature)
        self.splits.append(split)
        self.left.append(left[0])
        self.left_is_leaf.append(left[1])
        self.right.append(right[0])
        self.right_is_leaf.append(right[1])
        self.missing.append(int(missing))
