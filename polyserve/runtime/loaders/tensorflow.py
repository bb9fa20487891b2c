"""Load and call a SavedModel by its signature, or a Keras model."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from polyserve.runtime import modules, values
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor
from polyserve.runtime.threads import threads


class SavedModel:
    """One signature of a SavedModel.

    Args:
        program: What TensorFlow loaded; the signature's variables live as long as it does.
        key: The signature's name.
        methods: Names of the outputs that are asked for, in order.
        signature: What goes in and out.
    """

    def __init__(self, program: Any, key: str, methods: Sequence[str], signature: Signature) -> None:
        self.signature = signature
        self.methods = tuple(methods)
        self._program = program
        self._call = program.signatures[key]

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return one array for one output, else a mapping of arrays by output name."""
        named = self._run(inputs)
        return named[self.methods[0]] if len(self.methods) == 1 else {name: named[name] for name in self.methods}

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the arrays as tensors named after the signature's outputs.

        Raises:
            RequestError: The model refuses the inputs.
        """
        named = self._run(inputs)
        return [Tensor.from_numpy(name, named[name]) for name in self.methods if outputs is None or name in outputs]

    def _run(self, inputs: Sequence[Tensor]) -> Mapping[str, Any]:
        import tensorflow as tf

        feeds = {tensor.name: tf.constant(_array(tensor)) for tensor in inputs}
        try:
            return {name: answer.numpy() for name, answer in self._call(**feeds).items()}
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {_reason(error)}") from error


class KerasModel:
    """A Keras model, called as `model(inputs, training=False)`.

    Args:
        model: The model.
        signature: What goes in and out.
    """

    def __init__(self, model: Any, signature: Signature) -> None:
        self.signature = signature
        self._model = model
        # One input, a list of several, or a dict of them: only a model that was put together of layers knows.
        self._structure = getattr(model, "input", None) if type(model).__name__ == "Functional" else None

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return one array, several, or a mapping of them, as the model does.

        Raises:
            RequestError: The model refuses the inputs.
            TypeError: It returns what is neither.
        """
        import keras

        tensors = [keras.ops.convert_to_tensor(_array(tensor)) for tensor in inputs]
        given: Any = tensors[0]
        if self._structure is not None:
            given = keras.tree.pack_sequence_as(self._structure, tensors)
        elif self.signature.input_kind == "mapping":
            given = {tensor.name: value for tensor, value in zip(inputs, tensors, strict=True)}
        try:
            return _plain(self._model(given, training=False))
        except Exception as error:
            if not isinstance(error, ValueError) and type(error).__name__ != "InvalidArgumentError":
                raise
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {_reason(error)}") from error

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the answer as tensors.

        Raises:
            RequestError: The model refuses the inputs.
            TypeError: The answer is not what it was when the model was packaged.
        """
        value = self.answer(inputs)
        try:
            tensors = values.to_tensors(value, self.signature.outputs, self.signature.output_kind)
        except RequestError as error:
            raise TypeError(f"the model's answer is not what it was when it was packaged: {error.message}") from error
        return tensors if outputs is None else [tensor for tensor in tensors if tensor.name in outputs]


def load(root: Path, manifest: Manifest) -> SavedModel | KerasModel:
    """Load the model. The files must have been verified."""
    modules.add(root)
    loader = cast("Mapping[str, Any]", manifest.loader)
    if loader["format"] == "saved_model":
        _prepare()
        program = open_saved_model(root / loader["path"])
        return SavedModel(program, loader["signature"], loader["methods"], manifest.signature)
    os.environ.setdefault("KERAS_BACKEND", loader["backend"])
    if loader["backend"] == "tensorflow":
        _prepare()
    for module in loader["modules"]:
        # Registers the classes and functions that the model names.
        import_module(module)
    return KerasModel(open_keras(root / loader["path"]), manifest.signature)


def open_saved_model(path: Path) -> Any:
    """Open a SavedModel.

    Raises:
        Exception: Whatever TensorFlow raises.
    """
    import tensorflow as tf

    return tf.saved_model.load(str(path))


def open_keras(path: Path) -> Any:
    """Open a Keras file without what it was trained with, and without running code that it brings.

    Raises:
        Exception: Whatever Keras raises.
    """
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=True)


def _prepare() -> None:
    """Import TensorFlow for a function: quiet, and on as many threads as a model may use. Where it is imported already, leave it be."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads())
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _array(tensor: Tensor) -> Any:
    array = tensor.numpy().reshape(tensor.shape)
    if tensor.datatype == "BF16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array


def _plain(answer: Any) -> object:
    import keras

    if isinstance(answer, Mapping) and answer:
        return {str(name): _plain(part) for name, part in answer.items()}
    if isinstance(answer, list | tuple) and answer:
        return _plain(answer[0]) if len(answer) == 1 else tuple(map(_plain, answer))
    if not keras.ops.is_tensor(answer):
        kind = type(answer)
        raise TypeError(
            f"the model returns a {kind.__module__}.{kind.__qualname__}, and an answer is a tensor, several, or a dict of them"
        )
    array = keras.ops.convert_to_numpy(answer)
    return array.astype("f4") if array.dtype.name == "bfloat16" else array


def _reason(error: Exception) -> str:
    """Return what of TensorFlow's error is about the input: the line before it names the node, or the first."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    named = next((index for index, line in enumerate(lines) if line.startswith("[[{{node")), 0)
    return lines[named - 1] if named else lines[0]
