"""A provider that tries again: every driver of a provider, wrapped so that what may pass is waited for.

    provider = retrying(registry.load("aws", settings))

Retries are as low as they can be, so that nothing above knows of them. Only what a provider classifies as UNAVAILABLE or
RESOURCE_EXHAUSTED is repeated, and DEADLINE_EXCEEDED, because every call below can be repeated; a service that says how long to wait
is obeyed, and a function that is at another change is waited for as long as functions take. A call whose answer was lost may have been
carried out: then a delete that finds nothing has succeeded, and a conditional put looks at what is there before it is repeated.

The raw error of the driver leaves this layer as it came. `stamina`, which waits, is imported on the first failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Literal, TypeVar, cast

from polyserve.driver import (
    Address,
    ErrorCode,
    FunctionPlatform,
    FunctionSpec,
    FunctionStatus,
    HttpCall,
    HttpReply,
    Invoker,
    LogEvent,
    ObjectMeta,
    ObjectStore,
    Page,
    Provider,
    PutAttributes,
    Request,
    Response,
    Scaling,
)
from polyserve.layers.forwarding import ForwardingProvider
from polyserve.layers.patience import PATIENT, Caller, ResumingBody, RetryPolicy

__all__ = ["RetryPolicy", "RetryingProvider", "retrying"]

T = TypeVar("T")

_CHUNK_BYTES = 1 << 20


def retrying(provider: Provider, policy: RetryPolicy = PATIENT) -> RetryingProvider:
    """Return a provider whose drivers try again; one that does already is returned as it is."""
    return provider if isinstance(provider, RetryingProvider) else RetryingProvider(provider, policy)


class _RetryingStore:
    """One bucket, tried again."""

    def __init__(self, store: ObjectStore, caller: Caller) -> None:
        self._store = store
        self._caller = caller

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object; a body that cannot be rewound is sent once."""
        if not body.seekable():
            return self._store.put(key, body, attrs=attrs)
        start = body.tell()

        def attempt() -> ObjectMeta:
            body.seek(start)
            return self._store.put(key, body, attrs=attrs)

        if not attrs.if_absent and attrs.if_match is None:
            return self._caller.call(attempt)

        def settle() -> ObjectMeta | None:
            return self._is_ours(key, body, start, attrs)

        return self._caller.settling(attempt, settle, ErrorCode.FAILED_PRECONDITION)

    def _is_ours(self, key: str, body: BinaryIO, start: int, attrs: PutAttributes) -> ObjectMeta | None:
        """Return the object if it is what this put would have written, and not what it was to replace.

        Somebody else who writes the very same bytes cannot be told apart: whoever takes a lock puts its own name into it.
        """
        try:
            meta = self._store.head(key)
        except Exception as error:
            if self._caller.code(error) is ErrorCode.NOT_FOUND:
                return None
            raise
        same = meta.content_type == attrs.content_type and dict(meta.metadata) == dict(attrs.metadata)
        if not same or meta.version == attrs.if_match:
            return None
        # With the digest in the metadata the content was compared already.
        return meta if "sha256" in attrs.metadata or self._has_content(key, body, start) else None

    def _has_content(self, key: str, body: BinaryIO, start: int) -> bool:
        body.seek(start)
        _, there = self._store.get(key)
        with there:
            while True:
                expected = body.read(_CHUNK_BYTES)
                actual = b""
                while len(actual) < len(expected) and (more := there.read(len(expected) - len(actual))):
                    actual += more
                if expected != actual:
                    return False
                if not expected:
                    return not there.read(1)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object; a body that breaks off goes on from there."""
        meta, body = self._caller.call(lambda: self._store.get(key, offset=offset, length=length))

        def reopen(done: int) -> tuple[ObjectMeta, BinaryIO]:
            return self._store.get(key, offset=offset + done, length=None if length is None else length - done)

        return meta, cast("BinaryIO", ResumingBody(self._caller, reopen, meta.version, body))

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        return self._caller.call(lambda: self._store.head(key))

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page."""
        return self._caller.call(
            lambda: self._store.list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        )

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object."""
        return self._caller.call(lambda: self._store.copy(source, target))

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._caller.removing(lambda: self._store.delete(key))

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a signed URL."""
        return self._caller.call(lambda: self._store.sign(key, method=method, expires_in=expires_in))


class _RetryingPlatform:
    """A function platform, tried again."""

    def __init__(self, platform: FunctionPlatform, caller: Caller) -> None:
        self._platform = platform
        self._caller = caller

    def apply(self, spec: FunctionSpec) -> FunctionStatus:
        """Make a revision exist."""
        return self._caller.call(self._caller.waiting(lambda: self._platform.apply(spec)))

    def describe(self, name: str) -> FunctionStatus:
        """Describe a function."""
        return self._caller.call(lambda: self._platform.describe(name))

    def list(self, *, labels: Mapping[str, str]) -> Iterator[FunctionStatus]:
        """Yield the functions that carry all these labels; a list that breaks off is asked for anew."""
        return iter(self._caller.call(lambda: [*self._platform.list(labels=labels)]))

    def route(self, name: str, weights: Mapping[int, int]) -> None:
        """Set the percent of traffic by revision."""
        self._caller.call(self._caller.waiting(lambda: self._platform.route(name, weights)))

    def scale(self, name: str, scaling: Scaling) -> None:
        """Set the instances' bounds."""
        self._caller.call(self._caller.waiting(lambda: self._platform.scale(name, scaling)))

    def logs(self, name: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the function wrote; logs that break off are asked for anew, and what was told already is left out."""
        told = 0
        events: Iterator[LogEvent] | None = None

        def following() -> LogEvent | None:
            nonlocal events
            try:
                if events is None:
                    events = iter(self._platform.logs(name, since=since))
                    for _ in range(told):
                        next(events, None)
                return next(events, None)
            except Exception:
                events = None
                raise

        while (event := self._caller.call(following)) is not None:
            told += 1
            yield event

    def remove_revision(self, name: str, number: int) -> None:
        """Delete one revision."""
        self._caller.removing(self._caller.waiting(lambda: self._platform.remove_revision(name, number)))

    def delete(self, name: str) -> None:
        """Delete a function."""
        self._caller.removing(self._caller.waiting(lambda: self._platform.delete(name)))

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return what is in the way of a revision."""
        return self._platform.obstacles(spec, split=split)

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return what the caller must be allowed to do."""
        return self._platform.permissions(spec)

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the same as the provider's own document."""
        return self._platform.policy(spec)


class _RetryingInvoker:
    """An invoker whose `resolve` is tried again; the calls themselves are the endpoint's to repeat."""

    def __init__(self, invoker: Invoker, caller: Caller) -> None:
        self._invoker = invoker
        self._caller = caller
        # Pure, and called for every invocation: no layer between.
        self.prepare: Callable[[Address, Request], HttpCall] = invoker.prepare
        self.parse: Callable[[Address, HttpReply], Response] = invoker.parse

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find where a function is called."""
        return self._caller.call(lambda: self._invoker.resolve(name, revision=revision))


class RetryingProvider(ForwardingProvider):
    """A provider whose drivers try again. Implements `polyserve.driver.Provider`.

    Args:
        provider: The provider that is wrapped.
        policy: How often and how long to try.
    """

    def __init__(self, provider: Provider, policy: RetryPolicy) -> None:
        super().__init__(provider)
        self._caller = Caller(provider, policy)
        self._functions: FunctionPlatform | None = None
        self._invoker: Invoker | None = None

    def store(self, bucket: str) -> ObjectStore:
        """Return one bucket."""
        return _RetryingStore(self._provider.store(bucket), self._caller)

    def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket exist."""
        self._caller.call(lambda: self._provider.ensure_bucket(bucket))

    def remove_bucket(self, bucket: str) -> None:
        """Delete the bucket if it is empty."""
        self._caller.removing(lambda: self._provider.remove_bucket(bucket))

    @property
    def functions(self) -> FunctionPlatform:
        """Return the function platform."""
        if self._functions is None:
            self._functions = _RetryingPlatform(self._provider.functions, self._caller)
        return self._functions

    @property
    def invoker(self) -> Invoker:
        """Return how functions are called."""
        if self._invoker is None:
            self._invoker = _RetryingInvoker(self._provider.invoker, self._caller)
        return self._invoker
