"""Load a LightGBM model from its text format, which holds no code, and call it as its estimator would; scikit-learn is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self._threads = threads()

    def predict(self, rows: Any) -> Array:
        """Return the prediction for each row."""
        return self._values(rows)

    def _values(self, rows: Any) -> Array:
        return cast("Array", self._booster.predict(rows, num_threads=self._threads))


class Classifier(Regressor):
    """A booster that answers with the labels it was trained on, as LGBMClassifier does.

    Args:
        booster: The booster.
        labels: The labels, in the order of its classes.
    """

    def __init__(self, booster: Any, labels: Array) -> None:
        super().__init__(booster)
        self._labels = labels

    def predict(self, rows: Any) -> Array:
        """Return the label of each row."""
        return cast("Array", self._labels[self.predict_proba(rows).argmax(axis=1)])

    def predict_proba(self, rows: Any) -> Array:
        """Return each label's probability for each row."""
        import numpy as np

        values = self._values(rows)
        return values if values.ndim == 2 else np.vstack((1.0 - values, values)).transpose()


def feature_names(booster: Any) -> Sequence[str] | None:
    """Return the names of the features; `None` where LightGBM made them up, since it was trained on an array."""
    names: list[str] = booster.feature_name()
    return None if names == [f"Column_{index}" for index in range(len(names))] else names


def load(root: Path, manifest: Manifest) -> MatrixModel:
    """Load the booster. The files must have been verified."""
    import lightgbm
    import numpy as np

    loader = cast("Mapping[str, Any]", manifest.loader)
    booster = lightgbm.Booster(model_str=(root / loader["path"]).read_text(encoding="utf-8"))
    labels = loader["labels"]
    model = Regressor(booster) if labels is None else Classifier(booster, np.array(labels["values"], labels["dtype"]))
    return MatrixModel(model, loader["methods"], manifest.signature)
