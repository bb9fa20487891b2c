"""Split a model into parts that run on functions of their own, and prove that together they answer as the whole.

    split      a flavor's module shares out members, or cuts the graph
    package    every part becomes a package like any other, with its own golden sample
    combine    the parts together are a package too, of flavor `partitioned`: below `model/` are the parts, and its sample is the whole's
    prove      it answers the sample, and whatever rows there are, as the whole model does: labels alike, floats within its tolerance

The partitioned package is what is deployed as a group (`polyserve.grouping`); each part goes to a function of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from polyserve.errors import PackageError
from polyserve.model import golden
from polyserve.model.compress.latency import take_turns_at
from polyserve.model.deriving import MODEL, SAMPLE_ROWS, Change, derived, opened, rows_of, sample_of, tensors_of
from polyserve.model.partition.split import Split
from polyserve.model.storage import ModelPackage, keep
from polyserve.runtime.combining import PARALLEL, SEQUENCE, handed_on
from polyserve.runtime.loading import LoadError, load
from polyserve.runtime.signature import match
from polyserve.runtime.tensors import Tensor

__all__ = ["MOST_PARTS", "Part", "Partitioned", "partition", "parts_of"]

FLAVOR = "partitioned"
MOST_PARTS = 99
"""More functions than that would wait for each other longer than they work."""

BATCH = 64
"""Rows of one timed call: enough for the model's own work to count, and not the call around it."""

_FLAVORS = {PARALLEL: {"lightgbm": "boosters", "sklearn": "sklearn", "xgboost": "boosters"}, SEQUENCE: {"onnx": "onnx"}}
"""Which module splits which flavor, for each way to split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a model.

    Attributes:
        package: Its package.
        size_bytes: Size of its model's files.
        time_ms: Median time of its answer, in milliseconds.
    """

    package: ModelPackage
    size_bytes: int
    time_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioned:
    """A model in parts beside the whole.

    Attributes:
        package: The parts together: what is deployed as a group.
        original: The whole.
        how: `parallel` or `sequence`.
        parts: The parts, in order.
        time_ms: Median time of the whole model's answer to as many rows, in milliseconds.
        size_bytes: Size of the whole model's files.
        rows: How many rows were asked for at once.
    """

    package: ModelPackage
    original: ModelPackage
    how: str
    parts: tuple[Part, ...]
    time_ms: float
    size_bytes: int
    rows: int

    @property
    def times(self) -> tuple[float, ...]:
        """T of each part: its time divided by the whole model's."""
        return tuple(part.time_ms / self.time_ms for part in self.parts)

    @property
    def time(self) -> float:
        """T of the group: of the slowest part where they run in parallel, of all parts together in sequence; without the calls."""
        return max(self.times) if self.how == PARALLEL else sum(self.times)

    def to_dict(self) -> dict[str, Any]:
        """Return everything measured as JSON-able values."""
        return {
            "how": self.how,
            "time_ratio": self.time,
            "rows": self.rows,
            "whole": {"package_digest": self.original.digest, "size_bytes": self.size_bytes, "time_ms": self.time_ms},
            "parts": [
                {
                    "name": part.package.name,
                    "package_digest": part.package.digest,
                    "size_bytes": part.size_bytes,
                    "time_ms": part.time_ms,
                    "time_ratio": ratio,
                }
                for part, ratio in zip(self.parts, self.times, strict=True)
            ],
        }


def partition(
    model: object,
    *,
    parts: int,
    how: str = "auto",
    data: object = None,
    name: str | None = None,
    into: Path | str | None = None,
) -> Partitioned:
    """Split a model into parts that together answer as the whole.

    Args:
        model: A package, its digest, or whatever `polyserve.package` takes.
        parts: How many, from 2.
        how: `"parallel"` shares out the members of a scikit-learn ensemble or the rounds of a booster, `"sequence"` cuts an ONNX graph;
            `"auto"` is whichever there is for the model.
        data: Rows of input to prove it on, beyond the sample; required where the model has no sample.
        name: The group's name; by default the model's.
        into: The directory to keep the package in, below its digest; by default the cache.

    Returns:
        The parts and the whole, side by side.

    Raises:
        PackageError: The model cannot be split so, or its parts would answer differently. Nothing is kept then.
        MissingDependencyError: What the splitting needs is not installed.
    """
    if isinstance(parts, bool) or not isinstance(parts, int) or not 2 <= parts <= MOST_PARTS:
        raise _refusal(f"parts={parts!r} must be a whole number from 2 to {MOST_PARTS}", "parts")
    first: Any = data
    original = opened(model, sample=None if data is None else first[:SAMPLE_ROWS], name=name)
    named = name or original.name
    if len(named) > 63 - len("-part-99"):
        raise _refusal(
            f"name {named!r} is too long for the names of its parts: at most {63 - len('-part-99')} characters", named
        )
    tensors = None if data is None else tensors_of(data, original.signature)
    inputs = sample_of(original) or (tensors and rows_of(tensors, 0, SAMPLE_ROWS))
    if not inputs:
        message = (
            f"package {original.name!r} has no sample that could prove its parts: package it with one, or pass data="
        )
        raise _refusal(message, original.name)
    chosen = _how(original, how)
    split: Split = import_module(f"{__name__}.{_FLAVORS[chosen][original.manifest.flavor]}").split(original, parts)
    place = None if into is None else Path(into).absolute()

    def change(root: Path) -> Change:
        shutil.rmtree(root / MODEL)
        paths = _write_parts(original, split, root, inputs, named, in_sequence=chosen == SEQUENCE)
        return Change(loader={**split.combining, "parts": paths}, flavor=FLAVOR)

    origin = {"method": "partition", "parts": parts, "how": chosen}
    with derived(original, change, origin=origin, inputs=inputs, name=named, into=place) as made:
        whole, together = _loaded(original), _loaded(made)
        _prove(original, whole, together, tensors or inputs)
        rows = rows_of(tensors or inputs, 0, BATCH)
        times = _times(made, whole, rows, in_sequence=chosen == SEQUENCE)
        kept = keep(made)
    measured = [
        Part(package=part, size_bytes=_model_bytes(part), time_ms=time)
        for part, time in zip(parts_of(kept), times[1:], strict=True)
    ]
    return Partitioned(
        package=kept,
        original=original,
        how=chosen,
        parts=tuple(measured),
        time_ms=times[0],
        size_bytes=_model_bytes(original),
        rows=rows[0].rows,
    )


def parts_of(package: ModelPackage) -> list[ModelPackage]:
    """Return the parts of a partitioned package, in order; of any other, none.

    Raises:
        PackageError: A part is damaged.
    """
    if package.manifest.flavor != FLAVOR:
        return []
    return [ModelPackage.open(package.root / str(path)) for path in package.manifest.loader["parts"]]  # type: ignore[attr-defined]


def _how(original: ModelPackage, how: str) -> str:
    flavor = original.manifest.flavor
    fitting = [way for way, flavors in _FLAVORS.items() if flavor in flavors]
    if how not in {"auto", *_FLAVORS}:
        raise _refusal(f"how={how!r} is none of {', '.join(_FLAVORS)} and auto", how)
    if not fitting or how not in {"auto", *fitting}:
        ways = "; ".join(f"{way}: {', '.join(flavors)}" for way, flavors in _FLAVORS.items())
        message = f"a model of flavor {flavor} cannot be split{'' if how == 'auto' else f' in {how}'} ({ways}): compile it to ONNX first"
        raise _refusal(message, flavor)
    return fitting[0]


def _write_parts(
    original: ModelPackage, split: Split, root: Path, inputs: Sequence[Tensor], name: str, *, in_sequence: bool
) -> list[str]:
    """Write every part below `model/` as a package of its own, and return their paths."""
    paths = []
    handed = list(inputs)
    count = len(split.writers)
    with ExitStack() as stack:
        for number, writer in enumerate(split.writers, 1):
            origin = {"method": "part", "part": number, "of": count}
            part = stack.enter_context(
                derived(original, writer, origin=origin, inputs=handed, name=f"{name}-part-{number}")
            )
            paths.append(f"{MODEL}/part-{number}")
            shutil.copytree(part.root, root / paths[-1])
            if in_sequence and number < count:
                handed = _loaded(part).predict(handed, None)
    return paths


def _prove(original: ModelPackage, whole: Any, together: Any, inputs: Sequence[Tensor]) -> None:
    for begin in range(0, inputs[0].rows, BATCH):
        rows = rows_of(inputs, begin, begin + BATCH)
        expected, got = whole.predict(rows, None), together.predict(rows, None)
        difference = golden.same(expected, got, original.manifest.tolerance)
        if difference is not None:
            message = (
                f"the parts of {original.name!r} together answer differently from the whole, in rows from {begin} on: {difference}; "
                "nothing was kept"
            )
            raise _refusal(message, original.name)


def _times(made: ModelPackage, whole: Any, rows: Sequence[Tensor], *, in_sequence: bool) -> list[float]:
    """Return how long the whole and each part take for the same rows, in milliseconds."""
    asked: list[tuple[Any, Sequence[Tensor]]] = [(whole, rows)]
    for part in map(_loaded, parts_of(made)):
        taken = match(handed_on(rows, part.signature.inputs), part.signature.inputs) if in_sequence else rows
        asked.append((part, taken))
        if in_sequence:
            rows = part.predict(taken, None)
    return [timed.median_ms for timed in take_turns_at(asked, rows=asked[0][1][0].rows)]


def _loaded(package: ModelPackage) -> Any:
    try:
        return load(package.root).model
    except LoadError as error:
        raise _refusal(f"package {package.name!r} cannot be loaded: {error}", package.name) from error


def _model_bytes(package: ModelPackage) -> int:
    return sum(entry.size for path, entry in package.manifest.files.items() if path.startswith(f"{MODEL}/"))


def _refusal(message: str, resource: str) -> PackageError:
    return PackageError(message, operation="partition", resource=resource)
