"""PyTorch modules to ONNX, by the exporter that traces: it needs nothing but torch and onnx, where the newer one needs onnxscript.

A trace follows the sample. A module that branches on its input would always take the branch that the sample took; the guard's other rows,
and other numbers of them, are there to find that out.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyserve.model.compile.graph import OPSET, PREFIX, Converted
from polyserve.model.compile.trees import CannotConvert
from polyserve.runtime.loaders.torch import TorchModel
from polyserve.runtime.signature import Signature

NEEDS = ("onnx", "onnxruntime")

TAKES_CODE = True
"""The class of a module is the user's own more often than not, and what it does is traced."""

_ROWS = 3


def candidates(model: TorchModel, signature: Signature) -> Iterator[Converted]:
    """Yield what the module is converted to.

    Raises:
        CannotConvert: It cannot be traced, or does what ONNX has not; the message says what.
    """
    import onnx
    import onnx.compose
    import torch

    if model._in_spec is not None:
        raise CannotConvert("an exported program is not traced again: package the module that it was exported from")
    if any(spec.datatype in {"BYTES", "BF16"} or not spec.shape for spec in signature.inputs):
        raise CannotConvert("it takes something else than rows of numbers")
    given = [
        torch.zeros([_ROWS if length == -1 else length for length in spec.shape], dtype=_dtype(spec.datatype))
        for spec in signature.inputs
    ]
    names = [spec.name for spec in signature.outputs]
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.inference_mode(mode=False):
            # That this exporter is the older one, and whatever tracing suspects; the answers are compared.
            warnings.simplefilter("ignore")
            module = _traced(model, signature)
            if isinstance(model._module, torch.jit.ScriptModule):
                # The exporter's own trace refuses TorchScript below another module; this one takes it in. Without gradients, for which
                # the original would be optimized, and could then not answer in inference mode any more.
                with torch.no_grad():
                    module = torch.jit.trace(module, tuple(given), check_trace=False)
            torch.onnx.export(
                module,
                tuple(given),
                buffer,
                dynamo=False,
                input_names=[spec.name for spec in signature.inputs],
                output_names=names,
                dynamic_axes={
                    spec.name: {axis: f"{spec.name}_{axis}" for axis, length in enumerate(spec.shape) if length == -1}
                    for spec in (*signature.inputs, *signature.outputs)
                },
                opset_version=OPSET,
            )
    except Exception as error:
        # The exporter raises whatever tracing, the module or an operator without counterpart comes to.
        first = (str(error).strip().splitlines() or [""])[0]
        raise CannotConvert(f"PyTorch cannot export it ({type(error).__name__}: {first[:200]})") from error
    proto = onnx.load_from_string(buffer.getvalue())
    taken = {value.name for value in proto.graph.input}
    unused = [spec.name for spec in signature.inputs if spec.name not in taken]
    if unused:
        raise CannotConvert(f"it never looks at {unused[0]!r}")
    graph = onnx.compose.add_prefix(proto, PREFIX).graph
    yield Converted(
        nodes=list(graph.node),
        initializers=list(graph.initializer),
        opsets={imported.domain: imported.version for imported in proto.opset_import},
        inputs={spec.name: f"{PREFIX}{spec.name}" for spec in signature.inputs},
        dtype="",
        outputs={name: f"{PREFIX}{name}" for name in names},
        columns=False,
    )


def _dtype(datatype: str) -> Any:
    import torch

    name = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())
    return getattr(torch, name)


def _traced(model: TorchModel, signature: Signature) -> Any:
    """Return a module that takes tensors in the signature's order, and gives a tuple of them in the order of its outputs."""
    import torch

    names = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]

    class Flat(torch.nn.Module):  # type: ignore[misc]  # mypy does not follow into torch
        def __init__(self) -> None:
            super().__init__()
            self.module = model._module

        def forward(self, *given: Any) -> Any:
            by_name = signature.input_kind == "mapping"
            positional, named = ((), dict(zip(names, given, strict=True))) if by_name else (given, {})
            return _flat(self.module(*positional, **named), outputs)

    return Flat().eval()


def _flat(answer: Any, names: Sequence[str]) -> Any:
    if isinstance(answer, Mapping):
        return tuple(answer[name] for name in names)
    return tuple(answer) if isinstance(answer, tuple | list) else answer
