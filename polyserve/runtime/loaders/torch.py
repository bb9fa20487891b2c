"""Load and call a PyTorch model: TorchScript, an exported program, or a module with its weights beside it."""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from polyserve.runtime import modules, values
from polyserve.runtime.manifest import Manifest
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor
from polyserve.runtime.threads import threads

DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
"""Names of PyTorch's dtypes by safetensors' names of them."""

# PyTorch raises RuntimeError for all that fails; these words are about what went in.
_ABOUT_INPUT = re.compile(
    r"\b(shapes?|sizes?|dtypes?|dimensions?|dims?|scalar type|channels|out of (range|bounds)|guard failed)\b", re.I
)


class TorchModel:
    """A module in evaluation mode, called without gradients.

    Args:
        module: What is called.
        signature: What goes in and out.
        in_spec: How an exported program's inputs are nested; `None` where inputs are `forward`'s arguments, by name where the sample
            was a dict.
    """

    def __init__(self, module: Any, signature: Signature, in_spec: Any = None) -> None:
        self.signature = signature
        self._module = module
        self._in_spec = in_spec

    def answer(self, inputs: Sequence[Tensor]) -> object:
        """Return one array, several, or a mapping of them, as `forward` returns tensors.

        Raises:
            RequestError: The model refuses the inputs.
            TypeError: It returns what is neither.
        """
        import torch

        arguments, named = self._arguments(inputs)
        # Not `no_grad`: nothing that this yields ever meets autograd.
        with torch.inference_mode():
            try:
                return _plain(self._module(*arguments, **named))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                # TorchScript's own reason comes last, below where in the script it was.
                told = str(error).strip().splitlines() or [type(error).__name__]
                reason = (told[-1] if "TorchScript" in told[0] else told[0]).removeprefix("RuntimeError: ")
                if not isinstance(error, ValueError | IndexError) and not _ABOUT_INPUT.search(reason):
                    raise
                raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model refuses the input: {reason}") from error

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

    def _arguments(self, inputs: Sequence[Tensor]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        tensors = list(map(_tensor, inputs))
        if self._in_spec is not None:
            from torch.utils._pytree import tree_unflatten

            return cast("tuple[Sequence[Any], Mapping[str, Any]]", tree_unflatten(tensors, self._in_spec))
        if self.signature.input_kind == "mapping":
            return (), {given.name: tensor for given, tensor in zip(inputs, tensors, strict=True)}
        return tensors, {}


def load(root: Path, manifest: Manifest) -> TorchModel:
    """Load the model. The files must have been verified."""
    modules.add(root)
    # Only where this process is the function's own: whoever has PyTorch already is packaging, and keeps the threads that he trains with.
    is_ours = "torch" not in sys.modules
    import torch

    if is_ours:
        torch.set_num_threads(threads())
    loader = cast("Mapping[str, Any]", manifest.loader)
    path = root / loader["path"]
    if loader["format"] == "export":
        program = open_program(path)
        return TorchModel(program.module(), manifest.signature, program.call_spec.in_spec)
    if loader["format"] == "torchscript":
        return TorchModel(open_script(path), manifest.signature)
    if loader["format"] == "class":
        module = attrgetter(loader["attribute"])(import_module(loader["module"]))()
        module.load_state_dict(_weights(path, loader))
    else:
        with (root / loader["skeleton"]).open("rb") as file:
            module = Skeleton(file, _weights(path, loader)).load()
    return TorchModel(module.eval().requires_grad_(False), manifest.signature)


def _weights(path: Path, loader: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a file of weights; those that were stored in half precision as what they are computed with."""
    import torch

    tensors = read_tensors(path)
    if loader.get("stored") != "F16":
        return tensors
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


def open_script(source: Any) -> Any:
    """Open TorchScript, of a path or a file, on the processor.

    Raises:
        Exception: Whatever PyTorch raises.
    """
    import torch

    with warnings.catch_warnings():
        # That TorchScript is deprecated is for those who write it.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(source, map_location="cpu").eval()


def open_program(source: Any) -> Any:
    """Open what `torch.export.save` wrote, of a path or a file.

    Raises:
        Exception: Whatever PyTorch raises.
    """
    import torch

    return torch.export.load(source)


class Skeleton(pickle.Unpickler):
    """A module without its tensors, and the tensors to put into it.

    Args:
        file: The pickle.
        tensors: The tensors, by name.
    """

    def __init__(self, file: Any, tensors: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._made: dict[str, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        """Return the tensor that a place in the module stands for; the same for the same name."""
        import torch

        kind, name = pid
        if name not in self._made:
            tensor = self._tensors[name]
            self._made[name] = torch.nn.Parameter(tensor, requires_grad=False) if kind == "parameter" else tensor
        return self._made[name]


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file; its memory is the file's, paged in as it is used.

    Raises:
        ValueError: It is none.
    """
    import torch

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            raise ValueError("its header is cut off")
        header = json.loads(file.read(length))
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"tensor {name!r} is {entry['dtype']}, which PyTorch cannot hold")
        begin, end = entry["data_offsets"]
        raw = content[begin:end]
        if len(raw) != end - begin:
            raise ValueError(f"tensor {name!r} is cut off")
        dtype = getattr(torch, DTYPES[entry["dtype"]])
        if raw.storage_offset() % dtype.itemsize:
            raw = raw.clone()
        tensors[name] = raw.view(dtype).view(entry["shape"])
    return tensors


def _tensor(given: Tensor) -> Any:
    import numpy as np
    import torch

    if given.datatype == "BYTES":
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"input {given.name!r}: expected numbers, got BYTES")
    array = np.ascontiguousarray(given.numpy()).reshape(given.shape)
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.to(torch.bfloat16) if given.datatype == "BF16" else tensor


def _plain(answer: Any) -> object:
    import torch

    if isinstance(answer, torch.Tensor):
        # numpy has no bfloat16; float32 holds every value of it.
        return (answer.float() if answer.dtype == torch.bfloat16 else answer).detach().cpu().numpy()
    if isinstance(answer, Mapping) and answer:
        return {str(name): _plain(part) for name, part in answer.items()}
    if isinstance(answer, list | tuple) and answer and all(isinstance(part, torch.Tensor) for part in answer):
        return _plain(answer[0]) if len(answer) == 1 else tuple(map(_plain, answer))
    if isinstance(answer, bool | int | float):
        return answer
    kind = type(answer)
    message = f"forward() returns a {kind.__module__}.{kind.__qualname__}, and an answer is a tensor, several, or a dict of them"
    raise TypeError(message.replace(" builtins.", " "))
