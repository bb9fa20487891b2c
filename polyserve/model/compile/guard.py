"""The guard: a compiled model is served only where it answers as the original does.

Labels, text and numbers without fraction must be equal; other numbers may differ by `TOLERANCE`, a tenth of what a deployment's golden
sample allows. Compared are every row of the sample, together and one by one, and the rows that `probes` makes of them. What the one refuses
the other must refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyserve.model.compile import probes
from polyserve.model.compile.probes import Probe
from polyserve.model.compile.refusing import ask
from polyserve.runtime.loaders import Model
from polyserve.runtime.messages import RequestError
from polyserve.runtime.tensors import Tensor

TOLERANCE: Mapping[str, float] = {"FP64": 1e-6, "FP32": 1e-5, "FP16": 4e-4}
"""How far a number may be from the original's, relative to it, by the datatype of the answer."""

ABSOLUTE_TOLERANCE: Mapping[str, float] = {"FP64": 5e-8, "FP32": 1e-7, "FP16": 1e-7}
"""How far it may be in any case: what is nearly 0, such as what is left of 1, has few digits that could be compared."""

ROW_TOLERANCE: Mapping[str, float] = {"FP32": 1e-6, "FP16": 4e-4}
"""How far it may be relative to the largest number of its row: in float32, what two large numbers leave is as inexact as they are."""

_SINGLE_ROWS = 16


@dataclass(slots=True)
class Comparison:
    """What was compared.

    Attributes:
        rows: Rows of the sample.
        probes: Rows made of them.
        largest_difference: The largest difference between two numbers.
        reason: The first thing that differed, as a sentence; `""` where nothing did.
    """

    rows: int = 0
    probes: int = 0
    largest_difference: float = 0.0
    reason: str = ""


def compare(
    original: Model, compiled: Model, inputs: Sequence[Tensor], thresholds: Sequence[tuple[int, float]]
) -> Comparison:
    """Compare two models on a sample and on what is made of it, till something differs.

    Args:
        original: The model as it is.
        compiled: What it became.
        inputs: The sample.
        thresholds: What features of the rows are compared with, where that is known.
    """
    comparing = _Comparing(original, compiled, inputs)
    sample = probes.arrays(inputs)
    count = len(sample[0])
    comparing.seen.rows = count
    alone = ([array[row : row + 1] for array in sample] for row in range(min(count, _SINGLE_ROWS)))
    if comparing.same("the sample", sample) and all(
        comparing.same(f"row {row} of the sample alone", rows) for row, rows in enumerate(alone)
    ):
        for probe in comparing.made_of(sample, thresholds):
            comparing.seen.probes += len(probe.rows[0])
            if not comparing.same(f"rows of the sample, {probe.title}", probe.rows):
                break
    return comparing.seen


@dataclass(slots=True)
class _Comparing:
    original: Model
    compiled: Model
    inputs: Sequence[Tensor]
    seen: Comparison = field(default_factory=Comparison)

    def made_of(self, sample: probes.Rows, thresholds: Sequence[tuple[int, float]]) -> Iterator[Probe]:
        """Yield the rows that are made of a sample."""
        yield from probes.neighbours(sample)
        yield from probes.at_thresholds(sample, thresholds)
        yield from probes.at_borders(sample, self._labels)
        yield from probes.with_gaps(sample)
        yield from probes.with_infinity(sample, [tensor.name for tensor in self.inputs])
        yield from probes.unknown_text(sample, [tensor.name for tensor in self.inputs])
        yield Probe(title="no rows", rows=[array[:0] for array in sample])

    def _labels(self, rows: probes.Rows) -> Any:
        answer = ask(self.original, rows, self.inputs)
        if isinstance(answer, RequestError) or not answer or _is_float(answer[0]) or len(answer[0].shape) != 1:
            return None
        return answer[0].numpy()

    def same(self, what: str, rows: probes.Rows) -> bool:
        """Tell whether both answer alike, or both refuse; otherwise note what differs."""
        expected = ask(self.original, rows, self.inputs)
        if isinstance(expected, RequestError) and len(rows[0]) > 1:
            # One row may be why; the others are compared all the same.
            single = ([array[row : row + 1] for array in rows] for row in range(min(len(rows[0]), _SINGLE_ROWS)))
            return all(self.same(what, alone) for alone in single)
        got = ask(self.compiled, rows, self.inputs)
        if isinstance(expected, RequestError) or isinstance(got, RequestError):
            if isinstance(expected, RequestError) and isinstance(got, RequestError):
                return True
            self.seen.reason = (
                f"it refuses {what}, and what it became answers ({expected.message})"
                if isinstance(expected, RequestError)
                else f"what it became refuses {what} ({got.message if isinstance(got, RequestError) else ''})"
            )
            return False
        is_finite = all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in rows)
        for want, have in zip(expected, got, strict=True):
            difference = _difference(want, have, self.seen, is_finite=is_finite)
            if difference:
                self.seen.reason = f"on {what}, {difference}"
                return False
        return True


def _difference(want: Tensor, have: Tensor, seen: Comparison, *, is_finite: bool) -> str:
    if want.shape[:1] == have.shape[:1] == (0,) and (want.name, want.datatype) == (have.name, have.datatype):
        return ""  # some frameworks answer no rows with another number of columns
    if (want.name, want.datatype, want.shape) != (have.name, have.datatype, have.shape):
        return f"{want.name!r} is {have.datatype} {list(have.shape)} instead of {want.datatype} {list(want.shape)}"
    expected, got = want.numpy(), have.numpy()
    if not _is_float(want):
        wrong = np.argwhere(expected != got)
        if not len(wrong):
            return ""
        at = tuple(wrong[0])
        return f"{want.name!r} is {_shown(got[at])} instead of {_shown(expected[at])}, in {len(wrong)} of {expected.size} places"
    expected, got = expected.astype("f8"), got.astype("f8")
    with np.errstate(all="ignore"):
        apart = np.abs(got - expected)
        same = (expected == got) | (np.isnan(expected) & np.isnan(got))
        if not is_finite:
            # What infinity less infinity is depends on the order; that it is no number must be the same.
            same |= ~np.isfinite(expected) & ~np.isfinite(got)
        apart[same] = 0
        allowed = ABSOLUTE_TOLERANCE[want.datatype] + TOLERANCE[want.datatype] * np.abs(expected)
        if want.datatype in ROW_TOLERANCE and expected.size:
            largest = np.nanmax(np.abs(expected).reshape(len(expected), -1), axis=1)
            allowed += ROW_TOLERANCE[want.datatype] * largest.reshape(-1, *[1] * (expected.ndim - 1))
        # NaN is never within.
        wrong = np.argwhere(~(apart <= allowed) & ~same)
    if len(wrong):
        at = tuple(wrong[0])
        return f"{want.name!r} is {_shown(got[at])} instead of {_shown(expected[at])}, in {len(wrong)} of {expected.size} places"
    seen.largest_difference = max(seen.largest_difference, float(apart.max(initial=0.0)))
    return ""


def _is_float(tensor: Tensor) -> bool:
    return tensor.datatype in TOLERANCE


def _shown(value: Any) -> str:
    return repr(value.item() if hasattr(value, "item") else value)
