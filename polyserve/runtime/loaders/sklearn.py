"""Load and call a scikit-learn estimator or Pipeline."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from polyserve.runtime import modules, values
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np


TRUSTED = tuple(
    f"sklearn.{name}"
    for name in (
        "calibration._CalibratedClassifier",
        "calibration._SigmoidCalibration",
        *(
            f"gaussian_process.kernels.{kernel}"
            for kernel in (
                "ConstantKernel",
                "DotProduct",
                "Matern",
                "Product",
                "RBF",
                "RationalQuadratic",
                "Sum",
                "WhiteKernel",
            )
        ),
        "gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "neural_network._stochastic_optimizers.AdamOptimizer",
        "neural_network._stochastic_optimizers.SGDOptimizer",
    )
)
"""Parts of scikit-learn's own estimators that are trusted in a skops file, besides the types that skops trusts: Python objects that hold
numbers. Its trees are not among them: they take their nodes' numbers unchecked, and a forged one leads out of memory."""


class SklearnModel:
    """An estimator and the methods of it that answer.

    Args:
        estimator: What was pickled.
        methods: Names of its methods, in the order of the outputs.
        signature: What goes in and out.
    """

    def __init__(self, estimator: object, methods: Sequence[str], signature: Signature) -> None:
        self.estimator = estimator
        self.methods = tuple(methods)
        self.signature = signature

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return one array for one output, else a mapping of arrays by output name."""
        named = self._call(inputs, None)
        return next(iter(named.values())) if list(named) == list(self.methods[:1]) else named

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the arrays as tensors named after their methods.

        Raises:
            RequestError: The estimator refuses the inputs.
        """
        named = self._call(inputs, outputs)
        return [_tensor(name, array) for name, array in named.items() if outputs is None or name in outputs]

    def _call(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> dict[str, np.ndarray[Any, Any]]:
        rows = self._rows(inputs)
        named: dict[str, np.ndarray[Any, Any]] = {}
        for method in self.methods:
            if outputs is not None and not any(self._belongs(name, method) for name in outputs):
                continue
            try:
                answer = getattr(self.estimator, method)(rows)
            except ValueError as error:
                # How an estimator says that it cannot take this input: NaN, an unknown category, too few features.
                reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
                raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {reason}") from error
            if isinstance(answer, list):  # predict_proba of a model with several targets
                named.update((f"{method}_{index}", _array(part)) for index, part in enumerate(answer))
            else:
                named[method] = _array(answer)
        return named

    def _rows(self, inputs: Sequence[Tensor]) -> Any:
        return values.from_tensors(inputs, self.signature.input_kind)

    def _belongs(self, output: str, method: str) -> bool:
        """Tell whether an output is a method's only one, or one of its several."""
        return output == method or (output not in self.methods and output.startswith(f"{method}_"))


class MatrixModel(SklearnModel):
    """A model that takes numbers alone: columns go to it as one matrix, so that no pandas is needed."""

    def _rows(self, inputs: Sequence[Tensor]) -> Any:
        import numpy as np

        if len(inputs) == 1 and len(inputs[0].shape) > 1:
            return inputs[0].numpy()
        return np.column_stack([tensor.numpy() for tensor in inputs])


def load(root: Path, manifest: Manifest) -> SklearnModel:
    """Unpickle the estimator, or put it together of skops's trusted types. The files must have been verified."""
    modules.add(root)
    loader = cast("Mapping[str, Any]", manifest.loader)
    if loader["format"] == "skops":
        import skops.io

        # Refuses whatever is of another type.
        estimator = skops.io.load(root / loader["path"], trusted=list(TRUSTED))
    else:
        with _opened(root / loader["path"], str(loader.get("compression", ""))) as file:
            estimator = pickle.load(file)
    return SklearnModel(estimator, loader["methods"], manifest.signature)


def _opened(path: Path, compression: str) -> IO[bytes]:
    if compression == "xz":
        import lzma

        return lzma.open(path, "rb")
    return path.open("rb")


def _array(answer: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    if hasattr(answer, "toarray"):  # scipy's sparse matrices
        answer = answer.toarray()
    array: np.ndarray[Any, Any] = np.asarray(answer)
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):
        array = array.astype(np.str_)
    return array


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    return Tensor.from_numpy(name, array)
