"""Input of a model from a command line: JSON, `.json`, `.npy` and `.csv` files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from polyserve.errors import InvalidArgumentError, MissingDependencyError, NotFoundError

SUFFIXES = (".json", ".npy", ".csv")


def from_json(text: str | bytes, source: str) -> Any:
    """Read a value from JSON.

    Raises:
        InvalidArgumentError: It is not JSON; the message has the place.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{source} is not JSON: {error}", operation="read", resource=source) from error


def read(path: str, *, kind: str = "") -> Any:
    """Read a model's input from a file, or JSON from stdin where `path` is `-`.

    A CSV file may have a header line. With one it is read as rows by column name where `kind` says that the model
    takes a frame, or where a column is text; otherwise as rows of numbers, header left out.

    Args:
        path: The file.
        kind: The kind of value that the model takes, such as `"frame"`; empty where nobody knows.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: It is no file of a known type, or not what its name says.
        MissingDependencyError: A `.npy` file, and numpy is not installed.
    """
    if path == "-":
        return from_json(sys.stdin.buffer.read(), "stdin")
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path!r}: look at the path", operation="read", resource=path) from error
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot read {path!r}: {error.strerror}", operation="read", resource=path
        ) from error
    match file.suffix.lower():
        case ".json":
            return from_json(data, path)
        case ".npy":
            return _numpy(data, path)
        case ".csv":
            return _table(data, path, kind)
    known = ", ".join(SUFFIXES)
    raise InvalidArgumentError(f"{path!r} has no known suffix: give one of {known}", operation="read", resource=path)


def read_sample(path: str) -> Any:
    """Read the sample that a package is made with: as `read`, and a table as what a model is trained on.

    A CSV file with a header line becomes a data frame where pandas is installed, one without a header an array where
    numpy is.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: It is no file of a known type, or not what its name says.
        MissingDependencyError: A `.npy` file, and numpy is not installed.
    """
    value = read(path, kind="frame")
    if not path.lower().endswith(".csv"):
        return value
    with contextlib.suppress(ImportError):
        if isinstance(value[0], dict):
            import pandas as pd

            return pd.DataFrame(value)
        import numpy as np

        return np.array(value)
    return value


def _numpy(data: bytes, path: str) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        message = f"{path!r} needs numpy, which is not installed: pip install numpy, or give .json or .csv"
        raise MissingDependencyError(message, operation="read", resource=path) from error
    try:
        # Never a pickle: the input of a model is data.
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidArgumentError(
            f"{path!r} is not a numpy array: {error}", operation="read", resource=path
        ) from error


def _table(data: bytes, path: str, kind: str) -> Any:
    try:
        lines = [line for line in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgumentError(f"{path!r} is not CSV in UTF-8: {error}", operation="read", resource=path) from error
    if not lines:
        raise InvalidArgumentError(f"{path!r} is empty: give at least one row", operation="read", resource=path)
    width = len(lines[0])
    for number, line in enumerate(lines, 1):
        if len(line) != width:
            message = f"{path!r}: row {number} has {len(line)} fields, row 1 has {width}: every row needs the same"
            raise InvalidArgumentError(message, operation="read", resource=path)
    header = lines[0] if all(_number(field) is None for field in lines[0]) and len(lines) > 1 else None
    body = lines[1:] if header else lines
    columns = [_column([line[i] for line in body]) for i in range(width)]
    rows = [list(row) for row in zip(*columns, strict=True)]
    text = any(isinstance(column[0], str) for column in columns)
    if header and (kind in {"frame", "mapping"} or (text and not kind)):
        return [dict(zip(header, row, strict=True)) for row in rows]
    return rows


def _column(fields: list[str]) -> list[Any]:
    """Return a column as numbers if every field is one, else as it is."""
    numbers = [_number(field) for field in fields]
    return list(fields) if None in numbers else numbers


def _number(field: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(field)
        except ValueError:
            continue
    return None
