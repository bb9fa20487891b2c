"""What a deployment puts in its bucket: the bundle, and the model's files that the bundle leaves out. By digest, so each goes up once."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from polyserve.bucket import Bucket
from polyserve.bundle import Bundle
from polyserve.driver import Artifact
from polyserve.errors import FailedPreconditionError, InvalidArgumentError, PackageError

__all__ = ["upload_bundle", "upload_model"]

TOLD_BYTES = 8 << 20
"""How much goes up between two words about it."""


def upload_bundle(bucket: Bucket, artifact: Artifact, bundle: Bundle) -> None:
    """Put a bundle in its place, unless it is there."""
    kind = "application/zip" if artifact.key.endswith(".zip") else "application/gzip"
    try:
        bucket.put(artifact.key, bundle.path, content_type=kind, if_absent=True)
    except FailedPreconditionError:
        # It is there by now: names are digests, so whoever wrote it wrote the same bytes.
        return


def upload_model(bucket: Bucket, model: Artifact, path: Path, told: Callable[[int], None]) -> None:
    """Put a file of a model in its place, over whatever is there.

    Args:
        bucket: The deployment's bucket.
        model: The object; its digest is compared with the file's.
        path: The file.
        told: Called with the number of bytes that have gone up, now and then.

    Raises:
        PackageError: The file is not what it was when the model was packaged.
    """
    # Without a condition: it would be decided after gigabytes have gone up, and whoever comes between writes the same bytes.
    # The errors of the bucket are OSErrors too, some of them: only what the file itself does is about the file.
    try:
        file = path.open("rb")
    except OSError as error:
        raise _changed(path, error) from error
    with file:
        try:
            bucket.put(model.key, cast("BinaryIO", _Counted(file, told)), metadata={"sha256": model.sha256})
        except InvalidArgumentError as error:
            raise _changed(path, error) from error


def _changed(path: Path, error: Exception) -> PackageError:
    message = f"upload {path.name!r} failed: it is not the file that was packaged ({error}); package the model again"
    return PackageError(message, operation="upload", resource=str(path))


class _Counted(io.RawIOBase):
    """A file that is read twice, first for its digest; tells how far the second time is."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]) -> None:
        self._file = file
        self._told = told
        self._going_up = False
        self._next = TOLD_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = self._file.seek(offset, whence)
        if whence == os.SEEK_SET and offset == 0:
            self._going_up, self._next = True, TOLD_BYTES
        return place

    def read(self, size: int | None = -1) -> bytes:
        data = self._file.read(-1 if size is None else size)
        self._tell()
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: object) -> int:
        count = int(self._file.readinto(buffer))  # type: ignore[attr-defined]
        self._tell()
        return count

    def _tell(self) -> None:
        done = self._file.tell()
        if self._going_up and done >= self._next:
            self._next = done + TOLD_BYTES
            self._told(done)
