"""The part of the store's contract that is about several writers, and about writes that do not come to their end."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from polyserve.bucket import Bucket
from polyserve.driver import Capability, PutAttributes
from polyserve.errors import (
    FailedPreconditionError,
    UnsupportedError,
    translating,
)
from polyserve.testing.harness import Harness
from polyserve.testing.listings import ListingContract

__all__ = ["WritingContract"]


class WritingContract(ListingContract):
    """What users who write at the same time rely on."""

    def test_if_absent_is_honoured_or_refused_never_ignored(self, harness: Harness, bucket: Bucket) -> None:
        if self._refused(harness, bucket, if_absent=True):
            return
        bucket.put("k", b"1", if_absent=True)
        with pytest.raises(FailedPreconditionError) as raised:
            bucket.put("k", b"2", if_absent=True)

        assert raised.value.__cause__ is not None
        assert harness.raw_get(bucket.name, "k").body == b"1"
        bucket.delete("k")
        bucket.put("k", b"3", if_absent=True)
        assert harness.raw_get(bucket.name, "k").body == b"3"

    def test_if_match_is_honoured_or_refused_never_ignored(self, harness: Harness, bucket: Bucket) -> None:
        if self._refused(harness, bucket, if_match="1"):
            return
        first = bucket.put("k", b"1").version
        second = bucket.put("k", b"2", if_match=first).version
        with pytest.raises(FailedPreconditionError):
            bucket.put("k", b"3", if_match=first)

        assert harness.raw_get(bucket.name, "k").body == b"2"
        bucket.put("k", b"4", if_match=second)
        assert harness.raw_get(bucket.name, "k").body == b"4"

    def test_if_match_does_not_hold_for_an_object_that_is_gone(self, harness: Harness, bucket: Bucket) -> None:
        if self._refused(harness, bucket, if_match="1"):
            return
        version = bucket.put("k", b"1").version
        bucket.delete("k")

        with pytest.raises(FailedPreconditionError):
            bucket.put("k", b"2", if_match=version)
        assert list(harness.raw_list(bucket.name)) == []

    @pytest.mark.parametrize("condition", ["if_absent", "if_match"])
    def test_of_many_conditional_writers_at_once_one_wins(
        self, harness: Harness, bucket: Bucket, condition: str
    ) -> None:
        if self._refused(harness, bucket, if_absent=True):
            return
        asked = {"if_absent": True} if condition == "if_absent" else {"if_match": bucket.put("k", b"first").version}
        gate = threading.Barrier(8)

        def write(number: int) -> bytes | None:
            body = b"%d" % number * 1000
            gate.wait()
            try:
                bucket.put("k", body, **asked)
            except FailedPreconditionError:
                return None
            return body

        with ThreadPoolExecutor(8) as pool:
            winners = [body for body in pool.map(write, range(8)) if body is not None]

        assert [harness.raw_get(bucket.name, "k").body] == winners

    @staticmethod
    def _refused(harness: Harness, bucket: Bucket, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        """Return whether the provider cannot write conditionally, after seeing that core and driver refuse."""
        provider = harness.provider()
        if Capability.CONDITIONAL_PUT in provider.info.capabilities:
            return False
        with pytest.raises(UnsupportedError, match="conditional-put") as raised:
            bucket.put("k", b"", if_absent=if_absent, if_match=if_match)
        assert (raised.value.provider, raised.value.operation) == (provider.info.name, "put")
        attrs = PutAttributes(if_absent=if_absent, if_match=if_match)
        with pytest.raises(UnsupportedError), translating(provider, "put", "k"):
            provider.store(bucket.name).put("k", io.BytesIO(b""), attrs=attrs)
        assert list(harness.raw_list(bucket.name)) == []
        return True

    # --- atomicity ------------------------------------------------------------------------------------------------------------------------

    def test_an_object_that_is_being_written_is_the_old_one_until_it_is_whole(
        self, harness: Harness, bucket: Bucket
    ) -> None:
        bucket.put("old", b"old")
        store = harness.provider().store(bucket.name)
        seen: list[tuple[bytes, list[str]]] = []

        def look() -> None:
            seen.append((bucket.get("old"), [meta.key for meta in bucket.list()]))

        for key in ("old", "new"):
            store.put(key, _Watched(b"half" * 100_000, look), attrs=PutAttributes())
            seen.append((bucket.get(key)[:4], [meta.key for meta in bucket.list()]))
            if key == "old":
                bucket.put("old", b"old")

        assert {(body, tuple(keys)) for body, keys in seen} == {
            (b"old", ("old",)), (b"half", ("old",)), (b"half", ("new", "old")),
        }  # fmt: skip

    def test_a_write_whose_body_breaks_off_leaves_no_object(self, harness: Harness, bucket: Bucket) -> None:
        bucket.put("old", b"old")
        store = harness.provider().store(bucket.name)
        for key in ("old", "new"):
            # As it is or in the SDK's own error.
            with pytest.raises(Exception):  # noqa: B017, PT011
                store.put(key, _Watched(b"half" * 100_000, _break_off), attrs=PutAttributes())

        assert list(harness.raw_list(bucket.name)) == ["old"]
        assert bucket.get("old") == b"old"

    def test_readers_and_writers_of_one_key_never_meet_halfway(self, bucket: Bucket) -> None:
        bodies = [bytes([65 + number]) * (50_000 + number) for number in range(4)]
        bucket.put("k", bodies[0])
        done = threading.Event()

        def read() -> set[bytes]:
            found = set()
            while not done.is_set():
                # get() compares with the digest too, which must be the one of this content.
                found.add(bucket.get("k"))
            return found

        with ThreadPoolExecutor(2) as pool:
            reader = pool.submit(read)
            try:
                list(pool.map(lambda number: bucket.put("k", bodies[number % 4]), range(20)))
            finally:
                done.set()
            assert reader.result() <= set(bodies)


class _BrokenOff(Exception):
    """What the body of an interrupted upload raises."""


def _break_off() -> None:
    raise _BrokenOff


class _Watched(io.BytesIO):
    """A body that calls `look` before it gives its second half."""

    def __init__(self, content: bytes, look: Callable[[], None]) -> None:
        super().__init__(content)
        self._half = len(content) // 2
        self._look: Callable[[], None] | None = look

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._passed()
        return data

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self._passed()
        return count

    def _passed(self) -> None:
        look = self._look
        if look is not None and self.tell() > self._half:
            self._look = None
            look()
