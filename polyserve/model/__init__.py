"""The model package: one trained model with everything it needs, immutable, named by the digest of its content.

`package()` makes one, `ModelPackage` is one. Both are imported when they are first used: the process that tries a new package imports this room
among the model's own distributions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyserve.model.packing import package
    from polyserve.model.storage import ModelPackage

__all__ = ["ModelPackage", "package"]


def __getattr__(name: str) -> object:
    """Import a public name on first use and keep it."""
    if name == "package":
        from polyserve.model.packing import package as value
    elif name == "ModelPackage":
        from polyserve.model.storage import ModelPackage as value  # type: ignore[assignment]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
