"""A request and its answer, on their way between a connection and the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyserve.runtime.http1 import Head
from polyserve.runtime.messages import Request

if TYPE_CHECKING:
    from polyserve.runtime.connection import Connection


class Exchange:
    """A request and, once it is there, the bytes of its answer."""

    __slots__ = ("answer", "connection", "keep_alive", "minor", "request", "without_body")

    def __init__(self, connection: Connection, request: Request, head: Head | None) -> None:
        self.connection = connection
        self.request = request
        self.keep_alive = head is not None and head.keep_alive
        self.minor = 1 if head is None else head.minor
        self.without_body = head is not None and head.method == "HEAD"
        self.answer: tuple[bytes, ...] | None = None
