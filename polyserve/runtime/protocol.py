"""The Open Inference Protocol, version 2: JSON and the binary tensor extension, as Triton's HTTP server and clients speak them.

Both sides are here, so that what `Endpoint` writes is what `Host` reads. Knows no HTTP server and no model.

JSON has no word for what is not a finite number. Answers stay valid for strict parsers: not-a-number is `null` (as KServe writes
it), the infinities are `"Infinity"` and `"-Infinity"` (as Protocol Buffers' JSON has them); numpy reads all three back as what they
were. Requests may use the same three, or the bare words `NaN`, `Infinity` and `-Infinity` that Triton and Python write. Where BYTES
are not UTF-8, JSON cannot carry them: such an answer is refused with the way out, the binary extension, which carries everything
unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any

from polyserve.runtime.datatypes import shorten
from polyserve.runtime.jsontext import decode_json, elements, encode_json, nested
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.tensors import Tensor

__all__ = [
    "HEADER_LENGTH",
    "InferRequest",
    "decode_json",
    "format_infer",
    "format_request",
    "format_rows",
    "parse_infer",
    "parse_response",
    "parse_rows",
]

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how much of a body is JSON; the rest are the binary tensors, in the order of the JSON."""

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"

_UNSUPPORTED = ("shared_memory_region", "classification")


class InferRequest:
    """An inference request, read and valid as far as it can be without the model's signature.

    Attributes:
        id: What the caller calls it; goes back in the answer.
        inputs: Its tensors, in the order of the request.
        outputs: Names of the outputs that are asked for; `None` for all.
        parameters: Parameters of the request.
        binary_outputs: The outputs that go back as binary: all, none or these.
    """

    __slots__ = ("binary_outputs", "id", "inputs", "outputs", "parameters")

    def __init__(
        self,
        id: str,  # noqa: A002  (the protocol's own word)
        inputs: list[Tensor],
        outputs: tuple[str, ...] | None,
        parameters: Mapping[str, Any],
        binary_outputs: bool | frozenset[str],
    ) -> None:
        self.id = id
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.binary_outputs = binary_outputs


# --- the server's side --------------------------------------------------------------------------------------------


def parse_infer(body: bytes | memoryview, headers: Mapping[str, str]) -> InferRequest:
    """Read an inference request.

    Args:
        body: JSON, followed by binary tensors where `headers` tell the length of the JSON.
        headers: Header values by lower-case name.

    Raises:
        RequestError: INVALID_ARGUMENT where it is not such a request, naming the tensor; UNSUPPORTED where it asks for shared memory or
            classification, which this server has not.
    """
    payload, tail = _envelope(body, headers, "request")
    inputs = _read_tensors(payload, "inputs", tail)
    request_id = payload.get("id", "")
    if request_id.__class__ is not str or not (request_id.isascii() or _is_utf8(request_id)):
        raise _invalid(f"'id': expected UTF-8 text, got {shorten(request_id)}")
    parameters = payload.get("parameters")
    binary: bool | frozenset[str] = False
    if parameters is None:
        parameters = {}
    else:
        if not isinstance(parameters, dict):
            raise _invalid(f"'parameters': expected an object, got {shorten(parameters)}")
        binary = _flag(parameters, "binary_data_output", default=False)
    wanted = payload.get("outputs")
    if not wanted:
        if wanted is not None and wanted != []:
            raise _invalid(f"'outputs': expected a list, got {shorten(wanted)}")
        return InferRequest(request_id, inputs, None, parameters, binary)
    return InferRequest(request_id, inputs, *_read_outputs(wanted, parameters, bool(binary)))


def format_infer(
    tensors: Sequence[Tensor],
    *,
    model: str,
    version: str,
    request_id: str = "",
    binary: bool | frozenset[str] = False,
) -> tuple[bytes, dict[str, str]]:
    """Write the answer to an inference request.

    Args:
        tensors: The outputs, in the order they are to be in.
        model: The model's name.
        version: Its version.
        request_id: The request's own `id`, left out where it is empty.
        binary: The outputs that go as binary: all, none or these.

    Returns:
        The body, and the headers that describe it.

    Raises:
        RequestError: BYTES that are not UTF-8 were asked for as JSON.
    """
    head = _answer_head(model, version)
    if request_id:
        head += f'"id":{encode_basestring(request_id)},'
    return _write(head, "outputs", tensors, binary, "")


def parse_rows(body: bytes | memoryview) -> Any:
    """Read the rows of a plain request: a bare JSON array, or an object with `rows`; any other object is taken as it is.

    Raises:
        RequestError: It is neither.
    """
    payload = decode_json(body)
    if isinstance(payload, dict) and payload.keys() == {"rows"}:
        payload = payload["rows"]
    if not isinstance(payload, list | dict):
        raise _invalid(f'expected a JSON array of rows or {{"rows": [...]}}, got {shorten(payload)}')
    return payload


def format_rows(tensors: Sequence[Tensor]) -> bytes:
    """Write the answer to a plain request: a bare JSON array for one output, an object of arrays for several.

    Raises:
        RequestError: BYTES that are not UTF-8.
    """
    if len(tensors) == 1:
        return nested(tensors[0]).encode()
    return f"{{{','.join(f'{encode_basestring(tensor.name)}:{nested(tensor)}' for tensor in tensors)}}}".encode()


# --- the client's side --------------------------------------------------------------------------------------------


def format_request(
    tensors: Sequence[Tensor],
    *,
    binary: bool,
    outputs: Sequence[str] | None = None,
    request_id: str = "",
) -> tuple[bytes, dict[str, str]]:
    """Write an inference request.

    Args:
        tensors: The inputs.
        binary: Whether tensors travel as binary, both ways; else as JSON.
        outputs: Names of the outputs to ask for; `None` for all.
        request_id: Goes back in the answer's `id`.

    Returns:
        The body, and the headers that describe it.

    Raises:
        RequestError: BYTES that are not UTF-8 are to go as JSON.
    """
    head = f'{{"id":{encode_basestring(request_id)},' if request_id else "{"
    rest = f',"parameters":{{"binary_data_output":{"true" if binary else "false"}}}'
    if outputs is not None:
        names = ",".join([f'{{"name":{encode_basestring(name)}}}' for name in outputs])
        rest += f',"outputs":[{names}]'
    return _write(head, "inputs", tensors, binary, rest)


def parse_response(body: bytes | memoryview, headers: Mapping[str, str]) -> tuple[list[Tensor], str]:
    """Read the answer to an inference request.

    Returns:
        The outputs, and the `id` of the request.

    Raises:
        RequestError: It is no such answer.
    """
    payload, tail = _envelope(body, headers, "answer")
    return _read_tensors(payload, "outputs", tail), str(payload.get("id", ""))


# --- reading ------------------------------------------------------------------------------------------------------


def _envelope(
    body: bytes | memoryview, headers: Mapping[str, str], what: str
) -> tuple[dict[str, Any], memoryview | None]:
    """Return the JSON object of a message, and the binary that follows it."""
    length = headers.get(HEADER_LENGTH)
    if length is None:
        payload = decode_json(body)
        tail = None
    else:
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else -1
        if not 0 < size <= len(body):
            raise _invalid(
                f"{HEADER_LENGTH}: expected the size of the JSON, 1 to {len(body)} bytes, got {shorten(length)}"
            )
        view = memoryview(body)
        payload = decode_json(view[:size])
        tail = view[size:]
    if payload.__class__ is not dict:
        raise _invalid(f"expected a JSON object as the {what}, got {shorten(payload)}")
    return payload, tail


def _read_tensors(payload: Mapping[str, Any], key: str, tail: memoryview | None) -> list[Tensor]:
    items = payload.get(key)
    if items.__class__ is not list or (not items and key == "inputs"):
        raise _invalid(f"{key!r}: expected a list of tensors, got {shorten(items)}")
    tensors = []
    at = 0
    for item in items:
        try:
            name, shape, datatype = item["name"], item["shape"], item["datatype"]
        except (KeyError, TypeError):
            raise _invalid(f"{key!r}: expected tensors with name, shape and datatype, got {shorten(item)}") from None
        if name.__class__ is not str:
            raise _invalid(f"{key!r}: expected names that are text, got {shorten(name)}")
        parameters = item.get("parameters")
        size = None
        if parameters is not None:
            parameters, size = _read_parameters(name, parameters)
        if size is None:
            data = _json_data(name, item)
        else:
            left = 0 if tail is None else len(tail) - at
            if tail is None or size > left:
                raise _invalid(
                    f"tensor {name!r}: expected {size} bytes after the JSON, got {left} (see {HEADER_LENGTH})"
                )
            data = tail[at : at + size]
            at += size
        tensors.append(Tensor(name, datatype, shape, data, parameters))
    if tail is not None and at != len(tail):
        raise _invalid(f"expected {at} bytes of binary tensors after the JSON, got {len(tail)}")
    return tensors


def _json_data(name: str, item: Mapping[str, Any]) -> Any:
    if "data" not in item:
        raise _invalid(f"tensor {name!r}: expected 'data' or parameters.binary_data_size, got neither")
    data = item["data"]
    if data.__class__ is list:
        return data
    if item["shape"] != []:
        raise _invalid(f"tensor {name!r}: expected a list as its data, got {shorten(data)}")
    return [data]


def _read_parameters(name: str, parameters: Any) -> tuple[Mapping[str, Any], int | None]:
    if parameters.__class__ is not dict:
        raise _invalid(f"tensor {name!r}: expected an object as its parameters, got {shorten(parameters)}")
    _refuse_unsupported(name, parameters)
    size = parameters.pop("binary_data_size", None)
    if size is not None and (type(size) is not int or size < 0):
        raise _invalid(f"tensor {name!r}: expected a number of bytes as binary_data_size, got {shorten(size)}")
    return parameters, size


def _read_outputs(
    wanted: Any, parameters: Mapping[str, Any], binary_default: bool
) -> tuple[tuple[str, ...], Mapping[str, Any], bool | frozenset[str]]:
    if not isinstance(wanted, list):
        raise _invalid(f"'outputs': expected a list, got {shorten(wanted)}")
    names: list[str] = []
    binary: set[str] = set()
    for item in wanted:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise _invalid(f"'outputs': expected objects with a name, got {shorten(item)}")
        if name in names:
            raise _invalid(f"output {name!r} is asked for more than once")
        own = item.get("parameters")
        if own is not None:
            if not isinstance(own, dict):
                raise _invalid(f"output {name!r}: expected an object as its parameters, got {shorten(own)}")
            _refuse_unsupported(name, own)
        if _flag(own or {}, "binary_data", default=binary_default):
            binary.add(name)
        names.append(name)
    return tuple(names), parameters, frozenset(binary)


def _refuse_unsupported(name: str, parameters: Mapping[str, Any]) -> None:
    for key in _UNSUPPORTED:
        if parameters.get(key):
            raise RequestError(
                ErrorCode.UNSUPPORTED, f"tensor {name!r}: this server has no {key}; send and take the values"
            )


def _flag(parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise _invalid(f"{key!r}: expected true or false, got {shorten(value)}")
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, message)


# --- writing ------------------------------------------------------------------------------------------------------


def _write(
    head: str, key: str, tensors: Sequence[Tensor], binary: bool | frozenset[str], rest: str
) -> tuple[bytes, dict[str, str]]:
    described: list[str] = []
    blocks: list[bytes] = []
    for tensor in tensors:
        start = _tensor_head(tensor.name, tensor.datatype, tensor.shape)
        parameters = tensor.parameters
        if binary is True or (binary and tensor.name in binary):
            raw = tensor.tobytes()
            blocks.append(raw)
            rest_of = f"{encode_json(dict(parameters))[1:-1]}," if parameters else ""
            described.append(f'{start}"parameters":{{{rest_of}"binary_data_size":{len(raw)}}}}}')
        elif parameters:
            described.append(f'{start}"parameters":{encode_json(dict(parameters))},"data":{elements(tensor)}}}')
        else:
            described.append(f'{start}"data":{elements(tensor)}}}')
    text = f'{head}"{key}":[{",".join(described)}]{rest}}}'.encode()
    if binary is True or blocks:
        return b"".join([text, *blocks]), {"content-type": BINARY_TYPE, HEADER_LENGTH: str(len(text))}
    return text, {"content-type": JSON_TYPE}


@lru_cache(maxsize=256)
def _answer_head(model: str, version: str) -> str:
    return f'{{"model_name":{encode_basestring(model)},"model_version":{encode_basestring(version)},'


@lru_cache(maxsize=1024)
def _tensor_head(name: str, datatype: str, shape: tuple[int, ...]) -> str:
    lengths = ",".join(map(str, shape))
    return f'{{"name":{encode_basestring(name)},"datatype":"{datatype}","shape":[{lengths}],'
