"""Load and call a TensorFlow Lite model with LiteRT; of all distributions it needs `ai-edge-litert` and numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, cast

from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor
from polyserve.runtime.threads import threads


class TfliteModel:
    """A model in an interpreter, which answers one request at a time.

    Args:
        program: The interpreter.
        methods: Names of the outputs that are asked for, in order.
        one_by_one: Whether the model takes one row a call, so that several are several calls.
        signature: What goes in and out.
    """

    def __init__(self, program: Program, methods: Sequence[str], *, one_by_one: bool, signature: Signature) -> None:
        self.signature = signature
        self.methods = tuple(methods)
        self._program = program
        self._one_by_one = one_by_one
        self._lock = Lock()

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return one array for one output, else a mapping of arrays by output name."""
        named = self._run(inputs)
        return named[self.methods[0]] if len(self.methods) == 1 else {name: named[name] for name in self.methods}

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the arrays as tensors named after the model's outputs.

        Raises:
            RequestError: The model refuses the inputs.
        """
        named = self._run(inputs)
        return [Tensor.from_numpy(name, named[name]) for name in self.methods if outputs is None or name in outputs]

    def _run(self, inputs: Sequence[Tensor]) -> Mapping[str, Any]:
        import numpy as np

        rows = inputs[0].rows
        if not rows:
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, "the model refuses the input: expected at least one row, got none"
            )
        arrays = {tensor.name: tensor.numpy().reshape(tensor.shape) for tensor in inputs}
        with self._lock:
            try:
                if not self._one_by_one:
                    return self._program.run(arrays)
                parts = [
                    self._program.run({name: array[row : row + 1] for name, array in arrays.items()})
                    for row in range(rows)
                ]
            except ValueError as error:
                # Shapes that do not go together.
                reason = str(error).strip().split("\n", 1)[0]
                raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {reason}") from error
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Program:
    """An interpreter behind its signature, or behind the names of its tensors where it has none.

    Args:
        path: The model.
        key: The signature's name; `None` for the first, or for none.

    Raises:
        ValueError: LiteRT cannot read the model.
        RuntimeError: LiteRT lacks one of its operators.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads())
        self.keys = tuple(self._interpreter.get_signature_list())
        self._runner: Any = None
        if self.keys:
            self._runner = self._interpreter.get_signature_runner(key or self.keys[0])
            self.inputs = dict(self._runner.get_input_details())
            self.outputs = dict(self._runner.get_output_details())
        else:
            self._interpreter.allocate_tensors()
            self.inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
            self.outputs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}

    def run(self, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs by name, as memory of their own.

        Raises:
            ValueError: The model does not take arrays of these shapes.
        """
        if self._runner is not None:
            return cast("Mapping[str, Any]", self._runner(**arrays))
        for name, array in arrays.items():
            index = self.inputs[name]["index"]
            if tuple(self._interpreter.get_tensor(index).shape) != array.shape:
                self._interpreter.resize_tensor_input(index, array.shape)
                self._interpreter.allocate_tensors()
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(detail["index"]) for name, detail in self.outputs.items()}


def load(root: Path, manifest: Manifest) -> TfliteModel:
    """Open the model. The files must have been verified."""
    loader = cast("Mapping[str, Any]", manifest.loader)
    program = Program(root / loader["path"], loader["signature"])
    return TfliteModel(program, loader["methods"], one_by_one=loader["one_by_one"], signature=manifest.signature)
