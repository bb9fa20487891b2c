"""The tensors of a PyTorch module, taken out of it and written as safetensors: weights, and nothing that could run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyserve.runtime.loaders.torch import DTYPES

_ALIGNMENT = 8


class Weights:
    """The tensors of one module, by name: those of its state under their names there, others by number.

    Args:
        module: The module.

    Attributes:
        tensors: What was taken out, by name.
    """

    def __init__(self, module: Any) -> None:
        self.tensors: dict[str, Any] = {}
        self._references: dict[int, tuple[str, str]] = {}
        for name, parameter in module.named_parameters():
            self._add(parameter, "parameter", name)
        for name, buffer in module.named_buffers():
            self._add(buffer, "tensor", name)

    def reference(self, obj: object) -> tuple[str, str] | None:
        """Return kind and name of a tensor; `None` of anything else."""
        import torch

        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self._references:
            kind = "parameter" if isinstance(obj, torch.nn.Parameter) else "tensor"
            self._add(obj, kind, f"({len(self._references)})")
        return self._references[id(obj)]

    def find(self, reference: Any) -> object:
        """Return the tensor of a kind and name."""
        return self.tensors[reference[1]]

    def _add(self, tensor: Any, kind: str, name: str) -> None:
        import torch

        plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        if type(tensor) not in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer} or not plain:
            what = (
                f"{type(tensor).__name__} of layout {tensor.layout}"
                if plain or not tensor.is_meta
                else "on the meta device"
            )
            raise TypeError(f"tensor {name!r} is {what}, which a file of weights cannot hold; torch.export.save can")
        self.tensors[name] = tensor
        self._references[id(tensor)] = (kind, name)


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors as safetensors, the same bytes for the same tensors.

    Raises:
        TypeError: One is of a dtype that the format has no name for.
    """
    import torch

    names = {getattr(torch, dtype): name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {}
    parts = []
    at = 0
    # The widest first, so that every tensor is aligned where the file is mapped into memory.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if tensor.dtype not in names:
            raise TypeError(f"tensor {name!r} is {tensor.dtype}, which safetensors cannot hold")
        part = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(part)
