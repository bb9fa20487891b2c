"""Cloud Logging's query language, as far as logs of functions are asked for with it.

Comparisons (`=`, `!=`, `<`, `<=`, `>`, `>=`, `:`, `=~`, `!~`) of fields with values, `AND`, `OR`, `NOT`, parentheses, and words
that are looked for everywhere ("Logging query language", read 2026-11-21). Functions such as `sample` are refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from polyserve_gcp.emulator.errors import invalid

Filter = Callable[[Mapping[str, Any]], bool]
"""Whether an entry is wanted."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<sign>=~|!~|!=|>=|<=|[=<>:])|(?P<paren>[()])|(?P<word>(?:\\.|"(?:[^"\\]|\\.)*"|[^\s()=<>!:"])+))"""
)
SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY")
_SIGNS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, ":": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_TIMES = frozenset({"timestamp", "receiveTimestamp"})


def parse_filter(text: str) -> Filter:
    """Return what a filter wants.

    Raises:
        ServiceError: It is none.
    """
    tokens = list(_tokens("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))))
    if not tokens:
        return lambda entry: True
    parser = _Parser(tokens, text)
    found = parser.either()
    if parser.at < len(tokens):
        raise parser.refusal()
    return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise invalid(f"Unparseable filter: syntax error at column {at + 1}, token '{text[at:].strip()[:1]}'")
        at = match.end()
        kind = str(match.lastgroup)
        # A name may have quoted parts, `labels."a/b"`; one that is quoted as a whole is a value.
        yield kind, match[kind]


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]], text: str) -> None:
        self.at, self._tokens, self._text = 0, tokens, text

    def refusal(self) -> Exception:
        where = self._tokens[self.at][1] if self.at < len(self._tokens) else "<EOF>"
        return invalid(f"Unparseable filter: syntax error at token '{where}' of {self._text!r}")

    def either(self) -> Filter:
        parts = [self._both()]
        while self._take("word", "OR"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda entry: any(part(entry) for part in parts)

    def _both(self) -> Filter:
        parts = [self._one()]
        while self.at < len(self._tokens) and self._tokens[self.at] not in {("word", "OR"), ("paren", ")")}:
            self._take("word", "AND")
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda entry: all(part(entry) for part in parts)

    def _one(self) -> Filter:
        if self._take("word", "NOT"):
            inner = self._one()
            return lambda entry: not inner(entry)
        if self._take("paren", "("):
            found = self.either()
            if not self._take("paren", ")"):
                raise self.refusal()
            return found
        kind, name = self._next("text", "word")
        if name.startswith("-") and kind == "word" and len(name) > 1:
            self.at -= 1
            self._tokens[self.at] = (kind, name[1:])
            inner = self._one()
            return lambda entry: not inner(entry)
        if self.at < len(self._tokens) and self._tokens[self.at][0] == "sign":
            sign = self._next("sign")[1]
            return self._compare(_path(name), sign)
        word = _unquote(name).lower()
        return lambda entry: any(word in text.lower() for text in _texts(entry))

    def _compare(self, path: list[str], sign: str) -> Filter:
        if self._take("paren", "("):
            # `field=("a" OR "b")`
            values = [_unquote(self._next("text", "word")[1])]
            while self._take("word", "OR"):
                values.append(_unquote(self._next("text", "word")[1]))
            if not self._take("paren", ")"):
                raise self.refusal()
            tests = [_comparison(path, sign, value) for value in values]
            return lambda entry: any(test(entry) for test in tests)
        return _comparison(path, sign, _unquote(self._value()))

    def _value(self) -> str:
        """Return a value; a time without quotes has colons, which are signs elsewhere."""
        kind, found = self._next("text", "word")
        while kind == "word" and self._take("sign", ":"):
            found += ":" + self._next("word")[1]
        return found

    def _next(self, *kinds: str) -> tuple[str, str]:
        if self.at >= len(self._tokens) or self._tokens[self.at][0] not in kinds:
            raise self.refusal()
        self.at += 1
        return self._tokens[self.at - 1]

    def _take(self, kind: str, text: str) -> bool:
        if self.at < len(self._tokens) and self._tokens[self.at] == (kind, text):
            self.at += 1
            return True
        return False


def _path(name: str) -> list[str]:
    return [_unquote(part) for part in re.findall(r'"(?:[^"\\]|\\.)*"|[^."]+', name)]


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _comparison(path: list[str], sign: str, value: str) -> Filter:
    name = ".".join(path)
    if sign in {"=~", "!~"}:
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise invalid(f"Unparseable filter: {value!r} is no regular expression: {error}") from None
        return lambda entry: _matches(pattern, _find(entry, path)) is (sign == "=~")
    if name in _TIMES:
        return _compare_times(path, sign, _time(value))
    if name == "severity":
        return _compare_severities(sign, value.upper())
    if sign == ":":
        return lambda entry: _has(_find(entry, path), value)
    return lambda entry: _holds(_find(entry, path), sign, value)


def _compare_times(path: list[str], sign: str, value: datetime) -> Filter:
    return lambda entry: _ordered(_time(str(_find(entry, path))), sign, value)


def _compare_severities(sign: str, value: str) -> Filter:
    if value not in SEVERITIES:
        raise invalid(f"Unparseable filter: {value!r} is no severity")
    level = SEVERITIES.index(value)
    return lambda entry: _ordered(SEVERITIES.index(str(entry.get("severity", "DEFAULT"))), sign, level)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(f"Unparseable filter: {text!r} is no time") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _find(entry: Mapping[str, Any], path: list[str]) -> Any:
    found: Any = entry
    for number, part in enumerate(path):
        if not isinstance(found, Mapping):
            return None
        # Names may hold dots themselves.
        rest = ".".join(path[number:])
        if rest in found:
            return found[rest]
        found = found.get(part)
    return found


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return value is not None and pattern.search(str(value)) is not None


def _has(value: Any, wanted: str) -> bool:
    if value is None:
        return False
    if wanted == "*":
        return True
    if isinstance(value, Mapping):
        return wanted in value
    if isinstance(value, list):
        return any(_has(one, wanted) for one in value)
    return wanted.lower() in str(value).lower()


def _holds(value: Any, sign: str, wanted: str) -> bool:
    if value is None:
        return sign == "!="
    if isinstance(value, bool):
        return _ordered(str(value).lower(), sign, wanted.lower())
    if isinstance(value, int | float):
        try:
            return _ordered(float(value), sign, float(wanted))
        except ValueError:
            return sign == "!="
    # Text is compared without regard to case.
    return _ordered(str(value).lower(), sign, wanted.lower())


def _ordered(value: Any, sign: str, wanted: Any) -> bool:
    return bool(_SIGNS[sign](value, wanted))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield str(value)
