"""Zip archives that are the same bytes for the same files, and their safe extraction.

Written by the tool that makes packages and bundles, unpacked by it and by providers. Knows nothing of what is inside.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from polyserve.runtime.manifest import is_safe_path

LEVEL = 6
"""Deflate level, part of the format: another level is other bytes. 9 takes three times as long for one percent of the size."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644
_CHUNK = 1 << 20


class ArchiveError(Exception):
    """A file that is no zip archive, or one that must not be extracted."""


def write(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """Write a zip archive, atomically; the same files give the same bytes, whatever their dates, modes and order.

    Args:
        path: Where the archive goes; replaced if it is there.
        files: A file or its content, by posix path within the archive.

    Raises:
        ArchiveError: A path that could not be extracted again.
        OSError: A file cannot be read or the archive cannot be written.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".zip")
    try:
        with os.fdopen(descriptor, "wb") as out, zipfile.ZipFile(out, "w") as archive:
            for inside in sorted(files, key=str.encode):
                if not is_safe_path(inside):
                    raise ArchiveError(f"{inside!r} is no path inside an archive")
                _add(archive, inside, files[inside])
        os.chmod(name, _MODE)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def extract(path: Path, into: Path) -> int:
    """Extract an archive into an empty or new directory, and return the number of bytes written.

    Nothing is written outside of `into`: absolute paths, `..`, links and names that occur twice are refused before the first byte is.

    Raises:
        ArchiveError: It is no zip archive, is damaged, or holds an entry that is refused; the message names it.
        OSError: A file cannot be written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check(entries)
            for entry in entries:
                target = into / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as out:
                    shutil.copyfileobj(source, out, _CHUNK)
                target.chmod(0o755 if entry.external_attr >> 16 & 0o111 else _MODE)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError is zipfile's word for an encrypted entry.
        raise ArchiveError(f"{path.name} is no readable zip archive: {error}") from error
    return sum(entry.file_size for entry in entries)


def _add(archive: zipfile.ZipFile, inside: str, content: Path | bytes) -> None:
    info = zipfile.ZipInfo(inside, _EPOCH)
    info.create_system = 3  # Unix, on every system
    info.external_attr = (stat.S_IFREG | _MODE) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    info._compresslevel = LEVEL  # type: ignore[attr-defined]
    if isinstance(content, bytes):
        info.file_size = len(content)
        with archive.open(info, "w") as out:
            out.write(content)
    else:
        info.file_size = content.stat().st_size
        with content.open("rb") as source, archive.open(info, "w") as out:
            shutil.copyfileobj(source, out, _CHUNK)


def _check(entries: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if not is_safe_path(entry.filename):
            raise ArchiveError(f"entry {entry.filename!r} would be written outside of the directory: refused")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ArchiveError(f"entry {entry.filename!r} is a link: refused")
        if entry.filename in seen:
            raise ArchiveError(f"entry {entry.filename!r} is there twice: refused")
        seen.add(entry.filename)
