"""Portable storage: everything about objects that must not differ between providers, written once.

    bucket = polyserve.open_bucket("models")
    bucket.put("iris/model.joblib", Path("model.joblib"))
    bucket.get("iris/model.joblib")
    for meta in bucket.list("iris/"):
        print(meta.key, meta.size, meta.metadata["sha256"])

A `Bucket` checks names and capabilities, hashes what it uploads and what it downloads, pages through listings and turns a
driver's error into one of ours. It never makes or removes the bucket itself: `Deployment` does.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import BinaryIO, Literal, TypeVar, overload

from polyserve import registry
from polyserve.driver import Capability, ObjectMeta, ObjectStore, Provider, PutAttributes
from polyserve.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    translating,
)
from polyserve.transfer import CHUNK_BYTES, ObjectReader, copy_digested, readable

__all__ = ["Bucket", "ObjectReader"]

T = TypeVar("T")

MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
# Azure wants identifiers, S3 lower case; both send names and values as HTTP headers.
_METADATA_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_DIGEST = "sha256"
_PAGE = 1000
# Seven days: the longest that AWS and Google sign for.
_LONGEST_SIGNATURE = timedelta(days=7)


class Bucket:
    """One bucket of one provider.

    Args:
        provider: Whose storage it is.
        name: The bucket's name; no I/O happens until a verb is called.

    Raises:
        InvalidArgumentError: The name is not one that every provider takes.
    """

    def __init__(self, provider: Provider, name: str) -> None:
        if not isinstance(name, str) or not _BUCKET_NAME.fullmatch(name):
            rule = "3 to 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit"
            raise InvalidArgumentError(
                f"bucket {name!r} needs another name: {rule}", operation="open", resource=str(name)
            )
        self._provider = provider
        self._name = name
        with translating(provider, "open", name):
            self._store: ObjectStore = provider.store(name)

    def __repr__(self) -> str:
        return f"<Bucket {self._name!r} on {self._provider.info.name}>"

    @property
    def name(self) -> str:
        """Return the bucket's name."""
        return self._name

    @property
    def provider(self) -> str:
        """Return the provider's name."""
        return self._provider.info.name

    def put(
        self,
        key: str,
        data: bytes | bytearray | memoryview | os.PathLike[str] | BinaryIO | Iterable[bytes],
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> ObjectMeta:
        """Write an object; nobody ever sees half of it.

        The sha256 of the content is stored as metadata `sha256`. What can be read only once (an iterator, a pipe) is kept in memory up to
        8 MiB and in a temporary file beyond, because some providers want its size and digest before its first byte.

        Args:
            key: Its name: 1 to 1024 bytes of UTF-8.
            data: Bytes, the path of a file, an open binary file (read from where it stands) or an iterable of bytes.
            content_type: Its media type.
            metadata: Names `[a-z][a-z0-9_]*` and printable ASCII values, 2 KiB in all.
            if_absent: Write only where there is no object of that key.
            if_match: Write only over the object of this `ObjectMeta.version`.

        Raises:
            InvalidArgumentError: A key, a name or a value is not portable, or the data is not bytes.
            FailedPreconditionError: `if_absent` or `if_match` does not hold; nothing was written.
            UnsupportedError: The provider cannot write conditionally.
            NotFoundError: There is no such bucket.
        """
        self._check_key("put", key)
        self._check_attributes(key, content_type, metadata or {})
        if if_absent and if_match is not None:
            raise self._invalid("put", key, "if_absent and if_match exclude each other: give one of them")
        if if_absent or if_match is not None:
            way_out = "write under a name that nobody else uses"
            self._require(Capability.CONDITIONAL_PUT, "put", key, "write conditionally", way_out)
        with readable(data, self._refusing(key)) as (body, digest):
            given = (metadata or {}).get(_DIGEST, digest)
            if given != digest:
                raise self._invalid(
                    "put", key, f"metadata sha256 is {given!r} and the content's is {digest!r}: leave it out"
                )
            attrs = PutAttributes(
                content_type=content_type,
                metadata={**(metadata or {}), _DIGEST: digest},
                if_absent=if_absent,
                if_match=if_match,
            )
            with translating(self._provider, "put", key):
                return self._store.put(key, body, attrs=attrs)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read an object, or `length` bytes of it from `offset` on; past its end there are no bytes.

        Raises:
            NotFoundError: There is no such object.
            InternalError: The content is not what was written: its sha256 differs.
        """
        with self.open(key, offset=offset, length=length) as body:
            data = body.read()
            if offset == 0 and len(data) == body.meta.size:
                self._check_digest("get", body.meta, hashlib.sha256(data).hexdigest)
        return data

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> ObjectReader:
        """Open an object for reading; close it, or use it in a `with` statement. `.meta` describes it.

        Raises:
            NotFoundError: There is no such object.
            InvalidArgumentError: A negative offset or length.
        """
        self._check_key("open", key)
        if offset < 0 or (length is not None and length < 0):
            raise self._invalid("open", key, f"offset {offset} and length {length} must not be negative")
        with translating(self._provider, "get", key):
            meta, body = self._store.get(key, offset=offset, length=length)
        return ObjectReader(self._provider, meta, body)

    def stream(
        self, key: str, *, offset: int = 0, length: int | None = None, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[bytes]:
        """Read an object piece by piece. The digest is not checked: use `download` for what must be whole.

        Raises:
            NotFoundError: There is no such object; raised by the call, not by the first piece.
        """
        if chunk_bytes < 1:
            raise self._invalid("stream", key, f"chunk_bytes must be at least 1, not {chunk_bytes}")
        return self._pieces(self.open(key, offset=offset, length=length), chunk_bytes)

    @staticmethod
    def _pieces(reader: ObjectReader, chunk_bytes: int) -> Iterator[bytes]:
        with reader:
            while chunk := reader.read(chunk_bytes):
                yield chunk

    def download(self, key: str, path: os.PathLike[str] | str) -> ObjectMeta:
        """Copy an object to a file, which appears only when it is whole and its sha256 is right.

        Raises:
            NotFoundError: There is no such object; or the file's directory does not exist.
            InternalError: The content is not what was written: its sha256 differs. No file is left.
        """
        # Of many small objects, an object for each path is most of the work.
        target = os.fspath(path)
        directory, name = os.path.split(target)
        if not os.path.isdir(directory or "."):
            message = f"download {key!r} to {target!r} failed: the directory does not exist, make it first"
            raise NotFoundError(message, provider=self.provider, operation="download", resource=key)
        temporary = os.path.join(directory, f".{name[:100]}.{random.getrandbits(48):012x}.part")
        try:
            with self.open(key) as body:
                size, digest = copy_digested(body, temporary)
            meta = body.meta
            if size != meta.size:
                raise self._damaged("download", key, f"{meta.size} bytes were expected and {size} came")
            self._check_digest("download", meta, lambda: digest)
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        return meta

    def head(self, key: str) -> ObjectMeta:
        """Describe an object without reading it.

        Raises:
            NotFoundError: There is no such object.
        """
        self._check_key("head", key)
        with translating(self._provider, "head", key):
            return self._store.head(key)

    def exists(self, key: str) -> bool:
        """Return whether there is an object of that key; a bucket that does not exist has none."""
        try:
            self.head(key)
        except NotFoundError:
            return False
        return True

    @overload
    def list(self, prefix: str = "", *, page_size: int = _PAGE) -> Iterator[ObjectMeta]: ...

    @overload
    def list(self, prefix: str = "", *, delimiter: str, page_size: int = _PAGE) -> Iterator[ObjectMeta | str]: ...

    def list(self, prefix: str = "", *, delimiter: str = "", page_size: int = _PAGE) -> Iterator[ObjectMeta | str]:
        """Yield the objects whose keys begin with `prefix`, in the order of the keys' UTF-8 bytes, asking for pages as it goes.

        With a delimiter, keys that have it after the prefix are yielded once as what they have in common: a `str` up to and with the
        delimiter. Objects written or deleted meanwhile may or may not be among them; all others are, once.

        Portability:
            - aws, azure: `content_type` and `metadata` are what the listing tells, which may be nothing; `head` tells all.

        Raises:
            NotFoundError: There is no such bucket.
        """
        if not 1 <= page_size <= _PAGE:
            raise self._invalid("list", prefix, f"page_size must be from 1 to {_PAGE}, not {page_size}")
        for what, text in (("prefix", prefix), ("delimiter", delimiter)):
            self._check_text("list", what, text)
        return self._pages(prefix, delimiter, page_size)

    def _pages(self, prefix: str, delimiter: str, page_size: int) -> Iterator[ObjectMeta | str]:
        token: str | None = None
        while True:
            with translating(self._provider, "list", prefix or self._name):
                page = self._store.list_page(prefix=prefix, delimiter=delimiter, token=token, limit=page_size)
            if page.prefixes:
                both: builtins.list[ObjectMeta | str] = [*page.objects, *page.prefixes]
                yield from sorted(both, key=lambda item: (item if isinstance(item, str) else item.key).encode())
            else:
                yield from page.objects
            if page.next_token is not None and page.next_token == token:
                # Better than to go on for ever: what comes after this token is what was just told.
                message = f"list {prefix!r} failed on {self.provider}: the listing does not get on from {token!r}"
                raise InternalError(message, provider=self.provider, operation="list", resource=prefix or self._name)
            token = page.next_token
            if token is None:
                return

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object within the bucket, media type and metadata included.

        Raises:
            NotFoundError: There is no such object.
        """
        self._check_key("copy", source)
        self._check_key("copy", target)
        with translating(self._provider, "copy", source):
            return self._store.copy(source, target)

    def delete(self, key: str, *, missing_ok: bool = False) -> None:
        """Delete an object.

        Raises:
            NotFoundError: There is no such object, and not `missing_ok`.
        """
        self._check_key("delete", key)
        try:
            with translating(self._provider, "delete", key):
                self._store.delete(key)
        except NotFoundError:
            if not missing_ok:
                raise

    def delete_all(self, prefix: str) -> int:
        """Delete every object whose key begins with `prefix` (an empty one means all) and return how many there were."""
        count = 0
        for meta in self.list(prefix):
            try:
                self.delete(meta.key)
            except NotFoundError:
                # Somebody else was quicker.
                continue
            count += 1
        return count

    def sign(
        self, key: str, *, method: Literal["GET", "PUT"] = "GET", expires_in: timedelta = timedelta(hours=1)
    ) -> str:
        """Return a URL that allows one method on one object until it expires, whoever has it.

        Raises:
            UnsupportedError: The provider has no signed URLs.
            InvalidArgumentError: Another method, or a time not between nothing and seven days.
        """
        self._check_key("sign", key)
        if method not in ("GET", "PUT"):
            raise self._invalid("sign", key, f"method {method!r} cannot be signed: GET and PUT can")
        if not timedelta(0) < expires_in <= _LONGEST_SIGNATURE:
            raise self._invalid("sign", key, f"expires_in must be over 0 and at most 7 days, not {expires_in}")
        self._require(Capability.SIGNED_URL, "sign", key, "sign URLs", "pass the object on with get()")
        with translating(self._provider, "sign", key):
            return self._store.sign(key, method=method, expires_in=expires_in)

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return the provider's native client of that type, or `None`; each provider documents which it has."""
        return self._provider.unwrap(wanted)

    def _check_key(self, operation: str, key: str) -> None:
        if not isinstance(key, str):
            raise self._invalid(operation, repr(key), f"a key is a str, not {type(key).__name__}")
        size = self._check_text(operation, "key", key)
        if not 1 <= size <= MAX_KEY_BYTES:
            raise self._invalid(operation, key, f"a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8, this one has {size}")

    def _check_text(self, operation: str, what: str, text: str) -> int:
        """Return the size of a text in bytes of UTF-8, if it has that form."""
        if text.isascii():
            return len(text)
        try:
            return len(text.encode())
        except UnicodeEncodeError:
            reason = f"{what} has a lone surrogate, which has no UTF-8 form: decode it with the right encoding"
            raise self._invalid(operation, ascii(text), reason) from None

    def _check_attributes(self, key: str, content_type: str, metadata: Mapping[str, str]) -> None:
        if not _HEADER_VALUE.fullmatch(content_type):
            raise self._invalid("put", key, f"content type {content_type!r} has to be printable ASCII")
        size = 0
        for name, value in metadata.items():
            if not isinstance(name, str) or not _METADATA_NAME.fullmatch(name):
                reason = "a name has lower-case letters, digits and underscores and begins with a letter"
                raise self._invalid("put", key, f"metadata name {name!r} is not portable: {reason}")
            if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
                reason = "a value is printable ASCII, not empty, without spaces at its ends: percent-encode it"
                raise self._invalid("put", key, f"metadata {name}={value!r} is not portable: {reason}")
            size += len(name) + len(value)
        if size > MAX_METADATA_BYTES - 70:
            reason = f"metadata has {size} bytes, at most {MAX_METADATA_BYTES - 70} are portable: put it into an object"
            raise self._invalid("put", key, reason)

    def _check_digest(self, operation: str, meta: ObjectMeta, actual: Callable[[], str]) -> None:
        """Compare with the sha256 that was stored, if one was: `actual` is called only then."""
        expected = meta.metadata.get(_DIGEST)
        if expected is not None and actual() != expected:
            raise self._damaged(operation, meta.key, f"its sha256 is {actual()} and {expected} was written")

    def _require(self, capability: Capability, operation: str, key: str, what: str, way_out: str) -> None:
        if capability in self._provider.info.capabilities:
            return
        able = [name for name, info in registry.providers().items() if capability in info.capabilities]
        message = f"{operation} {key!r} failed on {self.provider}: it cannot {what} (no capability {capability.value!r}); {way_out}"
        if able:
            message += f", or use a provider that can: {', '.join(able)}"
        raise UnsupportedError(message, provider=self.provider, operation=operation, resource=key)

    def _refusing(self, key: str) -> Callable[[str], InvalidArgumentError]:
        return lambda reason: self._invalid("put", key, reason)

    def _invalid(self, operation: str, key: str, reason: str) -> InvalidArgumentError:
        shown = key if len(key) <= 100 else f"{key[:100]}..."
        message = f"{operation} {shown!r} was refused: {reason}"
        return InvalidArgumentError(message, provider=self.provider, operation=operation, resource=key)

    def _damaged(self, operation: str, key: str, reason: str) -> InternalError:
        message = f"{operation} {key!r} failed on {self.provider}: the content is damaged: {reason}; put it again"
        return InternalError(message, provider=self.provider, operation=operation, resource=key)
