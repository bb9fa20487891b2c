"""Names of objects in S3: whatever the key, nothing that S3 or XML refuses, and in the same order."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.testing.keys import ORDERED, WEIRD_KEYS
from polyserve_aws.errors import InvalidKeyError
from polyserve_aws.keys import decode_key, encode_key, is_plain, search_prefix

# Dense in what is escaped.
PIECES = [*"ab./~ \x00\x01\x1fA_Z@é日", "  ", "/.", "\U0001f600"]
KEYS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)


@given(KEYS)
def test_a_key_comes_back_from_its_name(key):
    assert decode_key(encode_key(key)) == key


@given(KEYS, KEYS)
def test_names_are_in_the_order_of_their_keys(one, other):
    assert (encode_key(one).encode() < encode_key(other).encode()) == (one.encode() < other.encode())


@given(KEYS)
def test_a_name_has_no_control_character_and_no_segment_of_dots(key):
    name = encode_key(key)

    assert not re.search(r"[\x00-\x1f]", name)
    assert {".", ".."}.isdisjoint(name.split("/"))


@given(KEYS, KEYS)
def test_what_begins_with_a_prefix_is_found_by_it(prefix, rest):
    assert encode_key(prefix + rest).startswith(search_prefix(prefix))
    assert encode_key(prefix).startswith(search_prefix(prefix))


@given(KEYS, st.sampled_from(["/", "a", "b/", "é", "-", "日"]))
def test_a_plain_delimiter_is_in_the_name_as_often_as_in_the_key(key, delimiter):
    assert is_plain(delimiter)
    assert encode_key(key).count(delimiter) == key.count(delimiter)


@pytest.mark.parametrize("delimiter", [".", " ", "~", "A", "_", "\x01", "a.b"])
def test_what_escapes_are_made_of_is_no_plain_delimiter(delimiter):
    assert not is_plain(delimiter)


def test_nearly_every_key_is_its_own_name():
    keys = ["a b", "models/iris/1.0/model.bin", "README.md", "ünï/日本", "a//b", "/a", "a.~b", "x..y", *ORDERED]

    assert [encode_key(key) for key in keys] == keys


def test_the_escapes_are_those_that_are_documented():
    names = {"../a": ".~./a", ".git": ".~git", "\x01": "  A", "a ": "a  ~", "a  b": "a  ~ b", "a\x00": "a  @"}

    assert {key: encode_key(key) for key in names} == names
    assert len({encode_key(key) for key in WEIRD_KEYS.values()}) == len(WEIRD_KEYS)


def test_a_key_that_is_too_long_with_its_escapes_is_refused_by_both_numbers():
    assert encode_key("\x01" * 341)
    with pytest.raises(InvalidKeyError, match="1026 bytes in S3, which takes 1024"):
        encode_key("\x01" * 342)
