"""ONNX: a graph cut where one tensor alone goes from what is before to what is after, so that the pieces weigh about the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model.deriving import MODEL, Change
from polyserve.model.partition.split import Split
from polyserve.model.storage import ModelPackage
from polyserve.runtime.combining import SEQUENCE
from polyserve.runtime.loaders.onnx import DATATYPES
from polyserve.runtime.signature import TensorSpec

_PATH = f"{MODEL}/model.onnx"


def split(original: ModelPackage, parts: int) -> Split:
    """Cut the graph.

    Raises:
        PackageError: It cannot be cut into so many pieces.
        MissingDependencyError: The `onnx` package is not installed.
    """
    if find_spec("onnx") is None:
        message = "cutting an ONNX model needs onnx, which is not installed: pip install onnx"
        raise MissingDependencyError(message, operation="partition", resource="onnx")
    import onnx
    from onnx.utils import Extractor

    loader = original.manifest.loader
    model: Any = onnx.shape_inference.infer_shapes(onnx.load(original.root / str(loader["path"])))
    cuts = _balanced(_places(model), _weights(model), parts, original.name)
    names = [[node.name for node in model.graph.input if node.name not in _initial(model)]]
    names += [[_places(model)[place]] for place in cuts]
    names.append([str(name) for name in loader["methods"]])  # type: ignore[attr-defined]
    extractor = Extractor(model)
    pieces = [extractor.extract_model(before, after) for before, after in pairwise(names)]
    kinds = [original.signature.input_kind] + ["array"] * len(cuts)
    specs = [original.signature.inputs] + [(_spec(model, _places(model)[place]),) for place in cuts]
    return Split(
        writers=[
            _writer(original, piece.SerializeToString(deterministic=True), after, (kind, taken))
            for piece, after, kind, taken in zip(pieces, names[1:], kinds, specs, strict=True)
        ],
        combining={"how": SEQUENCE},
    )


def _writer(
    original: ModelPackage, raw: bytes, outputs: Sequence[str], inputs: tuple[str, tuple[TensorSpec, ...]]
) -> Callable[[Path], Change]:
    def write(root: Path) -> Change:
        for path in original.manifest.files:
            if path.startswith(f"{MODEL}/"):
                (root / path).unlink()
        (root / _PATH).write_bytes(raw)
        loader = {**original.manifest.loader, "path": _PATH, "methods": list(outputs)}
        return Change(loader=loader, inputs=inputs, output_name=outputs[0])

    return write


def _places(model: Any) -> dict[int, str]:
    """Return the places where the graph can be cut: the number of nodes before, and the one tensor that is handed on."""
    nodes, initial = list(model.graph.node), _initial(model)
    last: dict[str, int] = {}
    for number, node in enumerate(nodes):
        last.update(dict.fromkeys(_read(node), number))
    # What the graph gives must stay until its end.
    last.update({node.name: len(nodes) for node in model.graph.output})
    known = {value.name for value in model.graph.value_info if _can_travel(value)}
    live = {node.name for node in model.graph.input if node.name not in initial}
    places = {}
    for number, node in enumerate(nodes, 1):
        live.update(name for name in node.output if name in last)
        live = {name for name in live if last.get(name, -1) >= number}
        if len(live) == 1 and number < len(nodes) and (name := next(iter(live))) in known:
            places[number] = name
    return places


def _read(node: Any) -> set[str]:
    """Return what a node reads, in the graphs within it too."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names.update(*(_read(inner) for inner in graph.node), {given.name for given in graph.output})
    return names - {""}


def _weights(model: Any) -> list[int]:
    """Return the bytes of each node with the weights that it is the first to read: what a part's memory and time go with."""
    sizes = {weight.name: weight.ByteSize() for weight in model.graph.initializer}
    return [node.ByteSize() + sum(sizes.pop(name, 0) for name in _read(node)) for node in model.graph.node]


def _balanced(places: dict[int, str], weights: Sequence[int], parts: int, what: str) -> list[int]:
    """Return the places to cut at, so that the heaviest part is as light as can be."""
    if len(places) < parts - 1:
        message = (
            f"{what!r} can be cut at {len(places)} places, where one tensor alone is handed on, so into at most {len(places) + 1} parts: "
            f"{parts} were asked for"
        )
        raise _refusal(message, what)
    sums = [0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    # The lightest way to cut what is before a place into so many parts: its heaviest part, and its places.
    best: dict[int, tuple[int, list[int]]] = {place: (sums[place], []) for place in [*places, len(weights)]}
    for _ in range(parts - 1):
        best = {
            place: min(
                (max(heaviest, sums[place] - sums[cut]), [*cuts, cut])
                for cut, (heaviest, cuts) in best.items()
                if cut < place
            )
            for place in best
            if any(cut < place for cut in best)
        }
    return best[len(weights)][1]


def _can_travel(value: Any) -> bool:
    tensor = value.type.tensor_type
    return (
        value.type.HasField("tensor_type")
        and tensor.HasField("shape")
        and len(tensor.shape.dim) > 0
        and tensor.elem_type in _types()
    )


def _types() -> dict[int, str]:
    """Return the protocol's datatypes by ONNX's numbers of them."""
    from onnx import TensorProto

    named = {"float": "FLOAT", **{name: name.upper() for name in ("double", "float16", "bool", "string")}}
    names = {kind.removeprefix("tensor(").removesuffix(")"): datatype for kind, datatype in DATATYPES.items()}
    return {TensorProto.DataType.Value(named.get(name, name.upper())): datatype for name, datatype in names.items()}


def _spec(model: Any, name: str) -> TensorSpec:
    value = next(value for value in model.graph.value_info if value.name == name)
    tensor = value.type.tensor_type
    # Rows are the first dimension, and a part takes any number of them.
    shape = [dim.dim_value if dim.HasField("dim_value") and place else -1 for place, dim in enumerate(tensor.shape.dim)]
    return TensorSpec(name=name, datatype=_types()[tensor.elem_type], shape=tuple(shape))


def _initial(model: Any) -> set[str]:
    return {weight.name for weight in model.graph.initializer}


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="partition", resource=resource)
