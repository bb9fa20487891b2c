"""Files compressed for an archive.

libdeflate at one level, whatever the processor and the Python: zlib differs from build to build (some Pythons have zlib-ng), and ISA-L and
zlib-ng by what the processor can do. `docs/decisions/one-compressor.md` has the measurements. What was compressed before is in
`polyserve.bundle.packs`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import deflate

from polyserve.bundle.contents import Content

__all__ = ["CODEC", "LEVEL", "Member", "compressed", "is_stored", "member"]

LEVEL = 4
"""Level of libdeflate: part of the form of bundles and of layers."""

CODEC = f"libdeflate-0.9.0-{LEVEL}"
"""The compressor, its version and its level: another one is other bytes, and another name here. `pyproject.toml` pins the version."""

STORED, DEFLATED = 0, 8
LARGEST = 512 << 20
"""Files above this are stored as they are: libdeflate compresses what is in memory, and weights hardly get smaller."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file as it is in an archive.

    Attributes:
        method: How it is compressed, as archives number it.
        crc: CRC-32 of the file.
        size: Of the file, in bytes.
        packed: Of the body, in bytes.
        body: What goes into the archive, or the file that it is in.
    """

    method: int
    crc: int
    size: int
    packed: int
    body: bytes | bytearray | memoryview | Path


def is_stored(content: Content) -> bool:
    """Tell whether a file goes into archives as it is, from where it is."""
    return content.size > LARGEST and isinstance(content.source, Path) and not content.stripped


def member(content: Content) -> Member:
    """Compress a file.

    Raises:
        PackageError: The file is not what it was.
        OSError: It cannot be read.
    """
    return _stored(content) if is_stored(content) else compressed(content.read())


def compressed(data: bytes) -> Member:
    """Compress some bytes, unless they do not get less."""
    packed = deflate.deflate_compress(data, LEVEL) if data else b""
    method, body = (DEFLATED, packed) if len(packed) < len(data) else (STORED, data)
    return Member(method=method, crc=deflate.crc32(data), size=len(data), packed=len(body), body=body)


def _stored(content: Content) -> Member:
    assert isinstance(content.source, Path)
    content.check()
    crc = 0
    with content.source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return Member(method=STORED, crc=crc, size=content.size, packed=content.size, body=content.source)
