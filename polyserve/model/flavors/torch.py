"""PyTorch: TorchScript, an exported program, a module in memory, or the class of one with a file of its weights.

    torch.export.save, .pt2, or an ExportedProgram   travels as it is; runs no code of the model's own
    torch.jit.save, or a ScriptModule                the same; PyTorch itself advises torch.export today
    nn.Module                                        a pickle without tensors, weights as safetensors, and its modules as code
    class of one and files=weights                   the class is imported where it is served, and made without arguments
    torch.save of a whole module                     unpickled here, then as nn.Module

Weights are read without running code: `.safetensors`, or what `torch.load(weights_only=True)` takes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from inspect import isclass
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import canonical, torcharchive
from polyserve.model.flavors import Saved, model_suffix
from polyserve.model.flavors.python import check_importable
from polyserve.model.sources import MAIN, main_name, travelling_name
from polyserve.model.torchweights import Weights, write_tensors
from polyserve.runtime.loaders.torch import open_program, open_script, read_tensors
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import TensorSpec
from polyserve.runtime.values import describe

NAME = "torch"
SUFFIXES = (".pt2", ".pt", ".pth", ".ts", ".torchscript", ".safetensors")
SAFE = False
SAFER = "package what torch.export.export makes of it, which is loaded without running any"

_SKELETON = "model/module.pickle"
_WEIGHTS = "model/weights.safetensors"
_SCRIPT = "model/model.ts"
_PROGRAM = "model/model.pt2"
_FLOATS = {"torch.float16": "FP16", "torch.bfloat16": "BF16", "torch.float32": "FP32", "torch.float64": "FP64"}
_DATATYPES = _FLOATS | {
    "torch.bool": "BOOL",
    **{f"torch.{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def recognises(model: object) -> bool:
    """Tell whether the object is a module, or the class of one, or an exported program."""
    kind = model if isinstance(model, type) else type(model)
    return any(
        parent.__module__.partition(".")[0] == "torch"
        and (parent.__name__ == "Module" or (parent.__name__ == "ExportedProgram" and not isclass(model)))
        for parent in kind.__mro__
    )


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Write the model's program, or its weights and the module that they belong to, below `model/`.

    Raises:
        PackageError: It is no PyTorch model, is weights alone, cannot be pickled or made without arguments, or takes or gives what no
            tensor can hold.
        MissingDependencyError: PyTorch is not installed.
    """
    if methods is not None:
        message = (
            f"methods={list(methods)!r}: a PyTorch model has forward() alone; return a dict from it for several outputs"
        )
        raise _refusal(message, NAME)
    if find_spec("torch") is None:
        message = "a PyTorch model needs torch to be packaged, which is not installed: pip install torch"
        raise MissingDependencyError(message, operation="package", resource=NAME)
    import torch

    what = repr(model.name) if isinstance(model, Path) else getattr(model, "__name__", None) or type(model).__name__
    (root / "model").mkdir(parents=True)
    if isclass(model) and recognises(model):
        return _save_class(model, root, files, what)
    if files is not None:
        message = f"files={str(files)!r}: weights are for the class of a module; load them into {what} with load_state_dict and pass that"
        raise _refusal(message, what)
    found = _read(model, what) if isinstance(model, Path) else model
    stem = model.stem if isinstance(model, Path) else what
    if isinstance(found, torch.export.ExportedProgram):
        return _save_program(found, model, root, stem, what)
    if isinstance(found, torch.jit.ScriptModule):
        return _save_script(found, model, root, stem)
    if not isinstance(found, torch.nn.Module):
        kind = type(found)
        message = f"{what} holds a {kind.__module__}.{kind.__qualname__}, not a PyTorch model: pass an nn.Module or what torch.export made"
        raise _refusal(message.replace(" builtins.", " "), what)
    return _save_module(found, root, stem, what)


def _save_program(program: Any, model: object, root: Path, stem: str, what: str) -> Saved:
    import torch

    if isinstance(model, Path):
        raw = model.read_bytes()
    else:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        raw, stem = buffer.getvalue(), "ExportedProgram"
    raw = torcharchive.canonical(raw)
    (root / _PROGRAM).write_bytes(raw)
    inputs = _program_inputs(program, what)
    return Saved(
        loader={"format": "export", "path": _PROGRAM},
        name=stem,
        modules=frozenset({"torch", "numpy"}),
        renamed={},
        inputs=None if any(-1 in spec.shape[1:] for spec in inputs) else (_kind(inputs), inputs),
        takes=lambda sample: (_kind(inputs), inputs),
        safe=not torcharchive.runs_code(raw),
    )


def _kind(inputs: Sequence[TensorSpec]) -> str:
    return "array" if len(inputs) == 1 else "mapping"


def _program_inputs(program: Any, what: str) -> tuple[TensorSpec, ...]:
    taken = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value: Any = taken.get(name)
        if str(getattr(value, "dtype", None)) not in _DATATYPES:
            message = f"{what} takes {name!r} as {type(value).__name__}, which no request can carry: export it with tensors as inputs"
            raise _refusal(message, str(name))
        # A size that was left open is an expression.
        shape = tuple(length if isinstance(length, int) else -1 for length in value.shape)
        specs.append(TensorSpec(name=name, datatype=_DATATYPES[str(value.dtype)], shape=shape))
    return tuple(specs)


def _save_script(script: Any, model: object, root: Path, stem: str) -> Saved:
    if isinstance(model, Path):
        raw = model.read_bytes()
    else:
        modes = [(part, part.training) for part in script.modules()]
        script.eval()
        raw = script.save_to_buffer()
        for part, mode in modes:
            part.train(mode)
        stem = getattr(script, "original_name", stem)
    (root / _SCRIPT).write_bytes(torcharchive.canonical(raw))
    floats = _float(script)
    return Saved(
        loader={"format": "torchscript", "path": _SCRIPT},
        name=stem,
        modules=frozenset({"torch", "numpy"}),
        renamed={},
        takes=lambda sample: _taken(sample, floats),
        safe=True,
    )


def _save_module(module: Any, root: Path, stem: str, what: str) -> Saved:
    renamed = {MAIN: main_name() or MAIN}
    # Whether it was training is not the model's, and is put back.
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        weights = Weights(module)
        raw, modules = canonical.dumps(module, renamed=renamed, beside=weights)
        write_tensors(root / _WEIGHTS, weights.tensors)
    except Exception as error:
        message = (
            f"{what} cannot be pickled, so it cannot travel ({error}): use functions that are defined at the top of a module instead of "
            "lambdas, pass its class with files= and a file of its weights, or pass what torch.export.export makes of it"
        )
        raise _refusal(message, what) from error
    finally:
        for part, mode in modes:
            part.training = mode
    if MAIN in modules:
        travelling_name(what)
    (root / _SKELETON).write_bytes(raw)
    floats = _float(module)
    return Saved(
        loader={"format": "module", "skeleton": _SKELETON, "path": _WEIGHTS},
        name=stem,
        modules=modules | {"torch", "numpy"},
        renamed=renamed,
        takes=lambda sample: _taken(sample, floats),
    )


def _save_class(kind: Any, root: Path, files: Path | None, what: str) -> Saved:
    if files is None:
        message = f"{what} is a class: pass a trained object of it, or the class and its weights, such as files='weights.safetensors'"
        raise _refusal(message, what)
    check_importable(kind)
    renamed = {MAIN: travelling_name(what)} if kind.__module__ == MAIN else {}
    try:
        module = kind()
    except Exception as error:
        message = f"{what}() cannot be made without arguments ({error}): make it, load the weights into it, and pass the object"
        raise _refusal(message, what) from error
    try:
        module.load_state_dict(_read_weights(files))
    except RuntimeError as error:
        reason = "; ".join(line.strip().rstrip(". ") for line in str(error).splitlines()[1:3])
        message = f"the weights in {files.name!r} are not those of {what}: {reason}"
        raise _refusal(message, files.name) from error
    write_tensors(root / _WEIGHTS, module.state_dict())
    floats = _float(module)
    return Saved(
        loader={
            "format": "class",
            "module": renamed.get(kind.__module__, kind.__module__),
            "attribute": kind.__qualname__,
            "path": _WEIGHTS,
        },
        name=what,
        modules=frozenset({kind.__module__, "torch", "numpy"}),
        renamed=renamed,
        takes=lambda sample: _taken(sample, floats),
    )


# --- files ------------------------------------------------------------------------------------------------------------------------------


def _read(path: Path, what: str) -> object:
    """Return the program, script or module in a file."""
    import torch

    if model_suffix(path) == ".safetensors":
        raise _weights_alone(what, path.name)
    found = torcharchive.kind(path)
    try:
        if found == torcharchive.EXPORT:
            return open_program(path)
        if found == torcharchive.TORCHSCRIPT:
            return open_script(str(path))
        try:
            value: object = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            # The only way to a module that was saved whole; that it runs code is said in the plan.
            return torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        message = f"{what} refers to module {error.name!r}, which cannot be imported here: put its directory on PYTHONPATH, or install it"
        raise _refusal(message, what) from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = (
            f"{what} cannot be read by PyTorch {torch.__version__} ({reason}): save it again with torch.export.save"
        )
        raise _refusal(message, what) from error
    if isinstance(value, Mapping):
        raise _weights_alone(what, path.name)
    return value


def _weights_alone(what: str, file: str) -> PackageError:
    message = (
        f"{what} holds weights without the module that they belong to: pass the module's class, and files={file!r}; "
        "or make the module, load the weights into it, and pass that"
    )
    return _refusal(message, what)


def _read_weights(path: Path) -> Mapping[str, Any]:
    """Return the tensors in a file of weights, without running code."""
    import torch

    if not path.is_file():
        raise _refusal(f"files={str(path)!r} is no file: name one with the module's weights", str(path))
    try:
        if model_suffix(path) == ".safetensors":
            return read_tensors(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = (
            f"{path.name!r} cannot be read as weights alone ({reason}): save them with safetensors.torch.save_file, or with "
            "torch.save(module.state_dict(), ...)"
        )
        raise _refusal(message, path.name) from error
    if not isinstance(found, Mapping) or not all(isinstance(part, torch.Tensor) for part in found.values()):
        inside = (
            [str(key) for key, part in found.items() if isinstance(part, Mapping)] if isinstance(found, Mapping) else []
        )
        message = f"{path.name!r} is no file of weights: save module.state_dict()" + (
            f", which here may be what it has under {' or '.join(map(repr, inside))}" if inside else ""
        )
        raise _refusal(message, path.name)
    return found


# --- inputs -----------------------------------------------------------------------------------------------------------------------------


def _float(module: Any) -> str | None:
    """Return the datatype of floats that a module computes in; `None` where it has none or several."""
    found = {str(tensor.dtype) for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point()}
    return _FLOATS.get(found.pop()) if len(found) == 1 else None


def _taken(sample: object, floats: str | None) -> tuple[str, tuple[TensorSpec, ...]]:
    """Return as what a module takes a sample: arrays, of its own floats."""
    kind, specs = describe(sample)
    if kind in {"frame", "rows"}:
        message = (
            "a PyTorch model takes arrays, and no table: pass its values, such as frame.to_numpy(), or a dict of arrays"
        )
        raise RequestError(ErrorCode.INVALID_ARGUMENT, message)
    if any(spec.datatype == "BYTES" for spec in specs):
        raise RequestError(ErrorCode.INVALID_ARGUMENT, "a PyTorch model takes numbers, and the sample is text")
    return "array" if kind == "list" else kind, tuple(
        replace(
            spec,
            datatype=floats if floats is not None and spec.datatype in _FLOATS.values() else spec.datatype,
            parameters={},
        )
        for spec in specs
    )


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
