"""PyTorch: the weights of a module, in its file of them, in half precision; widened when the model is loaded.

Programs (TorchScript, `torch.export`) hold their weights within, and int8 kernels are in programs alone: those are compiled to ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyserve.errors import PackageError
from polyserve.model.compress.method import Method
from polyserve.model.deriving import Change
from polyserve.model.storage import ModelPackage
from polyserve.runtime.tensors import Tensor

_LARGEST_HALF = 65504.0


def _half(original: ModelPackage, root: Path, rows: Sequence[Tensor]) -> Change:
    del rows
    loader: Mapping[str, Any] = original.manifest.loader
    if loader["format"] not in {"module", "class"}:
        message = (
            f"{original.name!r} is a program ({loader['format']}), whose weights are within it: package the nn.Module itself, or compile "
            "it to ONNX first, and compress that"
        )
        raise _refusal(message, original.name)
    import torch

    from polyserve.model.torchweights import write_tensors
    from polyserve.runtime.loaders.torch import read_tensors

    path = original.root / loader["path"]
    tensors = read_tensors(path)
    if any(tensor.dtype == torch.float16 for tensor in tensors.values()):
        # Widened, they would be of another type than they were.
        raise _refusal(f"{original.name!r} has weights in half precision already", original.name)
    halved = {
        name: tensor.half()
        for name, tensor in tensors.items()
        if tensor.dtype == torch.float32 and bool((tensor.abs() <= _LARGEST_HALF).all())
    }
    if not halved:
        raise _refusal(f"{original.name!r} has no FP32 weights that fit half precision", original.name)
    write_tensors(root / loader["path"], tensors | halved)
    return Change(loader={**loader, "stored": "F16"})


METHODS: Mapping[str, Method] = {
    "fp16": Method(title="weights in half precision, computed with in single", shrink=_half)
}


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="compress", resource=resource)
