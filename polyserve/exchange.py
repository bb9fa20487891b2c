"""Python values to the body of an inference request, and the answer back to values, in the caller's own kind.

Tensors travel as binary, lists too: it is quicker than JSON by orders of magnitude, and carries every number as it is. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyserve.driver import ErrorCode, Response
from polyserve.runtime import protocol, values
from polyserve.runtime.messages import RequestError
from polyserve.runtime.signature import Signature

__all__ = ["decode", "encode"]


def encode(data: object, signature: Signature, outputs: Sequence[str] | None) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request, and the headers that describe it.

    Raises:
        RequestError: The data do not fit the signature, or it has no such output.
    """
    if outputs is not None:
        outputs = _checked(outputs, signature)
    tensors = values.to_tensors(data, signature.inputs, signature.input_kind)
    return protocol.format_request(tensors, binary=True, outputs=outputs)


def decode(response: Response, data: object, signature: Signature) -> Any:
    """Return the value that a response holds, in kind with the data it answers.

    numpy for numpy and data frames, lists for lists and scalars, for a dict whatever the signature says; several outputs are a dict.

    Raises:
        RequestError: It is no such response.
    """
    tensors, _ = protocol.parse_response(response.body, response.headers)
    kind = signature.output_kind
    if isinstance(data, dict):
        if kind not in {"array", "list", "arrays"}:
            return values.from_tensors(tensors, kind)
        lists = kind == "list"
    else:
        lists = isinstance(data, list | tuple | str | bytes | bool | int | float) and not _holds_arrays(data)
    if len(tensors) == 1 and kind in {"array", "list"}:
        return tensors[0].tolist() if lists else tensors[0].numpy()
    return {tensor.name: tensor.tolist() if lists else tensor.numpy() for tensor in tensors}


def _checked(outputs: Sequence[str], signature: Signature) -> list[str]:
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    known = [spec.name for spec in signature.outputs]
    unknown = [name for name in names if name not in known]
    if not names or (unknown and known):
        what = f"no output {unknown[0]!r}" if unknown else "no use for an empty list of outputs"
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the model has {what}; it has {', '.join(known)}")
    return names


def _holds_arrays(data: object) -> bool:
    return isinstance(data, list | tuple) and bool(data) and hasattr(data[0], "__array__") and hasattr(data[0], "shape")
