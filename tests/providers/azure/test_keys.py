"""Names of blobs: nothing that Blob Storage, XML or a client on the way refuses, and in the same order however the service sorts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.testing.keys import ORDERED, WEIRD_KEYS, longest_keys
from polyserve_azure.errors import InvalidKeyError
from polyserve_azure.keys import decode_key, encode_key, is_plain, search_prefix

# Dense in what is escaped.
PIECES = [
    *"ab./~ \\[]\x00\x01\x1f\x7f\x80\x9f\xa0A_Z@é日012", "  ", "/.", "\U0001f600", "\U00010000", "\U0010ffff", "\ud7ff", "\ue000",
    "\uf05c", "\ufffc", "\ufffd", "\ufffe", "\uffff", "\u4e00",
]  # fmt: skip
KEYS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)


@given(KEYS)
def test_a_key_comes_back_from_its_name(key):
    assert decode_key(encode_key(key)) == key


@given(KEYS, KEYS)
def test_names_are_in_the_order_of_their_keys_by_bytes_and_by_units_of_utf16(one, other):
    names = encode_key(one), encode_key(other)

    for order in ("utf-8", "utf-16-be"):
        assert (names[0].encode(order) < names[1].encode(order)) == (one.encode() < other.encode())


@given(KEYS)
def test_a_name_has_nothing_that_does_not_travel(key):
    name = encode_key(key)

    assert not re.search("[\x00-\x1f\x7f-\x9f\\\\\ufffe\uffff\U00010000-\U0010ffff]", name)
    assert {".", ".."}.isdisjoint(name.split("/"))


@given(KEYS, KEYS)
def test_what_begins_with_a_prefix_is_found_by_it(prefix, rest):
    assert encode_key(prefix + rest).startswith(search_prefix(prefix))
    assert encode_key(prefix).startswith(search_prefix(prefix))


@given(KEYS, st.sampled_from(["/", "a", "é", "-", "日"]))
def test_a_plain_delimiter_is_in_the_name_as_often_as_in_the_key(key, delimiter):
    assert is_plain(delimiter)
    assert encode_key(key).count(delimiter) == key.count(delimiter)


@pytest.mark.parametrize("delimiter", [".", " ", "~", "A", "_", "[", "\\", "\x01", "\ufffd", "0", "\u4e00", "a.b"])
def test_what_escapes_are_made_of_is_no_plain_delimiter(delimiter):
    assert not is_plain(delimiter)


def test_nearly_every_key_is_its_own_name():
    plain = [key for key in ORDERED if len(key.encode("utf-16-le")) == 2 * len(key)]
    keys = ["a b", "models/iris/1.0/model.bin", "README.md", "ünï/日本", "a//b", "/a", "a.~b", "x..y", "a[0]", *plain]

    assert [encode_key(key) for key in keys] == keys


def test_the_escapes_are_those_that_are_documented():
    names = {
        "../a": ".~./a",
        ".git": ".~git",
        "\x01": "  A",
        "a ": "a  ~",
        "a  b": "a  ~ b",
        "a\\b": "a[\ufffd\uf05cb",
        "\x7f": "~\ufffd\uf07f",
        "\ufffd": "\ufffd0",
        "\U0001f600": "\ufffd\u4e3d\u5000",
    }
    assert {key: encode_key(key) for key in names} == names


def test_all_weird_keys_have_a_name_and_the_longest_ones_fit():
    for key in [*WEIRD_KEYS.values(), *longest_keys(1024)]:
        assert decode_key(encode_key(key)) == key


def test_a_key_whose_name_is_too_long_is_refused_by_both_numbers():
    with pytest.raises(InvalidKeyError, match=r"1536 .* 1024"):
        encode_key("\x01" * 512)
