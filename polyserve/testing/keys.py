"""Keys that have broken somebody's storage: after go-cloud's `escape.WeirdStrings`, with what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["ORDERED", "WEIRD_KEYS", "longest_keys"]

WEIRD_KEYS: Mapping[str, str] = {
    "nested": "a/b/c",
    "leading slash": "/a",
    "only a slash": "/",
    "trailing slash": "a/",
    "trailing slash after an accent": "é/",
    "double slash": "a//b",
    "many slashes": "a///b////c",
    "leading double slash": "//a",
    "trailing double slash": "a//",
    "dot": ".",
    "dots": "..",
    "dot dot slash": "../a",
    "dot dot slash twice": "a/../../b",
    "slash dot": "a/./b",
    "leading dot": ".hidden",
    "trailing dot": "tail.",
    "trailing dot in a piece": "a./b",
    "space": "spaces in key",
    "only a space": " ",
    "leading and trailing space": " a ",
    "trailing space in a piece": "a /b",
    "plus": "a+b",
    "percent": "per%cent",
    "percent escape": "a%2Fb",
    "percent escape in lower case": "a%2fb",
    "percent twice": "%%25",
    "percent at the end": "a%",
    "backslash": "a\\b",
    "backslashes": "\\\\a\\\\",
    "quotes": "quote'\"q`",
    "query": "#?&=;",
    "punctuation": "~!@$^*()_-+,:|<>[]{}",
    "upper case": "README",
    "mixed case": "Ab/aB",
    "umlaut, one code point": "\u00fc",
    "umlaut, two code points": "u\u0308",
    "letters of many scripts": "ünï/cødé/日本/العربية",
    "emoji": "\U0001f600/\U0001f469\u200d\U0001f52c",
    "right to left mark": "a\u200fb",
    "no-break space": "a\u00a0b",
    "last of the basic plane": "\uffee",
    "go-cloud's own escape": "__0x2f__",
    "control characters": "\x01\x1f\x7f",
    "nothing but nul": "\x00",
    "lines and tabs": "a\nb\r\tc",
    "a drive": "C:/a",
    "a reserved device": "con/nul.txt",
    "a home": "~/a",
    "a temporary file": ".a.tmp",
    "a lock": ".writing/lock",
    "long piece": "x" * 300,
    "long piece of accents": "é" * 200,
    "long piece with more behind": "x" * 255 + "/" + "y" * 256 + "/z",
}
"""By name; every provider stores, lists, copies and deletes them like any other."""

ORDERED: Sequence[str] = (
    "B", "a", "a!", "a!b", "a%", "a-", "a.", "a/", "a//", "a/b", "a/b/c", "a0", "aa", "b", "z", "~", "é", "日本",
    "\uff5e", "\U0001f600",
)  # fmt: skip
"""In the order of their UTF-8 bytes: not that of UTF-16, of paths, of a locale, or of directories before files."""


def longest_keys(size: int) -> Sequence[str]:
    """Return keys of exactly `size` bytes."""
    wide = "é" * (size // 2)
    deep = "d/" * (size // 2)
    return ["k" * size, wide + "k" * (size - len(wide.encode())), deep + "k" * (size - len(deep)), "/" * size]
