"""Shared libraries without what only linkers and debuggers read, by cutting off their end; the same bytes everywhere.

A loader reads segments (ELF specification, "Program Loading"): what lies behind the last of them is symbols, debug information and the
table of sections. Nothing is moved, so that libraries that auditwheel has patched stay sound, which GNU `strip` corrupts; and another
machine's `strip` would give other bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["FORMAT", "loaded_size", "stripped"]

FORMAT = "cut1"
"""Name of what is done to a library; part of the identity of the result."""

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian: x86_64 and arm64
_HEADER = 64
_WORTH = 4096


def loaded_size(path: Path) -> int | None:
    """Return how much of a library a loader can ever look at, in bytes; `None` for what is no library, or where less is not worth it."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(_MAGIC):
            return None
        offset, entry, count = _segments(header)
        file.seek(offset)
        table = file.read(entry * count)
        size = file.seek(0, 2)
    end = _end(table, offset, entry, count)
    return end if end is not None and end <= size - _WORTH else None


def stripped(data: bytes) -> bytes:
    """Return a library, which `loaded_size` found worth it, without what no loader looks at."""
    offset, entry, count = _segments(data[:_HEADER])
    end = _end(data[offset : offset + entry * count], offset, entry, count)
    header = bytearray(data[:_HEADER])
    struct.pack_into("<Q", header, 40, 0)  # where the sections are described: nowhere
    struct.pack_into("<HHH", header, 58, 0, 0, 0)  # size, number and names of the descriptions
    return bytes(header) + data[_HEADER:end]


def _segments(header: bytes) -> tuple[int, int, int]:
    (offset,) = struct.unpack_from("<Q", header, 32)
    entry, count = struct.unpack_from("<HH", header, 54)
    return offset, entry, count


def _end(table: bytes, offset: int, entry: int, count: int) -> int | None:
    if not count or entry < 56 or len(table) < entry * count:
        return None
    end = max(_HEADER, offset + entry * count)
    for position in range(0, entry * count, entry):
        (start,) = struct.unpack_from("<Q", table, position + 8)
        (length,) = struct.unpack_from("<Q", table, position + 32)
        end = max(end, start + length)
    return end
