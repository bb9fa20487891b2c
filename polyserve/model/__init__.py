"""The model package: one trained model with everything it needs, immutable, named by the digest of its content.

`package()` makes one, `ModelPackage` is one. Both are imported when they are first used: the process that tries a new package
imports this room among the model's own distributions only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyserve.model.packing import package
    from polyserve.model.storage import ModelPackage

__all__ = ["ModelPackage", "package"]

_HOMES = {"ModelPackage": "polyserve.model.storage", "package": "polyserve.model.packing"}


def __getattr__(name: str) -> object:
    """Import a public name on first use and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
