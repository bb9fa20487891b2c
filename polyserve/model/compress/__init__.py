"""Make a smaller package of a package, and refuse it where it answers worse.

    open       the original is loaded as in the function
    shrink     its family of methods (one module each, by flavor) writes the smaller model; the new package answers its own sample
    weigh      both answer the same labelled rows, and take turns at single ones: score and latency before and after
    keep       only where the score dropped by no more than it may

A family's module has `METHODS`, and imports its framework inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from polyserve.errors import PackageError
from polyserve.model.compress import quality
from polyserve.model.compress.latency import take_turns
from polyserve.model.compress.method import Method
from polyserve.model.deriving import MODEL, SAMPLE_ROWS, derived, opened, rows_of, sample_of, tensors_of
from polyserve.model.storage import ModelPackage, keep
from polyserve.runtime.loading import LoadError, load
from polyserve.runtime.tensors import Tensor

__all__ = ["MAX_DROP", "Compressed", "Measured", "compress", "methods_of"]

MAX_DROP = 0.005
"""How much of its score a model may lose, where the caller does not say."""

_FAMILIES = {"onnx": "onnx", "sklearn": "sklearn", "torch": "torch"}
"""The module of methods for each flavor that has any."""

_ELSEWHERE = {
    "tensorflow": "convert it with tf.lite.TFLiteConverter, whose optimizations are fp16 and int8, and package the .tflite file it writes",
    "tflite": "set tf.lite.TFLiteConverter's optimizations when it is converted, and package the file it writes then",
}
"""What to do instead with models that only their own framework's converter can make smaller."""

_WAY_OUT = "compile it to ONNX first (polyserve package MODEL --compile onnx), and compress that package"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of one of the two packages.

    Attributes:
        size_bytes: Size of the model's files.
        score: What the metric says of its answers to the labelled rows; `None` where there were no labels.
        latency_ms: Median time of the answer to one row, in milliseconds.
        latency_p95_ms: What 95 of 100 answers took less than, in milliseconds.
    """

    size_bytes: int
    score: float | None
    latency_ms: float
    latency_p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A compressed package beside the one it was made of.

    Attributes:
        package: The new package.
        original: The one it was made of.
        method: How.
        metric: What was scored; `None` where there were no labels, as a lossless method needs none.
        rows: How many labelled rows.
        max_drop: How much the score might drop.
        drop: How much it dropped; negative where it rose. For `rmse`, the share by which the error grew.
        before: The original's measures.
        after: The new package's measures.
    """

    package: ModelPackage
    original: ModelPackage
    method: str
    metric: str | None
    rows: int
    max_drop: float
    drop: float | None
    before: Measured
    after: Measured

    @property
    def ratio(self) -> float:
        """C: compressed size divided by original size, of the model's files."""
        return self.after.size_bytes / self.before.size_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return everything measured as JSON-able values."""
        sides = {"before": (self.original, self.before), "after": (self.package, self.after)}
        return {
            "method": self.method,
            "compression_ratio": self.ratio,
            "metric": self.metric,
            "rows": self.rows,
            "drop": self.drop,
            "max_drop": self.max_drop,
            **{
                side: {
                    "package_digest": package.digest,
                    "size_bytes": measured.size_bytes,
                    "score": measured.score,
                    "latency_ms": measured.latency_ms,
                    "latency_p95_ms": measured.latency_p95_ms,
                }
                for side, (package, measured) in sides.items()
            },
        }


def compress(
    model: object,
    *,
    method: str,
    data: object = None,
    labels: object = None,
    max_drop: float = MAX_DROP,
    metric: str = "auto",
    output: str | None = None,
    name: str | None = None,
    into: Path | str | None = None,
) -> Compressed:
    """Make a smaller package of a model, and keep it only where it answers as well as before.

    Args:
        model: A package, its digest, or whatever `polyserve.package` takes.
        method: How: `fp16`, `int8` or `int8-static` for ONNX, `fp16` for PyTorch modules, `lossless` for scikit-learn.
        data: Rows of input as the model takes them. `int8-static` is calibrated with some of them.
        labels: The right answer to each row of `data`. Only a lossless method does without.
        max_drop: How much the score may drop: 0.005 of accuracy is half a percent of the rows.
        metric: `"accuracy"`, `"r2"`, `"rmse"`; `"auto"` finds out from labels and answers.
        output: Which output is scored; by default the first.
        name: The new package's name; by default the original's.
        into: The directory to keep the package in, below its digest; by default the cache.

    Returns:
        The new package, and both side by side.

    Raises:
        PackageError: There is no such method for the model, it gains nothing, the labelled rows do not fit it, or the score drops by
            more than `max_drop`. Nothing is kept then.
        MissingDependencyError: What the method needs is not installed.
    """
    first = None if data is None else _first_rows(data)
    original = opened(model, sample=first, name=name)
    chosen = _method(original, method)
    quality.check_drop(max_drop)
    if not chosen.lossless and (data is None or labels is None):
        message = (
            f"method {method!r} changes the model's answers, and only labelled rows can tell by how much: "
            "pass data= and labels= (--data X.npy --labels y.npy)"
        )
        raise _refusal(message, method)
    tensors = None if data is None else tensors_of(data, original.signature)
    wanted = None if labels is None or tensors is None else quality.checked_labels(labels, tensors[0].rows)
    inputs = sample_of(original) or (tensors and rows_of(tensors, 0, SAMPLE_ROWS))
    if not inputs:
        message = f"package {original.name!r} has no sample, and there is no data to make one of: pass data="
        raise _refusal(message, original.name)

    def change(root: Path) -> Any:
        return chosen.shrink(original, root, tensors or inputs)

    place = None if into is None else Path(into).absolute()
    with derived(original, change, origin={"method": method}, inputs=inputs, name=name, into=place) as made:
        sizes = [_model_bytes(original), _model_bytes(made)]
        if sizes[1] >= sizes[0]:
            message = (
                f"method {method!r} gains nothing on {original.name!r}: its model has {sizes[0]} bytes and would have {sizes[1]}; "
                "another method may do more"
            )
            raise _refusal(message, original.name)
        _check_outputs(original, made, chosen, inputs)
        models = [_loaded(original), _loaded(made)]
        scored = _scored(models, tensors, wanted, metric, output) if wanted is not None and tensors else None
        drop = None
        if scored is not None:
            drop = quality.drop(scored[0], *scored[1])
            quality.gate(scored[0], *scored[1], drop=drop, max_drop=max_drop, method=method)
        timed = take_turns(models, tensors or inputs)
        kept = keep(made)
    measured = [
        Measured(size_bytes=size, score=score, latency_ms=times.median_ms, latency_p95_ms=times.p95_ms)
        for size, score, times in zip(sizes, scored[1] if scored else (None, None), timed, strict=True)
    ]
    return Compressed(
        package=kept,
        original=original,
        method=method,
        metric=scored[0] if scored else None,
        rows=tensors[0].rows if scored and tensors else 0,
        max_drop=max_drop,
        drop=drop,
        before=measured[0],
        after=measured[1],
    )


def methods_of(flavor: str) -> dict[str, Method]:
    """Return the methods that there are for a flavor, by name."""
    if flavor not in _FAMILIES:
        return {}
    found: dict[str, Method] = import_module(f"{__name__}.{_FAMILIES[flavor]}").METHODS
    return found


def _method(original: ModelPackage, name: str) -> Method:
    flavor = original.manifest.flavor
    if flavor in _ELSEWHERE:
        raise _refusal(f"a model of flavor {flavor} is not compressed here: {_ELSEWHERE[flavor]}", name)
    there = methods_of(flavor)
    if name in there:
        return there[name]
    everywhere = {method for family in _FAMILIES for method in methods_of(family)}
    if name not in everywhere:
        message = f"there is no method {name!r}: there are {', '.join(sorted(everywhere))}"
    elif there:
        message = f"method {name!r} is not for a model of flavor {flavor}, which has {', '.join(there)}; or {_WAY_OUT}"
    else:
        message = f"a model of flavor {flavor} has no method: {_WAY_OUT}"
    raise _refusal(message, name)


def _first_rows(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: value[:SAMPLE_ROWS] for key, value in data.items()}
    return data[:SAMPLE_ROWS]


def _model_bytes(package: ModelPackage) -> int:
    return sum(entry.size for path, entry in package.manifest.files.items() if path.startswith(f"{MODEL}/"))


def _loaded(package: ModelPackage) -> Any:
    try:
        return load(package.root).model
    except LoadError as error:
        raise _refusal(f"package {package.name!r} cannot be loaded: {error}", package.name) from error


def _check_outputs(original: ModelPackage, made: ModelPackage, method: Method, inputs: list[Tensor]) -> None:
    """Refuse a package that could not take the original's place."""
    before = [(spec.name, spec.datatype) for spec in original.signature.outputs]
    after = [(spec.name, spec.datatype) for spec in made.signature.outputs]
    if before != after:
        raise _refusal(
            f"the compressed model gives {after} instead of {before}, so it cannot take its place", made.name
        )
    if method.lossless:
        old, new = (_loaded(package).predict(inputs, None) for package in (original, made))
        if any(one.tobytes() != other.tobytes() for one, other in zip(old, new, strict=True)):
            raise _refusal("a lossless method changed the answer to the sample: please report it", made.name)


def _scored(
    models: list[Any], tensors: list[Tensor], labels: Any, metric: str, output: str | None
) -> tuple[str, tuple[float, float]]:
    names = [spec.name for spec in models[0].signature.outputs]
    chosen = names[0] if output is None else output
    if chosen not in names:
        raise _refusal(f"the model has no output {chosen!r} to score: it has {', '.join(names)}", chosen)
    answers = [quality.answers(model, tensors, chosen) for model in models]
    named = quality.choose(metric, labels, answers[0])
    before, after = (quality.score(named, labels, answer) for answer in answers)
    return named, (before, after)


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="compress", resource=resource)
