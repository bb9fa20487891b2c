"""What the gateway answers itself: that a revision cannot start, and, while traffic is split, whatever a revision answers.

A streaming HTTP/1.1 proxy over kept-alive connections to the revisions' own listening sockets. It picks a revision for each request: by the
request's id where it has one, so that a repeated request meets the same revision, else by chance. Outside of a split it is not in the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import math
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyserve.runtime.messages import HTTP_STATUS, ErrorCode, error_body

if TYPE_CHECKING:
    from polyserve_local.revisions import Revision
    from polyserve_local.supervisor import Function

HEAD_BYTES = 64 * 1024
HEAD_S = 10.0
IDLE_S = 75.0
"""How long a connection is kept without a request: as long as an instance keeps it."""
CHUNK = 256 * 1024
REPEATABLE_BYTES = 1 << 20
MOST_ACCEPTED = 64
REASONS = {401: "Unauthorized", 400: "Bad Request", 503: "Service Unavailable"}
# The id names a bucket of 10 000, which the weights share out.
BUCKETS = 10_000


class _Malformed(Exception):
    """Bytes that are no HTTP/1.1 message that can be passed on."""


class _Lost(Exception):
    """The revision's side of a request ended before its answer began; `sent` tells whether a byte of an answer was passed on."""


@dataclass(slots=True)
class _Head:
    """The start of a message: its first line, its headers as they came, and those that matter here."""

    raw: bytes
    first: str
    headers: dict[str, str]

    @property
    def method(self) -> str:
        return self.first.partition(" ")[0]

    @property
    def status(self) -> int:
        return int(self.first.split(" ", 2)[1])

    @property
    def keeps_open(self) -> bool:
        connection = self.headers.get("connection", "").lower()
        if "HTTP/1.0" in self.first:
            return "keep-alive" in connection
        return "close" not in connection


@dataclass(slots=True)
class _Upstream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    reused: bool = False


class Front:
    """Conversations of one function that the gateway holds itself.

    Args:
        function: The function.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._idle: dict[int, list[_Upstream]] = {}
        self._open: set[asyncio.StreamWriter] = set()

    def accept(self, door: socket.socket) -> None:
        """Accept what waits, and pass each of its requests to a revision."""
        self._accept(door, None)

    def refuse(self, door: socket.socket, revision: Revision) -> None:
        """Accept what waits, and say why the revision cannot start."""
        self._accept(door, revision)

    def close(self) -> None:
        """End all conversations."""
        for writer in [*self._open, *(each.writer for idle in self._idle.values() for each in idle)]:
            writer.close()
        self._idle.clear()

    def _accept(self, door: socket.socket, failed: Revision | None) -> None:
        for _ in range(MOST_ACCEPTED):
            try:
                caller, _ = door.accept()
            except OSError:
                return
            self.take(caller, failed)

    def take(self, caller: socket.socket, failed: Revision | None = None) -> None:
        """Hold the conversation on a connection that was accepted."""
        caller.setblocking(False)
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._function.run(self._converse(caller, failed))

    async def _converse(self, caller: socket.socket, failed: Revision | None) -> None:
        reader, writer = await asyncio.open_connection(sock=caller, limit=CHUNK)
        self._open.add(writer)
        try:
            open_ = True
            while open_:
                head = await self._next(reader)
                if head is None:
                    break
                open_ = await self._answer(head, reader, writer, failed)
        except (OSError, TimeoutError, _Lost, asyncio.IncompleteReadError):
            pass
        except _Malformed as error:
            with contextlib.suppress(OSError):
                await self._say(writer, None, ErrorCode.INVALID_ARGUMENT, str(error))
        finally:
            self._open.discard(writer)
            await _close(writer)

    async def _next(self, reader: asyncio.StreamReader) -> _Head | None:
        """Read the next request's head; `None` where the caller has gone, or idles."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_S):
                return await _read_head(reader)
        return None

    async def _answer(
        self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, failed: Revision | None
    ) -> bool:
        """Answer one request; returns whether the connection goes on."""
        if head.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if failed is not None or not self._function.state.weights:
            await _discard(head, reader)
            await self._explain(writer, head, failed)
            return False
        revision = self._pick(head)
        body, more = await _read_body(head, reader)
        try:
            return await self._pass(head, body, reader if more else None, writer, revision) and head.keeps_open
        except _Lost:
            message = f"the instance of revision {revision} ended before it answered: send the request again"
            await self._say(writer, head, ErrorCode.UNAVAILABLE, message, wait=0.1)
            return False

    async def _explain(self, writer: asyncio.StreamWriter, head: _Head, failed: Revision | None) -> None:
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        token = self._function.state.token
        # The reason may quote the log: it is for callers only.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            message = "this deployment needs its token: send the header `authorization: Bearer <token>`"
            await self._say(writer, head, ErrorCode.UNAUTHENTICATED, message)
            return
        name = self._function.state.name
        if failed is None:
            message = f"{name!r} has no traffic yet: route a revision first"
            await self._say(writer, head, ErrorCode.UNAVAILABLE, message, wait=1.0)
        else:
            message = f"revision {failed.number} of {name!r} cannot start: {failed.state.reason}"
            await self._say(writer, head, ErrorCode.UNAVAILABLE, message, wait=failed.not_before - time.monotonic())

    def _pick(self, head: _Head) -> int:
        """Return the revision that a request goes to."""
        weights = self._function.state.weights
        request_id = head.headers.get("x-request-id", "")
        chance = hashlib.sha256(request_id.encode()).digest()[:8] if request_id else os.urandom(8)
        place = int.from_bytes(chance) % BUCKETS
        total = sum(weights.values())
        for number, weight in weights.items():
            place -= weight * BUCKETS // total
            if place < 0:
                return number
        return next(reversed(weights))

    async def _pass(
        self,
        head: _Head,
        body: bytes,
        rest: asyncio.StreamReader | None,
        writer: asyncio.StreamWriter,
        revision: int,
    ) -> bool:
        """Pass one request to a revision and its answer back; returns whether the caller's connection goes on."""
        while True:
            upstream = await self._connect(revision)
            try:
                upstream.writer.write(_without_hop(head) + body)
                await upstream.writer.drain()
                if rest is not None:
                    await _copy_body(head, rest, upstream.writer)
                answer = await _read_answer(upstream.reader)
            except (OSError, _Malformed, asyncio.IncompleteReadError):
                answer = None
            if answer is not None:
                break
            upstream.writer.close()
            # A kept connection that was closed just now never saw the request. A fresh one did: its instance died.
            if not upstream.reused or rest is not None:
                raise _Lost
        # Once the split is over the caller does better without us: its next connection goes to an instance.
        leave = self._function.target() is not None
        writer.write(_last(answer) if leave else answer.raw)
        bare = head.method == "HEAD" or answer.status in {204, 304}
        try:
            bounded = bare or await _copy_body(answer, upstream.reader, writer, to_end=True)
            await writer.drain()
        except BaseException:
            upstream.writer.close()
            raise
        if bounded and answer.keeps_open:
            upstream.reused = True
            self._idle.setdefault(revision, []).append(upstream)
        else:
            upstream.writer.close()
        return bounded and answer.keeps_open and not leave

    async def _connect(self, number: int) -> _Upstream:
        idle = self._idle.get(number, [])
        while idle:
            upstream = idle.pop()
            if not upstream.reader.at_eof() and not upstream.writer.is_closing():
                return upstream
            upstream.writer.close()
        revision = self._function.revisions.get(number)
        if revision is None:
            raise _Lost
        try:
            # Through the revision's own listener: where nothing runs, this waits for the start as any caller would.
            reader, writer = await asyncio.open_connection("127.0.0.1", revision.state.port, limit=CHUNK)
        except OSError as error:
            raise _Lost from error
        return _Upstream(reader, writer)

    async def _say(
        self,
        writer: asyncio.StreamWriter,
        head: _Head | None,
        code: ErrorCode,
        message: str,
        *,
        wait: float | None = None,
    ) -> None:
        request_id = (head.headers.get("x-request-id") if head is not None else "") or secrets.token_hex(16)
        body = error_body(code, message, request_id)
        status = HTTP_STATUS[code]
        lines = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        ]
        if wait is not None:
            lines.append(f"retry-after: {max(1, math.ceil(wait))}")
        if status == 401:
            lines.append("www-authenticate: Bearer")
        writer.write(
            "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if head and head.method == "HEAD" else body)
        )
        await writer.drain()


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    """Read the start of a message; `None` where the connection ended before one began."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    except asyncio.LimitOverrunError as error:
        raise _Malformed("the request's head is too long") from error
    if len(raw) > HEAD_BYTES:
        raise _Malformed(f"the request's head has {len(raw)} bytes, at most {HEAD_BYTES} are allowed")
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        key = name.lower()
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", key):
            raise _Malformed("the request has a malformed header")
        # Two lengths that differ are how requests are smuggled past a proxy.
        if key in headers and key in {"content-length", "transfer-encoding"}:
            raise _Malformed(f"the request has two headers {key}")
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    if len(first.split(" ")) < 3 or ("content-length" in headers and "transfer-encoding" in headers):
        raise _Malformed("the request's head is malformed")
    if "content-length" in headers and not re.fullmatch(r"[0-9]{1,18}", headers["content-length"]):
        raise _Malformed(f"content-length {headers['content-length']!r} is no length")
    return _Head(raw, first, headers)


async def _read_answer(reader: asyncio.StreamReader) -> _Head | None:
    """Read the start of an answer, past interim ones."""
    while True:
        head = await _read_head(reader)
        if head is None or head.status >= 200:
            return head


def _without_hop(head: _Head) -> bytes:
    """Return a request's head as it goes on: what concerns the caller's connection only is left out."""
    lines = head.raw[:-4].split(b"\r\n")
    kept = [
        line
        for line in lines
        if line.partition(b":")[0].lower() not in {b"connection", b"keep-alive", b"expect", b"upgrade"}
    ]
    kept[0] = kept[0].replace(b"HTTP/1.0", b"HTTP/1.1")
    return b"\r\n".join(kept) + b"\r\n\r\n"


def _last(answer: _Head) -> bytes:
    """Return an answer's head as the last one of its connection."""
    lines = [line for line in answer.raw[:-4].split(b"\r\n") if line.partition(b":")[0].lower() != b"connection"]
    return b"\r\n".join(lines) + b"\r\nconnection: close\r\n\r\n"


async def _read_body(head: _Head, reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """Return a small body whole, so that its request could be repeated; for a large one nothing, and that more is to come."""
    if "transfer-encoding" in head.headers:
        return b"", True
    size = int(head.headers.get("content-length", "0"))
    if size > REPEATABLE_BYTES:
        return b"", True
    return await reader.readexactly(size), False


async def _copy_body(
    head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_end: bool = False
) -> bool:
    """Copy a body as it is framed; returns whether its end was told by the framing and not by the end of the connection."""
    if "transfer-encoding" in head.headers:
        while True:
            line = await reader.readuntil(b"\r\n")
            writer.write(line)
            size = int(line.partition(b";")[0], 16)
            await _copy(reader, writer, size)
            if size == 0:
                while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                    writer.write(line)
                writer.write(line)
                return True
            writer.write(await reader.readexactly(2))
    if "content-length" in head.headers or not to_end:
        await _copy(reader, writer, int(head.headers.get("content-length", "0")))
        return True
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    return False


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> None:
    while size:
        data = await reader.read(min(size, CHUNK))
        if not data:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(data)
        writer.write(data)
        await writer.drain()


async def _discard(head: _Head, reader: asyncio.StreamReader) -> None:
    """Read a body away, so that closing does not reset the connection under the answer; for a limited time."""
    size = int(head.headers.get("content-length", "0"))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HEAD_S):
            while size > 0 and (data := await reader.read(min(size, CHUNK))):
                size -= len(data)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
