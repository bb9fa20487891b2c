"""The golden sample: a request and the answer to it, as files of the package, and the comparison of another answer with it.

The files are Open Inference Protocol messages in one canonical form: JSON where JSON can hold every value exactly, else its
binary extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyserve.errors import PackageError
from polyserve.runtime.manifest import Manifest, Tolerance
from polyserve.runtime.messages import Request, RequestError, Response
from polyserve.runtime.protocol import BINARY_TYPE, HEADER_LENGTH, JSON_TYPE, parse_response
from polyserve.runtime.tensors import Tensor

LIMIT_BYTES = 1 << 20
"""Largest golden request: it is replayed after every deploy and must fit every platform's request limit."""

_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_DIGITS = 6
# What processors may differ by is relative to what the datatype can hold at all.
_RELATIVE = {"FP64": 1e-5, "FP32": 1e-4, "FP16": 4e-3, "BF16": 2e-2}


def tolerance_for(datatypes: Sequence[str]) -> Tolerance:
    """Return how far floats of these datatypes may be from the golden answer."""
    return Tolerance(relative=max([_RELATIVE.get(datatype, 0.0) for datatype in datatypes] + [_RELATIVE["FP64"]]))


def check_size(inputs: Sequence[Tensor]) -> None:
    """Refuse a sample that is too large to be replayed after every deploy.

    Raises:
        PackageError: It has more than `LIMIT_BYTES`.
    """
    size = len(_message("inputs", inputs, {})[0])
    if size > LIMIT_BYTES:
        rows = f" of {inputs[0].rows} rows" if inputs[0].shape else ""
        message = (
            f"the sample{rows} is {size} bytes as a request, and a golden sample may have {LIMIT_BYTES}: "
            "pass fewer rows, such as sample=X[:8]"
        )
        raise PackageError(message, operation="package", resource="sample")


def write(
    root: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor], tolerance: Tolerance
) -> dict[str, str | int]:
    """Write the golden request and answer below `root / "sample"`, and return the manifest's description of them."""
    answer, answer_json_bytes = _message("outputs", [_rounded(tensor, tolerance) for tensor in outputs], {})
    # An answer that JSON cannot hold is asked for as binary.
    parameters = {} if answer_json_bytes is None else {"parameters": {"binary_data_output": True}}
    (root / "sample").mkdir()
    described: dict[str, str | int] = {}
    request_body, request_json_bytes = _message("inputs", inputs, parameters)
    for role, body, json_bytes in (
        ("request", request_body, request_json_bytes),
        ("answer", answer, answer_json_bytes),
    ):
        path = f"sample/{role}.{'json' if json_bytes is None else 'bin'}"
        (root / path).write_bytes(body)
        described[role] = path
        if json_bytes is not None:
            described[f"{role}_json_bytes"] = json_bytes
    return described


def request(root: Path, manifest: Manifest) -> Request | None:
    """Return the golden request, or `None` where the package has no sample."""
    if manifest.sample is None:
        return None
    body, headers = _read(root, manifest.sample, "request")
    return Request(path=f"/v2/models/{manifest.name}/infer", headers=headers, body=body)


def difference(root: Path, manifest: Manifest, response: Response) -> str | None:
    """Compare an answer with the golden one.

    Returns:
        `None` where they are equal: floats within the manifest's tolerance, everything else exactly. Otherwise one sentence that
        names the output, the index, what was expected and what came.
    """
    if manifest.sample is None:
        return None
    if response.status != 200:
        return f"status {response.status} instead of 200: {response.body[:500].decode(errors='replace')}"
    try:
        got, _ = parse_response(response.body, response.headers)
    except RequestError as error:
        return f"the answer is no inference answer: {error.message}"
    expected, _ = parse_response(*_read(root, manifest.sample, "answer"))
    names, expected_names = [tensor.name for tensor in got], [tensor.name for tensor in expected]
    if names != expected_names:
        return f"outputs {names} instead of {expected_names}"
    return next(filter(None, map(_compare, expected, got, [manifest.tolerance] * len(got))), None)


def largest(root: Path, manifest: Manifest, shares: Mapping[str, float]) -> float:
    """Return the largest share of a number of the golden answer: its magnitude times what `shares` has for its datatype; 0 for none."""
    if manifest.sample is None:
        return 0.0
    tensors, _ = parse_response(*_read(root, manifest.sample, "answer"))
    found = [
        shares[tensor.datatype] * abs(value)
        for tensor in tensors
        if tensor.datatype in shares
        for value in tensor.flat()
        if math.isfinite(value)
    ]
    return max(found, default=0.0)


def same(expected: Sequence[Tensor], got: Sequence[Tensor], tolerance: Tolerance) -> str | None:
    """Compare two answers as `difference` does."""
    return next(filter(None, map(_compare, expected, got, [tolerance] * len(got))), None)


def _compare(expected: Tensor, got: Tensor, tolerance: Tolerance) -> str | None:
    if got.datatype != expected.datatype:
        return f"output {got.name!r} is {got.datatype} instead of {expected.datatype}"
    if got.shape != expected.shape:
        return f"output {got.name!r} has shape {list(got.shape)} instead of {list(expected.shape)}"
    is_float = expected.datatype in _FLOATS
    for index, (want, have) in enumerate(zip(_flat(expected), _flat(got), strict=True)):
        if want != have and not (is_float and _is_close(want, have, tolerance)):
            return f"output {got.name!r} at index {_position(index, got.shape)}: expected {want!r}, got {have!r}"
    return None


def _flat(tensor: Tensor) -> list[object]:
    # Whether BYTES are text is the signature's to say; the bytes are what is compared.
    return [value.encode() if isinstance(value, str) else value for value in tensor.flat()]


def _is_close(want: object, have: object, tolerance: Tolerance) -> bool:
    if not isinstance(want, float | int) or not isinstance(have, float | int):
        return False
    if math.isnan(want) or math.isnan(have):
        return math.isnan(want) and math.isnan(have)
    return math.isfinite(have) and abs(have - want) <= tolerance.absolute + tolerance.relative * abs(want)


def _position(index: int, shape: Sequence[int]) -> list[int]:
    position = []
    for length in reversed(shape):
        index, place = divmod(index, length)
        position.append(place)
    return position[::-1]


def _rounded(tensor: Tensor, tolerance: Tolerance) -> Tensor:
    if tensor.datatype not in _FLOATS:
        return tensor
    values = [_round(value, tolerance) for value in tensor.flat()]
    return Tensor(tensor.name, tensor.datatype, tensor.shape, values)


def _round(value: float, tolerance: Tolerance) -> float:
    if not math.isfinite(value):
        return value
    # What is below the absolute tolerance is noise: its digits differ from processor to processor, its sign too.
    return 0.0 if abs(value) < tolerance.absolute else float(f"{value:.{_DIGITS}g}")


def _message(key: str, tensors: Sequence[Tensor], rest: Mapping[str, object]) -> tuple[bytes, int | None]:
    """Return a message, and the length of its JSON where it is followed by binary tensors."""
    try:
        described = [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": _plain(tensor)}
            for tensor in tensors
        ]
        return _json({key: described, **rest}), None
    except ValueError:
        raw = [tensor.tobytes() for tensor in tensors]
    header = _json(
        {
            key: [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": list(tensor.shape),
                    "parameters": {"binary_data_size": len(part)},
                }
                for tensor, part in zip(tensors, raw, strict=True)
            ],
            **rest,
        }
    )
    return header + b"".join(raw), len(header)


def _plain(tensor: Tensor) -> list[object]:
    # UnicodeDecodeError is a ValueError, as is what json says of NaN: both mean that JSON cannot hold it.
    return [value.decode() if isinstance(value, bytes) else value for value in tensor.flat()]


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _read(root: Path, sample: Mapping[str, str | int], role: str) -> tuple[bytes, dict[str, str]]:
    body = (root / str(sample[role])).read_bytes()
    json_bytes = sample.get(f"{role}_json_bytes")
    if json_bytes is None:
        return body, {"content-type": JSON_TYPE}
    return body, {"content-type": BINARY_TYPE, HEADER_LENGTH: str(json_bytes)}
