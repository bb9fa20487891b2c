"""Load and call an ONNX model with onnxruntime; of all distributions it needs that one and numpy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor
from polyserve.runtime.threads import threads

DATATYPES: Mapping[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""The protocol's datatypes by onnxruntime's names of types."""

TABLES = frozenset({"seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))"})
"""What ZipMap, the last operator of many classifiers, makes of probabilities: a mapping by label for each row."""


class OnnxModel:
    """A model in a session of onnxruntime.

    Args:
        session: The session.
        methods: Names of the outputs that are asked for, in order.
        signature: What goes in and out.
        limits: What is refused before the session is asked, which would answer: `bounds`, the largest magnitude of an input's
            numbers; `missing`, those of these inputs that take missing values all the same; `empty`, whether no rows are taken.
    """

    def __init__(
        self, session: Any, methods: Sequence[str], signature: Signature, limits: Mapping[str, Any] | None = None
    ) -> None:
        told = limits or {}
        self._bounds: Mapping[str, float] = told.get("bounds", {})
        self._missing = frozenset(told.get("missing", ()))
        self._takes_empty = told.get("empty", True)
        self.signature = signature
        self.methods = tuple(methods)
        self._session = session
        self._ranks = {node.name: len(node.shape) for node in session.get_inputs()}

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return one array for one output, else a mapping of arrays by output name."""
        arrays = self._run(inputs, self.methods)
        return arrays[0] if len(arrays) == 1 else dict(zip(self.methods, arrays, strict=True))

    def predict(self, inputs: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """Return the arrays as tensors named after the model's outputs.

        Raises:
            RequestError: The model refuses the inputs.
        """
        names = [name for name in self.methods if outputs is None or name in outputs]
        return list(map(Tensor.from_numpy, names, self._run(inputs, names) if names else []))

    def _run(self, inputs: Sequence[Tensor], names: Sequence[str]) -> list[Any]:
        feeds = {tensor.name: self._array(tensor) for tensor in inputs}
        for name, bound in self._bounds.items():
            self._check_bound(name, feeds[name], bound)
        if not self._takes_empty and not all(map(len, feeds.values())):
            raise RequestError(ErrorCode.INVALID_ARGUMENT, "the model refuses the input: it has no rows")
        try:
            answers = self._session.run(list(names), feeds)
        except Exception as error:
            # By its name: the class is onnxruntime's own, in a module that it calls private.
            if type(error).__name__ != "InvalidArgument":
                raise
            reason = str(error).strip().split("\n", 1)[0].rpartition("INVALID_ARGUMENT : ")[2]
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {reason}") from error
        return list(map(_plain, answers))

    def _check_bound(self, name: str, array: Any, bound: float) -> None:
        """Refuse numbers that the model, before it was converted, refused."""
        if not array.size:
            return
        # NaN is neither above nor below anything: one look finds all three.
        if -bound <= array.min() and array.max() <= bound:
            return
        import numpy as np

        if name in self._missing and not (np.abs(array) > bound).any():
            return
        sort = "NaN, infinity" if name not in self._missing else "infinity"
        message = f"the model refuses the input: {name!r} holds {sort} or a number beyond {bound:.6g}"
        raise RequestError(ErrorCode.INVALID_ARGUMENT, message)

    def _array(self, tensor: Tensor) -> Any:
        array = tensor.numpy()
        # A column of a table comes as one dimension, and models that take columns want each as a table of its own.
        return array[:, None] if array.ndim == 1 and self._ranks.get(tensor.name) == 2 else array


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off, unless the environment says otherwise; nothing of polyserve imports it in another way.

    From 1.29 on its official builds send what models are run to their maker, from the moment of the import, and write an identifier of
    the machine to disk: https://github.com/microsoft/onnxruntime/pull/27379. A function has nobody to ask, and calls nobody.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def open_session(path: Path) -> Any:
    """Open a model on the processor, with as many threads as a model may use.

    Raises:
        Exception: Whatever onnxruntime raises where it cannot run the model.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    # Its threads are its own: it does not read the variable that numpy's libraries do.
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    # Warnings of the optimizer are about the graph, not about a request: nobody who reads the log could do anything. Errors are raised.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load(root: Path, manifest: Manifest) -> OnnxModel:
    """Open the model. The files must have been verified."""
    loader = cast("Mapping[str, Any]", manifest.loader)
    return OnnxModel(open_session(root / loader["path"]), loader["methods"], manifest.signature, loader)


def _plain(answer: Any) -> Any:
    """Return an array; a mapping by label for each row becomes one column for each label, in the labels' order."""
    import numpy as np

    if not isinstance(answer, list):
        array = np.asarray(answer)
        # Texts are objects, of which none would have no type.
        return array.astype(np.str_) if array.dtype == object else array
    labels = list(answer[0]) if answer else []
    return np.array([[row[label] for label in labels] for row in answer], dtype="f4").reshape(len(answer), len(labels))
