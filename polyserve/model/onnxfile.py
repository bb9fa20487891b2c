"""What an ONNX file says of itself, read from its bytes: the `onnx` package is not needed to package a model.

Knows protocol buffers' wire format and the numbers of the few fields it looks for, from onnx.proto of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# The fields of each message that lead to tensors, and the message each of them holds.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_STANDARD = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxHeader:
    """What a model says of itself.

    Attributes:
        ir_version: Version of the file format.
        opset: Version of the standard's operators; 0 where none is named.
        external: Paths of the files that hold its weights, relative to its own, sorted; empty where it holds them itself.
    """

    ir_version: int
    opset: int
    external: tuple[str, ...]


def read_header(raw: bytes) -> OnnxHeader:
    """Read what a serialized ModelProto says of itself.

    Raises:
        ValueError: It is no such message.
    """
    ir_version = opset = 0
    graphs = 0
    for number, value in _fields(memoryview(raw)):
        if number == 1 and isinstance(value, int):
            ir_version = value
        elif number == 7:
            graphs += 1
        elif number == 8 and isinstance(value, memoryview):
            named = dict(_fields(value))
            if _text(named.get(1, b"")) in _STANDARD and isinstance(version := named.get(2), int):
                opset = version
    if not ir_version or not graphs:
        raise ValueError("it has no graph")
    return OnnxHeader(ir_version=ir_version, opset=opset, external=tuple(sorted(set(_external(raw)))))


def _external(raw: bytes) -> Iterator[str]:
    pending = [("model", memoryview(raw))]
    while pending:
        message, data = pending.pop()
        for number, value in _fields(data):
            if not isinstance(value, memoryview):
                continue
            if message == "tensor" and number == 13:
                entry = dict(_fields(value))
                if _text(entry.get(1, b"")) == "location":
                    yield _text(entry.get(2, b""))
            elif (inside := _INSIDE.get(message, {}).get(number)) is not None:
                pending.append((inside, value))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a message."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        sort = key & 7
        if sort == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if sort == _BYTES:
            length, at = _varint(data, at)
        elif sort in {_FIXED32, _FIXED64}:
            length = 4 if sort == _FIXED32 else 8
        else:
            raise ValueError(f"byte {at} begins no field")
        if at + length > end:
            raise ValueError(f"it is cut off: {at + length - end} bytes are missing")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it is cut off inside a number")


def _text(value: int | memoryview | bytes) -> str:
    return "" if isinstance(value, int) else bytes(value).decode(errors="replace")
