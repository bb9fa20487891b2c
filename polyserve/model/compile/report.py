"""What came of compiling a model: what was compared, what was gained, or why it stayed as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One of the two packages, the original or the compiled one, on this machine.

    Attributes:
        digest: Its digest.
        size_bytes: Its size.
        load_ms: Milliseconds to load it, its framework imported already.
        row_us: Microseconds for one row, in this process; the median of some calls.
    """

    digest: str
    size_bytes: int
    load_ms: float
    row_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """What came of it. Times are this machine's and part of no package.

    Attributes:
        compiled: Whether the package is the compiled one.
        tried: Whether it was to be: false where there was no sample to compare answers on, or too small a one.
        reason: Why it is not, in one sentence; `""` where it is.
        rows: How many rows of the sample were compared.
        probes: How many further rows, made of them, were compared.
        largest_difference: The largest difference between two numbers of both answers; labels never differ.
        original: The package that the model became first.
        onnx: The compiled one.
    """

    compiled: bool
    tried: bool = True
    reason: str = ""
    rows: int = 0
    probes: int = 0
    largest_difference: float = 0.0
    original: Served | None = None
    onnx: Served | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        if not self.compiled or self.original is None or self.onnx is None:
            return {"compiled": False, "reason": self.reason}
        return {
            "compiled": True,
            "rows": self.rows,
            "probes": self.probes,
            "largest_difference": self.largest_difference,
            "original": _described(self.original),
            "onnx": _described(self.onnx),
        }


def _described(served: Served) -> dict[str, Any]:
    return {
        "package_digest": served.digest,
        "size_bytes": served.size_bytes,
        "load_ms": round(served.load_ms, 3),
        "row_us": round(served.row_us, 1),
    }
