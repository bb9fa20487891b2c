"""Load and call a custom Python model of MLflow, which MLflow itself must load. What MLflow only wraps is served by its own loader."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from polyserve.runtime import modules
from polyserve.runtime.loaders.python import PythonModel
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError


class Pyfunc:
    """What MLflow loaded, called as a predictor is.

    Args:
        model: What MLflow loaded.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def predict(self, inputs: object) -> object:
        """Return what the model's own `predict` does.

        Raises:
            RequestError: The inputs are not of the signature that MLflow was told.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self._model.predict(inputs)
        except MlflowException as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {reason}") from error


def load(root: Path, manifest: Manifest) -> PythonModel:
    """Have MLflow load the model. The files must have been verified."""
    modules.add(root)
    # It would ask its server who uses it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    loader = cast("Mapping[str, Any]", manifest.loader)
    with warnings.catch_warnings():
        # About versions, which the lock has settled, and advice to whoever writes models.
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

        return PythonModel(Pyfunc(mlflow.pyfunc.load_model(str(root / loader["path"]))), manifest.signature)
