"""What the `MLmodel` file of an MLflow model says: its flavors, its signature, and its example of an input. MLflow is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.runtime.datatypes import DATATYPES
from polyserve.runtime.signature import TensorSpec
from polyserve.runtime.tensors import TEXT

FILE_NAME = "MLmodel"

_COLUMNS = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}
_DTYPES = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}
_EXAMPLE_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowModel:
    """An MLflow model's description.

    Attributes:
        root: Its directory.
        flavors: What it can be loaded as, by MLflow's names, with what each needs.
        inputs: Kind and specs of its inputs, where its signature says so in a way that tensors can.
        example: Rows of input that were saved with it; `None` where none were, or pandas is needed for them and not installed.
    """

    root: Path
    flavors: Mapping[str, Mapping[str, Any]]
    inputs: tuple[str, tuple[TensorSpec, ...]] | None
    example: Any


def read(root: Path) -> MlflowModel:
    """Read the description in a directory.

    Raises:
        PackageError: It is none; says what is wrong with it.
        MissingDependencyError: PyYAML is not installed.
    """
    what = repr(root.name)
    if find_spec("yaml") is None:
        message = "an MLflow model is described in YAML, which needs PyYAML, which is not installed: pip install pyyaml"
        raise MissingDependencyError(message, operation="package", resource=what)
    import yaml

    try:
        described = yaml.safe_load((root / FILE_NAME).read_text(encoding="utf-8"))
        flavors = {str(name): dict(needs or {}) for name, needs in described["flavors"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"{what} has a file {FILE_NAME} that is no description of an MLflow model ({reason}): save it again with MLflow"
        raise PackageError(message, operation="package", resource=what) from error
    signature = described.get("signature") or {}
    inputs = _inputs(json.loads(signature.get("inputs") or "null"))
    return MlflowModel(
        root=root,
        flavors=flavors,
        inputs=inputs,
        example=_example(root, described.get("saved_input_example_info") or {}, inputs),
    )


def _inputs(columns: Any) -> tuple[str, tuple[TensorSpec, ...]] | None:
    if not isinstance(columns, list) or not columns:
        return None
    if all(column.get("type") == "tensor" for column in columns):
        tensors = [_tensor(column) for column in columns]
        found = [tensor for tensor in tensors if tensor is not None]
        if len(found) != len(columns):
            return None
        return "array" if len(found) == 1 and not columns[0].get("name") else "mapping", tuple(found)
    if all(column.get("type") in _COLUMNS and column.get("name") for column in columns):
        return "frame", tuple(_column(column) for column in columns)
    return None


def _tensor(column: Mapping[str, Any]) -> TensorSpec | None:
    described = column["tensor-spec"]
    dtype = str(described["dtype"])
    datatype = _DTYPES.get(dtype, dtype.upper())
    if datatype not in DATATYPES or datatype == "BYTES":
        return None
    return TensorSpec(name=column.get("name") or "input", datatype=datatype, shape=tuple(described["shape"]))


def _column(column: Mapping[str, Any]) -> TensorSpec:
    datatype = _COLUMNS[column["type"]]
    return TensorSpec(
        name=column["name"], datatype=datatype, shape=(-1,), parameters=TEXT if datatype == "BYTES" else {}
    )


def _example(root: Path, described: Mapping[str, Any], inputs: tuple[str, Sequence[TensorSpec]] | None) -> Any:
    path = root / str(described.get("artifact_path") or "")
    if not path.is_file():
        return None
    value = json.loads(path.read_text(encoding="utf-8"))
    if described.get("type") == "ndarray" and isinstance(value, list):
        import numpy as np

        spec = inputs[1][0] if inputs is not None and inputs[0] == "array" else None
        array = np.asarray(value[:_EXAMPLE_ROWS])
        return (
            array
            if spec is None or prod(array.shape) == 0
            else array.astype(spec.datatype.lower().replace("fp", "float"))
        )
    if described.get("type") == "dataframe" and described.get("pandas_orient") == "split" and find_spec("pandas"):
        import pandas as pd

        return pd.DataFrame(value["data"][:_EXAMPLE_ROWS], columns=value.get("columns"))
    return None
