"""Load some rounds of a booster, and answer with the sum of their trees: one part of a partitioned XGBoost or LightGBM model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polyserve.runtime import values
from polyserve.runtime.combining import SUM
from polyserve.runtime.loaders import lightgbm as lightgbm_loader
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor
from polyserve.runtime.threads import threads

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class RoundsModel:
    """Some rounds of a booster.

    Args:
        margins: What gives the sum of the trees' leaves for rows: one number for each, or one for each class.
        signature: What goes in and out.
    """

    def __init__(self, margins: Callable[[Any], Array], signature: Signature) -> None:
        self.signature = signature
        self._margins = margins

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return the sum of the trees.

        Raises:
            RequestError: The booster refuses the inputs.
        """
        rows = values.from_tensors(inputs, self.signature.input_kind)
        try:
            return self._margins(rows)
        except ValueError as error:
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {reason}") from error

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the sum as a tensor.

        Raises:
            RequestError: The booster refuses the inputs.
        """
        if outputs is not None and SUM not in outputs:
            return []
        return [Tensor.from_numpy(SUM, cast("Array", self.answer(inputs)))]


def load(root: Path, manifest: Manifest) -> RoundsModel:
    """Load the booster. The files must have been verified."""
    loader = cast("Mapping[str, Any]", manifest.loader)
    path = root / loader["path"]
    margins = _xgboost(path, loader) if loader["of"] == "xgboost" else _lightgbm(path)
    return RoundsModel(margins, manifest.signature)


def _xgboost(path: Path, loader: Mapping[str, Any]) -> Callable[[Any], Array]:
    import numpy as np
    from xgboost import Booster

    booster = Booster({"nthread": threads()}, model_file=str(path))
    missing = math.nan if loader["missing"] is None else loader["missing"]

    def margins(rows: Any) -> Array:
        # What all rows begin with is counted once: by the first part.
        width = loader["classes"]
        nothing = None if loader["first"] else np.zeros((len(rows), width) if width else len(rows), "f4")
        return cast("Array", booster.inplace_predict(rows, predict_type="margin", missing=missing, base_margin=nothing))

    return margins


def _lightgbm(path: Path) -> Callable[[Any], Array]:
    import lightgbm

    booster = lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    return lightgbm_loader.Regressor(_Raw(booster)).predict


class _Raw:
    """A booster that predicts the sum of its trees, not what its objective makes of it."""

    def __init__(self, booster: Any) -> None:
        self._booster = booster

    def __getattr__(self, name: str) -> Any:
        return getattr(self._booster, name)

    def predict(self, rows: Any, **options: Any) -> Any:
        return self._booster.predict(rows, raw_score=True, **options)
