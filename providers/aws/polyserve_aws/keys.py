r"""Names of objects as S3 has them: any UTF-8 key, in the same order of bytes, without what S3 or XML cannot carry.

Nearly every key is stored as it is. S3 refuses path segments that lead out of the bucket, clients on the way remove `.` and `..`, and its
answers are XML, which cannot hold control characters:

- a dot that begins a segment is followed by `~`: `../a` is `.~./a`, and `.git` is `.~git`;
- a control character is two spaces and a letter: `\x01` is `  A`;
- a space before a space, before a control character or at the end is two spaces and `~`, so that the above cannot be mistaken.

Each replacement sorts where the replaced sorts, so S3's own listings are in the right order.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html (relative path elements, characters to avoid), 2026-11.
"""

from __future__ import annotations

import re

from polyserve_aws.errors import InvalidKeyError

__all__ = ["decode_key", "encode_key", "is_plain", "search_prefix"]

MAX_KEY_BYTES = 1024

_DOT = re.compile(r"(^|/)\.")
_DOTTED = re.compile(r"(^|/)\.~")
_SPECIAL = re.compile(r"[\x00-\x1f]| (?=[\x00- ]|\Z)")
_ESCAPED = re.compile(r"  ([@-_~])")
_UNPLAIN = re.compile(r"[\x00- .~@-_]")


def encode_key(key: str) -> str:
    """Return the name of an object in S3.

    Raises:
        InvalidKeyError: With its escapes it is longer than S3 takes.
    """
    encoded = _encode(key)
    if len(encoded) != len(key) and len(encoded.encode()) > MAX_KEY_BYTES:
        message = (
            f"key {key[:100]!r} needs {len(encoded.encode())} bytes in S3, which takes {MAX_KEY_BYTES}: use fewer control characters, "
            "leading dots and double spaces"
        )
        raise InvalidKeyError(message)
    return encoded


def _encode(key: str) -> str:
    # Nearly every key stays as it is.
    if key.startswith(".") or "/." in key:
        key = _DOT.sub(r"\1.~", key)
    if " " not in key and key.isprintable():
        return key
    return _SPECIAL.sub(lambda found: "  ~" if found[0] == " " else f"  {chr(ord(found[0]) + 0x40)}", key)


def decode_key(name: str) -> str:
    """Return the key of an object in S3; a name that nobody here gave stays as it is."""
    if "  " in name:
        name = _ESCAPED.sub(lambda found: " " if found[1] == "~" else chr(ord(found[1]) - 0x40), name)
    return _DOTTED.sub(r"\1.", name) if ".~" in name else name


def search_prefix(prefix: str) -> str:
    """Return what the names of all keys with that prefix begin with; other names may begin with it, too."""
    encoded = _encode(prefix)
    # What follows decides how a trailing space is written.
    return encoded[:-2] if encoded.endswith("  ~") and prefix.endswith(" ") else encoded


def is_plain(delimiter: str) -> bool:
    """Return whether a delimiter is in a name exactly where it is in the key."""
    return not _UNPLAIN.search(delimiter)
