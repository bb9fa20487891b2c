"""Files of a package that its bundle left in the bucket: streamed to disk when an instance starts, and checked while they come.

A bundle's `package/` directory may lack files that the manifest names. `assemble` puts the whole package together in a directory on disk:
what is missing is streamed there, several files at a time; the rest is linked or copied. A file appears under its name only when it is
whole and its sha256 is right, and one that is there already is kept, so a start that was killed is finished by the next one.

Knows no cloud: how an object is opened comes from the provider's entrypoint. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from polyserve.runtime.manifest import FILE_NAME, FileEntry, Manifest, file_digest

__all__ = ["Assembled", "Remote", "RemoteError", "assemble"]

PARALLEL = 4
"""Files that are streamed at once: one connection rarely fills a function's network, and four do."""

ATTEMPTS = 3
FIRST_PAUSE_S = 0.1
"""How often a file is asked for where the connection breaks, and how long the first pause is; it doubles."""

_CHUNK = 1 << 20


class RemoteError(Exception):
    """A file that cannot be had from the bucket, is not what the manifest says, or does not fit the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """Where the files that a bundle lacks come from, and where they go.

    Attributes:
        fetch: Opens the object of a file by the file's sha256 (hex) for reading from its start, and raises whatever it likes where it
            cannot. Called on several threads; what it returns is closed.
        into: A directory on disk that can be written to; made if it is not there. Several instances may share it.
    """

    fetch: Callable[[str], BinaryIO]
    into: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A whole package on disk.

    Attributes:
        root: Its directory; the bundled one where nothing was missing.
        verified: Paths whose content was compared with the manifest just now: nobody has to read them again for that.
        fetched_bytes: How much was streamed.
    """

    root: Path
    verified: frozenset[str] = frozenset()
    fetched_bytes: int = 0


def assemble(bundled: Path, manifest: Manifest, remote: Remote) -> Assembled:
    """Make the directory of a package whole, and return it; the bundled directory is only read.

    Args:
        bundled: The package as the bundle has it: the manifest, and any of its files.
        manifest: Its manifest.
        remote: How to get the others.

    Raises:
        RemoteError: A file cannot be had, is not what the manifest says (names the file, what was expected and what came), or the disk
            is full or cannot be written to.
    """
    missing = [path for path in manifest.files if not (bundled / path).is_file()]
    if not missing:
        return Assembled(root=bundled)
    root = remote.into / manifest.digest
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(remote.into / f"{manifest.digest}.lock"):
            return _assemble(bundled, root, manifest, remote, missing)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RemoteError(f"{str(remote.into)!r} cannot hold the model's files: {reason}") from error


def _assemble(bundled: Path, root: Path, manifest: Manifest, remote: Remote, missing: Sequence[str]) -> Assembled:
    kept = frozenset(path for path, entry in manifest.files.items() if _is_whole(root / path, entry))
    wanted = [path for path in missing if path not in kept]
    local = [path for path in manifest.files if path not in kept and path not in missing]
    _check_room(remote.into, sum(manifest.files[path].size for path in [*wanted, *local]))
    # Parts have a directory of their own: what a start that was killed left there is of no use, and the package may hold nothing else.
    parts = remote.into / f"{manifest.digest}.parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(mode=0o700)
    try:
        for path in [*local, FILE_NAME]:
            _bring(bundled / path, root / path, parts)
        _Streams(manifest, remote, parts, root).run(wanted)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    fetched = sum(manifest.files[path].size for path in wanted)
    return Assembled(root=root, verified=kept | frozenset(wanted), fetched_bytes=fetched)


class _Streams:
    """Several files on their way from the bucket to the disk; the first that fails stops the others."""

    def __init__(self, manifest: Manifest, remote: Remote, parts: Path, root: Path) -> None:
        self._files = manifest.files
        self._remote = remote
        self._parts = parts
        self._root = root
        self._stopping = threading.Event()

    def run(self, paths: Sequence[str]) -> None:
        """Stream the files, the largest first."""
        if len(paths) < 2:
            for path in paths:
                self._stream(path)
            return
        # Imported late: most packages have one such file, or none.
        from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

        largest_first = sorted(paths, key=lambda path: -self._files[path].size)
        with ThreadPoolExecutor(max_workers=PARALLEL, thread_name_prefix="polyserve-fetch") as pool:
            streams = [pool.submit(self._stream, path) for path in largest_first]
            done, _ = wait(streams, return_when=FIRST_EXCEPTION)
            self._stopping.set()
            for stream in streams:
                stream.cancel()
        # Those that were stopped have an error of their own, which says nothing.
        for stream in done:
            stream.result()

    def _stream(self, path: str) -> None:
        entry = self._files[path]
        part = self._parts / entry.sha256
        for attempt in range(ATTEMPTS):
            try:
                self._copy(path, entry, part)
                break
            except (RemoteError, _DiskError):
                raise
            except Exception as error:
                if attempt == ATTEMPTS - 1 or self._stopping.is_set():
                    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                    raise RemoteError(
                        f"{path} is not in the bundle and cannot be read from the bucket ({reason}): object {entry.sha256}"
                    ) from error
                time.sleep(FIRST_PAUSE_S * 2**attempt)
        target = self._root / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(part, target)

    def _copy(self, path: str, entry: FileEntry, part: Path) -> None:
        """Write an object to a file and compare it with its entry on the way."""
        digest, size = hashlib.sha256(), 0
        with contextlib.closing(self._remote.fetch(entry.sha256)) as body, _opened(part) as file:
            for chunk in _chunks(body):
                if self._stopping.is_set():
                    raise RemoteError(f"{path} was given up: another file failed")
                size += len(chunk)
                if size > entry.size:
                    raise RemoteError(
                        f"{path} has more than {size - 1} bytes in the bucket, and the manifest says {entry.size}"
                    )
                digest.update(chunk)
                _write(file, chunk)
        if size < entry.size:
            # As a broken connection looks to a client that does not count: worth another try.
            raise EOFError(f"it ends after {size} bytes, and the manifest says {entry.size}")
        if digest.hexdigest() != entry.sha256:
            raise RemoteError(
                f"{path} has sha256 {digest.hexdigest()[:12]} in the bucket, and the manifest says {entry.sha256[:12]}"
            )


class _DiskError(OSError):
    """The disk refused a write: trying again is of no use."""


def _opened(part: Path) -> Any:
    try:
        return part.open("wb", buffering=0)
    except OSError as error:
        raise _DiskError(error.errno, error.strerror) from error


def _write(file: Any, chunk: memoryview) -> None:
    try:
        written = 0
        while written < len(chunk):
            written += file.write(chunk[written:])
    except OSError as error:
        raise _DiskError(error.errno, error.strerror) from error


def _chunks(body: BinaryIO) -> Iterator[memoryview]:
    """Read a body piece by piece, into one buffer where it can."""
    readinto = getattr(body, "readinto", None)
    if readinto is None:
        while data := body.read(_CHUNK):
            yield memoryview(data)
        return
    buffer = memoryview(bytearray(_CHUNK))
    while count := readinto(buffer):
        yield buffer[:count]


def _is_whole(file: Path, entry: FileEntry) -> bool:
    """Tell whether a file is there and is what the manifest says; the size is asked first, it costs nothing."""
    try:
        return (
            file.is_file()
            and not file.is_symlink()
            and file.stat().st_size == entry.size
            and file_digest(file) == entry.sha256
        )
    except OSError:
        return False


def _bring(source: Path, target: Path, parts: Path) -> None:
    """Link a bundled file to its place, or copy it from another file system; whatever was there is replaced in one step."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = parts / "bundled"
    part.unlink(missing_ok=True)
    try:
        os.link(source, part, follow_symlinks=True)
    except OSError:
        # Another file system, one without links, or a user who may not link what belongs to somebody else.
        shutil.copyfile(source, part)
    os.replace(part, target)
    # Where both already are one file, the rename is none and leaves the part.
    part.unlink(missing_ok=True)


def _check_room(into: Path, needed: int) -> None:
    free = shutil.disk_usage(into).free
    if needed > free:
        raise RemoteError(
            f"the model's files need {needed:,} bytes on disk, and {str(into)!r} has {free:,} free: give the function more disk"
        )


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Be the only one who assembles a package in a directory: instances that start together read it from the bucket once."""
    try:
        import fcntl
    except ImportError:
        # Windows, where packages are made but no function runs.
        yield
        return
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
