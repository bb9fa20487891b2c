"""What goes into a bundle, file by file: where its bytes are, what identifies them, and how they come out.

A value for every step between the wheels and the archive, so that none of them edits a file in place: uv's trees share their bytes with its
cache.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyserve.bundle import elf
from polyserve.errors import PackageError
from polyserve.runtime.manifest import file_digest

__all__ = ["Content", "Contents", "Packed", "of_file", "of_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One file as it is in an archive, among others in a file of the cache.

    Attributes:
        path: The file of the cache.
        at: Where the body begins in it.
        length: Of the body, in bytes.
        method: How it is compressed, as archives number it: 0 is not at all, 8 is deflate.
        crc: CRC-32 of the file.
        size: Of the file, in bytes.
    """

    path: Path
    at: int
    length: int
    method: int
    crc: int
    size: int

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            OSError: The file of the cache cannot be read.
            zlib.error: It is damaged.
        """
        with self.path.open("rb") as file:
            file.seek(self.at)
            body = file.read(self.length)
        return zlib.decompress(body, wbits=-zlib.MAX_WBITS) if self.method else body


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One file.

    Attributes:
        source: Where its bytes are, or they themselves.
        sha256: Of what is at the source, hex; checked when it is read.
        size: In bytes, as it will be in the bundle.
        executable: Whether it may be run as a program.
        stripped: Whether it is a shared library that leaves its debug symbols behind.
        owner: The distribution that it is of, or an empty string.
        shared: Whether it is kept in the cache, where other bundles have it from, too.
    """

    source: Path | bytes | Packed
    sha256: str
    size: int
    executable: bool = False
    stripped: bool = False
    owner: str = ""
    shared: bool = False

    @property
    def key(self) -> str:
        """Return what identifies the bytes as they will be in the bundle."""
        return f"{self.sha256}-{elf.FORMAT}" if self.stripped else self.sha256

    def read(self) -> bytes:
        """Return the bytes as they will be in the bundle.

        Raises:
            PackageError: They are not what they were when the file was first seen.
            OSError: The file cannot be read.
        """
        data = self._source()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise self._changed()
        return elf.stripped(data) if self.stripped else data

    def check(self) -> None:
        """Compare what is at the source with its digest.

        Raises:
            PackageError: It is not what it was when the file was first seen.
            OSError: The file cannot be read.
        """
        if isinstance(self.source, Path) and file_digest(self.source) != self.sha256:
            raise self._changed()

    def _source(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes() if isinstance(self.source, Path) else self.source.read()
        except zlib.error as error:
            raise self._changed() from error

    def _changed(self) -> PackageError:
        way_out = "remove its directory from the cache and build again" if self.shared else "build again"
        place = str(self.source.path if isinstance(self.source, Packed) else self.source)
        return PackageError(
            f"{place!r} was changed after it was first read: {way_out}", operation="build", resource=place
        )


Contents = Mapping[str, Content]
"""Files by posix path."""


def of_file(path: Path, *, executable: bool = False) -> Content:
    """Return a file as it is now.

    Raises:
        OSError: It cannot be read.
    """
    return Content(source=path, sha256=file_digest(path), size=path.stat().st_size, executable=executable)


def of_text(text: str) -> Content:
    """Return a file with this text."""
    data = text.encode()
    return Content(source=data, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
