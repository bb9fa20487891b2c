"""Byte-code is the same bytes for the same source, whatever else the process does."""

import importlib.util
import marshal
import sys
from importlib.util import find_spec
from pathlib import Path

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
    # The compiler's own output differs now and then: equal constants are one object or two, names are interned or not.
    folder = Path(find_spec("scipy.signal").origin).parent
    sources = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
    first = {name: compiled(source, name) for name, source in sources.items()}
    alive = [compile(source, name, "exec") for name, source in sources.items()]
    again = {name: compiled(source, name) for name, source in sources.items()}

    assert [name for name in sources if first[name] != again[name]] == []
    assert alive


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
