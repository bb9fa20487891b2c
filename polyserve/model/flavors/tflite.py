"""TensorFlow Lite: a `.tflite` file or its bytes; served by LiteRT (`ai-edge-litert`) and numpy alone.

What goes in and out is the model's to say: names, datatypes and shapes are those of its signature, or of its tensors where it has none.
A quantized model takes and gives its own integers. A model that was converted for one row a call is called once for each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model.flavors import Saved
from polyserve.runtime.datatypes import DATATYPES
from polyserve.runtime.loaders.tflite import Program
from polyserve.runtime.signature import TensorSpec

NAME = "tflite"
SUFFIXES = (".tflite",)
SAFE = True

_PATH = "model/model.tflite"
_NAMES = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}
_MAIN_SIGNATURE = "serving_default"


def recognises(model: object) -> bool:
    """Tell whether the object is bytes that carry the format's mark, `TFL3`."""
    return isinstance(model, bytes) and model[4:8] == b"TFL3"


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Write the model as it is to `model/model.tflite`.

    Raises:
        PackageError: It is no TensorFlow Lite model, needs operators that LiteRT has not, has several signatures of which none is the
            main one, lacks an output, or takes or gives what no tensor can hold.
        MissingDependencyError: LiteRT is not installed.
    """
    if files is not None:
        message = f"files={str(files)!r}: a TensorFlow Lite model takes no further files; write a predictor class with load(model_dir)"
        raise _refusal(message, NAME)
    if find_spec("ai_edge_litert") is None:
        message = "a TensorFlow Lite model needs ai-edge-litert to be packaged, which is not installed: pip install ai-edge-litert"
        raise MissingDependencyError(message, operation="package", resource=NAME)
    what = repr(model.name) if isinstance(model, Path) else "the TensorFlow Lite model"
    raw = model.read_bytes() if isinstance(model, Path) else model
    if not recognises(raw) or not isinstance(raw, bytes):
        message = f"{what} is no TensorFlow Lite model, it lacks the mark TFL3: pass what the converter returned, or a .tflite file of it"
        raise _refusal(message, what)
    (root / _PATH).parent.mkdir(parents=True)
    (root / _PATH).write_bytes(raw)
    program = _open(root / _PATH, what)
    key = _MAIN_SIGNATURE if _MAIN_SIGNATURE in program.keys else next(iter(program.keys), None)
    inputs = tuple(
        TensorSpec(name=n, datatype=_datatype(d, n, what), shape=_shape(d)) for n, d in program.inputs.items()
    )
    names = _check_methods(program.outputs, methods, what)
    outputs = {name: _shape(program.outputs[name]) for name in names}
    for name in names:
        _datatype(program.outputs[name], name, what)
    one_by_one = all(
        len(shape) > 1 and shape[0] == 1 for shape in [*(spec.shape for spec in inputs), *outputs.values()]
    )
    if one_by_one:
        inputs = tuple(TensorSpec(name=s.name, datatype=s.datatype, shape=(-1, *s.shape[1:])) for s in inputs)
        outputs = {name: (-1, *shape[1:]) for name, shape in outputs.items()}
    kind = "array" if len(inputs) == 1 else "mapping"
    return Saved(
        loader={"format": "tflite", "path": _PATH, "signature": key, "methods": list(names), "one_by_one": one_by_one},
        name=model.stem if isinstance(model, Path) else "TfliteModel",
        modules=frozenset({"ai_edge_litert", "numpy"}),
        # The rest of what it asks for is for converting and measuring.
        bare=frozenset({"ai-edge-litert"}),
        renamed={},
        inputs=None if any(-1 in spec.shape[1:] for spec in inputs) else (kind, inputs),
        takes=lambda sample: (kind, inputs),
        shapes=outputs,
        output_name=names[0],
    )


def _open(path: Path, what: str) -> Program:
    try:
        program = Program(path)
        if len(program.keys) > 1:
            if _MAIN_SIGNATURE not in program.keys:
                message = f"{what} has the signatures {', '.join(program.keys)} and no {_MAIN_SIGNATURE!r}: convert it with one of them"
                raise _refusal(message, what)
            program = Program(path, _MAIN_SIGNATURE)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"{what} cannot be run by LiteRT ({reason}): convert it again with operators of TensorFlow Lite alone"
        raise _refusal(message, what) from error
    return program


def _datatype(detail: Mapping[str, Any], name: str, what: str) -> str:
    import numpy as np

    dtype = str(np.dtype(detail["dtype"]).name)
    found = _NAMES.get(dtype, dtype.upper())
    if found not in DATATYPES or found == "BYTES":
        raise _refusal(
            f"{what} has a tensor {name!r} of {dtype}, which no request can carry: convert it with numbers instead",
            name,
        )
    return found


def _shape(detail: Mapping[str, Any]) -> tuple[int, ...]:
    """Return a shape with -1 for what was left open when the model was converted."""
    known = detail.get("shape_signature")
    return tuple(int(length) for length in (detail["shape"] if known is None or not len(known) else known))


def _check_methods(outputs: Mapping[str, Any], methods: Sequence[str] | None, what: str) -> tuple[str, ...]:
    names = tuple(outputs) if methods is None else (methods,) if isinstance(methods, str) else tuple(methods)
    if not names or len(set(names)) != len(names):
        raise _refusal(f"methods={list(names)!r} must name at least one output, and each one once", NAME)
    for name in names:
        if name not in outputs:
            raise _refusal(f"{what} has no output {name!r}: pass methods= with some of {', '.join(outputs)}", str(name))
    return names


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
