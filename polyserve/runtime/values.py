"""Python values to tensors and back; the client, packaging and the python loader all go through here.

A value is of one *kind*, recorded in the signature, so that what a predictor gets in the cloud is what it got on the sample:

    array    one numpy array
    list     nested lists, or one number, boolean, text or bytes
    frame    a pandas DataFrame: one tensor per column, in order
    mapping  a dict of name -> array, list or scalar: one tensor per name
    rows     a list of dicts with the same keys and scalar values: one tensor per key
    arrays   a tuple or list of arrays (outputs)

Knows no wire format and no model. numpy and pandas are imported inside functions, and only where the value is one of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyserve.runtime.datatypes import INTEGERS, shorten
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import TensorSpec, fits
from polyserve.runtime.tensors import Tensor

__all__ = ["describe", "from_tensors", "to_tensors"]

_LIST = {"python": "list"}
"""The parameters of a mapping's value that is a list, not an array."""

_BY_NAME = frozenset({"frame", "mapping", "rows"})
_LISTS_ONLY = {list}

_NUMPY_TYPES = {"FP16": "f2", "FP32": "f4", "FP64": "f8"} | {name: name.lower() for name in INTEGERS}


def describe(value: Any, *, name: str = "input") -> tuple[str, tuple[TensorSpec, ...]]:
    """Say of what kind a value is and which tensors stand for it.

    Args:
        value: A sample of what a model takes or gives.
        name: What to call the tensor of an array or list; those of several arrays are `name_0`, `name_1`, ...

    Returns:
        The kind, and one spec per tensor; the leading dimension is -1, scalars have shape `()`.

    Raises:
        RequestError: No tensors can stand for it; says which part and what can.
    """
    kind = _kind_of(value)
    return kind, tuple(
        TensorSpec(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=(-1, *tensor.shape[1:]) if tensor.shape else (),
            parameters=tensor.parameters,
        )
        for tensor in _tensors_of(value, kind, name)
    )


def to_tensors(value: Any, specs: Sequence[TensorSpec], kind: str | None = None) -> list[Tensor]:
    """Turn a value into the tensors that a signature asks for.

    Takes whatever fits: an array where lists were the sample, a frame for an array, rows (dicts or lists) for a frame, one dict of
    scalars for one row. Numbers are cast where nothing is lost: integers to wider integers and floats, floats to floats of another
    width, floats without a fraction to integers.

    Args:
        value: The value.
        specs: What is asked for; empty to take the value as it is.
        kind: The signature's kind, where it is known.

    Returns:
        One tensor per spec, in order.

    Raises:
        RequestError: A name, shape or datatype does not fit; names the input, what was expected and what came.
    """
    if not specs:
        return _tensors_of(value, _kind_of(value), "input")
    if len(specs) == 1 and kind not in _BY_NAME and (type(value) is list or not isinstance(value, Mapping)):
        return [_fit(value, specs[0])]
    parts = _parts(value, specs, kind)
    tensors = [_fit(part, spec) for part, spec in zip(parts, specs, strict=True)]
    if kind in {"frame", "rows"} and len({tensor.rows for tensor in tensors}) > 1:
        lengths = ", ".join(f"{tensor.name!r} has {tensor.rows}" for tensor in tensors)
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"expected columns of one length, got others: {lengths}")
    return tensors


def from_tensors(tensors: Sequence[Tensor], kind: str) -> Any:
    """Turn tensors into the value of a kind that they stand for.

    Raises:
        RequestError: The tensors are not of that kind, or text is not UTF-8.
    """
    if kind in {"array", "list"}:
        if len(tensors) != 1:
            raise _invalid(f"expected one tensor for a value of kind {kind}, got {[tensor.name for tensor in tensors]}")
        return tensors[0].numpy() if kind == "array" else tensors[0].tolist()
    if kind == "arrays":
        return tuple(tensor.numpy() for tensor in tensors)
    if kind == "mapping":
        return {tensor.name: _part_value(tensor) for tensor in tensors}
    columns = {tensor.name: tensor for tensor in tensors}
    if any(len(tensor.shape) != 1 for tensor in tensors):
        raise _invalid(f"expected one-dimensional tensors for a value of kind {kind}, got {list(columns.values())!r}")
    if len({tensor.rows for tensor in tensors}) > 1:
        raise _invalid(f"expected columns of one length, got {', '.join(f'{t.name!r} of {t.rows}' for t in tensors)}")
    if kind == "rows":
        return [dict(zip(columns, row, strict=True)) for row in zip(*(t.flat() for t in tensors), strict=True)]
    if kind == "frame":
        import pandas as pd

        return pd.DataFrame({name: tensor.numpy() for name, tensor in columns.items()}, copy=False)
    raise _invalid(f"expected a kind of array, list, frame, mapping, rows or arrays, got {kind!r}")


def _kind_of(value: Any) -> str:
    if _is_frame(value):
        return "frame"
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, list | tuple) and value:
        if all(isinstance(row, Mapping) for row in value):
            return "rows"
        if all(_is_array(part) and part.shape for part in value):
            return "arrays"
    return "array" if _is_array(value) and value.shape else "list"


def _tensors_of(value: Any, kind: str, name: str) -> list[Tensor]:
    if kind == "frame":
        return [_column(value[column], column) for column in _column_names(value)]
    if kind == "mapping":
        if not value:
            raise _invalid("expected a dict with at least one name, got an empty one")
        return [_part(part, _checked_name(key)) for key, part in value.items()]
    if kind == "rows":
        keys = list(value[0])
        if not keys:
            raise _invalid("expected rows with at least one key, got empty ones")
        return [
            Tensor.from_list(_checked_name(key), [_cell(row, key, keys, i) for i, row in enumerate(value)])
            for key in keys
        ]
    if kind == "arrays":
        return [Tensor.from_numpy(f"{name}_{index}", _as_array(part)) for index, part in enumerate(value)]
    if kind == "array":
        return [Tensor.from_numpy(name, _as_array(value))]
    return [_from_plain(name, value)]


def _part(value: Any, name: str) -> Tensor:
    """Make a tensor of one value of a mapping, remembering whether it was an array or a list."""
    if _is_array(value) and value.shape:
        return Tensor.from_numpy(name, _as_array(value))
    tensor = _from_plain(name, value)
    if tensor.shape:
        tensor.parameters = {**tensor.parameters, **_LIST}
    return tensor


def _part_value(tensor: Tensor) -> Any:
    return tensor.tolist() if not tensor.shape or tensor.parameters.get("python") == "list" else tensor.numpy()


def _from_plain(name: str, value: Any) -> Tensor:
    if isinstance(value, list | tuple) and any(_is_array(row) and row.shape for row in value):
        value = [row.tolist() if _is_array(row) else row for row in value]
    if not isinstance(value, list | tuple | str | bytes | bool | int | float) and not _is_array(value):
        hint = "; call .toarray() first" if hasattr(value, "toarray") else ""
        raise _invalid(
            f"input {name!r}: expected an array, nested lists, a number, text, bytes, a DataFrame or a dict of these, "
            f"got {type(value).__name__}{hint}"
        )
    return Tensor.from_list(name, value)


def _column(series: Any, name: str) -> Tensor:
    """Make a tensor of one column of a frame."""
    missing = series.isna()
    dtype = series.dtype
    if missing.any() and getattr(dtype, "kind", "O") != "f":
        raise _invalid(
            f"input {name!r}: expected no missing values in a column of {dtype}, got one at row {int(missing.to_numpy().argmax())}"
        )
    if dtype.name == "category":
        dtype = dtype.categories.dtype
        series = series.astype(dtype)
    kind = getattr(dtype, "kind", "O")
    if kind in "biuf":
        # pandas' own Int64, Float64 and boolean become numpy's of the same width.
        return Tensor.from_numpy(name, series.to_numpy(dtype=dtype.name.lower() if dtype.name != "boolean" else "bool"))
    if kind == "O":
        return Tensor.from_numpy(name, series.to_numpy(dtype=object))
    raise _invalid(f"input {name!r}: expected numbers, booleans or text, got a column of {dtype}")


def _column_names(frame: Any) -> list[str]:
    names = [_checked_name(name) for name in frame.columns]
    if len(set(names)) != len(names):
        raise _invalid(f"expected columns of different names, got {names}")
    return names


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise _invalid(f"expected names that are text, got {shorten(name)}; rename it, or send an array")
    return name


def _cell(row: Mapping[str, Any], key: str, keys: Sequence[str], index: int) -> Any:
    if key not in row or len(row) != len(keys):
        raise _invalid(f"row {index}: expected the keys {list(keys)}, got {list(row)}")
    return row[key]


def _parts(value: Any, specs: Sequence[TensorSpec], kind: str | None) -> list[Any]:
    """Return the part of the value that belongs to each spec."""
    names = [spec.name for spec in specs]
    if _is_frame(value):
        _check_names(_column_names(value), names)
        return [value[name] for name in names]
    if isinstance(value, Mapping):
        _check_names(value, names)
        one_row = kind in {"frame", "rows"} and not any(map(_is_sized, value.values()))
        return [[value[name]] if one_row else value[name] for name in names]
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return _split_rows(value, names)
    several = kind == "arrays" or (kind is None and isinstance(value, list | tuple) and len(value) == len(names))
    if not several:
        return _split_columns(value, names)
    if not isinstance(value, list | tuple) or len(value) != len(names):
        raise _invalid(f"expected {len(names)} arrays ({', '.join(names)}), got {shorten(value)}")
    return list(value)


def _split_rows(rows: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Split rows that are dicts into one column per name."""
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise _invalid(f"row {index}: expected a dict as the rows before it, got {shorten(row)}")
        _check_names(row, names, where=f"row {index}: ")
    return [[row[name] for row in rows] for name in names]


def _split_columns(value: Any, names: Sequence[str]) -> list[Any]:
    """Split rows of a matrix or of nested lists into one column per name."""
    if _is_array(value):
        value = _as_array(value)
        if value.ndim != 2 or value.shape[1] != len(names):
            raise _invalid(
                f"expected rows of {len(names)} columns ({', '.join(names)}), got an array of shape {list(value.shape)}"
            )
        return [value[:, index] for index in range(len(names))]
    if not isinstance(value, list | tuple):
        raise _invalid(f"expected rows of {len(names)} columns ({', '.join(names)}), got {type(value).__name__}")
    for index, row in enumerate(value):
        if not isinstance(row, list | tuple) or len(row) != len(names):
            raise _invalid(f"row {index}: expected {len(names)} columns ({', '.join(names)}), got {shorten(row)}")
    return [[row[index] for row in value] for index in range(len(names))]


def _check_names(value: Iterable[str], names: Sequence[str], *, where: str = "") -> None:
    if set(value) == set(names):
        return
    missing = [name for name in names if name not in value]
    unknown = [name for name in value if name not in names]
    wrong = [f"{name!r} is missing" for name in missing] + [f"{shorten(name)} is unknown" for name in unknown]
    raise _invalid(f"{where}expected {list(names)}, got {shorten(list(value))}: {', '.join(wrong)}")


def _fit(value: Any, spec: TensorSpec) -> Tensor:
    """Make the tensor that a spec asks for of one value."""
    name = spec.name
    if type(value) is list and value and set(map(type, value)) == _LISTS_ONLY:
        # What JSON brings: rows, which need not be asked whether they are anything else.
        tensor = Tensor.from_list(name, value, datatype=spec.datatype)
    elif hasattr(value, "isna") and not _is_frame(value):
        tensor = _column(value, name)
    elif _is_array(value) or _is_frame(value):
        tensor = Tensor.from_numpy(name, _as_array(value))
    elif not isinstance(value, list | tuple) or any(map(_is_array, value)):
        tensor = _from_plain(name, value)
    elif not value and -1 not in spec.shape[1:]:
        tensor = Tensor(name, spec.datatype, (0, *spec.shape[1:]), [])
    else:
        # Straight into the datatype that is asked for: integers and floats may be mixed.
        tensor = Tensor.from_list(name, value, datatype=spec.datatype)
    if not fits(tensor.shape, spec.shape):
        hint = _shape_hint(tensor.shape, spec.shape)
        raise _invalid(f"input {name!r}: expected shape {list(spec.shape)}, got {list(tensor.shape)}{hint}")
    if tensor.datatype != spec.datatype:
        tensor = _cast(tensor, spec)
    if spec.parameters:
        tensor.parameters = spec.parameters
    return tensor


def _shape_hint(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    return "; send one row as a list of one row" if fits((1, *shape), wanted) else ""


def _cast(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Cast where nothing is lost but the precision of floats."""
    wrong = f"input {spec.name!r}: expected {spec.datatype}, got {tensor.datatype}"
    if {tensor.datatype, spec.datatype} & {"BYTES", "BOOL"}:
        raise _invalid(wrong)
    if not hasattr(tensor.data, "dtype"):
        return Tensor(spec.name, spec.datatype, tensor.shape, tensor.flat())
    import numpy as np

    source = tensor.numpy()
    with np.errstate(all="ignore"):
        if spec.datatype == "BF16":
            return Tensor.from_numpy(spec.name, source.astype("f4"), datatype="BF16")
        cast = source.astype(_NUMPY_TYPES[spec.datatype])
    if spec.datatype in INTEGERS:
        low, high = INTEGERS[spec.datatype]
        # As floats, since high + 1 is a power of two and exact where high is not; Python's integers compare exactly with numpy's.
        inside = (
            (source >= low) & (source <= high)
            if source.dtype.kind in "iu"
            else (source >= float(low)) & (source < float(high + 1))
        )
        lost = ~inside | (cast.astype(source.dtype) != source)
    else:
        lost = np.isinf(cast) & ~np.isinf(source)
    if lost.any():
        index = int(np.flatnonzero(lost)[0])
        raise _invalid(f"{wrong}: {source.reshape(-1)[index]} at index {index} would change")
    return Tensor.from_numpy(spec.name, cast)


def _is_frame(value: Any) -> bool:
    # By its looks, so that pandas is never imported for a caller who has no frame.
    return type(value).__name__ == "DataFrame" and type(value).__module__.partition(".")[0] == "pandas"


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and hasattr(value, "shape") and not _is_frame(value)


def _is_sized(value: Any) -> bool:
    return isinstance(value, list | tuple) or (_is_array(value) and bool(value.shape))


def _as_array(value: Any) -> Any:
    import numpy as np

    if _is_frame(value):
        _column_names(value)
        return value.to_numpy()
    return np.asarray(value)


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, message)
