"""A bucket within a bucket; that it is a conformant store is a contract."""

from __future__ import annotations

import io

import pytest

from polyserve.driver import PutAttributes
from polyserve.errors import InvalidArgumentError
from polyserve.layers.prefixed import prefixed
from polyserve.testing.memory import MemoryProvider


@pytest.fixture
def store():
    provider = MemoryProvider()
    provider.ensure_bucket("bucket")
    return provider.store("bucket")


def test_nobody_sees_the_prefix(store):
    inner = prefixed(store, "team/")
    store.put("other", io.BytesIO(b""), attrs=PutAttributes())

    assert inner.put("k", io.BytesIO(b"x"), attrs=PutAttributes()).key == "k"
    assert inner.copy("k", "l").key == "l"
    assert inner.head("k").key == inner.get("k")[0].key == "k"
    assert [meta.key for meta in inner.list_page(prefix="", delimiter="", token=None, limit=9).objects] == ["k", "l"]
    assert store.head("team/k").size == 1


def test_prefixes_are_told_without_it(store):
    inner = prefixed(store, "team/")
    inner.put("a/b", io.BytesIO(b""), attrs=PutAttributes())

    assert inner.list_page(prefix="", delimiter="/", token=None, limit=9).prefixes == ("a/",)


def test_a_key_that_is_too_long_below_the_prefix_is_refused_with_the_room_there_is(store):
    inner = prefixed(store, "é/")
    inner.put("k" * 1021, io.BytesIO(b""), attrs=PutAttributes())

    with pytest.raises(InvalidArgumentError, match="at most 1021 bytes"):
        inner.put("k" * 1022, io.BytesIO(b""), attrs=PutAttributes())
