"""A whole provider in this process, the reference of the contract and a fast fake for tests.

    provider = MemoryProvider()                                    # can do everything
    provider = MemoryProvider(capabilities=frozenset())            # declares nothing, so everything optional is refused
    bucket = Bucket(provider, "models")
    provider.ensure_bucket("models")

Objects are in a dictionary, functions on threads. It is written for clarity, and each capability can be left out, so that both halves
of every test of the contract have somebody to run against. Signed URLs and functions are reached over HTTP on loopback, on a port that
is opened when the first of them is asked for; `close` closes it.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar, cast

from polyserve.driver import (
    Capability,
    ErrorCode,
    Limits,
    ObjectMeta,
    Page,
    ProviderInfo,
    PutAttributes,
    Request,
    Response,
)

if TYPE_CHECKING:
    from polyserve.testing.memory_functions import MemoryInvoker, MemoryPlatform
    from polyserve.testing.memory_http import Loopback

__all__ = ["INFO", "MemoryFault", "MemoryProvider", "MemoryStore"]

T = TypeVar("T")

INFO = ProviderInfo(
    name="memory",
    title="This process",
    store_service="a dictionary",
    function_service="threads of this process",
    factory="polyserve.testing.memory:MemoryProvider",
    settings="polyserve.testing.memory_functions:MemorySettings",
    # Travels in the bundle and is not used: the functions run in this process, from the package inside.
    entrypoint="polyserve.runtime.host",
    extra="testing",
    capabilities=frozenset(Capability),
    limits=Limits(
        name_pattern=r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
        name_rule="1 to 63 lower-case letters, digits and hyphens, starting with a letter, not ending with a hyphen",
        memory_mb=(64, 1_048_576),
        timeout=timedelta(minutes=15),
        request_bytes=1 << 30,
        pythons=("3.11", "3.12", "3.13", "3.14"),
        architectures=("x86_64", "arm64"),
        max_instances=256,
        source="polyserve's own choice, 2026-11",
    ),
)


class MemoryFault(Exception):
    """The native error of this provider.

    Args:
        code: What kind of failure it is.
        message: One sentence for people.
        retry_after: How long to wait before a retry.
    """

    def __init__(self, code: ErrorCode, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


@dataclass(slots=True)
class Contents:
    """What a bucket has: content and description by key."""

    objects: dict[str, tuple[ObjectMeta, bytes]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class MemoryStore:
    """One bucket in a dictionary. Implements `polyserve.driver.ObjectStore`."""

    def __init__(self, provider: MemoryProvider, bucket: str) -> None:
        self.provider = provider
        self.bucket = bucket

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object."""
        if attrs.if_absent or attrs.if_match is not None:
            self.provider.require(Capability.CONDITIONAL_PUT)
        content = body.read()
        contents = self._contents()
        with contents.lock:
            there = contents.objects.get(key)
            if attrs.if_absent and there is not None:
                raise MemoryFault(ErrorCode.FAILED_PRECONDITION, f"object {key!r} exists already")
            if attrs.if_match is not None and (there is None or there[0].version != attrs.if_match):
                raise MemoryFault(ErrorCode.FAILED_PRECONDITION, f"object {key!r} has not version {attrs.if_match!r}")
            meta = ObjectMeta(
                key=key,
                size=len(content),
                modified_at=datetime.now(UTC),
                content_type=attrs.content_type,
                metadata=dict(attrs.metadata),
                version=self.provider.next_version(),
            )
            contents.objects[key] = (meta, content)
            return meta

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object."""
        meta, content = self._object(key)
        end = len(content) if length is None else offset + length
        return meta, io.BytesIO(content[offset:end])

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        return self._object(key)[0]

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page; a token is what the next page comes after."""
        contents = self._contents()
        with contents.lock:
            found = {key: meta for key, (meta, _) in contents.objects.items() if key.startswith(prefix)}
        items: dict[str, ObjectMeta | None] = {}
        for key, meta in found.items():
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            items[key if cut < 0 else key[: cut + len(delimiter)]] = meta if cut < 0 else None
        names = sorted((name for name in items if token is None or name.encode() > token.encode()), key=str.encode)
        page = names[:limit]
        return Page(
            objects=tuple(item for name in page if (item := items[name]) is not None),
            prefixes=tuple(name for name in page if items[name] is None),
            next_token=page[-1] if len(names) > limit else None,
        )

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object within the bucket."""
        meta, content = self._object(source)
        attrs = PutAttributes(content_type=meta.content_type, metadata=meta.metadata)
        return self.put(target, io.BytesIO(content), attrs=attrs)

    def delete(self, key: str) -> None:
        """Delete an object."""
        contents = self._contents()
        with contents.lock:
            self._object(key)
            del contents.objects[key]

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a URL of this process's own loopback server."""
        self.provider.require(Capability.SIGNED_URL)
        return self.provider.loopback.sign(self.bucket, key, method, expires_in)

    def _contents(self) -> Contents:
        try:
            return self.provider.buckets[self.bucket]
        except KeyError:
            raise MemoryFault(ErrorCode.NOT_FOUND, f"no bucket {self.bucket!r}") from None

    def _object(self, key: str) -> tuple[ObjectMeta, bytes]:
        try:
            return self._contents().objects[key]
        except KeyError:
            raise MemoryFault(ErrorCode.NOT_FOUND, f"no object {key!r}") from None


class MemoryProvider:
    """A provider in this process. Implements `polyserve.driver.Provider`.

    Args:
        settings: Takes no options; there because every factory is called with its settings.
        capabilities: What it can do; all there is unless given.
        store: Makes a bucket's store, for tests that need one that misbehaves.
    """

    def __init__(
        self,
        settings: object = None,
        *,
        capabilities: frozenset[Capability] = INFO.capabilities,
        store: Callable[[MemoryProvider, str], MemoryStore] = MemoryStore,
    ) -> None:
        self._info = replace(INFO, capabilities=capabilities)
        self._store = store
        self._versions = itertools.count(1)
        self.buckets: dict[str, Contents] = {}
        """What there is, for tests that look past the driver."""

    @property
    def info(self) -> ProviderInfo:
        """Return what it can do."""
        return self._info

    def store(self, bucket: str) -> MemoryStore:
        """Return one bucket."""
        return self._store(self, bucket)

    def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket exist."""
        self.buckets.setdefault(bucket, Contents())

    def remove_bucket(self, bucket: str) -> None:
        """Delete the bucket if it is empty."""
        if bucket not in self.buckets:
            raise MemoryFault(ErrorCode.NOT_FOUND, f"no bucket {bucket!r}")
        if self.buckets[bucket].objects:
            raise MemoryFault(ErrorCode.FAILED_PRECONDITION, f"bucket {bucket!r} has objects")
        del self.buckets[bucket]

    @cached_property
    def functions(self) -> MemoryPlatform:
        """The function platform."""
        from polyserve.testing.memory_functions import MemoryPlatform

        return MemoryPlatform(self)

    @cached_property
    def invoker(self) -> MemoryInvoker:
        """How functions are called."""
        from polyserve.testing.memory_functions import MemoryInvoker

        return MemoryInvoker(self)

    @cached_property
    def loopback(self) -> Loopback:
        """The server behind signed URLs and functions; opened when it is first asked for."""
        from polyserve.testing.memory_http import Loopback

        return Loopback(self)

    def answer(self, request: Request) -> Response:
        """Answer a call of a function that came over HTTP."""
        return self.functions.answer(request)

    def classify(self, error: Exception) -> ErrorCode:
        """Sort an error that one of the drivers raised."""
        return error.code if isinstance(error, MemoryFault) else ErrorCode.UNKNOWN

    def retry_after(self, error: Exception) -> timedelta | None:
        """Return how long to wait before a retry, if the error says so."""
        return error.retry_after if isinstance(error, MemoryFault) else None

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return the dictionary of buckets for `dict`; there is nothing else native here."""
        return cast("T", self.buckets) if wanted is dict else None

    def close(self) -> None:
        """Stop the server and the functions, if there are any. Objects stay."""
        for name in ("functions", "loopback"):
            part = self.__dict__.pop(name, None)
            if part is not None:
                part.close()

    def require(self, capability: Capability) -> None:
        """Refuse what was not declared.

        Raises:
            MemoryFault: Of code UNSUPPORTED.
        """
        if capability not in self._info.capabilities:
            raise MemoryFault(ErrorCode.UNSUPPORTED, f"no capability {capability.value!r}")

    def next_version(self) -> str:
        """Return a version that no object ever had."""
        return str(next(self._versions))
