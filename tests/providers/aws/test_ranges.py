"""A large object is read in ranges where one connection is slow, and is one version of itself either way."""

from __future__ import annotations

import hashlib
import random
import threading
from functools import partial
from io import BytesIO

import pytest

from polyserve.bucket import Bucket
from polyserve.errors import ConflictError, NotFoundError
from polyserve_aws import ranges, s3
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

RANGE = 65_536
CONTENT = random.Random(7).randbytes(10 * RANGE + 321)
WAYS = [(fast, quick) for fast in (False, True) for quick in (False, True)]
IDS = [f"{'obstore' if fast else 'boto3'}, {'at once' if quick else 'in ranges'}" for fast, quick in WAYS]


@pytest.fixture
def asked(monkeypatch):
    """Make ranges small, and note which are asked for."""
    found = []
    opened = s3.S3Store._opened

    def noting(self, key, offset, length, version=None):
        found.append((offset, length))
        return opened(self, key, offset, length, version)

    monkeypatch.setattr(s3, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(ranges, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(s3.S3Store, "_opened", noting)
    return found


@pytest.fixture(params=WAYS, ids=IDS)
def opened(request, aws, bucket, asked, monkeypatch):
    """Give a bucket with a large object, and whether it is read at once."""
    fast, quick = request.param
    monkeypatch.setattr(ranges, "QUICK", 0.0 if quick else float("inf"))
    provider = AwsProvider(AwsSettings(**{**aws.options, "fast_transfers": fast}))
    given = Bucket(provider, bucket)
    given.put("large", CONTENT)
    yield given, quick
    provider.close()


def test_it_is_whole_however_it_is_read(opened, asked, tmp_path):
    bucket, quick = opened
    assert bucket.get("large") == CONTENT
    told = sorted(asked)
    bucket.download("large", tmp_path / "large")
    assert hashlib.sha256((tmp_path / "large").read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    assert b"".join(bucket.stream("large", chunk_bytes=50_000)) == CONTENT
    with bucket.open("large") as body:
        buffer = bytearray(len(CONTENT))
        view, at = memoryview(buffer), 0
        while count := body.readinto(view[at : at + 40_000]):
            at += count
    assert bytes(buffer) == CONTENT
    rest = [(RANGE, None)] if quick else [(RANGE * n, min(RANGE, len(CONTENT) - RANGE * n)) for n in range(1, 11)]
    assert told == [(0, RANGE), *rest]


def test_no_more_is_asked_for_than_is_read(opened, asked):
    bucket, _ = opened
    with bucket.open("large") as body:
        assert body.meta.size == len(CONTENT)
        assert body.read(10) == CONTENT[:10]
    assert asked == [(0, RANGE)]


def test_what_is_small_or_empty_is_asked_for_once(opened, asked):
    bucket, _ = opened
    bucket.put("small", b"x" * RANGE)
    bucket.put("empty", b"")
    assert (bucket.get("small"), bucket.get("empty")) == (b"x" * RANGE, b"")
    assert asked == [(0, RANGE), (0, RANGE)]
    with pytest.raises(NotFoundError):
        bucket.get("missing")


@pytest.mark.parametrize("change", ["written", "deleted"])
def test_an_object_that_changes_while_it_is_read_is_never_half_of_each(opened, change, tmp_path):
    bucket, _ = opened
    with bucket.open("large") as body:
        assert body.read(10) == CONTENT[:10]
        if change == "written":
            bucket.put("large", CONTENT[::-1])
        else:
            bucket.delete("large")
        with pytest.raises(ConflictError, match="read it again"):
            body.read()


def test_giving_up_in_the_middle_leaves_no_thread(opened):
    bucket, _ = opened
    before = {thread.name for thread in threading.enumerate()}
    with bucket.open("large") as body:
        body.read(3 * RANGE)
    assert {thread.name for thread in threading.enumerate()} <= before


def test_no_more_than_some_ranges_are_in_memory(monkeypatch):
    monkeypatch.setattr(ranges, "RANGE_BYTES", 10)
    monkeypatch.setattr(ranges, "QUICK", float("inf"))
    asked, lock = [], threading.Lock()

    def fetch(offset, length):
        with lock:
            asked.append(offset)
        return memoryview(b"y" * length)

    body = ranges.RangedContent(BytesIO(b"x" * 10), fetch, partial(pytest.fail, "at once"), 1000)
    pieces = body.pieces()
    assert bytes(next(pieces)) == b"x" * 10
    assert asked == []
    for _ in range(3):
        next(pieces)
    assert len(asked) <= ranges.PARALLEL + 3
    body.close()
