"""ONNX: weights as half precision, or as 8-bit integers by onnxruntime's own quantizer; served by onnxruntime as before.

The `onnx` package and onnxruntime's quantizer are needed here, not in the function.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model.compress.method import Method
from polyserve.model.deriving import MODEL, Change, rows_of
from polyserve.model.storage import ModelPackage
from polyserve.runtime.loaders.onnx import import_onnxruntime
from polyserve.runtime.tensors import Tensor

CALIBRATION_ROWS = 256
"""How many rows, spread over all of them, the ranges of a static quantization are taken from."""

_PATH = f"{MODEL}/model.onnx"
_LARGEST_HALF = 65504.0
# Below that many numbers, the operator that widens them again takes more room than is saved.
_FEWEST_NUMBERS = 64
_QUANTIZABLE = frozenset(
    {"Attention", "Conv", "ConvTranspose", "EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul"}
)
_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QAttention",
        "QGemm",
    }
)


def _half(original: ModelPackage, root: Path, rows: Sequence[Tensor]) -> Change:
    """Store weights with 16 bits, and have them widened when the model is loaded.

    Only the weights: no processor of a serverless function computes with 16 bits, so onnxruntime would widen and narrow again
    around every operator (its CPU kernels are FP32). This way it widens once, while it folds constants, and computes as before.
    """
    del rows
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    model = _read(root, original)
    graph = model.graph
    given = {node.name for node in graph.input}
    casts = []
    for weight in list(graph.initializer):
        if weight.data_type != TensorProto.FLOAT or weight.name in given:
            continue
        numbers = numpy_helper.to_array(weight)
        if numbers.size < _FEWEST_NUMBERS or not (np.abs(numbers) <= _LARGEST_HALF).all():
            continue
        narrow = f"{weight.name}_fp16"
        casts.append(
            helper.make_node("Cast", [narrow], [weight.name], name=f"{weight.name}_widened", to=TensorProto.FLOAT)
        )
        weight.CopyFrom(numpy_helper.from_array(numbers.astype(np.float16), narrow))
    if not casts:
        raise _nothing(original, model, "FP32 weights that fit half precision")
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return _written(root, original, model)


def _dynamic(original: ModelPackage, root: Path, rows: Sequence[Tensor]) -> Change:
    del rows

    def quantize(source: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QUInt8)

    return _quantized(original, root, quantize)


def _static(original: ModelPackage, root: Path, rows: Sequence[Tensor]) -> Change:
    def quantize(source: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        quantize_static(
            source,
            target,
            _Rows(_feeds(source, rows)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
        )

    return _quantized(original, root, quantize)


# Weights are unsigned: signed ones beside unsigned activations saturate on x86 processors without VNNI, so that the same package would
# answer differently from one machine to the next (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When
# and why do I need to try U8U8?").
METHODS: Mapping[str, Method] = {
    "fp16": Method(title="weights in half precision, computed with in single", shrink=_half),
    "int8": Method(title="weights in 8 bits, ranges of activations taken from each request", shrink=_dynamic),
    "int8-static": Method(title="weights and activations in 8 bits, ranges taken from the data", shrink=_static),
}


class _Rows:
    """Rows for onnxruntime's calibration, which asks for one after the other."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)

    def __len__(self) -> int:
        return CALIBRATION_ROWS

    def set_range(self, start_index: int, end_index: int) -> None:
        raise NotImplementedError(f"rows {start_index} to {end_index}: they are read once, in order")


def _feeds(source: Path, rows: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    import onnx

    ranks = {node.name: len(node.type.tensor_type.shape.dim) for node in onnx.load(source).graph.input}
    total = rows[0].rows
    for place in range(0, total, max(1, -(-total // CALIBRATION_ROWS))):
        arrays = {tensor.name: tensor.numpy() for tensor in rows_of(rows, place, place + 1)}
        # A column of a table has one dimension, and models that take columns want each as a table of its own.
        yield {
            name: array[:, None] if array.ndim == 1 and ranks.get(name) == 2 else array
            for name, array in arrays.items()
        }


def _quantized(original: ModelPackage, root: Path, quantize: Callable[[Path, Path], None]) -> Change:
    import onnx

    model = _read(root, original)
    if not any(node.op_type in _QUANTIZABLE for node in model.graph.node):
        # Such as trees, whose numbers are attributes of one operator.
        raise _nothing(original, model, "weights that 8 bits could hold")
    with tempfile.TemporaryDirectory(prefix="polyserve-") as scratch, _quiet():
        source, prepared, target = (Path(scratch, f"{name}.onnx") for name in ("source", "prepared", "target"))
        source.write_bytes(model.SerializeToString(deterministic=True))
        import_onnxruntime()
        try:
            from onnxruntime.quantization.shape_inference import quant_pre_process

            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize(prepared, target)
        except Exception as error:
            # Whatever an operator that the quantizer does not know makes it raise.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            message = f"onnxruntime cannot quantize {original.name!r} ({type(error).__name__}: {reason}): try fp16"
            raise _refusal(message, original.name) from error
        quantized = onnx.load(target)
    if not any(node.op_type in _QUANTIZED for node in quantized.graph.node):
        raise _nothing(original, model, "weights that 8 bits could hold")
    return _written(root, original, quantized)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice, which is about its own parameters, off the caller's log."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _read(root: Path, original: ModelPackage) -> Any:
    """Return the model of a package with all its weights, and take its files away."""
    for name in ("onnx", "onnxruntime"):
        if find_spec(name) is None:
            message = f"compressing an ONNX model needs {name}, which is not installed: pip install {name}"
            raise MissingDependencyError(message, operation="compress", resource=name)
    import onnx

    model = onnx.load(root / str(original.manifest.loader["path"]))
    for path in original.manifest.files:
        if path.startswith(f"{MODEL}/"):
            (root / path).unlink()
    return model


def _written(root: Path, original: ModelPackage, model: Any) -> Change:
    (root / _PATH).write_bytes(model.SerializeToString(deterministic=True))
    return Change(loader={**original.manifest.loader, "path": _PATH})


def _nothing(original: ModelPackage, model: Any, what: str) -> PackageError:
    operators = ", ".join(sorted({node.op_type for node in model.graph.node}))
    return _refusal(f"{original.name!r} has no {what}: its operators are {operators}", original.name)


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="compress", resource=resource)
