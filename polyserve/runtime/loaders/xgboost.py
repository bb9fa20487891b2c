"""Load an XGBoost model from its own format, which holds no code, and call it as its estimator would; scikit-learn is not needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polyserve.runtime.loaders.sklearn import MatrixModel
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.threads import threads

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Regressor:
    """A booster that answers with what it predicts.

    Args:
        booster: The booster.
        missing: Which number stands for a missing value.
        rounds: How many rounds of it are asked; 0 for all.
    """

    def __init__(self, booster: Any, *, missing: float = math.nan, rounds: int = 0) -> None:
        config = learner(booster)
        self.objective: str = config["objective"]["name"]
        self.classes = max(2, int(config["learner_model_param"]["num_class"]))
        self._is_linear = config["gradient_booster"]["name"] == "gblinear"
        self._booster = booster
        self._missing = missing
        self._range = (0, 0 if self._is_linear else rounds)

    def predict(self, rows: Any) -> Array:
        """Return the prediction for each row."""
        return self._values(rows)

    def _values(self, rows: Any, *, margin: bool = False) -> Array:
        if self._is_linear:
            from xgboost import DMatrix

            matrix = DMatrix(rows, missing=self._missing)
            # Rows come without names, in the order of the signature, which is the model's.
            answer = self._booster.predict(
                matrix, output_margin=margin, iteration_range=self._range, validate_features=False
            )
        else:
            kind = "margin" if margin else "value"
            # Straight from the rows' memory; it may be called by several threads at once, too.
            answer = self._booster.inplace_predict(
                rows, iteration_range=self._range, predict_type=kind, missing=self._missing
            )
        return cast("Array", answer)


class Classifier(Regressor):
    """A booster that answers with labels, which XGBoost numbers from 0, as XGBClassifier does."""

    def predict(self, rows: Any) -> Array:
        """Return the label of each row; for several labels a row, 1 for each that it has."""
        import numpy as np

        values = self._values(rows)
        if values.ndim > 1 and self.classes != 2:
            return cast("Array", np.argmax(values, axis=1))
        if values.ndim > 1 and values.shape[1] != 1:
            return (values > 0.5).astype("f8")
        if self.objective == "multi:softmax":
            return values.astype("i4")
        return (values > 0.5).astype("i8").reshape(len(values))

    def predict_proba(self, rows: Any) -> Array:
        """Return each label's probability for each row."""
        import numpy as np

        if self.objective == "multi:softmax":
            margins = self._values(rows, margin=True)
            powers = np.exp(margins - margins.max(axis=1, keepdims=True))
            return cast("Array", powers / powers.sum(axis=1, keepdims=True))
        values = self._values(rows)
        if values.ndim == 2 and values.shape[1] >= 2:
            return values
        return np.vstack((1.0 - values, values)).transpose()


def learner(booster: Any) -> dict[str, Any]:
    """Return what a booster says of its learner: names of objective and booster, number of classes."""
    import json

    config: dict[str, Any] = json.loads(booster.save_config())["learner"]
    return config


def load(root: Path, manifest: Manifest) -> MatrixModel:
    """Load the booster. The files must have been verified."""
    from xgboost import Booster

    loader = cast("Mapping[str, Any]", manifest.loader)
    booster = Booster({"nthread": threads()}, model_file=str(root / loader["path"]))
    missing = math.nan if loader["missing"] is None else loader["missing"]
    kind = Classifier if loader["estimator"] == "classifier" else Regressor
    return MatrixModel(kind(booster, missing=missing, rounds=loader["rounds"]), loader["methods"], manifest.signature)
