"""JSON in and out: read as strictly as the protocol needs it, written so that any parser reads it, and as fast as the package allows.

Uses orjson where a package brings it, and makes the same bytes without it. Knows tensors, and no message of the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import import_module
from math import isinf, isnan
from typing import Any

from polyserve.runtime.datatypes import DATATYPES
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.tensors import TEXT, Tensor

__all__ = ["decode_json", "elements", "encode_json", "nested"]

_DECODER: Any = json.JSONDecoder()
# What the decoder itself calls; it says in StopIteration that there is nothing it knows.
_SCAN = _DECODER.scan_once
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_NUMBERS = frozenset(DATATYPES) - {"BYTES", "BOOL"}
_WORTH_IT = 64
_SPELLED_ALIKE = 1e-4

try:
    _orjson: Any = import_module("orjson")
except ImportError:
    _orjson = None


def decode_json(body: bytes | memoryview) -> Any:
    """Read JSON; a faster reader is used where the package has one, and answers the same.

    Raises:
        RequestError: It is not UTF-8, not JSON, or nested too deeply.
    """
    if _orjson is not None:
        try:
            return _orjson.loads(body)
        except ValueError:
            # It refuses NaN and Infinity, which we take: the standard library has the last word.
            pass
    try:
        text = str(body, "utf-8")
        try:
            value, end = _SCAN(text, 0)
        except (StopIteration, ValueError):
            # White space in front is allowed, and rare enough to be looked for only here.
            text = text.lstrip(" \t\r\n")
            value, end = _DECODER.raw_decode(text)
        if end != len(text) and text[end:].strip(" \t\r\n"):
            raise _invalid(f"expected JSON, got something after its end at character {end}")
    except UnicodeDecodeError as error:
        raise _invalid(f"expected UTF-8 JSON, got byte 0x{error.object[error.start]:02x} at {error.start}") from error
    except RecursionError as error:
        raise _invalid("expected JSON, got one that is nested too deeply") from error
    except ValueError as error:
        raise _invalid(f"expected JSON, got what cannot be read: {error}") from error
    return value


def encode_json(value: Any) -> str:
    """Return a value of plain JSON types as compact JSON."""
    return _ENCODER.encode(value)


def elements(tensor: Tensor) -> str:
    """Return a tensor's elements as a flat JSON array."""
    if tensor.datatype in _NUMBERS:
        return _fast_numbers(tensor, flat=True) or _numbers(tensor.flat())
    return encode_json(_text_of(tensor) if tensor.datatype == "BYTES" else tensor.flat())


def nested(tensor: Tensor) -> str:
    """Return a tensor's elements as JSON arrays nested as its shape says."""
    if tensor.datatype in _NUMBERS:
        return _fast_numbers(tensor, flat=False) or _numbers(tensor.tolist())
    if tensor.datatype == "BYTES":
        tensor = Tensor(tensor.name, "BYTES", tensor.shape, _text_of(tensor), TEXT)
    return encode_json(tensor.tolist())


def _numbers(values: Any) -> str:
    # Python prints lists of numbers as JSON has them, several times faster than the encoder does.
    text = repr(values).replace(" ", "")
    # Only "nan" and "inf" have an n.
    return encode_json(_strict(values)) if "n" in text else text


def _fast_numbers(tensor: Tensor, *, flat: bool) -> str:
    """Return what `_numbers` does, twenty times faster for a long array of floats; empty where the bytes could differ.

    The faster writer spells what is below 0.0001 in its own way, and an answer must not tell whether a package brought it.
    """
    values = tensor.data
    if _orjson is None or not hasattr(values, "dtype") or values.size < _WORTH_IT:
        return ""
    import numpy as np

    # Widened first: a float32 next to the limit would pass for the limit.
    values = np.ascontiguousarray(values, dtype="f8" if values.dtype.kind == "f" else None)
    sizes = np.abs(values)
    if not ((sizes == 0) | ((sizes >= _SPELLED_ALIKE) & np.isfinite(sizes))).all():
        return ""
    text: bytes = _orjson.dumps(values.reshape(-1) if flat else values, option=_orjson.OPT_SERIALIZE_NUMPY)
    return text.decode()


def _text_of(tensor: Tensor) -> list[str]:
    texts = []
    for index, value in enumerate(tensor.data):
        try:
            texts.append(value if isinstance(value, str) else value.decode())
        except UnicodeDecodeError:
            raise _invalid(
                f"tensor {tensor.name!r} holds bytes at index {index} that are not UTF-8, which JSON cannot carry: "
                "ask for it as binary (parameters.binary_data true)"
            ) from None
    return texts


def _strict(values: Any) -> Any:
    if isinstance(values, Iterable):
        return [_strict(value) for value in values]
    if isnan(values):
        return None
    if isinf(values):
        return "Infinity" if values > 0 else "-Infinity"
    return values


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, message)
