"""TensorFlow and Keras: a SavedModel directory, a Keras model in memory, or a `.keras` or HDF5 file of one.

    SavedModel             travels as it is, and answers by its signature
    Keras model or file    saved anew as `.keras`, without what it was trained with

Keras loads both in its safe mode: a Lambda layer of Python code is refused, since a file of it would bring code that runs. What the
user's own classes are registered as travels by name, and their modules as code.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import kerasfile
from polyserve.model.flavors import Saved
from polyserve.model.sources import MAIN, travelling_name
from polyserve.runtime.datatypes import DATATYPES
from polyserve.runtime.loaders.tensorflow import open_keras, open_saved_model
from polyserve.runtime.signature import TensorSpec
from polyserve.runtime.tensors import TEXT

NAME = "tensorflow"
SUFFIXES = (".keras", ".h5", ".hdf5")
DIRECTORY = "saved_model.pb"
SAFE = True

_KERAS = "model/model.keras"
_SAVED_MODEL = "model/saved_model"
_MAIN_SIGNATURE = "serving_default"
_NAMES = {
    "bool": "BOOL",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}
_FRAMEWORKS = frozenset({"keras", "tensorflow"})


def recognises(model: object) -> bool:
    """Tell whether the object is a Keras model."""
    kind = model if isinstance(model, type) else type(model)
    return any(
        parent.__module__.partition(".")[0] in {"keras", "tf_keras"} and parent.__name__ == "Model"
        for parent in kind.__mro__
    )


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Copy a SavedModel to `model/saved_model/`, or write a Keras model to `model/model.keras`.

    Raises:
        PackageError: It is no model that Keras or TensorFlow can load without running code that it brings, has no signature, lacks an
            output, or takes or gives what no tensor can hold.
        MissingDependencyError: TensorFlow or Keras is not installed.
    """
    if files is not None:
        message = f"files={str(files)!r}: a TensorFlow model takes no further files; write a predictor class with load(model_dir)"
        raise _refusal(message, NAME)
    is_directory = isinstance(model, Path) and model.is_dir()
    needed = "tensorflow" if is_directory else "keras"
    if find_spec(needed) is None:
        sort = "SavedModel" if is_directory else "Keras model"
        message = f"a {sort} needs {needed} to be packaged, which is not installed: pip install tensorflow-cpu, which brings both"
        raise MissingDependencyError(message, operation="package", resource=NAME)
    (root / "model").mkdir(parents=True)
    if is_directory and isinstance(model, Path):
        return _save_directory(model, root, methods)
    if methods is not None:
        message = f"methods={list(methods)!r}: a Keras model is called as a whole; make a model of fewer outputs, or export a SavedModel"
        raise _refusal(message, NAME)
    return _save_keras(model, root)


# --- SavedModel -------------------------------------------------------------------------------------------------------------------------


def _save_directory(path: Path, root: Path, methods: Sequence[str] | None) -> Saved:
    what = repr(path.name)
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        # `debug` says where on the exporter's machine each operation came from.
        if file.is_file() and inside.parts[0] != "debug":
            (root / _SAVED_MODEL / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, root / _SAVED_MODEL / inside)
    try:
        signatures = open_saved_model(root / _SAVED_MODEL).signatures
    except Exception as error:
        message = f"{what} cannot be loaded as a SavedModel ({_first_line(error)}): export it again with model.export()"
        raise _refusal(message, what) from error
    key = _MAIN_SIGNATURE if _MAIN_SIGNATURE in signatures or len(signatures) != 1 else next(iter(signatures))
    if key not in signatures:
        there = f"has the signatures {', '.join(signatures)}" if signatures else "has no signature"
        message = f"{what} {there}, and {key!r} is what is served: export it with model.export(), or with signatures={{{key!r}: ...}}"
        raise _refusal(message, what)
    inputs = tuple(
        _spec(name, tensor, what) for name, tensor in sorted(signatures[key].structured_input_signature[1].items())
    )
    if not inputs:
        raise _refusal(f"{what} takes no input by its signature {key!r}: export it with a signature that does", what)
    outputs = {name: _spec(name, tensor, what) for name, tensor in sorted(signatures[key].structured_outputs.items())}
    names = tuple(outputs) if methods is None else (methods,) if isinstance(methods, str) else tuple(methods)
    if not names or len(set(names)) != len(names) or not set(names) <= set(outputs):
        raise _refusal(
            f"methods={list(names)!r} must name some of the outputs {', '.join(outputs)}, and each one once", what
        )
    return Saved(
        loader={"format": "saved_model", "path": _SAVED_MODEL, "signature": key, "methods": list(names)},
        name=path.resolve().name,
        modules=frozenset({"tensorflow", "numpy"}),
        renamed={},
        inputs=_without_sample(inputs),
        takes=lambda sample: (_kind(inputs), inputs),
        shapes={name: outputs[name].shape for name in names},
        output_name=names[0],
    )


# --- Keras ------------------------------------------------------------------------------------------------------------------------------


def _save_keras(model: Any, root: Path) -> Saved:
    what = repr(model.name) if isinstance(model, Path) else type(model).__name__
    if isinstance(model, type):
        raise _refusal(f"{model.__name__} is a class: pass a trained object of it", model.__name__)
    if type(model).__module__.partition(".")[0] == "tf_keras":
        message = (
            f"{what} is of tf_keras, the Keras of before: export it with model.export(directory), and package that"
        )
        raise _refusal(message, what)
    if not isinstance(model, Path) and not recognises(model):
        kind = type(model)
        message = f"a {kind.__module__}.{kind.__qualname__} is no Keras model: pass one, a .keras or .h5 file, or a SavedModel directory"
        raise _refusal(message.replace(" builtins.", " "), what)
    import keras

    with tempfile.TemporaryDirectory(prefix="polyserve-") as scratch:
        file = model if isinstance(model, Path) else _written(model, Path(scratch, "given.keras"), what)
        # Loaded and saved: that leaves out the optimizer's state, brings HDF5 into the format of today, and proves that it loads.
        found = _read(file, what)
        raw = kerasfile.canonical(_written(found, Path(scratch, "model.keras"), what).read_bytes())
    (root / _KERAS).write_bytes(raw)
    own, renamed = _own_modules(raw, what)
    backend = keras.backend.backend()
    inputs = tuple(_spec(tensor.name, tensor, what) for tensor in getattr(found, "inputs", None) or ())
    return Saved(
        loader={
            "format": "keras",
            "path": _KERAS,
            "backend": backend,
            "modules": sorted(renamed.get(module, module) for module in own),
        },
        name=model.stem if isinstance(model, Path) else what,
        modules=frozenset({"keras", backend, "numpy", *own}),
        renamed=renamed,
        inputs=_without_sample(inputs),
        takes=(lambda sample: (_kind(inputs), inputs)) if inputs else None,
        safe=not own,
    )


def _written(model: Any, path: Path, what: str) -> Path:
    try:
        model.save(path)
    except Exception as error:
        message = f"{what} cannot be saved by Keras ({_first_line(error)}): call it once, so that it is built, or export a SavedModel"
        raise _refusal(message, what) from error
    return path


def _read(path: Path, what: str) -> Any:
    import keras

    try:
        return open_keras(path)
    except Exception as error:
        if "Lambda" in str(error) and "safe_mode" in str(error):
            message = (
                f"{what} has a Lambda layer, whose Python code would run wherever it is loaded: export it with model.export(directory) and "
                "package that, or write the layer as a registered class"
            )
        elif "could not be deserialized" in str(error) or "custom_objects" in str(error) or "Unknown" in str(error):
            message = (
                f"{what} refers to classes or functions that Keras does not know here: decorate them with "
                "@keras.saving.register_keras_serializable(), import their module, and package the model again"
            )
        else:
            message = f"{what} cannot be loaded by Keras {keras.__version__} ({_first_line(error)}): save it again with model.save"
        raise _refusal(message, what) from error


def _own_modules(raw: bytes, what: str) -> tuple[set[str], dict[str, str]]:
    """Return the modules that register what the model refers to and Keras does not bring."""
    import keras

    found = {keras.saving.get_registered_object(name) for name in kerasfile.registered(raw)}
    own = {
        kind.__module__ for kind in found if kind is not None and kind.__module__.partition(".")[0] not in _FRAMEWORKS
    }
    return own, {MAIN: travelling_name(what)} if MAIN in own else {}


# --- inputs -----------------------------------------------------------------------------------------------------------------------------


def _spec(name: str, tensor: Any, what: str) -> TensorSpec:
    dtype = str(getattr(tensor.dtype, "name", tensor.dtype))
    datatype = _NAMES.get(dtype, dtype.upper())
    if datatype not in DATATYPES or tensor.shape is None or getattr(tensor.shape, "rank", 0) is None:
        message = f"{what} has a tensor {name!r} of {dtype} and shape {tensor.shape}, which no request can carry: export it otherwise"
        raise _refusal(message, name)
    shape = tuple(-1 if length is None else int(length) for length in tensor.shape)
    return TensorSpec(name=name, datatype=datatype, shape=shape, parameters=TEXT if datatype == "BYTES" else {})


def _kind(inputs: Sequence[TensorSpec]) -> str:
    return "array" if len(inputs) == 1 else "mapping"


def _without_sample(inputs: tuple[TensorSpec, ...]) -> tuple[str, tuple[TensorSpec, ...]] | None:
    """Return kind and inputs where zeros of a known shape can be made for all of them."""
    if not inputs or any(spec.datatype == "BYTES" or -1 in spec.shape[1:] for spec in inputs):
        return None
    return _kind(inputs), inputs


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
