"""Files compressed for an archive, and the cache of them: wheels come again from bundle to bundle, and deflate is what takes the time.

libdeflate at one level, whatever the processor and the Python: zlib differs from build to build (some Pythons have zlib-ng), and ISA-L and
zlib-ng by what the processor can do. `docs/decisions/one-compressor.md` has the measurements.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import deflate

from polyserve.bundle.contents import Content
from polyserve.model.storage import cache_directory

__all__ = ["CODEC", "Member", "member"]

LEVEL = 6
CODEC = f"libdeflate-0.9.0-{LEVEL}"
"""The compressor, its version and its level: another one is other bytes, and another name here. `pyproject.toml` pins the version."""

STORED, DEFLATED = 0, 8
LARGEST = 512 << 20
"""Files above this are stored as they are: libdeflate compresses what is in memory, and weights hardly get smaller."""

_MAGIC = b"psm1"
_HEAD = struct.Struct("<4sHxxIIQ")
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
    body: bytes | Path


def member(content: Content) -> Member:
    """Compress a file, or find it as it was compressed before.

    Raises:
        PackageError: The file is not what it was.
        OSError: It cannot be read.
    """
    if content.size > LARGEST and isinstance(content.source, Path) and not content.stripped:
        return _stored(content)
    path = cache_directory() / "members" / CODEC / content.key[:2] / content.key
    found = _cached(path) if content.shared else None
    if found is not None and found.size == content.size:
        return found
    data = content.read()
    packed = bytes(deflate.deflate_compress(data, LEVEL)) if data else b""
    method, body = (DEFLATED, packed) if len(packed) < len(data) else (STORED, data)
    made = Member(method=method, crc=zlib.crc32(data), size=len(data), packed=len(body), body=body)
    if content.shared:
        _keep(path, made, body)
    return made


def _stored(content: Content) -> Member:
    assert isinstance(content.source, Path)
    content.check()
    crc = 0
    with content.source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return Member(method=STORED, crc=crc, size=content.size, packed=content.size, body=content.source)


def _cached(path: Path) -> Member | None:
    """Return an entry, or `None` where there is none or it is not what was written."""
    try:
        raw = path.read_bytes()
        magic, method, crc, body_crc, size = _HEAD.unpack_from(raw)
    except (OSError, struct.error):
        return None
    body = raw[_HEAD.size :]
    if magic != _MAGIC or zlib.crc32(body) != body_crc:
        return None
    return Member(method=method, crc=crc, size=size, packed=len(body), body=body)


def _keep(path: Path, made: Member, body: bytes) -> None:
    # A cache that is full or read-only costs time and nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(_HEAD.pack(_MAGIC, made.method, made.crc, zlib.crc32(body), made.size))
                out.write(body)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
