"""The datatypes of the Open Inference Protocol, and how Python numbers become their bytes and back.

Works on flat lists with the standard library alone, so that a function whose package has no numpy still speaks every datatype. Knows no
tensors, no JSON and no HTTP; whoever calls names the tensor in the error.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

from polyserve.runtime.messages import ErrorCode, RequestError

__all__ = [
    "DATATYPES",
    "INTEGERS",
    "ITEM_BYTES",
    "Raw",
    "decode_bytes",
    "encode_bytes",
    "pack",
    "refusal",
    "shorten",
    "unpack",
]

Raw = bytes | bytearray | memoryview
"""Little-endian bytes, row-major."""

ITEM_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
    "BYTES": 0,
}
"""Bytes of one element; 0 where every element has its own length."""

DATATYPES = tuple(ITEM_BYTES)
"""Every datatype of version 2 of the protocol."""

INTEGERS = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
"""Smallest and largest value of each integer datatype."""

_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_BIG_ENDIAN = sys.byteorder == "big"
# Spelled out, since struct checks the range of floats only where the byte order is.
_ORDER = ">" if _BIG_ENDIAN else "<"
_NUMBERS = frozenset({int, float})
_ONLY_INT = frozenset({int})
_WORDS = {"NaN": nan, "Infinity": inf, "-Infinity": -inf}
_TEXT_SHOWN = 60


def refusal(name: str, problem: str) -> RequestError:
    """Return the error of a tensor that is not what it should be."""
    return RequestError(ErrorCode.INVALID_ARGUMENT, f"tensor {shorten(name)}: {problem}")


def shorten(value: object) -> str:
    """Return how a value looks, cut to a length that fits an error message."""
    try:
        # A huge integer refuses to be printed; so may any object's own __repr__.
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}..."


def pack(name: str, datatype: str, values: list[Any]) -> array[Any] | bytes | list[Any]:
    """Turn a flat list of Python values into the memory of a tensor.

    Args:
        name: The tensor's name, for the error.
        datatype: One of `DATATYPES`.
        values: Row-major values. Integers are taken for floating point datatypes; floats without a fraction for integer ones; for floating
            point also `None` and `"NaN"` (not a number) and `"Infinity"`, `"-Infinity"`, which is how strict JSON can carry them.

    Returns:
        An `array.array` in native order, raw little-endian bytes (BOOL, FP16, BF16) or the list itself (BYTES).

    Raises:
        RequestError: A value is of the wrong type or does not fit; names tensor, datatype, index and value.
    """
    return _PACKERS[datatype](name, datatype, values)


def unpack(datatype: str, raw: Raw | array[Any]) -> list[Any]:
    """Return the flat list of Python values of a tensor's numeric memory, as `pack` makes it or as raw little-endian bytes."""
    if isinstance(raw, array):
        return raw.tolist()
    if datatype == "BOOL":
        return [byte != 0 for byte in bytes(raw)]
    if datatype == "FP16":
        return list(struct.unpack(f"<{len(raw) // 2}e", raw))
    if datatype == "BF16":
        halves = array("H")
        halves.frombytes(raw)
        if _BIG_ENDIAN:
            halves.byteswap()
        words = array("I", [half << 16 for half in halves])
        return list(struct.unpack(f"{len(words)}f", words))
    values = array(_CODES[datatype])
    values.frombytes(raw)
    if _BIG_ENDIAN:
        values.byteswap()
    return values.tolist()


def to_little_endian(values: array[Any]) -> bytes:
    """Return an array's bytes in the order of the wire."""
    if _BIG_ENDIAN:
        values = values[:]
        values.byteswap()
    return values.tobytes()


def encode_bytes(values: Sequence[str | bytes]) -> bytes:
    """Return BYTES elements as the binary extension has them: each preceded by its length, 4 bytes little-endian."""
    parts: list[bytes] = []
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        parts.append(len(data).to_bytes(4, "little"))
        parts.append(data)
    return b"".join(parts)


def decode_bytes(name: str, raw: Raw, count: int) -> list[bytes]:
    """Split the binary form of `count` BYTES elements.

    Raises:
        RequestError: The lengths do not add up.
    """
    data = bytes(raw)
    end = len(data)
    values: list[bytes] = []
    at = 0
    while at < end:
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if start > end or at > end:
            raise refusal(name, f"BYTES element {len(values)} ends at byte {max(start, at)} of a body of {end} bytes")
        values.append(data[start:at])
    if len(values) != count:
        raise refusal(name, f"expected {count} BYTES elements by its shape, got {len(values)}")
    return values


def _pack_floats(name: str, datatype: str, values: list[Any]) -> array[Any] | bytes:
    if not set(map(type, values)) <= _NUMBERS:
        values = [_as_float(name, datatype, index, value) for index, value in enumerate(values)]
    try:
        if datatype == "FP64":
            return array("d", values)
        if datatype == "FP32":
            # struct and not array, which would silently make them infinite.
            packed = array("f")
            packed.frombytes(struct.pack(f"{_ORDER}{len(values)}f", *values))
            return packed
        if datatype == "FP16":
            return struct.pack(f"<{len(values)}e", *values)
        return _pack_bfloats(values)
    except (OverflowError, struct.error):
        index = next(index for index, value in enumerate(values) if not _fits(datatype, value))
        problem = (
            f"expected {datatype} values, got {shorten(values[index])} at index {index}, which is out of its range"
        )
        raise refusal(name, problem) from None


def _pack_integers(name: str, datatype: str, values: list[Any]) -> array[Any]:
    if not set(map(type, values)) <= _ONLY_INT:
        values = [_as_integer(name, datatype, index, value) for index, value in enumerate(values)]
    try:
        return array(_CODES[datatype], values)
    except OverflowError:
        low, high = INTEGERS[datatype]
        index = next(index for index, value in enumerate(values) if not low <= value <= high)
        problem = f"expected {datatype} values ({low} to {high}), got {shorten(values[index])} at index {index}"
        raise refusal(name, problem) from None


def _pack_booleans(name: str, _: str, values: list[Any]) -> bytes:
    if set(map(type, values)) - {bool}:
        for index, value in enumerate(values):
            if not (isinstance(value, bool | int) or _is_numpy(value, "bi")) or value not in {0, 1}:
                raise refusal(name, f"expected BOOL values (true or false), got {shorten(value)} at index {index}")
    return bytes(map(int, values))


def _pack_bytes(name: str, _: str, values: list[Any]) -> list[Any]:
    types = set(map(type, values))
    if not types <= {str, bytes}:
        for index, value in enumerate(values):
            if not isinstance(value, str | bytes):
                raise refusal(name, f"expected BYTES values (text or bytes), got {shorten(value)} at index {index}")
        # numpy's own text and bytes become Python's.
        values = [str(value) if isinstance(value, str) else bytes(value) for value in values]
    if types != {bytes}:
        for index, value in enumerate(values):
            # A lone surrogate is a string that no UTF-8 can carry.
            if isinstance(value, str) and not value.isascii() and not _encodable(value):
                raise refusal(name, f"expected text that UTF-8 can carry, got {shorten(value)} at index {index}")
    return values


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pack_bfloats(values: list[float]) -> bytes:
    words = struct.unpack(f"{_ORDER}{len(values)}I", struct.pack(f"{_ORDER}{len(values)}f", *values))
    halves = array("H", map(_bfloat_bits, words))
    # The largest float32 values round up to infinity: refuse them as every other datatype does.
    for value, half in zip(values, halves, strict=True):
        if half & 0x7FFF == 0x7F80 and value not in {inf, -inf}:
            raise OverflowError
    return to_little_endian(halves)


def _bfloat_bits(word: int) -> int:
    if word & 0x7FFFFFFF > 0x7F800000:
        # Rounding could carry a NaN over to infinity; keep it a quiet NaN.
        return (word >> 16) | 0x40
    return (word + 0x7FFF + ((word >> 16) & 1)) >> 16


def _as_float(name: str, datatype: str, index: int, value: Any) -> float:
    if value is None:
        return nan
    if isinstance(value, str):
        if value in _WORDS:
            return _WORDS[value]
    elif (isinstance(value, int | float) and not isinstance(value, bool)) or _is_numpy(value, "iuf"):
        try:
            return float(value)
        except OverflowError:
            problem = f"expected {datatype} values, got {shorten(value)} at index {index}, which is out of its range"
            raise refusal(name, problem) from None
    raise refusal(name, f"expected {datatype} values (numbers), got {shorten(value)} at index {index}")


def _as_integer(name: str, datatype: str, index: int, value: Any) -> int:
    if (isinstance(value, int) and not isinstance(value, bool)) or _is_numpy(value, "iu"):
        return int(value)
    if (isinstance(value, float) or _is_numpy(value, "f")) and float(value).is_integer():
        return int(value)
    raise refusal(name, f"expected {datatype} values (integers), got {shorten(value)} at index {index}")


def _is_numpy(value: object, kinds: str) -> bool:
    # numpy's scalars are not Python's numbers; looked at by shape, since numpy may not be there.
    return getattr(getattr(value, "dtype", None), "kind", "-") in kinds and getattr(value, "shape", None) == ()


def _fits(datatype: str, value: float) -> bool:
    try:
        if datatype == "BF16":
            _pack_bfloats([value])
        else:
            struct.pack({"FP64": "<d", "FP32": "<f", "FP16": "<e"}[datatype], value)
    except (OverflowError, struct.error):
        return False
    return True


_PACKERS: dict[str, Callable[[str, str, list[Any]], array[Any] | bytes | list[Any]]] = {
    **dict.fromkeys(INTEGERS, _pack_integers),
    **dict.fromkeys(("FP16", "FP32", "FP64", "BF16"), _pack_floats),
    "BOOL": _pack_booleans,
    "BYTES": _pack_bytes,
}
