"""What only Cloud Storage has: pieces of large objects, generations, keys of one's own, and buckets of a project."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import httpx
import pytest
from google.api_core.exceptions import Forbidden, PreconditionFailed

from polyserve.driver import ErrorCode, PutAttributes
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import BucketNotEmptyError, PreconditionError, classify
from polyserve_gcp.gcs import PIECE_BYTES, SMALL_BYTES, GcsStore
from polyserve_gcp.storage import Buckets

MIB = 1 << 20
LARGE = bytes(range(251)) * (20 * MIB // 251) + b"tail"
OTHER_METADATA = ("cache_control", "content_disposition", "content_encoding", "content_language")


@pytest.fixture
def bucket(cloud: Any) -> Iterator[str]:
    """Give an empty bucket."""
    name = cloud.name()
    cloud.raw.create_bucket(name)
    yield name
    for blob in cloud.raw.list_blobs(name, versions=True):
        blob.delete()
    cloud.raw.bucket(name).delete()


@pytest.fixture
def store(cloud: Any, bucket: str) -> GcsStore:
    return cloud.store(bucket)


class _Pipe:
    """A body that has no size and no position, and gives what it likes."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 1_000_003))


# --- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [io.BytesIO, _Pipe], ids=["file", "pipe"])
@pytest.mark.parametrize(
    "size",
    [SMALL_BYTES - 1, SMALL_BYTES, PIECE_BYTES, len(LARGE)],
    ids=["one request", "one piece", "an empty last piece", "two pieces"],
)
def test_an_object_of_any_size_goes_up_whole(cloud: Any, bucket: str, store: GcsStore, kind: Any, size: int) -> None:
    attrs = PutAttributes(content_type="image/png", metadata={"a": "b"})

    meta = store.put("large/é", kind(LARGE[:size]), attrs=attrs)

    blob = cloud.raw.bucket(bucket).get_blob("large/é")
    assert blob.download_as_bytes(checksum="crc32c") == LARGE[:size]
    assert (blob.content_type, blob.metadata) == ("image/png", {"a": "b"})
    assert (meta.size, meta.version, meta.modified_at) == (size, str(blob.generation), blob.updated)


def test_conditions_of_a_large_object_are_decided_by_the_service(cloud: Any, bucket: str, store: GcsStore) -> None:
    first = store.put("k", io.BytesIO(LARGE), attrs=PutAttributes(if_absent=True))
    second = store.put("k", io.BytesIO(LARGE[1:]), attrs=PutAttributes(if_match=first.version))

    for attrs in (PutAttributes(if_absent=True), PutAttributes(if_match=first.version)):
        with pytest.raises(PreconditionFailed) as raised:
            store.put("k", io.BytesIO(LARGE), attrs=attrs)
        assert classify(raised.value) is ErrorCode.FAILED_PRECONDITION
    assert cloud.raw.bucket(bucket).get_blob("k").generation == int(second.version)


@pytest.mark.parametrize("version", ["", "0", "etag", "-1", "1.5", "²"])
def test_what_is_no_generation_matches_nothing(cloud: Any, bucket: str, store: GcsStore, version: str) -> None:
    with pytest.raises(PreconditionError) as raised:
        store.put("k", io.BytesIO(b"x"), attrs=PutAttributes(if_match=version))

    assert classify(raised.value) is ErrorCode.FAILED_PRECONDITION
    assert list(cloud.raw.list_blobs(bucket)) == []


def test_a_body_that_breaks_off_leaves_no_object(cloud: Any, bucket: str, store: GcsStore) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > PIECE_BYTES:
                raise OSError("the disk is gone")
            return super().read(size)

    with pytest.raises(OSError, match="the disk is gone"):
        store.put("large", Broken(LARGE), attrs=PutAttributes())

    assert list(cloud.raw.list_blobs(bucket)) == []


def test_what_is_being_read_is_one_version(store: GcsStore) -> None:
    store.put("k", io.BytesIO(LARGE), attrs=PutAttributes())

    meta, body = store.get("k")
    with closing(body):
        begin = body.read(1000)
        store.put("k", io.BytesIO(b"new"), attrs=PutAttributes())
        assert begin + body.read() == LARGE
    assert meta.version != store.head("k").version


def test_an_object_that_is_stored_compressed_comes_as_it_is_stored(cloud: Any, bucket: str, store: GcsStore) -> None:
    packed = gzip.compress(b"hello" * 1000)
    blob = cloud.raw.bucket(bucket).blob("k")
    blob.content_encoding = "gzip"
    blob.upload_from_string(packed, content_type="text/plain")

    meta, body = store.get("k")
    with closing(body):
        assert (body.read(), meta.size) == (packed, len(packed))
    meta, body = store.get("k", offset=5, length=5)
    with closing(body):
        assert (body.read(), meta.size) == (packed[5:10], len(packed))


def test_what_is_told_with_the_content_is_what_is_told_without(store: GcsStore) -> None:
    attrs = PutAttributes(
        content_type="text/plain; charset=utf-8", metadata={"a_b": 'x  "y" \\ %41', "sha256": "0" * 64}
    )
    store.put("k", io.BytesIO(b"content"), attrs=attrs)

    head = store.head("k")
    for offset, length in ((0, None), (2, 3), (0, 0), (100, None)):
        told, body = store.get("k", offset=offset, length=length)
        body.close()
        # HTTP's times have whole seconds.
        assert (told.key, told.size, told.content_type, told.metadata, told.version) == (
            "k",
            7,
            attrs.content_type,
            attrs.metadata,
            head.version,
        )
        assert abs(told.modified_at - head.modified_at) < timedelta(seconds=1)


def test_a_body_that_is_not_read_to_its_end_gives_its_connection_up(store: GcsStore) -> None:
    store.put("k", io.BytesIO(LARGE), attrs=PutAttributes())

    for _ in range(3):
        _, body = store.get("k")
        body.read(10)
        body.close()
        assert body.closed


def test_a_copy_has_whatever_was_set_by_others(cloud: Any, bucket: str, store: GcsStore) -> None:
    blob = cloud.raw.bucket(bucket).blob("a")
    given = ("no-store", 'attachment; filename="m.zip"', "identity", "en")
    for name, value in zip(OTHER_METADATA, given, strict=True):
        setattr(blob, name, value)
    blob.metadata = {"Mine": "yes"}
    blob.upload_from_string("x", content_type="a/b")

    meta = store.copy("a", "b")

    copied = cloud.raw.bucket(bucket).get_blob("b")
    assert tuple(getattr(copied, name) for name in OTHER_METADATA) == given
    assert (copied.content_type, copied.metadata, str(copied.generation)) == ("a/b", {"Mine": "yes"}, meta.version)


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_a_bucket_is_made_in_the_region_and_nobody_else_can_read_it(cloud: Any) -> None:
    name = cloud.name()

    cloud.buckets.ensure(name)
    cloud.buckets.ensure(name)

    made = cloud.raw.get_bucket(name)
    assert made.location == "US-CENTRAL1"
    assert made.iam_configuration.uniform_bucket_level_access_enabled
    assert made.iam_configuration.public_access_prevention == "enforced"
    cloud.buckets.remove(name)
    assert cloud.raw.lookup_bucket(name) is None


def test_a_bucket_with_older_versions_is_not_empty(cloud: Any) -> None:
    made = cloud.raw.bucket(cloud.name())
    made.versioning_enabled = True
    made.create()
    store = cloud.store(made.name)
    store.put("k", io.BytesIO(b"x"), attrs=PutAttributes())
    store.delete("k")

    with pytest.raises(BucketNotEmptyError, match="delete them first") as raised:
        cloud.buckets.remove(made.name)

    assert classify(raised.value) is ErrorCode.FAILED_PRECONDITION
    for blob in made.list_blobs(versions=True):
        blob.delete()
    cloud.buckets.remove(made.name)


# --- who may ------------------------------------------------------------------------------------------------------------


def test_a_refusal_names_the_permission(cloud: Any, bucket: str, store: GcsStore) -> None:
    store.put("k", io.BytesIO(b"x"), attrs=PutAttributes())
    settings = cloud.settings_of(cloud.account())
    with closing(Credentials(settings)) as credentials, closing(Buckets(settings, credentials)) as buckets:
        denied = GcsStore(buckets, settings, bucket)
        for verb, permission in (
            (lambda: denied.put("k", io.BytesIO(b"x"), attrs=PutAttributes()), "storage.objects.create"),
            (lambda: denied.put("k", io.BytesIO(LARGE), attrs=PutAttributes()), "storage.objects.create"),
            (lambda: denied.get("k"), "storage.objects.get"),
            (lambda: denied.head("k"), "storage.objects.get"),
            (lambda: denied.list_page(prefix="", delimiter="", token=None, limit=1), "storage.objects.list"),
            (lambda: denied.copy("k", "l"), "storage.objects.get"),
            (lambda: denied.delete("k"), "storage.objects.delete"),
            (lambda: buckets.ensure(bucket), "storage.buckets.get"),
        ):
            with pytest.raises(Forbidden) as raised:
                verb()
            assert permission in str(raised.value)
            assert classify(raised.value) is ErrorCode.PERMISSION_DENIED


@pytest.mark.parametrize("key", ["k", "a b/ü%2F+?#&", "a//b/", "../a", "line\r\nend"])
def test_a_signed_url_is_for_one_object_whatever_its_key(store: GcsStore, key: str) -> None:
    store.put(key, io.BytesIO(b"content"), attrs=PutAttributes(content_type="text/plain"))
    url = store.sign(key, method="GET", expires_in=timedelta(hours=1))

    with httpx.Client(trust_env=False) as client:
        assert client.get(url).content == b"content"
        assert client.get(url.replace("X-Goog-Expires=3600", "X-Goog-Expires=3601")).is_client_error
        assert client.put(
            store.sign(key, method="PUT", expires_in=timedelta(milliseconds=1500)), content=b"new"
        ).is_success
    _, body = store.get(key)
    with closing(body):
        assert body.read() == b"new"


def test_nothing_but_the_settings_says_where_it_is(cloud: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of-somebody-else")
    with closing(Buckets(cloud.settings, cloud.credentials)) as buckets:
        assert buckets.client.project == cloud.settings.project
        GcsStore(buckets, cloud.settings, bucket).put("k", io.BytesIO(b"x"), attrs=PutAttributes())
    assert cloud.raw.bucket(bucket).blob("k").exists()
