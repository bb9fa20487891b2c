"""The bundle's archive: the same bytes for the same files, compressed on all processors, written once from front to back.

Sorted by path, one date, two modes, no extra fields but the ones that large files need (APPNOTE.TXT 4.3 and 4.5.3). Knows nothing of what
is inside.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Self

from polyserve.bundle.contents import Content, Contents, Packed
from polyserve.bundle.members import Member, member
from polyserve.errors import PackageError
from polyserve.runtime.manifest import is_safe_path

__all__ = ["FORMAT", "processors", "write"]

FORMAT = 1
"""Version of how an archive is written."""

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
# 1980-01-01 00:00:00, the first there is.
_DATE, _TIME = 0x21, 0
_UTF8 = 0x800
_UNIX = 3 << 8
_FOUR, _TWO = 0xFFFFFFFF, 0xFFFF
_PENDING = 64 << 20
_SMALL = 16 << 10
_BLOCK = 1 << 20


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(path: Path, files: Contents, compressed: Mapping[str, Packed] = MappingProxyType({})) -> str:
    """Write a zip archive, atomically, and return its sha256 (hex).

    Args:
        path: Where the archive goes; replaced if it is there.
        files: What goes into it, by posix path.
        compressed: Files that were compressed before, by what identifies their content.

    Raises:
        PackageError: A path could not be extracted again, or a file is not what it was.
        OSError: A file cannot be read or the archive cannot be written.
    """
    for inside in files:
        if not is_safe_path(inside):
            raise PackageError(f"{inside!r} is no path inside an archive", operation="build", resource=inside)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".zip")
    try:
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as out, _Archive(out) as archive:
            for inside, content, made in _members(files, compressed):
                archive.add(inside, made, executable=content.executable)
            digest = archive.close()
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return digest


def _members(files: Contents, compressed: Mapping[str, Packed]) -> Iterator[tuple[str, Content, Member]]:
    """Yield the files in the order of the archive, while those that follow are being compressed."""
    waiting: deque[tuple[str, Content, Future[Member] | Member | Packed]] = deque()
    pending = 0
    mapped: dict[Path, mmap.mmap] = {}
    with ThreadPoolExecutor(processors(), thread_name_prefix="polyserve-deflate") as pool:

        def taken(found: Packed) -> Member:
            if found.path not in mapped:
                with found.path.open("rb") as file:
                    mapped[found.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            body = memoryview(mapped[found.path])[found.at : found.at + found.length]
            return Member(method=found.method, crc=found.crc, size=found.size, packed=found.length, body=body)

        def begun(content: Content) -> Future[Member] | Member:
            # Handing a small file to another thread takes longer than compressing it.
            return member(content) if content.size < _SMALL else pool.submit(member, content)

        def ready() -> bool:
            made = waiting[0][2]
            return made.done() if isinstance(made, Future) else True

        def first() -> tuple[str, Content, Member]:
            inside, content, made = waiting.popleft()
            if isinstance(made, Future):
                return inside, content, made.result()
            return inside, content, taken(made) if isinstance(made, Packed) else made

        try:
            for inside in sorted(files, key=str.encode):
                content = files[inside]
                waiting.append((inside, content, compressed.get(content.key) or begun(content)))
                pending += content.size
                while waiting and (pending > _PENDING or ready()):
                    pending -= waiting[0][1].size
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Archive:
    """Writes entries one after the other, then their directory; another thread makes the digest."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="polyserve-digest")
        self._hashed: Future[None] | None = None
        self._block = bytearray()
        self._at = 0
        self._directory: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._hashing.shutdown()

    def add(self, inside: str, made: Member, *, executable: bool) -> None:
        name, packed = inside.encode(), made.packed
        large = made.size >= _FOUR or packed >= _FOUR
        version = 45 if large else 20
        extra = struct.pack("<HHQQ", 1, 16, made.size, packed) if large else b""
        sizes = (_FOUR, _FOUR) if large else (packed, made.size)
        at = self._at
        self._write(
            _LOCAL.pack(b"PK\3\4", version, _UTF8, made.method, _TIME, _DATE, made.crc, *sizes, len(name), len(extra))
            + name
            + extra
        )
        if isinstance(made.body, Path):
            with made.body.open("rb") as file:
                while chunk := file.read(1 << 20):
                    self._write(chunk)
        else:
            self._write(made.body)
        wide = ([made.size, packed] if large else []) + ([at] if at >= _FOUR else [])
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version = 45 if wide else 20
        mode = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
        head = (b"PK\1\2", version | _UNIX, version, _UTF8, made.method, _TIME, _DATE, made.crc, *sizes, len(name))
        self._directory.append(
            _CENTRAL.pack(*head, len(extra), 0, 0, 0, mode, _FOUR if at >= _FOUR else at) + name + extra
        )

    def close(self) -> str:
        """Write the directory, and return the digest of everything."""
        at, count, directory = self._at, len(self._directory), b"".join(self._directory)
        self._write(directory)
        if count >= _TWO or at >= _FOUR or len(directory) >= _FOUR:
            end = self._at
            self._write(_END64.pack(b"PK\6\6", 44, 45 | _UNIX, 45, 0, 0, count, count, len(directory), at))
            self._write(_LOCATOR.pack(b"PK\6\7", 0, end, 1))
        counted = min(count, _TWO)
        self._write(_END.pack(b"PK\5\6", 0, 0, counted, counted, min(len(directory), _FOUR), min(at, _FOUR), 0))
        self._flush()
        self._hashing.shutdown()
        return self._hash.hexdigest()

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._at += len(data)
        if len(data) < _BLOCK:
            self._block += data
        if len(data) >= _BLOCK or len(self._block) >= _BLOCK:
            self._flush()
        if len(data) >= _BLOCK:
            self._put(data)

    def _flush(self) -> None:
        block, self._block = self._block, bytearray()
        self._put(block)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        if self._hashed is not None:
            # One at a time: what waits is in memory.
            self._hashed.result()
        self._hashed = self._hashing.submit(self._hash.update, data)
        self._out.write(data)
