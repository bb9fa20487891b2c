"""What is compressed once for many bundles, many files in one file of the cache: a distribution's, and its byte-code.

    packs/<key>    the bodies, one after the other; an index of them as JSON; where that is, and a checksum of all that

Thousands of small files would take longer to write than their content takes to compress. Knows nothing of how a body came about.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deflate

from polyserve.bundle.contents import Packed
from polyserve.bundle.members import Member
from polyserve.model.storage import cache_directory

__all__ = ["Pack", "Writer", "opened", "place"]

# What it is, where the index begins, and the checksum of what is before these.
_END = struct.Struct("<4sQI")
_MAGIC = b"psp1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Compressed files.

    Attributes:
        files: By what identifies each file's content.
        byte_code: By path, with the sha256 (hex) of each.
    """

    files: Mapping[str, Packed]
    byte_code: Mapping[str, tuple[str, Packed]]


def place(key: str) -> Path:
    """Return where in the cache a pack is, or would be."""
    return cache_directory() / "packs" / key


def opened(path: Path) -> Pack | None:
    """Return a pack, or `None` where there is none or it is not what was written."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            magic, at, checksum = _END.unpack_from(view, len(view) - _END.size)
            with memoryview(view)[: -_END.size] as whole:
                if magic != _MAGIC or deflate.crc32(whole) != checksum:
                    return None
                index = json.loads(bytes(whole[at:]))
    except (OSError, ValueError, struct.error):
        return None
    return _pack(path, index)


def _pack(path: Path, index: Mapping[str, Any]) -> Pack:
    def packed(at: int, length: int, method: int, crc: int, size: int) -> Packed:
        return Packed(path=path, at=at, length=length, method=method, crc=crc, size=size)

    return Pack(
        files={key: packed(*facts) for key, facts in index["files"].items()},
        byte_code={inside: (sha256, packed(*facts)) for inside, (sha256, *facts) in index["byte_code"].items()},
    )


class Writer:
    """Writes a pack, from as many threads as may be; what is not committed was never there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, self._name = tempfile.mkstemp(dir=path.parent, prefix=".")
        self._out = os.fdopen(descriptor, "wb", buffering=1 << 20)
        self._at = self._checksum = 0
        self._files: dict[str, list[Any]] = {}
        self._byte_code: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    def add_file(self, key: str, made: Member) -> None:
        """Add a file, by what identifies its content."""
        with self._lock:
            self._files[key] = self._write(made)

    def add_byte_code(self, inside: str, sha256: str, made: Member) -> None:
        """Add byte-code, by its path."""
        with self._lock:
            self._byte_code[inside] = [sha256, *self._write(made)]

    def commit(self) -> Pack:
        """Put the pack in its place, and return it."""
        index = {"files": self._files, "byte_code": self._byte_code}
        at = self._at
        self._append(json.dumps(index, separators=(",", ":")).encode())
        self._out.write(_END.pack(_MAGIC, at, self._checksum))
        self._out.close()
        os.chmod(self._name, 0o644)
        os.replace(self._name, self._path)
        return _pack(self._path, index)

    def discard(self) -> None:
        """Leave nothing, unless it was committed."""
        with contextlib.suppress(OSError):
            self._out.close()
        with contextlib.suppress(OSError):
            os.unlink(self._name)

    def _write(self, made: Member) -> list[Any]:
        assert not isinstance(made.body, Path)
        at = self._at
        self._append(made.body)
        return [at, made.packed, made.method, made.crc, made.size]

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._out.write(data)
        self._checksum = deflate.crc32(data, self._checksum)
        self._at += len(data)
