"""A request as it came over the wire, and the answer to it: the two values that every part of the emulator takes and gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
from multidict import CIMultiDictProxy  # noqa: TC002 - where the annotation's class is, is read at run time


@dataclass(frozen=True, kw_only=True)
class Call:
    """One HTTP request, read to its end.

    Attributes:
        method: `GET`, in capitals.
        target: Path and query as they were sent, percent-escapes and all: signatures are made over these.
        headers: Header fields, without regard to case.
        body: The body, with a chunked transfer encoding taken off.
        peer: Address of the caller.
    """

    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: bytes
    peer: str = "127.0.0.1"

    @cached_property
    def raw_path(self) -> str:
        """The path as it was sent."""
        return self.target.partition("?")[0] or "/"

    @cached_property
    def raw_query(self) -> str:
        """The query as it was sent, without its question mark."""
        return self.target.partition("?")[2]

    @cached_property
    def path(self) -> str:
        """The path with its escapes taken off."""
        return unquote(self.raw_path)

    @cached_property
    def query(self) -> dict[str, str]:
        """The query's first value for each name."""
        found: dict[str, str] = {}
        for name, value in parse_qsl(self.raw_query, keep_blank_values=True):
            found.setdefault(name, value)
        return found

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty where it is none."""
        try:
            decoded = msgspec.json.decode(self.body) if self.body else {}
        except msgspec.DecodeError:
            return {}
        return decoded if isinstance(decoded, dict) else {}


@dataclass(frozen=True)
class Answer:
    """What goes back: a status, header fields, and the body at once or piece by piece."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None


def json_answer(status: int, value: object, **headers: str) -> Answer:
    """Return a value as JSON."""
    fields = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, fields, b"" if status == 204 else msgspec.json.encode(value))
