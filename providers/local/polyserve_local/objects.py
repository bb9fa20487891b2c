"""The file of one object: content, then a line of JSON that describes it, then sixteen bytes that say where the JSON begins.

Reads, writes and copies such files by descriptor. Knows nothing of keys, directories and locks.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from polyserve.driver import ObjectMeta
from polyserve_local.errors import DamagedObjectError

__all__ = ["Body", "Header", "copy_in", "copy_range", "read_header", "write_all"]

_FOOTER = struct.Struct("<Q8s")
_MAGIC = b"pserve1\n"
# Read with the footer in one go; the JSON of an object with a digest and a few names fits.
_TAIL = 512
_COPY_BYTES = 1 << 20


@dataclass(slots=True)
class Header:
    """What the end of a file says of its content."""

    size: int
    content_type: str
    metadata: Mapping[str, str]
    version: str
    written_ns: int

    def meta(self, key: str) -> ObjectMeta:
        """Return it as the description of the object of that key."""
        return ObjectMeta(
            key=key,
            size=self.size,
            modified_at=datetime.fromtimestamp(self.written_ns / 1e9, UTC),
            content_type=self.content_type,
            metadata=self.metadata,
            version=self.version,
        )

    def encode(self) -> bytes:
        """Return what follows the content."""
        fields = {
            "type": self.content_type,
            "meta": dict(self.metadata),
            "version": self.version,
            "ns": self.written_ns,
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n" + _FOOTER.pack(self.size, _MAGIC)


def read_header(fd: int, path: str) -> Header:
    """Read the end of an open file.

    Raises:
        DamagedObjectError: It is not a file of this store.
    """
    length = os.fstat(fd).st_size
    tail = os.pread(fd, min(length, _TAIL), max(0, length - _TAIL))
    try:
        size, magic = _FOOTER.unpack(tail[-_FOOTER.size :])
        if magic != _MAGIC or size > length:
            raise ValueError("no footer")
        missing = length - size - len(tail)
        if missing > 0:
            tail = os.pread(fd, missing, size) + tail
        fields: dict[str, Any] = json.loads(tail[size - length : -_FOOTER.size])
        return Header(size, fields["type"], fields["meta"], fields["version"], fields["ns"])
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise DamagedObjectError(f"{path} is not an object that this store wrote: remove it") from error


class Body(io.RawIOBase):
    """The bytes of an open file from `start` to `end`; owns the descriptor."""

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd = fd
        self._start = self._at = start
        self._end = max(start, end)

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place within the range."""
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = max(self._start, origin + offset)
        return self._at - self._start

    def tell(self) -> int:
        """Return where the next byte is read, counted from the start of the range."""
        return self._at - self._start

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes came."""
        with memoryview(buffer).cast("B") as view:
            count = min(len(view), max(0, self._end - self._at))
            done = os.preadv(self._fd, [view[:count]], self._at) if count else 0
        self._at += done
        return done

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or all that is left."""
        left = max(0, self._end - self._at)
        want = left if size is None or size < 0 else min(size, left)
        # One call and no copy; the kernel gives at most 2 GiB at once.
        data = os.pread(self._fd, want, self._at)
        self._at += len(data)
        if len(data) == want or not data or (size is not None and size >= 0):
            return data
        return data + self.read()

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def close(self) -> None:
        """Close the descriptor."""
        if not self.closed:
            super().close()
            os.close(self._fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of the data, however many calls it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_in(body: BinaryIO, fd: int) -> int:
    """Write what is left of a body to a descriptor and return how many bytes that was."""
    # Not its subclasses, whose read may do more.
    if type(body) is io.BytesIO:
        with body.getbuffer() as view:
            rest = view[body.tell() :]
            write_all(fd, rest)
            return len(rest)
    # Only plain files: a wrapper such as gzip's has a fileno too, and that gives other bytes than its read.
    raw = getattr(body, "raw", body)
    if type(body) in (io.BufferedReader, io.BufferedRandom, io.FileIO) and type(raw) is io.FileIO:
        status = os.fstat(body.fileno())
        if stat.S_ISREG(status.st_mode):
            body.flush()
            start = body.tell()
            return copy_range(body.fileno(), fd, start, max(0, os.fstat(body.fileno()).st_size - start))
    size = 0
    while chunk := body.read(_COPY_BYTES):
        write_all(fd, chunk)
        size += len(chunk)
    return size


def copy_range(source: int, target: int, start: int, count: int) -> int:
    """Copy bytes between two files within the kernel where it can, and return how many there were."""
    done = 0
    copy = getattr(os, "copy_file_range", None)
    while copy and done < count:
        try:
            step = copy(source, target, count - done, start + done)
        except OSError as error:
            # Two file systems, or one that cannot.
            if done or error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            break
        if not step:
            return done
        done += step
    while done < count and (chunk := os.pread(source, min(_COPY_BYTES, count - done), start + done)):
        write_all(target, chunk)
        done += len(chunk)
    return done
