"""Layers of an image: tar archives that are the same bytes for the same files, compressed on all processors, cached by content.

Sorted by path, without owners, dates and modes of this machine, under a gzip header that says nothing. Knows no registry.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import deflate

from polyserve.bundle.members import CODEC, LEVEL
from polyserve.errors import PackageError
from polyserve.model.storage import cache_directory
from polyserve.runtime.manifest import file_digest, is_safe_path

__all__ = ["Gzip", "Layer", "layer"]

FORMAT = 1
"""Version of a layer's form; part of its key in the cache."""
MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

_BLOCK = 4 << 20
_FILE_MODE, _DIRECTORY_MODE = 0o644, 0o755
# RFC 1952: deflate, no flags, no time, no extra flags, system unknown.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_WHITEOUT = ".wh."


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer on disk.

    Attributes:
        name: What is in it, for people.
        path: The compressed archive.
        digest: Of the compressed archive, `sha256:...`: what a registry knows it by.
        diff_id: Of the archive itself, `sha256:...`: what an image's configuration knows it by.
        size: Of the compressed archive, in bytes.
        unpacked_size: Of its files together, in bytes.
    """

    name: str
    path: Path
    digest: str
    diff_id: str
    size: int
    unpacked_size: int


def layer(name: str, files: Mapping[str, Path | bytes], *, root: str = "/") -> Layer:
    """Make the layer of some files, or find the one that was made before.

    Args:
        name: What is in it, for people.
        files: A file or its content, by posix path below `root`.
        root: Directory of the image that they go to; it and what is below it are the only directories that the layer names, so that none
            of the base's own changes.

    Raises:
        PackageError: A path is none inside an image, a file cannot be read, or the cache cannot be written.
    """
    below = root.strip("/")
    if below and not is_safe_path(below):
        raise _refused(name, f"{root!r} is no directory of an image: give one like /var/task")
    for path in files:
        if not is_safe_path(path) or any(part.startswith(_WHITEOUT) for part in path.split("/")):
            # A whiteout deletes what the base has, which no file of a model means to.
            raise _refused(name, f"{path!r} is no path inside a layer")
    try:
        key = hashlib.sha256(f"{FORMAT}\0{CODEC}\0{below}\0".encode())
        for path in sorted(files, key=str.encode):
            content = files[path]
            digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_digest(content)
            key.update(f"{path}\0{digest}\0".encode())
        archive = cache_directory() / "layers" / f"{key.hexdigest()}.tar.gz"
        return _cached(name, archive) or _made(name, archive, files, below)
    except OSError as error:
        place = error.filename or str(cache_directory())
        raise _refused(
            name, f"{str(place)!r}: {error.strerror}; a cache elsewhere is set by POLYSERVE_CACHE"
        ) from error


def _cached(name: str, archive: Path) -> Layer | None:
    """Return a layer of the cache, or `None` where it is not there or not what was written."""
    try:
        facts = json.loads(archive.with_suffix(".json").read_bytes())
        found = Layer(name=name, path=archive, **facts)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if archive.is_file() and f"sha256:{file_digest(archive)}" == found.digest else None


def _made(name: str, archive: Path, files: Mapping[str, Path | bytes], below: str) -> Layer:
    archive.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=archive.parent, prefix=".", suffix=".tar.gz")
    try:
        with os.fdopen(descriptor, "wb") as out:
            packed = Gzip(out)
            try:
                unpacked_size = _write_tar(cast("IO[bytes]", packed), files, below)
                packed.finish()
            finally:
                packed.close()
        made = Layer(
            name=name,
            path=archive,
            digest=f"sha256:{packed.digest.hexdigest()}",
            diff_id=f"sha256:{packed.plain_digest.hexdigest()}",
            size=packed.size,
            unpacked_size=unpacked_size,
        )
        os.replace(temporary, archive)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    facts = asdict(made)
    del facts["name"], facts["path"]
    descriptor, temporary = tempfile.mkstemp(dir=archive.parent, prefix=".", suffix=".json")
    with os.fdopen(descriptor, "w") as out_facts:
        json.dump(facts, out_facts)
    os.replace(temporary, archive.with_suffix(".json"))
    return made


def _write_tar(out: IO[bytes], files: Mapping[str, Path | bytes], below: str) -> int:
    total = 0
    known: set[str] = set()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
        for path in sorted(files, key=str.encode):
            inside = f"{below}/{path}" if below else path
            for directory in _parents(inside, below):
                if directory not in known:
                    known.add(directory)
                    archive.addfile(_entry(directory, tarfile.DIRTYPE, _DIRECTORY_MODE, 0))
            content = files[path]
            if isinstance(content, bytes):
                archive.addfile(_entry(inside, tarfile.REGTYPE, _FILE_MODE, len(content)), io.BytesIO(content))
                total += len(content)
            else:
                size = content.stat().st_size
                with content.open("rb") as source:
                    archive.addfile(_entry(inside, tarfile.REGTYPE, _FILE_MODE, size), source)
                total += size
    return total


def _parents(inside: str, below: str) -> Iterator[str]:
    """Yield the directories of a path from the outermost on, from the layer's root on."""
    parts = inside.split("/")
    first = below.count("/") + 1 if below else 1
    for count in range(first, len(parts)):
        yield "/".join(parts[:count])


def _entry(inside: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(inside)
    info.type, info.mode, info.size = kind, mode, size
    return info


class Gzip:
    """A gzip stream whose blocks are compressed side by side; the number of processors does not show in its bytes.

    Every block is a gzip member of its own: RFC 1952 says that a file is a series of them, and images whose layers are such have been
    pulled everywhere since there is eStargz.

    Args:
        out: Where the compressed bytes go.

    Attributes:
        size: Of the compressed bytes so far.
        digest: Of the compressed bytes.
        plain_digest: Of what was compressed.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="polyserve-deflate")
        self._running: deque[Future[bytes]] = deque()
        self._ahead = 2 * (os.cpu_count() or 1)
        self._block = bytearray()
        self.size = 0
        self.digest = hashlib.sha256()
        self.plain_digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Compress some bytes, sooner or later."""
        self.plain_digest.update(data)
        self._block += data
        while len(self._block) >= _BLOCK:
            self._compress(bytes(self._block[:_BLOCK]))
            del self._block[:_BLOCK]
        return len(data)

    def finish(self) -> None:
        """Write what is left."""
        if self._block:
            self._compress(bytes(self._block))
        while self._running:
            self._put(self._running.popleft().result())

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _compress(self, block: bytes) -> None:
        self._running.append(self._pool.submit(_member, block))
        while len(self._running) > self._ahead:
            self._put(self._running.popleft().result())

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self.digest.update(data)
        self.size += len(data)


def _member(block: bytes) -> bytes:
    body = bytes(deflate.deflate_compress(block, LEVEL))
    return _GZIP_HEADER + body + struct.pack("<LL", zlib.crc32(block), len(block))


def _refused(name: str, reason: str) -> PackageError:
    return PackageError(f"build layer {name!r} failed: {reason}", operation="build", resource=name)
