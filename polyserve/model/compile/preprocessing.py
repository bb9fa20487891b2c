"""scikit-learn's transformers that other converters have in float32 alone, as ONNX nodes in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyserve.model.compile.trees import CannotConvert, Nodes


def classes() -> Mapping[type, Callable[[Nodes, str, Any], list[str]]]:
    """Return what adds a transformer's nodes, by its class."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import PolynomialFeatures

    return {SimpleImputer: _imputed, PolynomialFeatures: _products}


def _imputed(nodes: Nodes, rows: str, imputer: Any) -> list[str]:
    statistics = np.asarray(imputer.statistics_)
    is_nan = isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)
    if imputer.add_indicator or not is_nan or statistics.dtype.kind not in "fiu" or np.isnan(statistics).any():
        raise CannotConvert("SimpleImputer that drops columns, marks them, or fills in other things than NaN")
    missing = nodes.add("IsNaN", [rows])
    return [nodes.add("Where", [missing, nodes.constant(statistics.astype("f8")[None, :]), rows])]


def _products(nodes: Nodes, rows: str, polynomial: Any) -> list[str]:
    powers = polynomial.powers_
    factors = [np.repeat(np.arange(len(row)), row) for row in powers]
    # Behind the features comes a 1, for products of fewer factors.
    one = powers.shape[1]
    ones = nodes.constant(np.ones((1, 1)))
    first = nodes.add("Gather", [rows, nodes.constant(np.array([0]))], axis=1)
    column = nodes.add("Expand", [ones, nodes.add("Shape", [first])])
    known = nodes.add("Concat", [rows, column], axis=1)
    product = ""
    for place in range(max(1, *map(len, factors))):
        chosen = np.array([row[place] if place < len(row) else one for row in factors])
        factor = nodes.add("Gather", [known, nodes.constant(chosen)], axis=1)
        product = nodes.add("Mul", [product, factor]) if product else factor
    return [product]
