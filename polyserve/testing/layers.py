"""The contract of layers: what the retrying layer makes of a provider whose answers get lost, with the provider's own errors.

That layers are conformant stores is asserted elsewhere, by running `ObjectStoreContract` over `Layered`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import BinaryIO, Literal, TypeVar

import pytest

from polyserve.bucket import Bucket
from polyserve.driver import (
    Capability,
    ErrorCode,
    ObjectMeta,
    ObjectStore,
    Page,
    Provider,
    PutAttributes,
)
from polyserve.errors import FailedPreconditionError, NotFoundError, PolyserveError
from polyserve.layers.forwarding import ForwardingProvider
from polyserve.layers.retrying import RetryPolicy, retrying
from polyserve.testing.harness import Harness

__all__ = ["LayerContract"]

T = TypeVar("T")

# Nothing to wait for: the failures are on order.
AT_ONCE = RetryPolicy(attempts=4, first_wait=timedelta(0), longest_wait=timedelta(0))
CONTENT = b"content" * 1000


class LayerContract:
    """What the core relies on where a call fails for a moment."""

    @pytest.fixture
    def flaky(self, harness: Harness) -> Flaky:
        """Give the provider with failures on order."""
        return Flaky(harness.provider())

    @pytest.fixture
    def bucket(self, harness: Harness, flaky: Flaky) -> Iterator[Bucket]:
        """Give an empty bucket behind the retrying layer."""
        name = harness.fresh_bucket()
        yield Bucket(retrying(flaky, AT_ONCE), name)
        harness.drop_bucket(name)

    @pytest.fixture(params=[ErrorCode.UNAVAILABLE, ErrorCode.RESOURCE_EXHAUSTED, ErrorCode.DEADLINE_EXCEEDED])
    def passing(self, harness: Harness, request: pytest.FixtureRequest) -> Exception:
        """Give an error of the provider's own that may pass."""
        return native(harness, request.param)

    @pytest.fixture
    def lost(self, harness: Harness) -> Exception:
        """Give the provider's own error for an answer that got lost."""
        return native(harness, ErrorCode.UNAVAILABLE)

    @pytest.mark.parametrize("verb", ["put", "get", "head", "list", "copy", "delete"])
    def test_what_fails_for_a_moment_is_repeated(
        self, bucket: Bucket, flaky: Flaky, passing: Exception, verb: str
    ) -> None:
        bucket.put("k", CONTENT)
        flaky.fails(passing, passing, passing)

        verbs: dict[str, Callable[[], object]] = {
            "put": lambda: bucket.put("new", CONTENT).size,
            "get": lambda: len(bucket.get("k")),
            "head": lambda: bucket.head("k").size,
            "list": lambda: [meta.size for meta in bucket.list()],
            "copy": lambda: bucket.copy("k", "new").size,
            "delete": lambda: bucket.delete("k"),
        }
        told = verbs[verb]()

        assert told == {"list": [7000], "delete": None}.get(verb, 7000)
        assert flaky.calls == 1 + 4

    def test_the_policy_says_when_to_give_up_and_the_error_is_the_drivers_own(
        self, bucket: Bucket, flaky: Flaky, passing: Exception
    ) -> None:
        flaky.fails(*[passing] * 10)

        with pytest.raises(PolyserveError) as raised:
            bucket.head("k")

        assert raised.value.__cause__ is passing
        assert flaky.calls == 4

    def test_what_fails_for_good_is_not_repeated(self, bucket: Bucket, harness: Harness, flaky: Flaky) -> None:
        codes = (ErrorCode.INVALID_ARGUMENT, ErrorCode.PERMISSION_DENIED, ErrorCode.NOT_FOUND)
        for error in [*(native(harness, code) for code in codes), RuntimeError("a mistake")]:
            flaky.fails(error)
            before = flaky.calls
            with pytest.raises(PolyserveError) as raised:
                bucket.head("k")
            assert raised.value.__cause__ is error
            assert flaky.calls == before + 1

    def test_a_body_that_can_be_read_once_is_sent_once(self, bucket: Bucket, flaky: Flaky, lost: Exception) -> None:
        store = retrying(flaky, AT_ONCE).store(bucket.name)
        flaky.fails(lost)

        with pytest.raises(type(lost)):
            store.put("k", _Once(CONTENT), attrs=PutAttributes())

        assert flaky.calls == 1

    # --- answers that get lost after the call was carried out -----------------------------------------------------------------------------

    @pytest.mark.parametrize("digest", [True, False], ids=["with digest", "without digest"])
    @pytest.mark.parametrize("condition", ["if_absent", "if_match"])
    def test_a_conditional_put_whose_answer_was_lost_is_found_carried_out(
        self, bucket: Bucket, flaky: Flaky, lost: Exception, condition: str, digest: bool
    ) -> None:
        if self._unconditional(flaky):
            return
        match = bucket.put("k", b"old").version if condition == "if_match" else None
        flaky.loses(lost)

        if digest:
            meta = bucket.put("k", CONTENT, if_absent=match is None, if_match=match)
        else:
            attrs = PutAttributes(if_absent=match is None, if_match=match)
            meta = retrying(flaky, AT_ONCE).store(bucket.name).put("k", io.BytesIO(CONTENT), attrs=attrs)

        assert meta.version == bucket.head("k").version
        assert bucket.get("k") == CONTENT
        assert flaky.puts == 1

    @pytest.mark.parametrize("condition", ["if_absent", "if_match"])
    def test_a_conditional_put_that_somebody_else_won_meanwhile_is_lost(
        self, bucket: Bucket, harness: Harness, flaky: Flaky, lost: Exception, condition: str
    ) -> None:
        if self._unconditional(flaky):
            return
        match = bucket.put("k", b"old").version if condition == "if_match" else None
        other = Bucket(harness.provider(), bucket.name)
        flaky.fails(lost, meanwhile=lambda: other.put("k", b"theirs"))

        with pytest.raises(FailedPreconditionError):
            bucket.put("k", CONTENT, if_absent=match is None, if_match=match)

        assert bucket.get("k") == b"theirs"

    def test_a_conditional_put_that_never_arrived_is_repeated(
        self, bucket: Bucket, flaky: Flaky, lost: Exception
    ) -> None:
        if self._unconditional(flaky):
            return
        flaky.fails(lost)
        version = bucket.put("k", b"1", if_absent=True).version
        flaky.fails(lost)

        bucket.put("k", b"2", if_match=version)

        assert bucket.get("k") == b"2"

    @pytest.mark.parametrize("condition", ["if_absent", "if_match"])
    def test_a_condition_that_does_not_hold_is_told_even_if_the_bytes_are_the_same(
        self, bucket: Bucket, flaky: Flaky, condition: str
    ) -> None:
        if self._unconditional(flaky):
            return
        first = bucket.put("k", b"first").version
        bucket.put("k", CONTENT)

        with pytest.raises(FailedPreconditionError):
            bucket.put(
                "k", CONTENT, if_absent=condition == "if_absent", if_match=None if condition == "if_absent" else first
            )

    def test_a_delete_whose_answer_was_lost_has_succeeded(self, bucket: Bucket, flaky: Flaky, lost: Exception) -> None:
        bucket.put("k", b"")
        flaky.loses(lost)

        bucket.delete("k")

        with pytest.raises(NotFoundError):
            bucket.delete("k")

    @staticmethod
    def _unconditional(flaky: Flaky) -> bool:
        # That it refuses is asserted by the contract of stores.
        return Capability.CONDITIONAL_PUT not in flaky.info.capabilities

    # --- bodies that break off ------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("offset", [0, 100])
    @pytest.mark.parametrize("length", [None, 3000])
    def test_a_download_that_breaks_off_goes_on_from_there(
        self, bucket: Bucket, flaky: Flaky, lost: Exception, offset: int, length: int | None
    ) -> None:
        bucket.put("k", CONTENT)
        expected = CONTENT[offset:][:length]
        flaky.breaks_off(lost, after=1500)

        with bucket.open("k", offset=offset, length=length) as body:
            pieces = list(iter(lambda: body.read(1000), b""))

        assert b"".join(pieces) == expected

    def test_a_download_that_breaks_off_is_not_mixed_with_another_version(
        self, bucket: Bucket, flaky: Flaky, lost: Exception
    ) -> None:
        bucket.put("k", CONTENT)
        flaky.breaks_off(lost, after=1500)

        with bucket.open("k") as body, pytest.raises(PolyserveError) as raised:
            body.read(1000)
            bucket.put("k", CONTENT[::-1])
            while body.read(1000):
                pass

        assert raised.value.__cause__ is lost

    def test_a_body_is_given_back_when_it_is_closed(self, bucket: Bucket, flaky: Flaky) -> None:
        bucket.put("k", CONTENT)
        store = retrying(flaky, AT_ONCE).store(bucket.name)
        _, body = store.get("k")
        with closing(body):
            assert body.read(7) == b"content"

        assert flaky.bodies[-1].closed


def native(harness: Harness, code: ErrorCode) -> Exception:
    """Return an error of the provider's own of that code, one that does not ask to wait."""
    return next(case.error for case in harness.error_cases() if case.code is code and case.retry_after is None)


class Flaky(ForwardingProvider):
    """A provider whose stores fail on order.

    Attributes:
        calls: How many calls there were.
        puts: How many of them were conditional puts.
        bodies: The bodies that were handed out.
    """

    def __init__(self, provider: Provider) -> None:
        super().__init__(provider)
        self._orders: list[tuple[Literal["before", "after"], Exception, Callable[[], object]]] = []
        self._break: tuple[Exception, int] | None = None
        self.calls = 0
        self.puts = 0
        self.bodies: list[BinaryIO] = []

    def fails(self, *errors: Exception, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Have the next calls fail before they reach the service."""
        self._orders = [("before", error, meanwhile) for error in errors]

    def loses(self, error: Exception) -> None:
        """Have the answer of the next call lost."""
        self._orders = [("after", error, lambda: None)]

    def breaks_off(self, error: Exception, *, after: int) -> None:
        """Have the next body break off after so many bytes."""
        self._break = (error, after)

    def call(self, function: Callable[[], T]) -> T:
        """Carry out a call of a store, or not."""
        self.calls += 1
        if not self._orders:
            return function()
        when, error, meanwhile = self._orders.pop(0)
        if when == "after":
            function()
        meanwhile()
        raise error

    def body(self, body: BinaryIO) -> BinaryIO:
        """Hand out a body, or one that breaks off."""
        if self._break is not None:
            error, after = self._break
            self._break = None
            first = body.read(after)
            body.close()
            body = _Breaking(first, error)
        self.bodies.append(body)
        return body

    def store(self, bucket: str) -> ObjectStore:
        """Return a store that fails on order."""
        return _FlakyStore(self, self._provider.store(bucket))

    def close(self) -> None:
        """Leave the provider open: the harness closes it."""


class _FlakyStore:
    def __init__(self, flaky: Flaky, store: ObjectStore) -> None:
        self._flaky = flaky
        self._store = store

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        self._flaky.puts += attrs.if_absent or attrs.if_match is not None
        return self._flaky.call(lambda: self._store.put(key, body, attrs=attrs))

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        meta, body = self._flaky.call(lambda: self._store.get(key, offset=offset, length=length))
        return meta, self._flaky.body(body)

    def head(self, key: str) -> ObjectMeta:
        return self._flaky.call(lambda: self._store.head(key))

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        return self._flaky.call(
            lambda: self._store.list_page(prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        )

    def copy(self, source: str, target: str) -> ObjectMeta:
        return self._flaky.call(lambda: self._store.copy(source, target))

    def delete(self, key: str) -> None:
        self._flaky.call(lambda: self._store.delete(key))

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        return self._flaky.call(lambda: self._store.sign(key, method=method, expires_in=expires_in))


class _Breaking(io.BytesIO):
    """A body that raises where it should go on."""

    def __init__(self, content: bytes, error: Exception) -> None:
        super().__init__(content)
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() == len(self.getbuffer()) and size != 0:
            raise self._error
        return super().read(size)


class _Once(io.BytesIO):
    """A body that cannot be rewound."""

    def seekable(self) -> bool:
        return False
