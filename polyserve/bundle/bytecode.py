"""Byte-code for the Python of a target, so that nothing has to be compiled while somebody waits for a first answer.

Run as a program by that Python (`python3.12 -I bytecode.py`), so standard library only. Unchecked-hash byte-code (PEP 552): entries of an
archive have a fixed date, which a timestamp would contradict.

The same source gives the same bytes in any process. The compiler does not promise that: which equal constants are one object, which strings
are interned and what is referred to more than once, all of which marshal writes down, depend on whatever else lives in the process. So
every constant is replaced by the one of its value, interned where it is text. Columns, which patch versions of Python
reckon differently, are left out by `-X no_debug_ranges`: tracebacks have lines, and a tenth of the size is saved.
"""

from __future__ import annotations

import gc
import importlib.util
import marshal
import struct
import sys
import types
import warnings
from typing import Any

__all__ = ["BUFFER", "compiled", "path_of"]

BUFFER = 256 << 10
"""How many bytes go to or from a process that compiles at a time."""


def path_of(path: str, python: str) -> str:
    """Return where the byte-code of a source file goes."""
    folder, _, name = path.rpartition("/")
    place = f"__pycache__/{name.removesuffix('.py')}.cpython-{python.replace('.', '')}.pyc"
    return f"{folder}/{place}" if folder else place


def compiled(source: bytes, path: str) -> bytes | None:
    """Return the byte-code of a source file, header included; `None` for what does not compile, which stays source.

    Args:
        source: Its content.
        path: What tracebacks are to call it until it is imported, which sets the real place.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        return None
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    return header + marshal.dumps(_Constants().code(code))


class _Constants:
    """The constants of one module: one object for each value."""

    def __init__(self) -> None:
        # Texts and bytes by themselves, code by its id, everything else by its type and value.
        self._known: dict[object, Any] = {}

    def code(self, code: types.CodeType) -> types.CodeType:
        """Return the code with its constants and names replaced, and hold it."""
        known, intern = self._known, sys.intern
        file, name, qualified = intern(code.co_filename), intern(code.co_name), intern(code.co_qualname)
        made = code.replace(
            co_consts=self._one(code.co_consts)[1],
            co_names=self._names(code.co_names),
            co_varnames=self._names(code.co_varnames),
            co_cellvars=self._names(code.co_cellvars),
            co_freevars=self._names(code.co_freevars),
            co_filename=known.setdefault(file, file),
            co_name=known.setdefault(name, name),
            co_qualname=known.setdefault(qualified, qualified),
            co_linetable=known.setdefault(code.co_linetable, code.co_linetable),
            co_exceptiontable=known.setdefault(code.co_exceptiontable, code.co_exceptiontable),
        )
        known[id(made)] = made
        return made

    def _names(self, values: tuple[str, ...]) -> tuple[str, ...]:
        # As `_one` does it, for the texts that most constants are.
        if not values:
            return values
        known = self._known
        made: tuple[str, ...] | None = known.get((tuple, values))
        if made is None:
            made = known[tuple, values] = tuple([known.setdefault(value, value) for value in map(sys.intern, values)])
        return made

    def _one(self, value: Any) -> tuple[object, Any]:
        """Return what tells a value from others, and the one object that has it. 0.0 and -0.0, 1 and True are different values."""
        kind, known = type(value), self._known
        if kind is str:
            value = sys.intern(value)
            value = known.setdefault(value, value)
            return value, value
        if kind is tuple or kind is frozenset:
            parts = [self._one(part) for part in value]
            keys, values = [part[0] for part in parts], [part[1] for part in parts]
            key: object = (kind, tuple(keys) if kind is tuple else frozenset(keys))
            return key, known.setdefault(key, kind(values))
        if kind is types.CodeType:
            made = self.code(value)
            return id(made), made
        if kind is bytes:
            return value, known.setdefault(value, value)
        if kind is slice:
            parts = [self._one(part) for part in (value.start, value.stop, value.step)]
            key = (kind, tuple(part[0] for part in parts))
            return key, known.setdefault(key, slice(*(part[1] for part in parts)))
        key = (kind, repr(value) if kind is float or kind is complex else value)
        return key, known.setdefault(key, value)


def _main() -> None:
    """Compile what comes on standard input, and answer on standard output, one module after the other.

    A module is the lengths of its path and of its source, then both; an answer is the length of the byte-code, then that, or -1.
    """
    # Nothing here is ever part of a circle, and looking for one takes a tenth of the time.
    gc.disable()
    # Much at a time: waking the other side for each module takes as long as compiling a small one.
    with open(0, "rb", buffering=BUFFER) as given, open(1, "wb", buffering=BUFFER) as answers:
        while head := given.read(8):
            path, source = (given.read(length) for length in struct.unpack("<II", head))
            made = compiled(source, path.decode())
            answers.write(struct.pack("<i", -1) if made is None else struct.pack("<i", len(made)) + made)


if __name__ == "__main__":
    _main()
