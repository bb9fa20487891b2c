"""What a bucket does itself, above any driver: refusing, hashing, translating, paging."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from datetime import timedelta

import pytest

from polyserve.bucket import Bucket
from polyserve.driver import Capability, ErrorCode, Page
from polyserve.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from polyserve.testing.memory import MemoryFault, MemoryProvider, MemoryStore


@pytest.fixture
def provider():
    provider = MemoryProvider()
    provider.ensure_bucket("bucket")
    return provider


@pytest.fixture
def bucket(provider):
    return Bucket(provider, "bucket")


@pytest.mark.parametrize("name", ["", "ab", "A-b", "a_b", "-ab", "ab-", "a" * 64, "a/b", "a.b", "é" * 3, 3, None])
def test_a_bucket_name_that_is_not_portable_is_refused_with_the_rule(provider, name):
    with pytest.raises(InvalidArgumentError, match="3 to 63 lower-case letters"):
        Bucket(provider, name)


def test_a_bucket_says_what_it_is(bucket):
    assert (bucket.name, bucket.provider, repr(bucket)) == ("bucket", "memory", "<Bucket 'bucket' on memory>")


@pytest.mark.parametrize("key", [None, 3, b"k"])
def test_a_key_that_is_no_text_is_refused(bucket, key):
    with pytest.raises(InvalidArgumentError, match="a key is a str"):
        bucket.head(key)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("text", "encode it, or pass pathlib.Path"),
        (io.StringIO("text"), "mode 'rb'"),
        (["text"], "yields str"),
        ([b"bytes", 3], "yields int"),
        (3, "not bytes"),
        (None, "not bytes"),
    ],
)
def test_data_that_is_not_bytes_is_refused_and_nothing_is_written(bucket, data, said):
    with pytest.raises(InvalidArgumentError, match=said):
        bucket.put("k", data)
    assert not bucket.exists("k")


def test_a_path_that_cannot_be_read_is_refused_by_name(bucket, tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"absent.*No such file"):
        bucket.put("k", tmp_path / "absent")
    with pytest.raises(InvalidArgumentError, match="directory"):
        bucket.put("k", tmp_path)


def changing(path, after):
    """Return a bucket whose uploads find a file changed once they have begun."""

    class Store(MemoryStore):
        def put(self, key, body, *, attrs):
            path.write_bytes(after)
            return super().put(key, body, attrs=attrs)

    bucket = Bucket(MemoryProvider(store=Store), "bucket")
    bucket._provider.ensure_bucket("bucket")
    return bucket


def test_a_file_that_changes_while_it_is_uploaded_is_noticed(tmp_path):
    path = tmp_path / "growing"
    path.write_bytes(b"before" * 200_000)

    with pytest.raises(InvalidArgumentError, match="changed while it was read"):
        changing(path, b"before and after" * 200_000).put("k", path)


def test_a_small_file_is_read_once_so_that_what_is_stored_is_what_it_was(tmp_path):
    path = tmp_path / "growing"
    path.write_bytes(b"before")
    bucket = changing(path, b"before and after")

    bucket.put("k", path)

    assert bucket.get("k") == b"before"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"Upper": "x"}, "lower-case"),
        ({"with-hyphen": "x"}, "lower-case"),
        ({"1st": "x"}, "lower-case"),
        ({"": "x"}, "lower-case"),
        ({"n": "é"}, "percent-encode"),
        ({"n": ""}, "percent-encode"),
        ({"n": " x"}, "percent-encode"),
        ({"n": "a\nb"}, "percent-encode"),
        ({"n": 3}, "percent-encode"),
        ({"n": "x" * 2000}, "1978 are portable"),
        ({"sha256": "0" * 64}, "leave it out"),
    ],
)
def test_metadata_that_is_not_portable_is_refused(bucket, metadata, said):
    with pytest.raises(InvalidArgumentError, match=said):
        bucket.put("k", b"", metadata=metadata)


def test_the_digest_may_be_given_if_it_is_right(bucket):
    digest = hashlib.sha256(b"x").hexdigest()

    assert bucket.put("k", b"x", metadata={"sha256": digest}).metadata == {"sha256": digest}


@pytest.mark.parametrize("content_type", ["", "text/plain\r\nx: y", "täxt", " text"])
def test_a_content_type_that_is_no_header_value_is_refused(bucket, content_type):
    with pytest.raises(InvalidArgumentError, match="printable ASCII"):
        bucket.put("k", b"", content_type=content_type)


def test_two_conditions_at_once_are_refused(bucket):
    with pytest.raises(InvalidArgumentError, match="exclude each other"):
        bucket.put("k", b"", if_absent=True, if_match="1")


def test_a_refused_capability_names_the_provider_and_who_can(provider):
    weak = Bucket(MemoryProvider(capabilities=frozenset()), "bucket")

    with pytest.raises(UnsupportedError, match=r"put 'k' failed on memory: .*'conditional-put'.*local") as raised:
        weak.put("k", b"", if_absent=True)
    assert raised.value.exit_code == 2
    with pytest.raises(UnsupportedError, match=r"sign URLs.*get\(\)"):
        weak.sign("k")
    assert Capability.SIGNED_URL in provider.info.capabilities


@pytest.mark.parametrize("expires_in", [timedelta(0), timedelta(seconds=-1), timedelta(days=8)])
def test_a_signature_that_no_provider_gives_is_refused(bucket, expires_in):
    with pytest.raises(InvalidArgumentError, match="7 days"):
        bucket.sign("k", expires_in=expires_in)
    with pytest.raises(InvalidArgumentError, match="DELETE"):
        bucket.sign("k", method="DELETE")


def test_data_that_can_be_read_once_may_be_larger_than_memory_allows(bucket):
    pieces = (b"x" * 1_000_000 for _ in range(10))

    meta = bucket.put("k", pieces)

    assert (meta.size, meta.metadata["sha256"]) == (10_000_000, hashlib.sha256(b"x" * 10_000_000).hexdigest())


def test_a_path_is_not_left_open_and_a_given_file_is(bucket, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        bucket.put("k", file)
        assert not file.closed
    # An open file that is forgotten is a ResourceWarning, which fails the test.
    bucket.put("k", path)


def test_a_file_that_does_not_tell_its_size_is_read_to_its_end(bucket, tmp_path):
    pipe, content = tmp_path / "pipe", b"content" * 1000
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_bytes, args=(content,))
    writing.start()

    bucket.put("k", pipe)
    writing.join()

    assert bucket.get("k") == content


def test_a_download_needs_its_directory_and_replaces_the_file_at_once(bucket, tmp_path):
    bucket.put("k", b"new")
    with pytest.raises(NotFoundError, match="directory does not exist"):
        bucket.download("k", tmp_path / "absent" / "file")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(NotFoundError):
        bucket.download("absent", tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"old"
    bucket.download("k", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_download_that_is_cut_short_without_an_error_is_noticed(tmp_path):
    class Cutting(MemoryStore):
        def get(self, key, *, offset=0, length=None):
            meta, body = super().get(key)
            return meta, io.BytesIO(body.read()[:-1])

    provider = MemoryProvider(store=Cutting)
    provider.ensure_bucket("bucket")
    bucket = Bucket(provider, "bucket")
    bucket.put("k", b"content")

    with pytest.raises(InternalError, match="7 bytes were expected and 6 came"):
        bucket.download("k", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_breaks_off_raises_one_of_our_errors_where_it_is_read():
    fault = MemoryFault(ErrorCode.UNAVAILABLE, "gone", retry_after=timedelta(seconds=3))

    class Breaking(io.BytesIO):
        def read(self, size=-1, /):
            raise fault

        readinto = read

    class Store(MemoryStore):
        def get(self, key, *, offset=0, length=None):
            return super().get(key)[0], Breaking()

    provider = MemoryProvider(store=Store)
    provider.ensure_bucket("bucket")
    bucket = Bucket(provider, "bucket")
    bucket.put("k", b"content")

    for read in (bucket.get, lambda key: list(bucket.stream(key)), lambda key: bucket.open(key).readinto(bytearray(3))):
        with pytest.raises(UnavailableError, match="read 'k' failed on memory: gone") as raised:
            read("k")
        assert raised.value.__cause__ is fault
        assert raised.value.retry_after == timedelta(seconds=3)


def test_a_body_without_readinto_is_read_all_the_same():
    class Plain:
        def __init__(self, content):
            self.read, self.close = io.BytesIO(content).read, lambda: None

    class Store(MemoryStore):
        def get(self, key, *, offset=0, length=None):
            meta, body = super().get(key, offset=offset, length=length)
            return meta, Plain(body.read())

    provider = MemoryProvider(store=Store)
    provider.ensure_bucket("bucket")
    bucket = Bucket(provider, "bucket")
    bucket.put("k", b"content")

    buffer = bytearray(4)
    with bucket.open("k") as body:
        assert (body.readinto(buffer), bytes(buffer)) == (4, b"cont")
        assert body.readall() == b"ent"
        assert body.readable()


def test_pieces_of_no_size_are_refused_at_the_call(bucket):
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        bucket.stream("k", chunk_bytes=0)
    with pytest.raises(NotFoundError):
        bucket.stream("k")


def test_prefixes_and_delimiters_without_a_utf8_form_are_refused(bucket):
    for asked in ({"prefix": "\ud800"}, {"delimiter": "\ud800"}):
        with pytest.raises(InvalidArgumentError, match="surrogate"):
            bucket.list(**asked)


def test_a_listing_that_does_not_get_on_is_an_error_and_not_an_endless_loop():
    class Standing(MemoryStore):
        def list_page(self, *, prefix, delimiter, token, limit):
            return Page(objects=(), next_token="same")

    provider = MemoryProvider(store=Standing)

    with pytest.raises(InternalError, match="does not get on"):
        list(Bucket(provider, "bucket").list())


def test_objects_that_somebody_else_deletes_are_not_counted(provider):
    class Raced(MemoryStore):
        def delete(self, key):
            super().delete(key)
            if key == "b":
                raise MemoryFault(ErrorCode.NOT_FOUND, "somebody was quicker")

    raced = MemoryProvider(store=Raced)
    raced.ensure_bucket("bucket")
    bucket = Bucket(raced, "bucket")
    for key in "abc":
        bucket.put(key, b"")

    assert bucket.delete_all("") == 2


def test_the_native_client_comes_through(bucket, provider):
    assert bucket.unwrap(dict) is provider.buckets
    assert bucket.unwrap(str) is None


@pytest.mark.parametrize("at_once", [1 << 20, (1 << 20) - 1, 700_000])
@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5 << 20, 5_300_001])
def test_a_file_that_gives_less_than_is_asked_for_is_hashed_to_its_end(bucket, at_once, size):
    class Slow(io.BytesIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:at_once])

    content = bytes(range(251)) * (size // 251) + bytes(size % 251)

    meta = bucket.put("k", Slow(content))

    assert (meta.size, meta.metadata["sha256"]) == (size, hashlib.sha256(content).hexdigest())
