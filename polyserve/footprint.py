"""What a bundle is made of, how far below each platform's limits it is, and the cheapest way out where it is not. Pure: no I/O.

The planner refuses with these words; the command line shows these figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyserve.driver import ProviderInfo

__all__ = ["Fit", "Footprint", "fits", "way_out"]

_NAMED = 3
_DEPENDENCIES = "dependencies"
# What becomes an ONNX graph that says the same: served by onnxruntime and numpy, 80 to 110 MB with everything.
_COMPILABLE = frozenset({"sklearn", "xgboost", "lightgbm", "torch"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a bundle is made of.

    Attributes:
        parts: Bytes by part; together the bundle once unpacked.
        distributions: Bytes of each dependency that travels in it, largest first.
        dropped: Bytes of the dependencies that were left out, by reason.
        notes: What people should know of how it was made.
        slim: How much was left out: `standard`, `off` or `traced`.
        traceable: Whether `traced` could be asked for: a package with a sample, for a machine like this one.
        flavor: How the model is loaded.
    """

    parts: Mapping[str, int] = field(default_factory=dict)
    distributions: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    slim: str = "standard"
    traceable: bool = False
    flavor: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {
            "parts": dict(self.parts),
            "distributions": dict(self.distributions),
            "dropped": dict(self.dropped),
            "notes": list(self.notes),
            "slim": self.slim,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A bundle beside one platform's limits, in bytes; `None` where the platform has none.

    Attributes:
        provider: The provider's name.
        title: What people call it.
        bundle_limit: Largest upload.
        bundle_left: How far below it the bundle is; negative where it is over.
        unpacked_limit: Largest bundle once unpacked.
        unpacked_left: How far below it the bundle is.
    """

    provider: str
    title: str
    bundle_limit: int | None
    bundle_left: int | None
    unpacked_limit: int | None
    unpacked_left: int | None

    @property
    def held(self) -> bool:
        """Whether the platform takes it."""
        return all(left is None or left >= 0 for left in (self.bundle_left, self.unpacked_left))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {
            "provider": self.provider,
            "bundle_limit": self.bundle_limit,
            "bundle_left": self.bundle_left,
            "unpacked_limit": self.unpacked_limit,
            "unpacked_left": self.unpacked_left,
            "held": self.held,
        }


def fits(footprint: Footprint, infos: Sequence[ProviderInfo], *, size: int, unpacked: int) -> tuple[Fit, ...]:
    """Hold a bundle against the limits of each platform, as if it went there as it is.

    Empty where the dependencies do not travel in it: then its size says nothing about another platform, where they would have to.
    """
    if footprint.parts and _DEPENDENCIES not in footprint.parts:
        return ()
    return tuple(
        Fit(
            provider=info.name,
            title=info.title,
            bundle_limit=info.limits.bundle_bytes,
            bundle_left=_left(info.limits.bundle_bytes, size),
            unpacked_limit=info.limits.bundle_unpacked_bytes,
            unpacked_left=_left(info.limits.bundle_unpacked_bytes, unpacked),
        )
        for info in infos
    )


def _left(limit: int | None, value: int) -> int | None:
    return None if limit is None else limit - value


def way_out(footprint: Footprint, title: str) -> str:
    """Return what to do about a bundle that a platform does not take, cheapest first."""
    ways = []
    if footprint.slim == "off":
        ways.append("leave out what no function can use with --slim standard")
    if footprint.distributions and footprint.flavor in _COMPILABLE:
        ways.append("compile the model with --compile onnx, which needs onnxruntime and numpy only (about 110 MB)")
    if footprint.traceable and footprint.slim == "standard":
        ways.append("keep only what the sample touches with --slim traced")
    largest = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in _largest(footprint))
    if largest:
        ways.append(f"do with fewer requirements (largest: {largest})")
        ways.append(f"choose a platform that takes images instead of {title}")
    return "; or ".join(ways or ["take a smaller model or fewer requirements"])


def _largest(footprint: Footprint) -> list[tuple[str, int]]:
    return sorted(footprint.distributions.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]
