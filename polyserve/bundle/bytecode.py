"""Byte-code for the Python of a target, so that nothing has to be compiled while somebody waits for a first answer.

Run as a program by that Python (`python3.12 -I bytecode.py`), so standard library only. Unchecked-hash byte-code (PEP 552): entries of an
archive have a fixed date, which a timestamp would contradict. The same source gives the same bytes in any process: marshal notes which
objects are referred to more than once by their reference count, which depends on whatever else lives in the process, so that each
object is held here once more.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import sys
import types
import warnings

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
    held: list[object] = []
    _hold(code, held)
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    return header + marshal.dumps(code)


def _hold(value: object, held: list[object]) -> None:
    held.append(value)
    if isinstance(value, types.CodeType):
        for part in (
            *(value.co_consts, value.co_names, value.co_varnames, value.co_cellvars, value.co_freevars),
            *(value.co_filename, value.co_name, value.co_qualname, value.co_linetable, value.co_exceptiontable),
        ):
            _hold(part, held)
    elif isinstance(value, (tuple, frozenset)):
        for part in value:
            _hold(part, held)


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
