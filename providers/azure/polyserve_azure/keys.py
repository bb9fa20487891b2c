r"""Names of blobs: any UTF-8 key, in the order of UTF-8 bytes whichever way the service sorts, without what it does not carry.

Nearly every key is stored as it is. Clients on the way remove `.` and `..`, Blob Storage turns `\` into `/`, its answers are XML, which
cannot hold control characters, and it may sort by the units of UTF-16, where `U+E000` comes after what is beyond the basic plane:

- a dot that begins a segment is followed by `~`: `../a` is `.~./a`, and `.git` is `.~git`;
- a control character is two spaces and a letter: `\x01` is `  A`;
- a space before a space, before a control character or at the end is two spaces and `~`, so that the above cannot be mistaken;
- a backslash is `[`, delete and the control characters behind it are `~`, each with `U+FFFD` and a private character after it;
- what is beyond the basic plane is `U+FFFD` and two characters; the last three of that plane, `U+FFFD` itself among them, one.

Each replacement sorts where the replaced sorts, and is of the basic plane, where both orders are the same.

Sources: https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata, 2026-11.
"""

from __future__ import annotations

import re

from polyserve_azure.errors import InvalidKeyError

__all__ = ["decode_key", "encode_key", "is_plain", "search_prefix"]

MAX_NAME = 1024
"""Characters of a blob's name."""

_MARK = "\ufffd"
_PRIVATE = 0xF000
_HALF = 0x4E00
_DOT = re.compile(r"(^|/)\.")
_DOTTED = re.compile(r"(^|/)\.~")
_SPECIAL = re.compile("[\x00-\x1f]| (?=[\x00- ]|\\Z)|[\\\\\x7f-\x9f\ufffd-\U0010ffff]")
_ESCAPED = re.compile(
    "  ([@-_~])|[\\[~]\ufffd([\uf05c\uf07f-\uf09f])|\ufffd([0-2])|\ufffd([\u4e00-\u51ff])([\u4e00-\u51ff])"
)
_UNPLAIN = re.compile("[\x00- .~@-_\x7f-\x9f\ufffd-\U0010ffff0-2\u4e00-\u51ff\uf000-\uf0ff]")


def encode_key(key: str) -> str:
    """Return the name of a blob.

    Raises:
        InvalidKeyError: With its escapes it is longer than Blob Storage takes.
    """
    encoded = _encode(key)
    if len(encoded) > MAX_NAME:
        message = (
            f"key {key[:100]!r} needs {len(encoded)} characters in Blob Storage, which takes {MAX_NAME}: use fewer control "
            "characters, leading dots, backslashes and double spaces"
        )
        raise InvalidKeyError(message)
    return encoded


def _encode(key: str) -> str:
    if "." in key:
        key = _DOT.sub(r"\1.~", key)
    return _SPECIAL.sub(_escape, key)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code == 0x20:
        return "  ~"
    if code < 0x20:
        return f"  {chr(code + 0x40)}"
    if code < 0xA0:
        return f"{'[' if code == 0x5C else '~'}{_MARK}{chr(_PRIVATE + code)}"
    if code < 0x10000:
        return f"{_MARK}{code - 0xFFFD}"
    high, low = divmod(code - 0x10000, 1 << 10)
    return f"{_MARK}{chr(_HALF + high)}{chr(_HALF + low)}"


def decode_key(name: str) -> str:
    """Return the key of a blob; a name that nobody here gave stays as it is."""
    if "  " in name or _MARK in name:
        name = _ESCAPED.sub(_unescape, name)
    return _DOTTED.sub(r"\1.", name) if ".~" in name else name


def _unescape(found: re.Match[str]) -> str:
    letter, private, last, high, low = found.groups()
    if letter:
        return " " if letter == "~" else chr(ord(letter) - 0x40)
    if private:
        return chr(ord(private) - _PRIVATE)
    if last:
        return chr(0xFFFD + int(last))
    return chr(0x10000 + ((ord(high) - _HALF) << 10) + ord(low) - _HALF)


def search_prefix(prefix: str) -> str:
    """Return what the names of all keys with that prefix begin with; other names may begin with it, too."""
    encoded = _encode(prefix)
    # What follows decides how a trailing space is written.
    return encoded[:-2] if encoded.endswith("  ~") and prefix.endswith(" ") else encoded


def is_plain(delimiter: str) -> bool:
    """Return whether a delimiter is in a name exactly where it is in the key."""
    return not _UNPLAIN.search(delimiter)
