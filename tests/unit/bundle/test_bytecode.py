"""Byte-code is the same bytes for the same source, whatever else the process does."""

import importlib.util
import marshal
import sys

import pytest

from polyserve.bundle.bytecode import compiled, path_of

SOURCE = b'''
"""Words."""
import os
NAMES = {"b", "a", "c"}
def function(value, *, other=(1, "two", 3.5, 10**20, b"x")):
    """More words."""
    if value in {"one", "two", "three", 4.5}:
        return [lambda: other for _ in NAMES]
    return f"{value!r:>10} and a sentence that is no identifier"
class Thing:
    field: int = 300
    def method(self): return self.field, __class__, 300, 257
'''


def test_the_same_source_is_the_same_byte_code_whatever_lives_in_the_process():
    first = compiled(SOURCE, "m.py")
    # Names and constants of the source, alive: marshal looks at how often an object is referred to.
    kept = [
        marshal.loads(first[16:]),
        sys.intern("function"),
        sys.intern("and a sentence"),
        compile(SOURCE, "m.py", "exec"),
    ]
    again = compiled(SOURCE, "m.py")

    assert again == first
    assert kept


def test_byte_code_is_not_checked_against_the_source_and_says_which_it_is_of():
    made = compiled(b"x = 1\n", "m.py")

    assert made[:4] == importlib.util.MAGIC_NUMBER
    assert made[4:8] == b"\x01\0\0\0"
    assert made[8:16] == importlib.util.source_hash(b"x = 1\n")


def test_byte_code_does_what_its_source_does():
    names: dict[str, object] = {}
    exec(marshal.loads(compiled(SOURCE, "m.py")[16:]), names)

    assert names["function"](7) == "         7 and a sentence that is no identifier"
    assert names["Thing"]().method() == (300, names["Thing"], 300, 257)


@pytest.mark.parametrize("source", [b"this is no Python", b"x = '\xff'", b"x\0"])
def test_what_does_not_compile_has_no_byte_code(source):
    assert compiled(source, "m.py") is None


def test_the_path_of_byte_code_is_where_an_interpreter_of_that_version_looks():
    here = f"{sys.version_info.major}.{sys.version_info.minor}"

    assert path_of("a/b.py", here) == importlib.util.cache_from_source("a/b.py")
    assert path_of("b.py", "3.14") == "__pycache__/b.cpython-314.pyc"
