"""The contract of object stores: what every provider's storage does, byte for byte, under `Bucket`.

    class TestStore(ObjectStoreContract): ...

Takes a `harness` fixture (`polyserve.testing.harness.Harness`). Override no test: what a provider cannot do it must not declare, and then
the test asserts that it refuses.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from polyserve.bucket import Bucket
from polyserve.driver import Capability, ObjectMeta, ObjectStore, PutAttributes
from polyserve.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PolyserveError,
    UnsupportedError,
    translating,
)
from polyserve.testing.harness import Harness, RawObject
from polyserve.testing.keys import ORDERED, WEIRD_KEYS, longest_keys
from polyserve.testing.writing import WritingContract

__all__ = ["ObjectStoreContract"]

ALL_BYTES = bytes(range(256))


class ObjectStoreContract(WritingContract):
    """What users of a bucket rely on."""

    # --- reading and writing --------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, 255, 65_536, 3 << 20], ids=lambda size: f"{size} bytes")
    def test_what_is_put_is_what_the_service_has(self, harness: Harness, bucket: Bucket, size: int) -> None:
        body = (ALL_BYTES * (size // 256 + 1))[:size]

        meta = bucket.put("k", body, content_type="image/png", metadata={"author": "me"})

        expected = {"author": "me", "sha256": hashlib.sha256(body).hexdigest()}
        raw = harness.raw_get(bucket.name, "k")
        assert (raw.body, raw.content_type, dict(raw.metadata)) == (body, "image/png", expected)
        assert (meta.key, meta.size, meta.content_type, dict(meta.metadata)) == ("k", size, "image/png", expected)

    @pytest.mark.parametrize("size", [0, 1, 255, 65_536, 3 << 20], ids=lambda size: f"{size} bytes")
    def test_what_the_service_has_is_what_is_got(self, harness: Harness, bucket: Bucket, size: int) -> None:
        body = (ALL_BYTES * (size // 256 + 1))[:size]
        harness.raw_put(bucket.name, "k", RawObject(body=body, content_type="image/png", metadata={"author": "me"}))

        meta = bucket.head("k")

        assert bucket.get("k") == body
        assert (meta.key, meta.size, meta.content_type, dict(meta.metadata)) == (
            "k",
            size,
            "image/png",
            {"author": "me"},
        )

    def test_the_default_content_type_is_a_stream_of_bytes(self, harness: Harness, bucket: Bucket) -> None:
        bucket.put("k", b"")

        assert harness.raw_get(bucket.name, "k").content_type == "application/octet-stream"

    def test_a_put_replaces_content_type_and_metadata_with_the_content(self, bucket: Bucket) -> None:
        bucket.put("k", b"1", content_type="text/plain", metadata={"author": "me", "old": "yes"})
        bucket.put("k", b"22", metadata={"author": "you"})

        meta = bucket.head("k")

        assert meta.size == 2
        assert meta.content_type == "application/octet-stream"
        assert {name: value for name, value in meta.metadata.items() if name != "sha256"} == {"author": "you"}

    def test_metadata_values_come_back_as_they_were(self, bucket: Bucket) -> None:
        given = {"a": "x  y", "b2": "50%+50%25", "c_c": '"quoted", \\ and ~', "long": "v" * 1500}

        bucket.put("k", b"", metadata=given)

        meta = bucket.head("k")
        assert {name: value for name, value in meta.metadata.items() if name != "sha256"} == given

    @pytest.mark.parametrize("kind", ["path", "file", "pipe", "iterator"])
    def test_a_path_a_file_and_an_iterator_are_written_like_bytes(
        self, harness: Harness, bucket: Bucket, tmp_path: Path, kind: str
    ) -> None:
        body = ALL_BYTES * 8192
        path = tmp_path / "body"
        path.write_bytes(b"skipped" + body if kind == "file" else body)
        with path.open("rb") as file:
            if kind == "file":
                file.seek(7)
            pieces = (body[at : at + 100_000] for at in range(0, len(body), 100_000))
            data = {"path": path, "file": file, "pipe": _Pipe(body), "iterator": pieces}[kind]
            meta = bucket.put("k", data)  # type: ignore[arg-type]

        assert harness.raw_get(bucket.name, "k").body == body
        assert (meta.size, meta.metadata["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (0, 10, b"0123456789"),
            (0, 4, b"0123"),
            (3, 4, b"3456"),
            (3, None, b"3456789"),
            (9, 1, b"9"),
            (9, 100, b"9"),
            (10, None, b""),
            (10, 5, b""),
            (1000, None, b""),
            (1000, 5, b""),
            (0, 0, b""),
            (5, 0, b""),
        ],
    )
    def test_a_range_is_read_and_past_the_end_there_is_nothing(
        self, bucket: Bucket, offset: int, length: int | None, expected: bytes
    ) -> None:
        bucket.put("k", b"0123456789")

        assert bucket.get("k", offset=offset, length=length) == expected
        with bucket.open("k", offset=offset, length=length) as body:
            assert (body.meta.key, body.meta.size) == ("k", 10)
            assert b"".join(iter(lambda: body.read(3), b"")) == expected

    def test_an_empty_object_has_empty_ranges(self, bucket: Bucket) -> None:
        bucket.put("k", b"")

        assert bucket.get("k", offset=0, length=1) == b""
        assert bucket.get("k", offset=1) == b""

    def test_a_negative_range_is_refused(self, bucket: Bucket) -> None:
        bucket.put("k", b"0123456789")

        with pytest.raises(InvalidArgumentError, match="negative"):
            bucket.get("k", offset=-1)
        with pytest.raises(InvalidArgumentError, match="negative"):
            bucket.get("k", length=-1)

    def test_an_object_is_streamed_and_downloaded_whole(self, bucket: Bucket, tmp_path: Path) -> None:
        body = ALL_BYTES * 5000
        bucket.put("k", body)

        assert b"".join(bucket.stream("k", chunk_bytes=100_001)) == body
        meta = bucket.download("k", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == body
        assert meta.size == len(body)

    def test_a_damaged_object_is_not_downloaded(self, harness: Harness, bucket: Bucket, tmp_path: Path) -> None:
        wrong = {"sha256": hashlib.sha256(b"other").hexdigest()}
        harness.raw_put(bucket.name, "k", RawObject(body=b"damaged", metadata=wrong))

        with pytest.raises(PolyserveError, match="damaged"):
            bucket.download("k", tmp_path / "file")
        with pytest.raises(PolyserveError, match="damaged"):
            bucket.get("k")
        assert list(tmp_path.iterdir()) == []

    # --- keys -----------------------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", WEIRD_KEYS.values(), ids=WEIRD_KEYS.keys())
    def test_any_key_is_stored_listed_copied_and_deleted(self, harness: Harness, bucket: Bucket, key: str) -> None:
        assert bucket.put(key, b"x").key == key
        assert harness.raw_get(bucket.name, key).body == b"x"
        harness.raw_put(bucket.name, key, RawObject(body=b"xy"))
        assert (bucket.get(key), bucket.head(key).key, bucket.head(key).size) == (b"xy", key, 2)
        assert [meta.key for meta in bucket.list()] == [key] == list(harness.raw_list(bucket.name))
        assert [meta.key for meta in bucket.list(key)] == [key]
        bucket.copy(key, "copy")
        assert bucket.copy("copy", key).key == key
        bucket.delete(key)
        assert list(harness.raw_list(bucket.name)) == ["copy"]

    def test_all_keys_live_side_by_side(self, harness: Harness, bucket: Bucket) -> None:
        keys = sorted({*WEIRD_KEYS.values(), *ORDERED}, key=str.encode)
        for key in keys:
            bucket.put(key, key.encode())

        assert [meta.key for meta in bucket.list(page_size=13)] == keys
        assert sorted(harness.raw_list(bucket.name), key=str.encode) == keys
        assert [bucket.get(key).decode() for key in keys] == keys

    def test_the_longest_keys_are_stored_and_longer_ones_refused(self, harness: Harness, bucket: Bucket) -> None:
        for key in longest_keys(harness.key_bytes):
            bucket.put(key, b"x")
            assert bucket.get(key) == b"x"
            assert [meta.key for meta in bucket.list()] == [key]
            bucket.delete(key)
            with pytest.raises(InvalidArgumentError):
                bucket.put(key + "k", b"")

    @pytest.mark.parametrize(
        "key", ["", "\ud800", "k" * 1025, "é" * 513], ids=["empty", "surrogate", "long", "long in bytes"]
    )
    def test_what_is_no_key_is_refused_by_every_verb(self, bucket: Bucket, key: str) -> None:
        verbs: list[Callable[[], object]] = [
            lambda: bucket.put(key, b""),
            lambda: bucket.get(key),
            lambda: bucket.head(key),
            lambda: bucket.delete(key),
            lambda: bucket.delete(key, missing_ok=True),
            lambda: bucket.copy(key, "k"),
            lambda: bucket.copy("k", key),
            lambda: bucket.sign(key),
        ]
        for verb in verbs:
            with pytest.raises(InvalidArgumentError):
                verb()

    # --- what is not there ----------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("verb", ["get", "open", "head", "delete", "copy"])
    def test_a_missing_object_is_not_found_with_its_cause(self, bucket: Bucket, verb: str) -> None:
        bucket.put("absent/below", b"")
        bucket.put("abs", b"")

        with pytest.raises(NotFoundError) as raised:
            _ = bucket.copy("absent", "k") if verb == "copy" else getattr(bucket, verb)("absent")

        assert raised.value.resource == "absent"
        assert raised.value.provider == bucket.provider
        assert raised.value.__cause__ is not None
        assert not bucket.exists("absent")

    def test_deleting_a_missing_object_is_lenient_only_when_asked(self, bucket: Bucket) -> None:
        bucket.put("k", b"")
        bucket.delete("k", missing_ok=True)
        assert not bucket.exists("k")

        bucket.delete("k", missing_ok=True)

        with pytest.raises(NotFoundError):
            bucket.delete("k")

    @pytest.mark.parametrize("verb", ["put", "get", "head", "list", "delete", "copy"])
    def test_a_missing_bucket_is_not_found(self, harness: Harness, verb: str) -> None:
        bucket = Bucket(harness.provider(), "polyserve-no-such-bucket")
        verbs: dict[str, Callable[[], object]] = {
            "put": lambda: bucket.put("k", b""),
            "get": lambda: bucket.get("k"),
            "head": lambda: bucket.head("k"),
            "list": lambda: list(bucket.list()),
            "delete": lambda: bucket.delete("k"),
            "copy": lambda: bucket.copy("k", "l"),
        }

        with pytest.raises(NotFoundError) as raised:
            verbs[verb]()

        assert raised.value.__cause__ is not None
        assert not bucket.exists("k")

    # --- copies and deletions -------------------------------------------------------------------------------------------------------------

    def test_a_copy_has_content_type_and_metadata_and_a_version_of_its_own(
        self, harness: Harness, bucket: Bucket
    ) -> None:
        bucket.put("a", ALL_BYTES, content_type="image/png", metadata={"author": "me"})
        bucket.put("b", b"old", metadata={"old": "yes"})

        meta = bucket.copy("a", "b")

        raw = harness.raw_get(bucket.name, "b")
        assert (raw.body, raw.content_type, raw.metadata["author"]) == (ALL_BYTES, "image/png", "me")
        assert "old" not in raw.metadata
        assert (meta.key, meta.size, meta.content_type, meta.metadata["author"]) == ("b", 256, "image/png", "me")
        assert meta.version == bucket.head("b").version
        bucket.delete("a")
        assert bucket.get("b") == ALL_BYTES

    def test_an_object_is_copied_onto_itself(self, bucket: Bucket) -> None:
        bucket.put("a", ALL_BYTES, content_type="image/png")

        bucket.copy("a", "a")

        assert bucket.get("a") == ALL_BYTES
        assert bucket.head("a").content_type == "image/png"

    def test_deleting_leaves_nothing_of_an_object_and_nothing_else_changed(
        self, harness: Harness, bucket: Bucket
    ) -> None:
        for key in ("a", "a/b", "a/b/c", "ab"):
            bucket.put(key, key.encode())

        bucket.delete("a/b")

        assert sorted(harness.raw_list(bucket.name)) == ["a", "a/b/c", "ab"]
        assert bucket.get("a/b/c") == b"a/b/c"

    def test_delete_all_takes_what_begins_with_the_prefix_and_says_how_many(
        self, harness: Harness, bucket: Bucket
    ) -> None:
        for key in ("a", "a/1", "a/2", "ab", "b/a/"):
            bucket.put(key, b"")

        assert bucket.delete_all("a/") == 2
        assert sorted(harness.raw_list(bucket.name)) == ["a", "ab", "b/a/"]
        assert bucket.delete_all("") == 3
        assert bucket.delete_all("") == 0

    def test_a_bucket_is_made_twice_and_removed_only_when_empty(self, harness: Harness, bucket: Bucket) -> None:
        provider = harness.provider()
        provider.ensure_bucket(bucket.name)
        bucket.put("a/b", b"")

        with pytest.raises(FailedPreconditionError), translating(provider, "remove bucket", bucket.name):
            provider.remove_bucket(bucket.name)

        assert bucket.get("a/b") == b""

    def test_removing_a_missing_bucket_is_not_found(self, harness: Harness) -> None:
        provider = harness.provider()

        with pytest.raises(NotFoundError), translating(provider, "remove bucket", "polyserve-no-such-bucket"):
            provider.remove_bucket("polyserve-no-such-bucket")

    # --- versions and conditions ----------------------------------------------------------------------------------------------------------

    def test_the_version_is_the_same_wherever_it_is_read(self, bucket: Bucket) -> None:
        put = bucket.put("k", b"1")

        with bucket.open("k") as body:
            versions = [put.version, bucket.head("k").version, body.meta.version, *(m.version for m in bucket.list())]
        assert versions == [put.version] * 4
        assert put.version

    def test_the_version_changes_with_every_content(self, bucket: Bucket) -> None:
        versions = [bucket.put("k", body).version for body in (b"1", b"2", b"")]

        assert len(set(versions)) == 3

    def test_a_time_of_writing_is_told_with_its_zone(self, bucket: Bucket) -> None:
        meta = bucket.put("k", b"")

        # Services keep clocks of their own, and some tell whole seconds.
        for told in (meta, bucket.head("k"), next(bucket.list())):
            assert isinstance(told, ObjectMeta)
            assert abs(told.modified_at - datetime.now(UTC)) < timedelta(minutes=5)

    # --- signed URLs and the way out ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", ["k", "a b/ü%2F+?#&", "a//b", "tail."])
    def test_a_signed_url_allows_one_method_on_one_object_or_is_refused(
        self, harness: Harness, bucket: Bucket, key: str
    ) -> None:
        bucket.put(key, b"content", content_type="text/plain")
        if self._unsigned(harness, bucket, key):
            return
        soon = timedelta(minutes=5)
        with httpx.Client(trust_env=False) as client:
            read = client.get(bucket.sign(key, method="GET", expires_in=soon))
            assert (read.status_code, read.content, read.headers["content-type"]) == (200, b"content", "text/plain")
            written = client.put(
                bucket.sign(key, method="PUT", expires_in=soon), content=b"new", headers=self.upload(harness)
            )
            assert written.is_success
            assert harness.raw_get(bucket.name, key).body == b"new"
            assert client.put(bucket.sign(key, method="GET", expires_in=soon), content=b"evil").is_client_error
            url = httpx.URL(bucket.sign(key, method="GET", expires_in=soon))
            assert client.get(url.copy_with(query=None)).is_client_error
            assert client.get(
                str(url).replace(url.raw_path.decode().split("?")[0], f"/{bucket.name}/other")
            ).is_client_error
        assert harness.raw_get(bucket.name, key).body == b"new"

    @staticmethod
    def upload(harness: Harness) -> dict[str, str]:
        """Return the headers that an upload to a signed URL needs: Azure's block blobs want theirs named."""
        return dict(getattr(harness, "signed_put_headers", {}))

    def _unsigned(self, harness: Harness, bucket: Bucket, key: str) -> bool:
        """Return whether the provider has no signed URLs, after seeing that core and driver refuse."""
        provider = harness.provider()
        if Capability.SIGNED_URL in provider.info.capabilities:
            return False
        with pytest.raises(UnsupportedError, match="signed-url"):
            bucket.sign(key)
        with pytest.raises(UnsupportedError), translating(provider, "sign", key):
            provider.store(bucket.name).sign(key, method="GET", expires_in=timedelta(minutes=1))
        return True

    def test_a_type_that_the_provider_does_not_have_is_not_unwrapped(self, bucket: Bucket) -> None:
        assert bucket.unwrap(_Pipe) is None

    # --- the driver under the bucket ------------------------------------------------------------------------------------------------------

    def test_a_driver_takes_whatever_can_be_read(self, harness: Harness, bucket: Bucket) -> None:
        store: ObjectStore = harness.provider().store(bucket.name)
        store.put("k", _Pipe(ALL_BYTES * 1000), attrs=PutAttributes())  # type: ignore[arg-type]

        meta, body = store.get("k")
        with closing(body):
            assert body.read() == ALL_BYTES * 1000
        assert meta.metadata == {}


class _Pipe:
    """A body that can be read once, in pieces of its own choice, and has no size."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size if size < 0 else min(size, 10_007))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
