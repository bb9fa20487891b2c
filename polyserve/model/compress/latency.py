"""How long models take to answer one row, side by side on the same machine at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from polyserve.model.deriving import rows_of
from polyserve.runtime.tensors import Tensor

ROUNDS = 200
LONGEST_S = 3.0
"""Rounds that are measured, as long as they take no longer than this in all, and at least `FEWEST`."""
FEWEST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Times of one model's answers, in milliseconds."""

    median_ms: float
    p95_ms: float


def take_turns(models: Sequence[Any], inputs: Sequence[Tensor]) -> list[Timed]:
    """Return how long each model takes for one row.

    They take turns, so that whatever else the machine does falls on all of them, and the order turns round each time.

    Args:
        models: Loaded models, all of which take the same inputs.
        inputs: Rows to ask them for.
    """
    return take_turns_at([(model, inputs) for model in models], rows=1)


def take_turns_at(asked: Sequence[tuple[Any, Sequence[Tensor]]], *, rows: int) -> list[Timed]:
    """Return how long each model takes for as many rows of its own inputs."""
    total = asked[0][1][0].rows
    count = min(rows, total)
    turns = [
        (model, [rows_of(inputs, begin, begin + count) for begin in range(0, total - count + 1, count)][:ROUNDS])
        for model, inputs in asked
    ]
    times: list[list[float]] = [[] for _ in turns]
    began = perf_counter()
    for round_ in range(-1, ROUNDS):
        for place in range(len(turns)):
            index = (place + round_) % len(turns)
            model, parts = turns[index]
            part = parts[round_ % len(parts)]
            start = perf_counter()
            model.predict(part, None)
            # The round before the first warms up.
            if round_ >= 0:
                times[index].append((perf_counter() - start) * 1e3)
        if round_ + 1 >= FEWEST and perf_counter() - began > LONGEST_S:
            break
    return [Timed(median_ms=_quantile(each, 0.5), p95_ms=_quantile(each, 0.95)) for each in times]


def _quantile(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
