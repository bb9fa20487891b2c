"""ONNX: a `.onnx` file, its bytes, or an `onnx.ModelProto` in memory; served by onnxruntime and numpy alone.

What goes in and out is the model's to say: its inputs keep their names and datatypes, and a sample is cast to them. Models converted
from scikit-learn take FP32; float64 rows are rounded to it, as `.astype("float32")` would, and refused where they would not fit.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model.flavors import Saved
from polyserve.model.onnxfile import OnnxHeader, read_header
from polyserve.runtime.loaders.onnx import DATATYPES, TABLES, import_onnxruntime, open_session
from polyserve.runtime.messages import RequestError
from polyserve.runtime.signature import TensorSpec
from polyserve.runtime.tensors import TEXT
from polyserve.runtime.values import describe

NAME = "onnx"
SUFFIXES = (".onnx",)
SAFE = True

_PATH = "model/model.onnx"
# Field 1, a number: the version of the format, with which every writer begins.
_FIRST_BYTE = b"\x08"


def recognises(model: object) -> bool:
    """Tell whether the object is a ModelProto, or bytes that begin like one."""
    if isinstance(model, bytes):
        return model[:1] == _FIRST_BYTE
    return _is_proto(model)


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Write the model as it is to `model/model.onnx`, and the files with its weights, where it has any, beside it.

    Raises:
        PackageError: It is no ONNX model, needs a newer onnxruntime or a file that is not there, lacks an output, or takes or gives
            what no tensor can hold.
        MissingDependencyError: onnxruntime is not installed.
    """
    if files is not None:
        message = (
            f"files={str(files)!r}: an ONNX model takes no further files; write a predictor class with load(model_dir)"
        )
        raise _refusal(message, NAME)
    if find_spec("onnxruntime") is None:
        message = "an ONNX model needs onnxruntime to be packaged, which is not installed: pip install onnxruntime"
        raise MissingDependencyError(message, operation="package", resource=NAME)
    what = repr(model.name) if isinstance(model, Path) else "the ONNX model"
    raw = _read(model, what)
    try:
        header = read_header(raw)
    except ValueError as error:
        message = f"{what} is no readable ONNX model ({error}): save it again with onnx.save"
        raise _refusal(message, what) from error
    (root / _PATH).parent.mkdir(parents=True)
    (root / _PATH).write_bytes(raw)
    for location in header.external:
        _take_along(location, model, root, what)
    session = _open(root / _PATH, header, what)
    inputs = tuple(_input(node, what) for node in session.get_inputs())
    outputs = {node.name: node for node in session.get_outputs()}
    names = _check_methods(outputs, methods, what)
    shapes = {name: _shape(outputs[name]) for name in names if outputs[name].type in DATATYPES}
    return Saved(
        loader={"format": "onnx", "path": _PATH, "methods": list(names)},
        name=model.stem if isinstance(model, Path) else "OnnxModel",
        modules=frozenset({"onnxruntime", "numpy"}),
        bare=frozenset({"onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"}),
        renamed={},
        inputs=_without_sample(inputs),
        takes=lambda sample: _taken(sample, inputs),
        shapes=shapes,
        output_name=names[0],
    )


def _is_proto(model: object) -> bool:
    kind = type(model)
    return kind.__name__ == "ModelProto" and kind.__module__.partition(".")[0] == "onnx"


def _read(model: Any, what: str) -> bytes:
    if isinstance(model, Path):
        return model.read_bytes()
    if isinstance(model, bytes):
        return model
    if _is_proto(model):
        try:
            # Maps have no order of their own.
            serialized: bytes = model.SerializeToString(deterministic=True)
        except Exception as error:
            # Protocol buffers end at 2 GiB, and each of their implementations says so in a class of its own.
            message = (
                f"{what} cannot be written as one piece ({str(error).strip() or type(error).__name__}): save it with "
                "onnx.save(..., save_as_external_data=True) and pass the path of its file"
            )
            raise _refusal(message, NAME) from error
        return serialized
    kind = type(model)
    message = (
        f"a {kind.__module__}.{kind.__qualname__} is not {what}: pass an onnx.ModelProto, its bytes or a .onnx file"
    )
    raise _refusal(message.replace(" builtins.", " "), kind.__qualname__)


def _take_along(location: str, model: object, root: Path, what: str) -> None:
    """Copy one file with weights."""
    if not isinstance(model, Path):
        message = f"{what} keeps weights in the file {location!r}: save it with onnx.save and pass the path of its file"
        raise _refusal(message, location)
    inside = PurePosixPath(location)
    if (
        not location
        or inside.is_absolute()
        or ".." in inside.parts
        or str(root / "model" / inside) == str(root / _PATH)
    ):
        message = f"{what} keeps weights in {location!r}, which is not beside it: save it again with onnx.save, weights in one file"
        raise _refusal(message, location)
    source = model.parent / inside
    if not source.is_file():
        message = f"{what} keeps weights in the file {location!r}, which is not beside it: put it there, or save the model in one file"
        raise _refusal(message, location)
    target = root / "model" / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _open(path: Path, header: OnnxHeader, what: str) -> Any:
    version = import_onnxruntime().__version__
    try:
        return open_session(path)
    except Exception as error:
        reason = _reason(str(error))
        message = (
            f"{what}, of IR version {header.ir_version} and opset {header.opset}, cannot be run by onnxruntime {version} "
            f"({reason}): install a newer onnxruntime, or export the model again for an "
            "older opset and without operators of your own"
        )
        raise _refusal(message, what) from error


def _reason(told: str) -> str:
    """Return what of onnxruntime's error is about the model: not the paths and C++ names before it."""
    first = told.strip().split("\n", 1)[0]
    known = re.search(r"Unsupported model IR version.*|Current official support.*|No Op registered.*", first)
    if known is not None:
        return known[0].rstrip(".")
    return re.sub(r"^/\S+ (?:.*?\) (?=[A-Z]))?", "", first.rpartition(" failed:")[2].rpartition("] : ")[2])


def _input(node: Any, what: str) -> TensorSpec:
    if node.type not in DATATYPES:
        message = (
            f"{what} takes {node.name!r} as {node.type}, which no request can carry: export it with tensors as inputs"
        )
        raise _refusal(message, node.name)
    datatype = DATATYPES[node.type]
    parameters = TEXT if datatype == "BYTES" else {}
    return TensorSpec(name=node.name, datatype=datatype, shape=_shape(node), parameters=parameters)


def _shape(node: Any) -> tuple[int, ...]:
    """Return a shape with -1 for what is left open, which onnxruntime gives as a name or as nothing."""
    return tuple(length if isinstance(length, int) and length >= 0 else -1 for length in node.shape)


def _check_methods(outputs: dict[str, Any], methods: Sequence[str] | None, what: str) -> tuple[str, ...]:
    names = tuple(outputs) if methods is None else (methods,) if isinstance(methods, str) else tuple(methods)
    if not names or len(set(names)) != len(names):
        raise _refusal(f"methods={list(names)!r} must name at least one output, and each one once", NAME)
    for name in names:
        if name not in outputs:
            raise _refusal(f"{what} has no output {name!r}: pass methods= with some of {', '.join(outputs)}", str(name))
        if outputs[name].type not in {*DATATYPES, *TABLES}:
            others = [other for other, node in outputs.items() if node.type in {*DATATYPES, *TABLES}]
            way_out = f"pass methods={others!r}" if others else "export it with tensors as outputs"
            raise _refusal(f"{what} gives {name!r} as {outputs[name].type}, which no answer can carry: {way_out}", name)
    return names


def _without_sample(inputs: tuple[TensorSpec, ...]) -> tuple[str, tuple[TensorSpec, ...]] | None:
    """Return kind and inputs where zeros of a known shape can be made for all of them."""
    if any(spec.datatype == "BYTES" or -1 in spec.shape[1:] for spec in inputs):
        return None
    return "array" if len(inputs) == 1 else "mapping", inputs


def _taken(sample: object, inputs: tuple[TensorSpec, ...]) -> tuple[str, tuple[TensorSpec, ...]]:
    """Return as what kind of value a model with these inputs takes a sample."""
    if len(inputs) == 1:
        return "array", inputs
    kind = _kind(sample)
    if kind in {"frame", "rows"} and all(spec.shape in {(-1,), (-1, 1)} for spec in inputs):
        # One input for each column. As rows, which a frame fits too, so that serving needs no pandas.
        return "rows", tuple(replace(spec, shape=(-1,)) for spec in inputs)
    return "mapping", inputs


def _kind(sample: object) -> str:
    try:
        return describe(sample)[0]
    except RequestError:
        # Such as columns of values that only the model's own datatypes make the same.
        return "mapping"


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
