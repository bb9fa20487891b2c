"""Files as an object store: one file for one object, `<root>/<bucket>/<escaped key>`.

A file holds the content, then one line of JSON (media type, metadata, version, time), then sixteen bytes that say where the JSON
begins. So a put is one `rename`, an object is whole or not there at any moment, and content begins at byte 0. Files being written
live in `.writing/`, which no key can name: each is locked by its writer, and one that nobody locks was left by a process that died
and is swept away.

Whoever changes a bucket holds `.writing/lock` for the look and the rename, never while bytes are copied. The system drops the lock
of a process that dies. Readers take no lock: an open file stays what it was.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn, cast

from polyserve.driver import ObjectMeta, Page, PutAttributes
from polyserve_local.errors import (
    BucketNotEmptyError,
    InvalidNameError,
    PreconditionError,
    UnsupportedOperationError,
)
from polyserve_local.keys import AFTER, Walk, encode_key, file_of
from polyserve_local.objects import Body, Header, copy_in, copy_range, read_header, write_all

__all__ = ["FileStore", "ensure_bucket", "remove_bucket"]

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_WRITING = ".writing"
_LOCK = "lock"


class FileStore:
    """One bucket of this machine. Implements `polyserve.driver.ObjectStore`.

    Args:
        root: Directory that holds the buckets.
        bucket: Name of the bucket; need not exist yet.

    Raises:
        InvalidNameError: The bucket's name could leave `root` or is not portable between file systems.
    """

    def __init__(self, root: Path, bucket: str) -> None:
        self._bucket = bucket
        self._path = _bucket_path(root, bucket)
        self._writing = f"{self._path}/{_WRITING}"
        self._swept = False

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object: copy the bytes beside it, then take its place in one step."""
        path = self._file(key)
        if not self._swept:
            self._swept = True
            _sweep(self._writing)
        with self._temporary() as (fd, temporary):
            size = copy_in(body, fd)
            return self._finish(fd, temporary, key, path, size=size, attrs=attrs)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object. What is read stays what it was when it was opened, whatever is written or deleted meanwhile."""
        fd, header = self._open(key)
        end = header.size if length is None else min(header.size, offset + length)
        return header.meta(key), cast("BinaryIO", Body(fd, min(offset, header.size), end))

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        fd, header = self._open(key)
        os.close(fd)
        return header.meta(key)

    def path_of(self, key: str) -> str:
        """Return the file of an object, whether there is one or not: its content comes first, what describes it after."""
        return self._file(key)

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page. A token names the last thing listed, so objects that come and go disturb nothing else."""
        if not os.path.isdir(self._writing):
            _no_bucket(self._bucket)
        if limit < 1:
            raise InvalidNameError(f"a page holds at least 1 object, not {limit}")
        wanted, mark = prefix.encode(), delimiter.encode()
        walk = Walk(self._path, prefix=wanted, after=_decode_token(token))
        objects: list[ObjectMeta] = []
        prefixes: list[str] = []
        last = b""
        for key, path in walk:
            if len(objects) + len(prefixes) == limit:
                return Page(objects=tuple(objects), prefixes=tuple(prefixes), next_token=_encode_token(last))
            cut = key.find(mark, len(wanted)) if mark else -1
            if cut >= 0:
                common = key[: cut + len(mark)]
                prefixes.append(common.decode())
                walk.after = last = common + AFTER
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                # Deleted since its directory was read.
                continue
            try:
                objects.append(read_header(fd, path).meta(key.decode()))
            finally:
                os.close(fd)
            last = key
        return Page(objects=tuple(objects), prefixes=tuple(prefixes))

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object within the kernel, as a reflink where the file system has them."""
        path = self._file(target)
        source_fd, header = self._open(source)
        try:
            with self._temporary() as (fd, temporary):
                copy_range(source_fd, fd, 0, header.size)
                attrs = PutAttributes(content_type=header.content_type, metadata=header.metadata)
                return self._finish(fd, temporary, target, path, size=header.size, attrs=attrs)
        finally:
            os.close(source_fd)

    def delete(self, key: str) -> None:
        """Delete an object, and the directories that held nothing else."""
        path = self._file(key)
        with _locked(self._writing, self._bucket):
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                self._missing(key)
            self._prune(path)

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Refuse: a file has no URL that expires."""
        raise UnsupportedOperationError(f"files have no signed URLs, so none that allows {method} of {key!r}")

    def _file(self, key: str) -> str:
        return f"{self._path}/{file_of(encode_key(key))}"

    def _open(self, key: str) -> tuple[int, Header]:
        path = self._file(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            self._missing(key)
        try:
            return fd, read_header(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def _missing(self, key: str) -> NoReturn:
        if not os.path.isdir(self._writing):
            _no_bucket(self._bucket)
        raise FileNotFoundError(errno.ENOENT, "no such object", key)

    @contextmanager
    def _temporary(self) -> Iterator[tuple[int, str]]:
        """Give a new file in `.writing/`, locked while it is ours; it is gone afterwards unless it was renamed."""
        fd, path = self._new_file()
        try:
            yield fd, path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)
            os.close(fd)

    def _new_file(self) -> tuple[int, str]:
        while True:
            path = f"{self._writing}/{os.getpid()}-{secrets.token_hex(8)}"
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                _no_bucket(self._bucket)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd, path
            # A sweep came between the making and the locking, and took it for a dead writer's.
            os.close(fd)

    def _finish(self, fd: int, temporary: str, key: str, path: str, *, size: int, attrs: PutAttributes) -> ObjectMeta:
        """Complete the temporary file and move it to its place, if the conditions hold."""
        header = Header(size, attrs.content_type, dict(attrs.metadata), secrets.token_hex(12), time.time_ns())
        write_all(fd, header.encode())
        os.fsync(fd)
        parent = os.path.dirname(path)
        with _locked(self._writing, self._bucket):
            self._check(key, path, attrs)
            try:
                os.rename(temporary, path)
            except (FileNotFoundError, NotADirectoryError):
                try:
                    _make_directories(parent)
                    os.rename(temporary, path)
                except OSError:
                    self._prune(path)
                    raise
        _sync_directory(parent)
        return header.meta(key)

    def _check(self, key: str, path: str, attrs: PutAttributes) -> None:
        if attrs.if_absent and os.path.lexists(path):
            raise PreconditionError(f"object {key!r} exists already")
        if attrs.if_match is None:
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PreconditionError(f"object {key!r} of version {attrs.if_match!r} does not exist any more") from error
        try:
            version = read_header(fd, path).version
        finally:
            os.close(fd)
        if version != attrs.if_match:
            raise PreconditionError(f"object {key!r} has version {version!r} now, not {attrs.if_match!r}")

    def _prune(self, path: str) -> None:
        """Remove the empty directories above a path, up to the bucket's own."""
        parent = os.path.dirname(path)
        while len(parent) > len(self._path):
            try:
                os.rmdir(parent)
            except FileNotFoundError:
                pass
            except OSError:
                return
            parent = os.path.dirname(parent)


def ensure_bucket(root: Path, bucket: str) -> None:
    """Make a bucket exist, and sweep away what writers that died left in it; idempotent.

    Raises:
        InvalidNameError: The name could leave `root` or is not portable between file systems.
    """
    writing = f"{_bucket_path(root, bucket)}/{_WRITING}"
    os.makedirs(writing, mode=0o700, exist_ok=True)
    _sweep(writing)


def remove_bucket(root: Path, bucket: str) -> None:
    """Delete an empty bucket.

    Raises:
        FileNotFoundError: There is none of that name.
        BucketNotEmptyError: It has objects, or somebody is writing one.
    """
    path = _bucket_path(root, bucket)
    writing = f"{path}/{_WRITING}"
    if os.path.isdir(writing):
        _sweep(writing)
    with _locked(writing, bucket):
        if next(iter(Walk(path)), None) is not None:
            raise BucketNotEmptyError(f"bucket {bucket!r} has objects: delete them first")
        if os.listdir(writing) != [_LOCK]:
            raise BucketNotEmptyError(f"somebody is writing to bucket {bucket!r}")
        # Directories that a writer made before it died, empty to the bottom; whatever else is there stops the last rmdir.
        for directory in _directories(path):
            os.rmdir(directory)
        if os.listdir(path) != [_WRITING]:
            raise BucketNotEmptyError(f"the directory of bucket {bucket!r} has files that are no objects: {path}")
        os.unlink(f"{writing}/{_LOCK}")
        try:
            os.rmdir(writing)
            os.rmdir(path)
        except OSError as error:
            raise BucketNotEmptyError(f"bucket {bucket!r} was written to while it was removed") from error


def _bucket_path(root: Path, bucket: str) -> str:
    if not _BUCKET_NAME.fullmatch(bucket):
        rule = "1 to 63 lower-case letters, digits, dots, hyphens and underscores, beginning with a letter or digit"
        raise InvalidNameError(f"bucket {bucket!r} needs another name: {rule}")
    return os.path.join(root, bucket)


def _make_directories(path: str) -> None:
    # Not os.makedirs: it recurses, and a key of slashes is a thousand directories deep.
    missing = []
    while True:
        try:
            os.mkdir(path, 0o700)
            break
        except FileExistsError:
            break
        except FileNotFoundError:
            missing.append(path)
            path = os.path.dirname(path)
    for directory in reversed(missing):
        os.mkdir(directory, 0o700)


def _directories(bucket: str) -> list[str]:
    """Return the directories of a bucket's keys, the deepest first."""
    found: list[str] = []
    pending = [bucket]
    while pending:
        with os.scandir(pending.pop()) as entries:
            below = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        found += below
        pending += below
    return found[::-1]


@contextmanager
def _locked(writing: str, bucket: str) -> Iterator[None]:
    """Hold a bucket's lock. Threads exclude each other too: every call opens the file anew."""
    while True:
        try:
            fd = os.open(f"{writing}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            _no_bucket(bucket)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever removes a bucket deletes this file while others wait for it.
            if os.fstat(fd).st_nlink:
                yield
                return
        finally:
            os.close(fd)


def _no_bucket(bucket: str) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, "no such bucket", bucket)


def _sweep(writing: str) -> None:
    """Delete the unfinished files of writers that died: those that nobody locks."""
    with suppress(FileNotFoundError):
        for name in os.listdir(writing):
            path = f"{writing}/{name}"
            if name == _LOCK:
                continue
            with suppress(FileNotFoundError, BlockingIOError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # By now its writer may have moved it to its place; only a file still of that name is one left behind.
                    os.unlink(path)
                finally:
                    os.close(fd)


def _sync_directory(path: str) -> None:
    """Make a rename survive a power cut."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Somebody deleted the object again already, and its directory with it.
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _encode_token(last: bytes) -> str:
    return base64.urlsafe_b64encode(last).decode()


def _decode_token(token: str | None) -> bytes:
    if token is None:
        return b""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidNameError(f"{token!r} is not a page token of this store") from error
