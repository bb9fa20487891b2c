"""The bundle's archive where a platform wants a `tar.gz`: the same bytes for the same files, compressed on all processors.

Sorted by path, without owners, dates and modes of this machine, under a gzip header that says nothing. Knows nothing of what is inside.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import IO, cast

from polyserve.bundle.contents import Contents
from polyserve.bundle.layers import Gzip
from polyserve.errors import PackageError
from polyserve.runtime.manifest import is_safe_path

__all__ = ["FORMAT", "write"]

FORMAT = 1
"""Version of how an archive is written."""


def write(path: Path, files: Contents) -> str:
    """Write a `tar.gz` archive, atomically, and return its sha256 (hex).

    Args:
        path: Where the archive goes; replaced if it is there.
        files: What goes into it, by posix path.

    Raises:
        PackageError: A path could not be extracted again, or a file is not what it was.
        OSError: A file cannot be read or the archive cannot be written.
    """
    for inside in files:
        if not is_safe_path(inside):
            raise PackageError(f"{inside!r} is no path inside an archive", operation="build", resource=inside)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tar.gz")
    try:
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as out:
            packed = Gzip(out)
            try:
                _add(cast("IO[bytes]", packed), files)
                packed.finish()
            finally:
                packed.close()
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return packed.digest.hexdigest()


def _add(out: IO[bytes], files: Contents) -> None:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
        for inside in sorted(files, key=str.encode):
            content = files[inside]
            data = content.read()
            entry = tarfile.TarInfo(inside)
            entry.mode, entry.size = 0o755 if content.executable else 0o644, len(data)
            archive.addfile(entry, io.BytesIO(data))
