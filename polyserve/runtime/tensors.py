"""A named tensor, whatever its memory is: raw bytes of the wire, Python values, or a numpy array.

Every `Tensor` is valid from the moment it exists, so nothing behind it checks again. numpy is imported inside functions only: lists and raw
bytes work without it. BF16, which numpy lacks, is float32 in memory and rounded to nearest-even on the wire.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

from polyserve.runtime.datatypes import (
    DATATYPES,
    INTEGERS,
    ITEM_BYTES,
    Raw,
    decode_bytes,
    encode_bytes,
    pack,
    refusal,
    shorten,
    to_little_endian,
    unpack,
)
from polyserve.runtime.messages import RequestError
from polyserve.runtime.nesting import MOST_DIMENSIONS, check_elements, flatten, measure, nest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TEXT", "Tensor", "concatenate", "infer_datatype"]

TEXT: Mapping[str, Any] = {"content_type": "str"}
"""The parameters of BYTES that are text."""

_NUMPY_NAMES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_DATATYPE_OF = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
_KNOWN: dict[Any, str] = {}
_MOST_ELEMENTS = 2**40


class Tensor:
    """A named tensor of one datatype and shape.

    Args:
        name: Its name.
        datatype: One of the protocol's datatypes.
        shape: Lengths, from 0; `()` is a scalar.
        data: Its elements, row-major: a flat list or lists nested as the shape says, raw little-endian bytes as the binary extension has
            them, or a numpy array of that datatype and shape.
        parameters: Parameters of the protocol; `{"content_type": "str"}` marks BYTES that are text.

    Raises:
        RequestError: The datatype is unknown, or the data are not of that datatype, shape or size.
    """

    __slots__ = ("data", "datatype", "name", "parameters", "shape")

    def __init__(
        self, name: str, datatype: str, shape: Sequence[int], data: Any, parameters: Mapping[str, Any] | None = None
    ) -> None:
        if datatype.__class__ is not str or datatype not in ITEM_BYTES:
            raise refusal(name, f"expected a datatype of {', '.join(DATATYPES)}, got {shorten(datatype)}")
        self.name = name
        self.datatype = datatype
        self.shape = _check_shape(name, shape)
        self.parameters: Mapping[str, Any] = {} if parameters is None else parameters
        self.data: Any
        if isinstance(data, list | tuple):
            self.data = pack(name, datatype, flatten(name, data, self.shape))
        elif isinstance(data, bytes | bytearray | memoryview):
            self.data = _check_raw(name, datatype, self.shape, data)
        elif hasattr(data, "__array__"):
            self.data = _check_array(name, datatype, self.shape, data)
        else:
            raise refusal(name, f"expected a list, bytes or a numpy array as its data, got {type(data).__name__}")

    @classmethod
    def _of(cls, name: str, datatype: str, shape: tuple[int, ...], data: Any, parameters: Mapping[str, Any]) -> Tensor:
        """Make a tensor of memory that is known to be valid."""
        tensor = cls.__new__(cls)
        tensor.name = name
        tensor.datatype = datatype
        tensor.shape = shape
        tensor.data = data
        tensor.parameters = parameters
        return tensor

    @classmethod
    def from_numpy(cls, name: str, array: Any, *, datatype: str | None = None) -> Tensor:
        """Make a tensor of a numpy array, without a copy where the datatype is its own.

        Args:
            name: The tensor's name.
            array: The array; arrays of `str` and `bytes` (fixed width or objects) become BYTES.
            datatype: `"BF16"` to send float32 as BF16; else the array's own.

        Raises:
            RequestError: No datatype of the protocol holds these elements.
        """
        dtype = array.dtype
        own = _KNOWN.get(dtype)
        if own is None:
            own = _DATATYPE_OF.get(dtype.name)
            if own is None:
                return _from_elements(name, array)
            # A dtype's name takes longer to make than the rest of this.
            _KNOWN[dtype] = own
        if datatype is not None and datatype != own:
            if (own, datatype) != ("FP32", "BF16"):
                raise refusal(name, f"expected {datatype} values, got an array of {array.dtype}")
            own = datatype
        elif own == "BF16":
            array = array.astype("f4")
        if not dtype.isnative:
            array = array.astype(dtype.newbyteorder("="))
        return cls._of(name, own, array.shape, array, {})

    @classmethod
    def from_list(cls, name: str, values: Any, *, datatype: str | None = None) -> Tensor:
        """Make a tensor of nested lists (or one scalar), taking shape and, unless given, datatype from them.

        Integers become INT64 (UINT64 where they must), floats FP64, text and bytes BYTES.

        Raises:
            RequestError: The lists are ragged or mixed, or hold what no datatype can.
        """
        shape, flat = measure(name, values)
        parameters: Mapping[str, Any] = {}
        try:
            if datatype is None:
                datatype, parameters = infer_datatype(name, flat)
            elif datatype == "BYTES" and flat and all(isinstance(value, str) for value in flat):
                parameters = TEXT
            if datatype not in ITEM_BYTES:
                raise refusal(name, f"expected a datatype of {', '.join(DATATYPES)}, got {shorten(datatype)}")
            data = pack(name, datatype, flat)
        except RequestError:
            check_elements(name, len(shape), flat)
            raise
        return cls._of(name, datatype, shape, data, parameters)

    @property
    def is_text(self) -> bool:
        """Whether the elements are BYTES that are text."""
        return self.datatype == "BYTES" and self.parameters.get("content_type") == "str"

    @property
    def rows(self) -> int:
        """The length of the leading dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    def numpy(self) -> NDArray[Any]:
        """Return a numpy array of the elements; BYTES as objects (`str` where they are text, else `bytes`), BF16 as float32.

        Raises:
            RequestError: Text was expected and a value is not UTF-8.
        """
        import numpy as np

        data = self.data
        if self.datatype == "BYTES":
            texts = np.empty(len(data), dtype=object)
            texts[:] = self.flat()
            return texts.reshape(self.shape)
        if isinstance(data, np.ndarray):
            return data
        if self.datatype == "BF16":
            return (np.frombuffer(data, "<u2").astype("u4") << 16).view("f4").reshape(self.shape)
        code = data.typecode if type(data) is array else _NUMPY_NAMES[self.datatype]
        elements: np.ndarray[Any, Any] = np.frombuffer(data, code)
        if type(data) is not array:
            # The body's bytes are read-only and unaligned; code that works on JSON input must work on binary input.
            elements = elements.copy()
        return elements if len(self.shape) == 1 else elements.reshape(self.shape)

    def flat(self) -> list[Any]:
        """Return the elements, row-major, as Python values.

        Raises:
            RequestError: Text was expected and a value is not UTF-8.
        """
        data = self.data
        if self.datatype == "BYTES":
            if self.is_text:
                return [_as_text(self.name, index, value) for index, value in enumerate(data)]
            return [value.encode() if isinstance(value, str) else value for value in data]
        if isinstance(data, array | bytes | bytearray | memoryview):
            return unpack(self.datatype, data)
        flat: list[Any] = data.ravel().tolist()
        return flat

    def tolist(self) -> Any:
        """Return the elements as lists nested as the shape says, or one Python value for a scalar.

        Raises:
            RequestError: Text was expected and a value is not UTF-8.
        """
        data = self.data
        if hasattr(data, "dtype"):
            return data.tolist()
        return nest(self.flat(), self.shape)

    def tobytes(self) -> bytes:
        """Return the elements as the binary extension has them: row-major, little-endian, BYTES preceded by their lengths."""
        data = self.data
        if self.datatype == "BYTES":
            return encode_bytes(data)
        if isinstance(data, array):
            return to_little_endian(data)
        if isinstance(data, bytes | bytearray | memoryview):
            return bytes(data)
        if self.datatype == "BF16":
            return _bfloat_bytes(self.name, data)
        raw: bytes = data.astype(_NUMPY_NAMES[self.datatype], copy=False).tobytes()
        return raw

    def split(self, counts: Sequence[int]) -> list[Tensor]:
        """Cut the tensor along its leading dimension into parts of so many rows, without copying numpy arrays."""
        if sum(counts) != self.shape[0]:
            raise refusal(self.name, f"expected {sum(counts)} rows, got {self.shape[0]}")
        trailing = self.shape[1:]
        data = self.data
        step = prod(trailing)
        if isinstance(data, bytes | bytearray | memoryview):
            step *= ITEM_BYTES[self.datatype]
        elif not isinstance(data, list | array):
            step = 1
        parts = []
        start = 0
        for count in counts:
            end = start + count
            part = data[start * step : end * step]
            parts.append(Tensor._of(self.name, self.datatype, (count, *trailing), part, self.parameters))
            start = end
        return parts

    def __repr__(self) -> str:
        return f"Tensor(name={self.name!r}, datatype={self.datatype!r}, shape={list(self.shape)!r})"


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors of one name, datatype and trailing shape along their leading dimension, copying each element once."""
    first = tensors[0]
    shape = (sum([tensor.shape[0] for tensor in tensors]), *first.shape[1:])
    data: Any
    if first.datatype == "BYTES":
        data = list(chain.from_iterable([tensor.data for tensor in tensors]))
    elif all(type(tensor.data) is array for tensor in tensors):
        data = array(first.data.typecode)
        data.frombytes(b"".join([tensor.data for tensor in tensors]))
    else:
        data = b"".join([tensor.tobytes() for tensor in tensors])
    return Tensor._of(first.name, first.datatype, shape, data, first.parameters)


def infer_datatype(name: str, flat: Sequence[Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the datatype, and parameters, that hold these Python values.

    Raises:
        RequestError: There are none, or no datatype holds them all.
    """
    if not flat:
        raise refusal(name, "expected at least one value to take the datatype from, got none")
    sorts = {_sort_of(kind) for kind in set(map(type, flat))}
    if sorts == {"bool"}:
        return "BOOL", {}
    if sorts == {"str"}:
        return "BYTES", TEXT
    if sorts == {"bytes"}:
        return "BYTES", {}
    if sorts == {"int"}:
        low, high = min(flat), max(flat)
        for datatype in ("INT64", "UINT64"):
            if INTEGERS[datatype][0] <= low and high <= INTEGERS[datatype][1]:
                return datatype, {}
        raise refusal(name, f"expected integers of at most 64 bits, got {shorten(low)} to {shorten(high)}")
    if "float" in sorts and sorts <= {"int", "float", "NoneType"}:
        return "FP64", {}
    raise refusal(name, f"expected numbers, booleans, text or bytes of one sort, got {' and '.join(sorted(sorts))}")


def _sort_of(kind: type) -> str:
    """Return which of Python's types a value's type behaves as; numpy's scalars included, without importing numpy."""
    for sort in (bool, int, float, str, bytes):
        if issubclass(kind, sort):
            return sort.__name__
    if kind.__module__ == "numpy":
        stem = kind.__name__.rstrip("_0123456789").removeprefix("u")
        if stem in {"bool", "int", "float"}:
            return stem
    return kind.__name__


def _check_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if type(shape) is not list and type(shape) is not tuple:
        raise refusal(name, f"expected a list of lengths as its shape, got {shorten(shape)}")
    if len(shape) > MOST_DIMENSIONS:
        raise refusal(name, f"expected at most {MOST_DIMENSIONS} dimensions, got {len(shape)}")
    count = 1
    for length in shape:
        if type(length) is not int or length < 0:
            raise refusal(name, f"expected lengths from 0 as its shape, got {shorten(shape)}")
        count *= length or 1
    if count > _MOST_ELEMENTS:
        raise refusal(name, f"expected at most {_MOST_ELEMENTS} elements, got shape {shorten(shape)}")
    return tuple(shape)


def _check_raw(name: str, datatype: str, shape: tuple[int, ...], raw: Raw) -> Raw | list[bytes]:
    count = prod(shape)
    if datatype == "BYTES":
        return decode_bytes(name, raw, count)
    size = len(raw) if not isinstance(raw, memoryview) else raw.nbytes
    expected = count * ITEM_BYTES[datatype]
    if size != expected:
        raise refusal(name, f"expected {expected} bytes for {datatype} of shape {list(shape)}, got {size}")
    if datatype == "BOOL" and bytes(raw).translate(None, b"\0\1"):
        raise refusal(name, "expected BOOL bytes of 0 or 1, got another value")
    return raw


def _check_array(name: str, datatype: str, shape: tuple[int, ...], values: Any) -> Any:
    made = Tensor.from_numpy(
        name, values, datatype="BF16" if datatype == "BF16" and values.dtype.name == "float32" else None
    )
    if made.datatype != datatype:
        raise refusal(name, f"expected {datatype} values, got an array of {values.dtype}")
    if made.shape != shape:
        raise refusal(name, f"expected shape {list(shape)}, got an array of shape {list(made.shape)}")
    return made.data


def _from_elements(name: str, values: Any) -> Tensor:
    """Make a tensor of an array of text, bytes or Python objects."""
    kind = values.dtype.kind
    if kind not in "USOT":
        raise refusal(name, f"expected numbers, booleans, text or bytes, got an array of {values.dtype}")
    flat = values.ravel().tolist()
    datatype, parameters = ("BYTES", {} if kind == "S" else TEXT) if kind in "UST" else ("", {})
    if kind == "O":
        datatype, parameters = infer_datatype(name, flat)
    return Tensor._of(name, datatype, values.shape, pack(name, datatype, flat), parameters)


def _as_text(name: str, index: int, value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise refusal(name, f"expected UTF-8 text, got {shorten(value)} at index {index}") from None


def _bfloat_bytes(name: str, values: np.ndarray[Any, Any]) -> bytes:
    import numpy as np

    words = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view("<u4")
    halves = ((words + (0x7FFF + ((words >> 16) & 1)).astype("<u4")) >> 16).astype("<u2")
    nans = (words & 0x7FFFFFFF) > 0x7F800000
    if nans.any():
        halves[nans] = (words[nans] >> 16).astype("<u2") | 0x40
    overflown = ((halves & 0x7FFF) == 0x7F80) & ((words & 0x7FFFFFFF) != 0x7F800000)
    if overflown.any():
        index = int(np.flatnonzero(overflown)[0])
        value = shorten(float(values.reshape(-1)[index]))
        raise refusal(name, f"expected BF16 values, got {value} at index {index}, which is out of its range")
    encoded: bytes = halves.tobytes()
    return encoded
