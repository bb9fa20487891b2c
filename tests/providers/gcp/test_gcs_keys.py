"""Names of objects: nothing that Cloud Storage, XML or a client on the way refuses, and in the same order."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.testing.keys import ORDERED, WEIRD_KEYS, longest_keys
from polyserve_gcp.errors import InvalidKeyError
from polyserve_gcp.keys import decode_key, encode_key, is_plain, search_prefix

# Dense in what is escaped.
PIECES = [
    *"ab./~ \x00\x01\r\n\x1f\x7fA_Z@é日[]#*?",
    "  ",
    "/.",
    ".well-known/acme-challenge/",
    "\U0001f600",
    "\ufffd",
    "\U0010ffff",
]
KEYS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)


@given(KEYS)
def test_a_key_comes_back_from_its_name(key):
    assert decode_key(encode_key(key)) == key


@given(KEYS, KEYS)
def test_names_are_in_the_order_of_their_keys(one, other):
    assert (encode_key(one).encode() < encode_key(other).encode()) == (one.encode() < other.encode())


@given(KEYS)
def test_a_name_has_nothing_that_is_refused(key):
    name = encode_key(key)

    assert not re.search("[\x00-\x1f]", name)
    assert {".", ".."}.isdisjoint(name.split("/"))
    assert not name.startswith(".well-known/acme-challenge/")


@given(KEYS, KEYS)
def test_what_begins_with_a_prefix_is_found_by_it(prefix, rest):
    assert encode_key(prefix + rest).startswith(search_prefix(prefix))
    assert encode_key(prefix).startswith(search_prefix(prefix))


@given(KEYS, st.sampled_from(["/", "a", "é", "-", "日", "//"]))
def test_a_plain_delimiter_is_in_the_name_as_often_as_in_the_key(key, delimiter):
    assert is_plain(delimiter)
    assert encode_key(key).count(delimiter) == key.count(delimiter)


@pytest.mark.parametrize("delimiter", [".", " ", "~", "A", "_", "\x01", "\n", "a.b"])
def test_what_escapes_are_made_of_is_no_plain_delimiter(delimiter):
    assert not is_plain(delimiter)


def test_nearly_every_key_is_its_own_name():
    keys = [
        "a b",
        "models/iris/1.0/model.bin",
        "README.md",
        "ünï/日本",
        "a//b",
        "/a",
        "a.~b",
        "x..y",
        "a[0]#",
        *ORDERED,
    ]

    assert [encode_key(key) for key in keys] == keys


def test_the_escapes_are_those_that_are_documented():
    names = {
        "../a": ".~./a",
        ".git": ".~git",
        ".well-known/acme-challenge/a": ".~well-known/acme-challenge/a",
        "\x01": "  A",
        "\r\n": "  M  J",
        "a ": "a  ~",
        "a  b": "a  ~ b",
    }
    assert {key: encode_key(key) for key in names} == names


def test_all_weird_keys_have_a_name_and_the_longest_ones_fit():
    for key in [*WEIRD_KEYS.values(), *longest_keys(1024)]:
        assert decode_key(encode_key(key)) == key


def test_a_key_whose_name_is_too_long_is_refused_by_both_numbers():
    with pytest.raises(InvalidKeyError, match=r"1536 .* 1024"):
        encode_key("\x01" * 512)
