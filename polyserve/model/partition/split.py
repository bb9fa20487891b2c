"""What the splitting of one flavor gives: the parts' files, and how their answers become the whole model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from polyserve.model.deriving import Change

__all__ = ["Split", "shares"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A model in parts.

    Attributes:
        writers: One for each part, in order: writes the part's model below `root / "model"`, in place of the whole one's.
        combining: How the answers are put together, as `runtime.combining` reads it; JSON-able.
    """

    writers: Sequence[Callable[[Path], Change]]
    combining: Mapping[str, Any]


def shares(count: int, parts: int) -> list[tuple[int, int]]:
    """Return as many ranges of `count` things, in order, as equal as can be."""
    bounds = [count * place // parts for place in range(parts + 1)]
    return list(pairwise(bounds))
