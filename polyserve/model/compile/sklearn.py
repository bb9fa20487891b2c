"""scikit-learn estimators and pipelines to ONNX: trees and some transformers by our own nodes, everything else by skl2onnx.

Numbers are float64 inside wherever the operators have it, as they are in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from polyserve.model.compile import forests, preprocessing
from polyserve.model.compile.graph import OPSET, PREFIX, Converted, of_trees
from polyserve.model.compile.trees import DOMAIN, VERSION, CannotConvert, Nodes
from polyserve.runtime.loaders.sklearn import SklearnModel
from polyserve.runtime.signature import Signature

NEEDS = ("onnx", "onnxruntime")

# skl2onnx refuses a newer version of this domain than it writes itself; ours are declared afterwards.
_LAST_KNOWN = 3

_ROWS = f"{PREFIX}rows"
# Its regular expressions are not Python's, and no sample of texts shows all that differs.
_TEXT = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")


def candidates(model: SklearnModel, signature: Signature) -> Iterator[Converted]:
    """Yield what the estimator can be converted to, the most exact first.

    Raises:
        CannotConvert: Something of it has no counterpart; the message says what.
    """
    estimator: Any = model.estimator
    parts = list(_parts(estimator))
    text = next((type(part).__name__ for part in parts if type(part).__name__ in _TEXT), None)
    if text is not None:
        raise CannotConvert(f"{text} splits text by rules that ONNX has not")
    by_name = any(type(part).__name__ == "ColumnTransformer" for part in parts) and signature.input_kind == "frame"
    _check_inputs(signature, by_name=by_name)
    own = {**forests.classes()}
    if type(estimator) in own:
        nodes = Nodes(f"{PREFIX}model/")
        try:
            made = own[type(estimator)](nodes, _ROWS, estimator)
        except CannotConvert:
            pass  # what another converter may be able to do
        else:
            yield of_trees(nodes, _ROWS, _outputs(estimator, model.methods, made))
            return
    if find_spec("skl2onnx") is None:
        raise CannotConvert(f"{type(estimator).__name__} needs skl2onnx, which is not installed: pip install skl2onnx")
    first: CannotConvert | None = None
    own |= preprocessing.classes()
    for dtype, ours in (("f8", own), ("f8", {}), ("f4", {})):
        if not ours and dtype == "f8" and not any(type(part) in own for part in parts):
            continue  # it would be the one before
        try:
            yield _by_skl2onnx(estimator, model.methods, signature, dtype, ours, by_name=by_name)
        except CannotConvert as error:
            first = first or error
    if first is not None:
        raise first


def _parts(estimator: Any) -> Iterator[Any]:
    """Yield an estimator and those it is made of."""
    yield estimator
    for inside in ("steps", "transformers_", "transformer_list", "estimators_", "named_estimators_"):
        members = getattr(estimator, inside, None)
        for member in members.values() if isinstance(members, Mapping) else members if members is not None else ():
            found = member[1] if isinstance(member, tuple) else member
            if hasattr(found, "get_params"):
                yield from _parts(found)
    for inside in ("best_estimator_", "estimator_", "final_estimator_", "regressor_"):
        if hasattr(getattr(estimator, inside, None), "get_params"):
            yield from _parts(getattr(estimator, inside))


def _check_inputs(signature: Signature, *, by_name: bool) -> None:
    if signature.input_kind not in {"array", "list", "frame"}:
        raise CannotConvert(f"it takes {signature.input_kind}, and ONNX takes tables")
    for spec in signature.inputs:
        if spec.datatype == "BF16" or (spec.datatype == "BYTES" and not by_name):
            raise CannotConvert(f"it takes {spec.name!r} as {'text' if spec.datatype == 'BYTES' else spec.datatype}")
        if len(spec.shape) != (1 if signature.input_kind == "frame" else 2):
            raise CannotConvert(f"it takes {spec.name!r} with {len(spec.shape)} dimensions, and ONNX takes tables")


def _outputs(estimator: Any, methods: Sequence[str], made: Sequence[str]) -> dict[str, str]:
    """Return which of a converter's outputs is which method's answer."""
    from sklearn.base import is_classifier, is_outlier_detector

    outputs = {}
    for method in methods:
        if method == "predict":
            index = 0
        elif (method == "predict_proba" and is_classifier(estimator)) or (
            method == "decision_function" and is_outlier_detector(estimator)
        ):
            index = 1
        elif method == "transform":
            index = len(made) - 1
        else:
            raise CannotConvert(f"{method}() of {type(estimator).__name__} has no counterpart in ONNX")
        outputs[method] = made[index]
    return outputs


# --- skl2onnx ---------------------------------------------------------------------------------------------------------------------------


def _by_skl2onnx(
    estimator: Any,
    methods: Sequence[str],
    signature: Signature,
    dtype: str,
    own: Mapping[type, Callable[[Nodes, str, Any], list[str]]],
    *,
    by_name: bool,
) -> Converted:
    import onnx.compose
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
    from sklearn.base import is_classifier

    number = DoubleTensorType if dtype == "f8" else FloatTensorType
    if by_name:
        types = [
            (spec.name, (StringTensorType if spec.datatype == "BYTES" else number)([None, 1]))
            for spec in signature.inputs
        ]
    else:
        count = signature.inputs[0].shape[1] if signature.input_kind != "frame" else len(signature.inputs)
        types = [("rows", number([None, count]))]

    def converted(options: Mapping[int, Mapping[str, object]] | None) -> Any:
        return convert_sklearn(
            estimator,
            name="model",
            initial_types=types,
            target_opset={"": OPSET, DOMAIN: _LAST_KNOWN},
            options=options,
            custom_conversion_functions={kind: _conversion(add) for kind, add in own.items()},
            custom_shape_calculators=dict.fromkeys(own, _shapes),
        )

    try:
        try:
            # A table of probabilities, not a mapping for each row.
            proto = converted({id(estimator): {"zipmap": False}} if is_classifier(estimator) else None)
        except NameError:
            proto = converted(None)  # it has no such option, and no such mapping
    except CannotConvert:
        raise
    except Exception as error:
        # skl2onnx raises whatever comes to it: classes of its own, and those of a converter that met what it did not expect.
        raise CannotConvert(_told(error, estimator)) from error
    made = [output.name for output in proto.graph.output]
    outputs = _outputs(estimator, methods, made)
    graph = onnx.compose.add_prefix(proto, PREFIX).graph
    return Converted(
        nodes=list(graph.node),
        initializers=list(graph.initializer),
        opsets={imported.domain: imported.version for imported in proto.opset_import}
        | ({DOMAIN: VERSION} if any(node.op_type == "TreeEnsemble" for node in graph.node) else {}),
        inputs={name: f"{PREFIX}{name}" for name, _ in types} if by_name else f"{PREFIX}rows",
        dtype=dtype,
        outputs={method: f"{PREFIX}{name}" for method, name in outputs.items()},
    )


def _conversion(add: Callable[[Nodes, str, Any], list[str]]) -> Callable[[Any, Any, Any], None]:
    """Return nodes of ours as a conversion function of skl2onnx."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        if len(operator.inputs) != 1:
            raise CannotConvert(f"{type(operator.raw_operator).__name__} takes its columns one by one")
        nodes = Nodes(scope.get_unique_variable_name("made"))
        rows = nodes.cast(operator.inputs[0].full_name, "f8")
        made = add(nodes, rows, operator.raw_operator)
        for name, variable in zip(made, operator.outputs, strict=False):
            nodes.give(name, variable.full_name)
        container.nodes.extend(nodes.made)

    return convert


def _shapes(operator: Any) -> None:
    """Say of what type the outputs of our nodes are."""
    from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType

    count = operator.inputs[0].get_first_dimension()
    labels = getattr(operator.raw_operator, "classes_", None)
    if labels is None:
        columns = getattr(operator.raw_operator, "n_output_features_", 1)
        columns = operator.raw_operator.n_features_in_ if hasattr(operator.raw_operator, "statistics_") else columns
        operator.outputs[0].type = DoubleTensorType([count, columns])
        return
    operator.outputs[0].type = (StringTensorType if labels.dtype.kind in "OU" else Int64TensorType)([count])
    operator.outputs[1].type = DoubleTensorType([count, len(labels)])


def _told(error: Exception, estimator: Any) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if type(error).__name__ == "MissingShapeCalculator" or "Unable to find a shape calculator" in first:
        kind = first.partition("<class '")[2].partition("'")[0].rpartition(".")[2]
        return f"skl2onnx knows no {kind or type(estimator).__name__}"
    return f"skl2onnx cannot convert {type(estimator).__name__} ({type(error).__name__}: {first[:200]})"
