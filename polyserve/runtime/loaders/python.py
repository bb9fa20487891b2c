"""Load and call a model that is Python code: a callable, or a predictor with load, preprocess, predict and postprocess."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from polyserve.runtime import modules, values
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor


class PythonModel:
    """A callable, or a predictor; gets its input in the form that the sample had.

    Args:
        target: The callable, or the predictor after its `load`.
        signature: What goes in and out.
    """

    def __init__(self, target: object, signature: Signature) -> None:
        self.signature = signature
        self._preprocess: Callable[[object], object] | None = getattr(target, "preprocess", None)
        self._predict = cast("Callable[[object], object]", getattr(target, "predict", target))
        self._postprocess: Callable[[object], object] | None = getattr(target, "postprocess", None)

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return what `predict`, and `postprocess` where there is one, returns."""
        value: object = values.from_tensors(inputs, self.signature.input_kind)
        if self._preprocess is not None:
            try:
                value = self._preprocess(value)
            except ValueError as error:
                # The documented way for a predictor to refuse its input.
                reason = str(error) or "preprocess raised ValueError"
                raise RequestError(ErrorCode.INVALID_ARGUMENT, reason) from error
        value = self._predict(value)
        return value if self._postprocess is None else self._postprocess(value)

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the answer as tensors.

        Raises:
            RequestError: `preprocess` raised ValueError.
            TypeError: The answer is not what it was when the model was packaged.
        """
        value = self.answer(inputs)
        try:
            tensors = values.to_tensors(value, self.signature.outputs, self.signature.output_kind)
        except RequestError as error:
            # The model's fault, not the caller's.
            raise TypeError(f"the model's answer is not what it was when it was packaged: {error.message}") from error
        return tensors if outputs is None else [tensor for tensor in tensors if tensor.name in outputs]


def load(root: Path, manifest: Manifest) -> PythonModel:
    """Import or unpickle the model, and call its `load(model_dir)`. The files must have been verified."""
    modules.add(root)
    loader = cast("Mapping[str, Any]", manifest.loader)
    target: Any
    if loader["format"] == "pickle":
        with (root / loader["path"]).open("rb") as file:
            target = pickle.load(file)
    else:
        target = attrgetter(loader["attribute"])(import_module(loader["module"]))
        if loader["format"] == "class":
            target = target()
    if loader["model_dir"] is not None:
        target.load(root / loader["model_dir"])
    return PythonModel(target, manifest.signature)
