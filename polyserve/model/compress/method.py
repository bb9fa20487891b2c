"""What a family of compression methods offers: one `Method` by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from polyserve.model.deriving import Change
from polyserve.model.storage import ModelPackage
from polyserve.runtime.tensors import Tensor

__all__ = ["Method", "Shrink"]

Shrink: TypeAlias = Callable[[ModelPackage, Path, Sequence[Tensor]], Change]
"""Rewrites the model's files below `root / "model"` of a copy of the package; the tensors are rows to calibrate with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to make a model smaller.

    Attributes:
        title: What it does, in a few words.
        shrink: Does it. Raises PackageError where the model has nothing that it could change.
        lossless: Whether the answers stay the same to the bit, so that no labels are needed.
    """

    title: str
    shrink: Shrink
    lossless: bool = False
