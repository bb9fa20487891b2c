"""Rows to compare two models on, made of a sample: its neighbours, its mixtures, and rows as a stranger might send.

A sample that happens to agree proves little by itself. What is made of it here looks where two implementations of one model part: a bit to
either side of every value and of every threshold, at the border between two answers, far outside, and where values are missing. No chance
is involved, so that the same sample always gives the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyserve.runtime.tensors import Tensor

Rows = list[Any]
"""One array for each input; the leading dimension is the row."""

MOST_THRESHOLDS = 256
MOST_ROWS = 256
"""How many thresholds, and how many rows of each sort, are tried at the most."""

UNKNOWN = "\N{REPLACEMENT CHARACTER} a value that no training data had"

_BORDER_STEPS = 20
_LARGEST_FLOAT32 = float(np.finfo("f4").max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Rows with what to call them in a message."""

    title: str
    rows: Rows


def arrays(inputs: Sequence[Tensor]) -> Rows:
    """Return the arrays of a sample's tensors."""
    return [tensor.numpy() for tensor in inputs]


def neighbours(sample: Rows) -> Iterator[Probe]:
    """Yield rows next to the sample's: a bit up, a bit down, as float32, mixed, and far away."""
    some = [array[:MOST_ROWS] for array in sample]
    yield Probe(title="one bit up", rows=[_next(array, +1) for array in some])
    yield Probe(title="one bit down", rows=[_next(array, -1) for array in some])
    if any(array.dtype == np.float64 for array in some):
        yield Probe(title="rounded to float32", rows=[_rounded(array) for array in some])
    for shift in (1, 3, 7):
        yield Probe(title="mixed", rows=_mixed(some, shift))
    for title, change in (
        ("zero", lambda array: array * 0),
        ("negative", lambda array: -array),
        ("ten times as large", lambda array: array * 10),
        ("a thousand times as large", lambda array: array * 1000),
        ("one more", lambda array: array + 1),
    ):
        yield Probe(title=title, rows=[_changed(array[:16], change) for array in some])


def at_thresholds(sample: Rows, thresholds: Sequence[tuple[int, float]]) -> Iterator[Probe]:
    """Yield rows with one feature at a threshold and a bit to either side, of its own dtype and of float32."""
    distinct = sorted(set(thresholds))
    chosen = distinct[:: -(-len(distinct) // MOST_THRESHOLDS) or 1]
    rows = len(sample[0])
    for title, move in (
        ("at a threshold", lambda value, _: value),
        ("a bit above a threshold", lambda value, dtype: np.nextafter(value, dtype.type(np.inf))),
        ("a bit below a threshold", lambda value, dtype: np.nextafter(value, dtype.type(-np.inf))),
        ("at a threshold in float32", lambda value, _: np.float32(value)),
        ("above a threshold in float32", lambda value, _: np.nextafter(np.float32(value), np.float32(np.inf))),
        ("below a threshold in float32", lambda value, _: np.nextafter(np.float32(value), np.float32(-np.inf))),
    ):
        made = [array[np.arange(len(chosen)) % rows].copy() for array in sample]
        for row, (feature, threshold) in enumerate(chosen):
            column, place = (made[0], (row, feature)) if made[0].ndim == 2 else (made[feature], (row,))
            if column.dtype.kind == "f" and np.isfinite(threshold) and abs(threshold) < _LARGEST_FLOAT32:
                column[place] = move(column.dtype.type(threshold), column.dtype)
        if chosen:
            yield Probe(title=title, rows=made)


def at_borders(sample: Rows, labels: Callable[[Rows], Any]) -> Iterator[Probe]:
    """Yield rows on either side of where a model's answer changes from one of the sample's rows to the next, a millionth apart.

    Args:
        sample: The sample.
        labels: Asks the model for its labels; `None` where it refuses.
    """
    if not all(array.dtype.kind == "f" for array in sample):
        return
    here = [array[:64] for array in sample]
    there = [np.roll(array, 1, axis=0) for array in here]
    first, last = labels(here), labels(there)
    if first is None or last is None:
        return
    apart = np.flatnonzero(first != last)
    if not len(apart):
        return
    here, there, first = [a[apart] for a in here], [a[apart] for a in there], first[apart]
    low: Any = np.zeros(len(apart))
    high: Any = np.ones(len(apart))

    def between(share: Any) -> Rows:
        return [
            (a + (b - a) * share.reshape(-1, *[1] * (a.ndim - 1))).astype(a.dtype)
            for a, b in zip(here, there, strict=True)
        ]

    for _ in range(_BORDER_STEPS):
        middle = (low + high) / 2
        answer = labels(between(middle))
        if answer is None:
            return
        same = answer == first
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    yield Probe(title="this side of a border", rows=between(low))
    yield Probe(title="that side of a border", rows=between(high))


def with_gaps(sample: Rows) -> Iterator[Probe]:
    """Yield the sample's rows with one number missing in each, and with all of them."""
    some = [array[:MOST_ROWS].copy() for array in sample]
    every = [array[:1].copy() for array in sample]
    numbers = [index for index, array in enumerate(sample) if array.dtype.kind == "f"]
    if not numbers:
        return
    for row in range(len(some[0])):
        array = some[numbers[row % len(numbers)]]
        array[(row, row * 7 % array.shape[1]) if array.ndim == 2 else row] = np.nan
    for index in numbers:
        every[index][...] = np.nan
    yield Probe(title="each with one value missing", rows=some)
    yield Probe(title="with every number missing", rows=every)


def with_infinity(sample: Rows, names: Sequence[str]) -> Iterator[Probe]:
    """Yield a row with infinity, and with a number that float32 cannot hold, for each input of floats."""
    for index, name in enumerate(names):
        if sample[index].dtype.kind == "f":
            for value in (np.inf, -np.inf, *([1e39] if sample[index].dtype == np.float64 else [])):
                yield Probe(title=f"with {value} in {name!r}", rows=with_value(sample, index, 0, value))


def unknown_text(sample: Rows, names: Sequence[str]) -> Iterator[Probe]:
    """Yield a row with a text that no training data had, for each input of texts."""
    for index, name in enumerate(names):
        if sample[index].dtype.kind in "OU":
            row = [array[:1].copy() for array in sample]
            row[index] = np.full(row[index].shape, UNKNOWN, dtype=object)
            yield Probe(title=f"{name!r} unknown", rows=row)


def with_value(sample: Rows, index: int, column: int, value: float) -> Rows:
    """Return the first row with one value replaced."""
    row = [array[:1].copy() for array in sample]
    row[index][(0, column) if row[index].ndim == 2 else 0] = value
    return row


def _next(array: Any, direction: int) -> Any:
    if array.dtype.kind == "f":
        return np.nextafter(array, array.dtype.type(direction * np.inf))
    return _changed(array, lambda values: values + direction)


def _rounded(array: Any) -> Any:
    return array.astype("f4").astype("f8") if array.dtype == np.float64 else array


def _changed(array: Any, change: Callable[[Any], Any]) -> Any:
    if array.dtype.kind == "f":
        # What grows beyond the dtype is another probe's.
        with np.errstate(over="ignore"):
            changed = change(array)
        return np.where(np.isfinite(changed), changed, array).astype(array.dtype)
    if array.dtype.kind in "iu":
        bounds = np.iinfo(array.dtype)
        changed = change(array.astype("f8"))
        return np.where((changed >= bounds.min) & (changed < bounds.max), changed, array).astype(array.dtype)
    return array


def _mixed(sample: Rows, shift: int) -> Rows:
    """Return rows of which every other column is another row's."""
    if len(sample) > 1:
        return [np.roll(array, shift * (index % 2), axis=0) for index, array in enumerate(sample)]
    array = sample[0].copy()
    if array.ndim == 2:
        array[:, 1::2] = np.roll(array[:, 1::2], shift, axis=0)
    return [array]
