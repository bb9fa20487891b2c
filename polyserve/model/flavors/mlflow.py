"""MLflow: a model's directory, deployed as it is.

What MLflow wraps is taken out of it: the package is one of scikit-learn, ONNX, XGBoost, LightGBM, PyTorch, Keras or TensorFlow, and MLflow
is not needed to serve it, nor to package it. A custom Python model (`mlflow.pyfunc.PythonModel`) travels whole and is loaded by MLflow.
The input example and the signature that were saved with a model are its sample and its inputs, where none are given.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import flavors, mlmodel
from polyserve.model.flavors import Saved
from polyserve.model.mlmodel import MlflowModel
from polyserve.runtime.environment import without_build
from polyserve.runtime.signature import TensorSpec

NAME = "mlflow"
SUFFIXES: tuple[str, ...] = ()
DIRECTORY = mlmodel.FILE_NAME
SAFE = False

_PATH = "model/mlflow"
_CUSTOM = "mlflow.pyfunc.model"
_PICKLES = (".pkl", ".pickle", ".pth", ".pt", ".joblib")


def recognises(model: object) -> bool:
    """Tell whether an object is MLflow's; none is, a model of it is a directory."""
    return False


def save(model: object, root: Path, *, methods: Sequence[str] | None, files: Path | None) -> Saved:
    """Save what the directory holds as its own flavor does, or copy all of it to `model/mlflow/`.

    Raises:
        PackageError: It is no MLflow model, of none of the flavors that are served, or was saved by other versions than are installed.
        MissingDependencyError: PyYAML is not installed, or the model's framework, or MLflow where it is needed.
    """
    if not isinstance(model, Path) or not model.is_dir():
        kind = type(model).__name__ if not isinstance(model, Path) else repr(model.name)
        raise _refusal(f"{kind} is no directory of an MLflow model: pass the directory with its {DIRECTORY} file", kind)
    described = mlmodel.read(model)
    what = repr(model.name)
    found = next((name for name in _MAPPED if name in described.flavors), None)
    if found is None:
        saved = _save_custom(described, root, what, methods=methods, files=files)
    else:
        saved = _save_mapped(described, found, root, what, methods=methods, files=files)
    return replace(
        saved,
        name=model.resolve().name,
        inputs=saved.inputs or _signature(described, saved),
        sample=_sample(described, saved),
    )


def _save_mapped(
    described: MlflowModel, found: str, root: Path, what: str, *, methods: Sequence[str] | None, files: Path | None
) -> Saved:
    needs = described.flavors[found]
    if needs.get("code"):
        # The user's modules that were saved with it; found there, they travel as any do.
        sys.path.insert(0, str((described.root / str(needs["code"])).resolve()))
    name, take = _MAPPED[found]
    try:
        inner = take(described.root, needs, what)
    except (KeyError, OSError) as error:
        message = f"{what} lacks {error} of its flavor {found!r}: save it again with MLflow"
        raise _refusal(message, what) from error
    known = flavors.flavor(name)
    wrapped = described.flavors.get("python_function", {}).get("predict_fn")
    if methods is None and name == "sklearn" and wrapped:
        methods = [str(wrapped)]
    saved = known.save(inner, root, methods=methods, files=files)
    return replace(saved, flavor=name, safe=known.SAFE if saved.safe is None else saved.safe)


def _save_custom(
    described: MlflowModel, root: Path, what: str, *, methods: Sequence[str] | None, files: Path | None
) -> Saved:
    needs = described.flavors.get("python_function", {})
    if needs.get("loader_module") != _CUSTOM:
        there = ", ".join(sorted(set(described.flavors) - {"python_function"})) or "python_function alone"
        message = (
            f"{what} is an MLflow model of flavor {there}, and those that are served are {', '.join(_MAPPED)} and custom Python models: "
            "wrap it in a mlflow.pyfunc.PythonModel, or in a predictor class with load(model_dir)"
        )
        raise _refusal(message, what)
    if methods is not None or files is not None:
        option = f"methods={methods!r}" if methods is not None else f"files={str(files)!r}"
        raise _refusal(f"{option}: a custom Python model of MLflow has predict() alone, and its own artifacts", what)
    if find_spec("mlflow") is None:
        message = f"{what} is a custom Python model, which MLflow itself must load, and it is not installed: pip install mlflow-skinny"
        raise MissingDependencyError(message, operation="package", resource=what)
    _check_python(needs, what)
    distributions = _required(described.root, what)
    shutil.copytree(
        described.root, root / _PATH, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("__pycache__")
    )
    return Saved(
        loader={"format": "pyfunc", "path": _PATH},
        name=described.root.name,
        modules=frozenset({"mlflow", "numpy"}),
        distributions=distributions,
        renamed={},
        inputs=described.inputs,
    )


def _required(root: Path, what: str) -> tuple[str, ...]:
    """Return the distributions that a custom model asks for, in the versions that it was saved with."""
    path = root / "requirements.txt"
    names = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            wanted = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:
            continue  # an option of pip, or nothing
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        if wanted.name == "mlflow" and not _installed("mlflow"):
            continue  # its smaller sister does as well
        installed = _installed(wanted.name)
        if installed is None or not wanted.specifier.contains(without_build(installed), prereleases=True):
            message = (
                f"{what} asks for {str(wanted)!r}, and {installed or 'none'} is installed here, under which it may answer differently: "
                f"pip install {str(wanted)!r}"
            )
            raise _refusal(message, wanted.name)
        names.append(wanted.name)
    return tuple(names)


def _signature(described: MlflowModel, saved: Saved) -> tuple[str, tuple[TensorSpec, ...]] | None:
    """Return the inputs that MLflow was told of, unless they are a table and the model takes arrays."""
    return (
        None
        if described.inputs is None or (described.inputs[0] == "frame" and saved.takes is not None)
        else described.inputs
    )


def _sample(described: MlflowModel, saved: Saved) -> Any:
    """Return the input example as the model takes it: MLflow hands the values of a table to models that take arrays."""
    example = described.example
    is_table = type(example).__name__ == "DataFrame"
    return example.to_numpy() if is_table and saved.takes is not None else example


# --- what MLflow wraps ------------------------------------------------------------------------------------------------------------------


def _take_file(key: str) -> Callable[[Path, Mapping[str, Any], str], object]:
    def take(root: Path, needs: Mapping[str, Any], what: str) -> object:
        return root / str(needs[key])

    return take


def _take_sklearn(root: Path, needs: Mapping[str, Any], what: str) -> object:
    _check_saved_by("scikit-learn", needs.get("sklearn_version"), what)
    return root / str(needs["pickled_model"])


def _take_xgboost(root: Path, needs: Mapping[str, Any], what: str) -> object:
    _check_present("xgboost", "xgboost-cpu", what)
    import xgboost

    path = root / str(needs["data"])
    if not path.is_file():
        raise FileNotFoundError(path.name)
    kind = getattr(xgboost, str(needs.get("model_class", "")).rpartition(".")[2], xgboost.Booster)
    model = kind()
    model.load_model(str(path))
    return model


def _take_lightgbm(root: Path, needs: Mapping[str, Any], what: str) -> object:
    _check_present("lightgbm", "lightgbm", what)
    import lightgbm

    path = root / str(needs["data"])
    if str(needs.get("model_class", "")).endswith(".Booster"):
        return lightgbm.Booster(model_file=str(path))
    _check_saved_by("lightgbm", needs.get("lgb_version"), what)
    if path.suffix == ".skops":
        _check_present("skops", "skops", what)
        import skops.io

        # Not what the file says of itself that it may be: LightGBM's own classes, and no others.
        trusted = [
            name for name in skops.io.get_untrusted_types(file=path) if name.startswith(("lightgbm.", "collections."))
        ]
        return skops.io.load(path, trusted=trusted)
    import joblib

    return joblib.load(path)


def _take_pytorch(root: Path, needs: Mapping[str, Any], what: str) -> object:
    data = root / str(needs["model_data"])
    path = next((data / name for name in ("model.pt2", "model.pth") if (data / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{data.name}/model.pth")
    if path.suffix in _PICKLES:
        _check_saved_by("torch", needs.get("pytorch_version"), what)
    return path


def _take_keras(root: Path, needs: Mapping[str, Any], what: str) -> object:
    if "saved_model_dir" in needs:
        return root / str(needs["saved_model_dir"])
    data = root / str(needs["data"])
    path = next((data / name for name in ("model.keras", "model.h5", "model") if (data / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{data.name}/model.keras")
    return path


# By MLflow's names, those that need least first: our flavor, and what of the directory is its model.
_MAPPED: Mapping[str, tuple[str, Callable[[Path, Mapping[str, Any], str], object]]] = {
    "onnx": ("onnx", _take_file("data")),
    "xgboost": ("xgboost", _take_xgboost),
    "lightgbm": ("lightgbm", _take_lightgbm),
    "sklearn": ("sklearn", _take_sklearn),
    "pytorch": ("torch", _take_pytorch),
    "keras": ("tensorflow", _take_keras),
    "tensorflow": ("tensorflow", _take_keras),
}


# --- versions ---------------------------------------------------------------------------------------------------------------------------


def _check_saved_by(distribution: str, saved_by: object, what: str) -> None:
    """Refuse a model that another version of its framework saved."""
    installed = _installed(distribution)
    if saved_by is None or installed is None or without_build(str(saved_by)) == without_build(installed):
        return
    message = (
        f"{what} was saved by {distribution} {saved_by}, and {installed} is installed here, under which it may answer differently: "
        f"pip install {distribution}=={without_build(str(saved_by))}, or train and save it again"
    )
    raise _refusal(message, what)


def _check_python(needs: Mapping[str, Any], what: str) -> None:
    saved_by = ".".join(str(needs.get("python_version", "")).split(".")[:2])
    running = ".".join(platform.python_version_tuple()[:2])
    if saved_by and saved_by != running:
        message = f"{what} was saved by Python {saved_by}, and this is Python {running}, which reads other byte-code: package it there"
        raise _refusal(message, what)


def _check_present(module: str, distribution: str, what: str) -> None:
    if find_spec(module) is None:
        message = f"{what} needs {module} to be packaged, which is not installed: pip install {distribution}"
        raise MissingDependencyError(message, operation="package", resource=what)


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="package", resource=resource)
