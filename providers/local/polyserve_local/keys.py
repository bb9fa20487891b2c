"""How a key becomes a path and back, on any file system.

A key is cut at its slashes; each piece but the last becomes a directory. Lower-case letters, digits, `-`, `_` and `.` (but not as a
piece's first character) stand for themselves; every other byte of the UTF-8 form is `%` and two hexadecimal digits. So upper case,
accents, control characters, backslashes and `..` meet no file system's own ideas, and no two keys meet in one file where case or
normalisation is folded. A `%` that no two digits follow marks what a name is:

    a%/        a directory: keys that begin with "a/"            (so "a" and "a/b" live side by side)
    a...a%-/   the first 80 bytes of a piece of 80 or more       (so no name is over 255 bytes)
    %e         the object whose last piece is empty: "a/" is a%/%e
    a          any other object

Names that begin with a dot are never keys; the store keeps its own files there. Knows nothing of what is in a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from polyserve_local.errors import InvalidNameError

__all__ = ["AFTER", "MAX_KEY_BYTES", "Walk", "directory_of", "encode_key", "file_of"]

MAX_KEY_BYTES = 1024
AFTER = b"\xff"
"""Follows every key that begins with what it is appended to: the byte 0xff occurs in no UTF-8."""

# 80 bytes are at most 240 characters once every byte is escaped; the marks fit into what is left of 255.
_CHUNK = 80
_EMPTY = "%e"
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
_ESCAPES = tuple(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in range(256))


def encode_key(key: str) -> bytes:
    """Return the UTF-8 form of a key.

    Raises:
        InvalidNameError: It is empty, over 1024 bytes, or has no UTF-8 form.
    """
    try:
        encoded = key.encode()
    except UnicodeEncodeError as error:
        raise InvalidNameError(f"key {key!r} has no UTF-8 form: {error.reason}") from error
    if not 1 <= len(encoded) <= MAX_KEY_BYTES:
        raise InvalidNameError(f"a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8, this one has {len(encoded)}")
    return encoded


def _escape(piece: bytes) -> str:
    escaped = "".join([_ESCAPES[byte] for byte in piece])
    return "%2e" + escaped[1:] if escaped.startswith(".") else escaped


def _names(piece: bytes) -> tuple[list[str], str]:
    """Return the directories that hold the beginning of a piece, and the escaped rest of it."""
    chunks = []
    while len(piece) >= _CHUNK:
        chunks.append(_escape(piece[:_CHUNK]) + "%-")
        piece = piece[_CHUNK:]
    return chunks, _escape(piece)


def directory_of(prefix: bytes) -> str:
    """Return the relative path of the directory with the keys that begin with `prefix`, which is empty or ends with a slash."""
    names: list[str] = []
    for piece in prefix.split(b"/")[:-1]:
        chunks, rest = _names(piece)
        names += [*chunks, rest + "%"]
    return "/".join(names)


def file_of(key: bytes) -> str:
    """Return the relative path of a key's file."""
    cut = key.rfind(b"/") + 1
    chunks, rest = _names(key[cut:])
    names = [directory_of(key[:cut])] if cut else []
    return "/".join([*names, *chunks, rest or _EMPTY])


def _plain(name: str) -> bytes:
    return unquote_to_bytes(os.fsencode(name)) if "%" in name else os.fsencode(name)


def _entries(path: str, base: bytes) -> list[tuple[bytes, bool, str]]:
    """Return (key or prefix of keys, is it a prefix, path) of what is in a directory, in byte order of the keys."""
    found = []
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        # Deleted between the look at its parent and this one.
        return []
    for name in names:
        if name.startswith("."):
            continue
        if name.endswith("%-"):
            found.append((base + _plain(name[:-2]), True, f"{path}/{name}"))
        elif name.endswith("%"):
            found.append((base + _plain(name[:-1]) + b"/", True, f"{path}/{name}"))
        else:
            found.append((base if name == _EMPTY else base + _plain(name), False, f"{path}/{name}"))
    # A chunk is 80 bytes without a slash, and all else beside it is shorter or has one: no key lies between two of a prefix.
    found.sort()
    return found


class Walk:
    """The files below a directory whose key begins with `prefix` and comes after `after`: (key, path) in byte order of the keys.

    Set `after` while iterating to skip ahead; directories that are skipped are not read.
    """

    def __init__(self, root: str, *, prefix: bytes = b"", after: bytes = b"") -> None:
        self.after = after
        self._prefix = prefix
        # Only the directory that the prefix names is read, not those above it.
        self._base = prefix[: prefix.rfind(b"/") + 1]
        self._top = f"{root}/{directory_of(self._base)}" if self._base else root

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        prefix = self._prefix
        pending = [(self._base, True, self._top)]
        while pending:
            key, is_prefix, path = pending.pop()
            if is_prefix:
                if (key.startswith(prefix) or prefix.startswith(key)) and key + AFTER > self.after:
                    pending += reversed(_entries(path, key))
            elif key > self.after and key.startswith(prefix):
                yield key, path
