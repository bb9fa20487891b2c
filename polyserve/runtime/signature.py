"""What a model takes and gives, in terms of the Open Inference Protocol, and the check of a request against it.

Knows no model and no wire format: a signature is part of the manifest, is shown by the metadata route, and is what `Host` and `Endpoint`
hold every tensor against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyserve.runtime.datatypes import DATATYPES
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.tensors import Tensor

__all__ = ["KINDS", "Signature", "TensorSpec", "fits", "match"]

KINDS = ("array", "list", "frame", "mapping", "arrays", "rows")
"""The shapes of a Python value that tensors can stand for; `polyserve.runtime.values` says what each one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One named tensor that a model takes or gives.

    Attributes:
        name: Its name.
        datatype: Its datatype, such as `"FP64"`.
        shape: Its shape; -1 where any length is taken.
        parameters: What else is known: `{"content_type": "str"}` marks BYTES that are text.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a tensor's name must be text that is not empty, got {self.name!r}")
        if self.datatype not in DATATYPES:
            raise ValueError(
                f"tensor {self.name!r} has datatype {self.datatype!r}, which is none of {', '.join(DATATYPES)}"
            )
        if any(not isinstance(length, int) or isinstance(length, bool) or length < -1 for length in self.shape):
            raise ValueError(
                f"tensor {self.name!r} has shape {list(self.shape)!r}: lengths are integers from 0, or -1 for any"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as the manifest and the metadata route have it."""
        described: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        if self.parameters:
            described["parameters"] = dict(self.parameters)
        return described

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> TensorSpec:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: It is not a tensor's description.
        """
        try:
            return cls(
                name=described["name"],
                datatype=described["datatype"],
                shape=tuple(described["shape"]),
                parameters=dict(described.get("parameters") or {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a tensor's description (name, datatype, shape): {described!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        input_kind: What Python value the inputs stand for, one of `KINDS`.
        output_kind: The same for the outputs.
        inputs: Its inputs, in order; empty where nothing is known and anything is passed on.
        outputs: Its outputs, in order.
    """

    input_kind: str
    output_kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for kind in (self.input_kind, self.output_kind):
            if kind not in KINDS:
                raise ValueError(f"a signature's kind is one of {', '.join(KINDS)}, got {kind!r}")
        for side, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise ValueError(f"two {side}s of a signature have the same name: {', '.join(names)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the signature as the manifest has it."""
        return {
            "input_kind": self.input_kind,
            "output_kind": self.output_kind,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Signature:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: It is not a signature.
        """
        try:
            return cls(
                input_kind=described["input_kind"],
                output_kind=described["output_kind"],
                inputs=tuple(TensorSpec.from_dict(spec) for spec in described["inputs"]),
                outputs=tuple(TensorSpec.from_dict(spec) for spec in described["outputs"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a signature (input_kind, output_kind, inputs, outputs): {described!r}") from error


def match(tensors: Sequence[Tensor], specs: Sequence[TensorSpec]) -> list[Tensor]:
    """Hold a request's tensors against a model's inputs and return them in the model's order.

    The specs' parameters replace the tensors' own: whether BYTES are text is the model's to say.

    Raises:
        RequestError: A name, datatype or shape is not the model's; names the input, what was expected and what came.
    """
    alone = len(tensors) == 1 and len(specs) == 1 and tensors[0].name == specs[0].name
    ordered = list(tensors) if alone else _in_order(tensors, specs)
    for tensor, spec in zip(ordered, specs, strict=True):
        if tensor.datatype != spec.datatype:
            problem = f"input {spec.name!r}: expected datatype {spec.datatype}, got {tensor.datatype}"
            raise RequestError(ErrorCode.INVALID_ARGUMENT, problem)
        if not fits(tensor.shape, spec.shape):
            problem = f"input {spec.name!r}: expected shape {list(spec.shape)}, got {list(tensor.shape)}"
            raise RequestError(ErrorCode.INVALID_ARGUMENT, problem)
        tensor.parameters = spec.parameters
    return ordered


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether a tensor's shape is one that a spec asks for."""
    if len(shape) != len(wanted):
        return False
    # The usual case, any number of rows of a fixed shape, without a loop.
    if shape[1:] == wanted[1:] and (not wanted or wanted[0] in (-1, shape[0])):
        return True
    return all(want in (-1, got) for want, got in zip(wanted, shape, strict=True))


def _in_order(tensors: Sequence[Tensor], specs: Sequence[TensorSpec]) -> list[Tensor]:
    by_name = {tensor.name: tensor for tensor in tensors}
    expected = [spec.name for spec in specs]
    if len(by_name) != len(tensors):
        twice = next(name for name in by_name if sum(tensor.name == name for tensor in tensors) > 1)
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"input {twice!r} is there more than once")
    missing = [name for name in expected if name not in by_name]
    unknown = [name for name in by_name if name not in expected]
    if missing or unknown:
        wrong = [f"{name!r} is missing" for name in missing] + [f"{name!r} is unknown" for name in unknown]
        raise RequestError(
            ErrorCode.INVALID_ARGUMENT, f"expected inputs {expected}, got {list(by_name)}: {', '.join(wrong)}"
        )
    return [by_name[name] for name in expected]
