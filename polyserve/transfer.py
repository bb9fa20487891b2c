"""What goes up to a bucket and what comes down from it: data of any kind as one seekable file with its digest, and an object being read.

Knows nothing of keys, capabilities or conditions: that is the bucket's part.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO, cast

from polyserve.driver import ObjectMeta, Provider
from polyserve.errors import InvalidArgumentError, translating

__all__ = ["CHUNK_BYTES", "ObjectReader", "copy_digested", "readable"]

CHUNK_BYTES = 1 << 20
# Data that cannot be read twice is kept in memory up to this size, and in a temporary file beyond it.
_SPOOL_BYTES = 8 << 20
# Files and objects up to this size are read in one go.
_SMALL_BYTES = 1 << 20
# Objects from this size on are read by one thread and hashed by another, and this many pieces are between them.
_OVERLAPPED_FROM = 4 << 20
_AHEAD = 8

Refuse = Callable[[str], InvalidArgumentError]


def readable(data: Any, refuse: Refuse) -> AbstractContextManager[tuple[BinaryIO, str]]:
    """Give data as a seekable file with the sha256 of what is left of it, and close what was opened here.

    Args:
        data: Bytes, the path of a file, an open binary file or an iterable of bytes.
        refuse: Makes the error for data that is none of them, from the reason.

    Raises:
        InvalidArgumentError: The data is not bytes, cannot be read, or is a file that changed meanwhile.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return _in_memory(data)
    if isinstance(data, os.PathLike):
        with _opened(data, refuse) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _SMALL_BYTES:
                # Read once: what is sent is what the digest is of, whatever becomes of the file.
                content = file.read(size + 1) or b""
                if len(content) != size:
                    # It changes just now, or is of those that do not tell their size.
                    content += file.read() or b""
                return _in_memory(content)
        return _unchanged(data, refuse)
    if hasattr(data, "read"):
        if isinstance(data, io.TextIOBase):
            raise refuse("the file is open as text: open it with mode 'rb'")
        if data.seekable():
            return nullcontext((data, _digest_of(data)))
        return _spooled(iter(lambda: data.read(CHUNK_BYTES), b""), refuse)
    if isinstance(data, Iterable) and not isinstance(data, str):
        return _spooled(data, refuse)
    what = "text: encode it, or pass pathlib.Path(...) for a file" if isinstance(data, str) else "not bytes"
    raise refuse(f"the data is {what} ({type(data).__name__})")


def _in_memory(content: bytes | bytearray | memoryview) -> AbstractContextManager[tuple[BinaryIO, str]]:
    return nullcontext((io.BytesIO(content), hashlib.sha256(content).hexdigest()))


@contextmanager
def _unchanged(path: os.PathLike[str], refuse: Refuse) -> Iterator[tuple[BinaryIO, str]]:
    with _opened(path, refuse) as raw:
        before = os.fstat(raw.fileno())
        file = io.BufferedReader(raw)
        yield file, _digest_of(file)
        after = os.fstat(raw.fileno())
    # The digest is sent ahead of the content, so a file that grows between the two would be stored under a wrong one.
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise refuse(f"{os.fspath(path)!r} changed while it was read, so what was stored is damaged: put it again")


def _opened(path: os.PathLike[str], refuse: Refuse) -> io.FileIO:
    try:
        # Of a small file, what a buffer asks the system for takes longer than reading it.
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise refuse(f"{os.fspath(path)!r} cannot be read: {error.strerror}") from error


@contextmanager
def _spooled(pieces: Iterable[bytes], refuse: Refuse) -> Iterator[tuple[BinaryIO, str]]:
    digest = hashlib.sha256()
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        for piece in pieces:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise refuse(f"the data yields {type(piece).__name__}: it has to yield bytes")
            digest.update(piece)
            spool.write(piece)
        spool.seek(0)
        yield cast("BinaryIO", spool), digest.hexdigest()


def _digest_of(file: BinaryIO) -> str:
    """Return the sha256 of what is left of a seekable file, which stands again where it stood."""
    start = file.tell()
    digest = hashlib.sha256()
    readinto = getattr(file, "readinto", None)
    if readinto is None:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    else:
        _digest_into(digest, readinto)
    file.seek(start)
    return digest.hexdigest()


def _digest_into(digest: Any, readinto: Callable[[memoryview], int | None]) -> None:
    """Hash what is read: one piece is hashed while the next one is read, where there is more than one."""
    now, then = memoryview(bytearray(CHUNK_BYTES)), memoryview(bytearray(CHUNK_BYTES))
    count = readinto(now) or 0
    with ThreadPoolExecutor(1, "polyserve-digest") as hashing:
        while count == CHUNK_BYTES:
            hashed = hashing.submit(digest.update, now)
            count = readinto(then) or 0
            hashed.result()
            now, then = then, now
    while count:
        digest.update(now[:count])
        count = readinto(now) or 0


def copy_digested(body: ObjectReader, path: str) -> tuple[int, str]:
    """Copy what is read to a file that does not exist yet.

    Args:
        body: What is read.
        path: Where it goes.

    Returns:
        The size and the sha256 of what was copied.
    """
    # By its number, because an object for it asks the system what it has opened: of many small files, that is felt.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if body.meta.size > _SMALL_BYTES:
            return _copy_pieces(body, file)
        content = body.read()
        _write(file, content)
        return len(content), hashlib.sha256(content).hexdigest()
    finally:
        os.close(file)


def _copy_pieces(body: ObjectReader, file: int) -> tuple[int, str]:
    """Copy piece by piece. Of what is large, one piece is hashed and written while the next ones come."""
    size, digest = 0, hashlib.sha256()
    if body.meta.size <= _OVERLAPPED_FROM:
        for piece in body.pieces():
            size += len(piece)
            digest.update(piece)
            _write(file, piece)
        return size, digest.hexdigest()
    # One worker each: pieces are taken in their order. Hashing takes about as long as writing, and as reading.
    with ThreadPoolExecutor(1, "polyserve-digest") as hashing, ThreadPoolExecutor(1, "polyserve-write") as writing:
        waiting: deque[tuple[Future[None], Future[None]]] = deque()
        for piece in body.pieces():
            size += len(piece)
            waiting.append((hashing.submit(digest.update, piece), writing.submit(_write, file, piece)))
            if len(waiting) > _AHEAD:
                for done in waiting.popleft():
                    done.result()
        for both in waiting:
            for done in both:
                done.result()
    return size, digest.hexdigest()


def _write(file: int, piece: bytes | memoryview) -> None:
    written = os.write(file, piece)
    while written < len(piece):
        written += os.write(file, memoryview(piece)[written:])


class ObjectReader(io.RawIOBase):
    """An object that is being read: a binary file that cannot be written.

    Attributes:
        meta: What is known of the whole object.
    """

    def __init__(self, provider: Provider, meta: ObjectMeta, body: BinaryIO) -> None:
        self.meta = meta
        self._provider = provider
        self._body = body

    def readable(self) -> bool:
        """Return true."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or all that is left. Fewer than asked for means the end."""
        with translating(self._provider, "read", self.meta.key):
            if size is None or size < 0:
                return self._body.read()
            data = self._body.read(size)
            # Network bodies give what has come; a caller that asks for n bytes wants n.
            while 0 < len(data) < size and (more := self._body.read(size - len(data))):
                data += more
            return data

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes came; 0 is the end."""
        with translating(self._provider, "read", self.meta.key):
            readinto = getattr(self._body, "readinto", None)
            if readinto is not None:
                return int(readinto(buffer) or 0)
            view = memoryview(buffer).cast("B")
            data = self._body.read(len(view))
            view[: len(data)] = data
            return len(data)

    def pieces(self) -> Iterator[memoryview]:
        """Yield what is left, piece by piece, as it comes and without a copy where the driver's body can tell it so."""
        pieces = getattr(self._body, "pieces", None)
        if pieces is None:
            while data := self.read(CHUNK_BYTES):
                yield memoryview(data)
            return
        left = pieces()
        while True:
            with translating(self._provider, "read", self.meta.key):
                piece = next(left, None)
            if piece is None:
                return
            yield piece

    def close(self) -> None:
        """Give the connection or the file back."""
        if not self.closed:
            super().close()
            self._body.close()
