"""An ONNX graph that takes and gives what a package's signature says, around one that a converter made.

The inputs and outputs keep the signature's names, datatypes and number of dimensions, so that a caller cannot tell which of the two
packages answers. The file says nothing of the machine, of the time or of the version of the converter: the same graph is the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyserve.model.compile.trees import DOMAIN, CannotConvert, Nodes
from polyserve.runtime.signature import Signature, TensorSpec

PREFIX = "polyserve/"
"""How every name inside the graph begins, so that none is a column's."""

IR_VERSION = 10
OPSET = 18
"""Format and operators that onnxruntime 1.20 and every later one runs."""

_TYPES = {
    "BOOL": "bool",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "FP16": "f2",
    "FP32": "f4",
    "FP64": "f8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a converter made, by its own names.

    Attributes:
        nodes: Its nodes, in an order in which they can run.
        initializers: Its constants.
        opsets: Version of each domain's operators.
        inputs: The name inside of each of the signature's inputs; one name for all where they are columns of one table.
        dtype: The dtype of numbers that go in; `""` to leave them as they come.
        outputs: The name inside of each of the signature's outputs.
        thresholds: What features of the rows are compared with, where that is known: pairs of an index and a number.
        columns: Whether inputs of one dimension are columns, each a table of its own inside.
    """

    nodes: Sequence[Any]
    initializers: Sequence[Any] = ()
    opsets: Mapping[str, int]
    inputs: Mapping[str, str] | str
    dtype: str
    outputs: Mapping[str, str]
    thresholds: Sequence[tuple[int, float]] = field(default=(), repr=False)
    columns: bool = True


def serialize(converted: Converted, signature: Signature) -> bytes:
    """Return the model as the bytes of an ONNX file.

    Raises:
        CannotConvert: A name is both an input's and an output's.
    """
    from onnx import helper

    both = {spec.name for spec in signature.inputs} & {spec.name for spec in signature.outputs}
    if both:
        raise CannotConvert(f"{min(both)!r} is the name of an input and of an output")
    before, after = Nodes(f"{PREFIX}in/"), Nodes(f"{PREFIX}out/")
    inputs = _inputs(before, converted, signature.inputs)
    for spec in signature.outputs:
        _output(after, converted.outputs[spec.name], spec)
    graph = helper.make_graph(
        [*before.made, *converted.nodes, *after.made],
        "model",
        inputs,
        [_described(spec) for spec in signature.outputs],
        list(converted.initializers),
    )
    domains = {**converted.opsets, "": max(OPSET, converted.opsets.get("", 0))}
    opsets = [helper.make_opsetid(domain, domains[domain]) for domain in sorted(domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="polyserve")
    for node in model.graph.node:
        node.name = node.doc_string = ""
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _inputs(nodes: Nodes, converted: Converted, specs: Sequence[TensorSpec]) -> list[Any]:
    if isinstance(converted.inputs, str):
        cast = [nodes.cast(spec.name, converted.dtype) if converted.dtype else spec.name for spec in specs]
        one = cast[0] if len(cast) == 1 else nodes.add("Concat", cast, axis=1)
        nodes.give(one, converted.inputs)
    else:
        for spec in specs:
            as_it_is = spec.datatype == "BYTES" or not converted.dtype
            given = spec.name if as_it_is else nodes.cast(spec.name, converted.dtype)
            nodes.give(given, converted.inputs[spec.name])
    # A column of a table comes as one dimension and is a table of its own here: the loader sees it by the rank.
    return [_described(spec, column=converted.columns and spec.shape == (-1,)) for spec in specs]


def _output(nodes: Nodes, name: str, spec: TensorSpec) -> None:
    import numpy as np

    if len(spec.shape) == 1:
        name = nodes.add("Reshape", [name, nodes.constant(np.array([-1]))])
    if spec.datatype != "BYTES":
        name = nodes.cast(name, _TYPES[spec.datatype])
    nodes.give(name, spec.name)


def _described(spec: TensorSpec, *, column: bool = False) -> Any:
    import numpy as np
    from onnx import TensorProto, helper

    if spec.datatype != "BYTES" and spec.datatype not in _TYPES:
        raise CannotConvert(f"{spec.name!r} is {spec.datatype}")
    sort = (
        TensorProto.STRING
        if spec.datatype == "BYTES"
        else helper.np_dtype_to_tensor_dtype(np.dtype(_TYPES[spec.datatype]))
    )
    shape = [None if length == -1 else length for length in spec.shape] + ([1] if column else [])
    return helper.make_tensor_value_info(spec.name, sort, shape)


def of_trees(nodes: Nodes, rows: str, outputs: Mapping[str, str]) -> Converted:
    """Return what `polyserve.model.compile.trees` added to nodes."""
    from polyserve.model.compile.trees import VERSION

    return Converted(
        nodes=nodes.made,
        opsets={DOMAIN: VERSION, "": OPSET},
        inputs=rows,
        dtype="f8",
        outputs=outputs,
        thresholds=nodes.thresholds,
    )
