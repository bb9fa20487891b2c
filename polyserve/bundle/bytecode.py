"""Byte-code for the Python of a target, so that nothing has to be compiled while somebody waits for a first answer.

Run as a program by that Python (`python3.12 -I bytecode.py`), so standard library only. Unchecked-hash byte-code (PEP 552): entries of an
archive have a fixed date, which a timestamp would contradict.

The same source gives the same bytes in any process. The compiler does not promise that: which equal constants are one object, which strings
are interned and what is referred to more than once, all of which marshal writes down, depend on whatever else lives in the process. So
every constant is replaced by the one of its value, interned where it is text, and held here. Columns, which patch versions of Python
reckon differently, are left out by `-X no_debug_ranges`: tracebacks have lines, and a tenth of the size is saved.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import sys
import types
import warnings
from typing import Any

__all__ = ["compiled", "path_of"]


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
        self._known: dict[object, object] = {}

    def code(self, code: types.CodeType) -> types.CodeType:
        """Return the code with its constants and names replaced, and hold it."""
        made = code.replace(
            co_consts=self._tuple(code.co_consts),
            co_names=self._tuple(code.co_names),
            co_varnames=self._tuple(code.co_varnames),
            co_cellvars=self._tuple(code.co_cellvars),
            co_freevars=self._tuple(code.co_freevars),
            co_filename=self._one(code.co_filename)[1],
            co_name=self._one(code.co_name)[1],
            co_qualname=self._one(code.co_qualname)[1],
            co_linetable=self._one(code.co_linetable)[1],
            co_exceptiontable=self._one(code.co_exceptiontable)[1],
        )
        self._known[id(made)] = made
        return made

    def _tuple(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        made: tuple[Any, ...] = self._one(values)[1]
        return made

    def _one(self, value: Any) -> tuple[object, Any]:
        """Return what tells a value from others, and the one object that has it. 0.0 and -0.0, 1 and True are different values."""
        kind = type(value)
        if kind is types.CodeType:
            made = self.code(value)
            return id(made), made
        if kind is tuple or kind is frozenset:
            parts = [self._one(part) for part in value]
            keys, values = [part[0] for part in parts], [part[1] for part in parts]
            key: object = (kind, tuple(keys) if kind is tuple else frozenset(keys))
            return key, self._known.setdefault(key, kind(values))
        if kind is slice:
            parts = [self._one(part) for part in (value.start, value.stop, value.step)]
            key = (kind, tuple(part[0] for part in parts))
            return key, self._known.setdefault(key, slice(*(part[1] for part in parts)))
        if kind is str:
            value = sys.intern(value)
        key = (kind, repr(value) if kind in {float, complex} else value)
        return key, self._known.setdefault(key, value)


def _main() -> None:
    """Compile each (source, path, result) of a JSON list on standard input; a result is written only where there is one."""
    for source, path, result in json.load(sys.stdin):
        with open(source, "rb") as file:
            made = compiled(file.read(), path)
        if made is not None:
            os.makedirs(os.path.dirname(result), exist_ok=True)
            with open(result, "wb") as file:
                file.write(made)


if __name__ == "__main__":
    _main()
