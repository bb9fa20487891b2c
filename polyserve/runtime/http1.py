"""HTTP/1.1 as bytes: whole requests out of what a socket delivers, and the head of an answer.

Knows no socket, no event loop and no route. It is strict where leniency lets one request hide inside another (RFC 9112, section 11.2):
lines end in CRLF only, a field name has no space before its colon, lines are not folded, and a message has one length or none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

from polyserve.runtime.messages import ErrorCode, RequestError

HEAD_BYTES = 32 * 1024
HEAD_FIELDS = 128
CHUNK_LINE_BYTES = 256
# A body of up to this size is sliced out of what the socket delivered; a larger one is received in place.
SMALL_BODY_BYTES = 64 * 1024
# What a declared length may reserve before a single byte of it has arrived.
RESERVE_BYTES = 1024 * 1024

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rf"({_NAME}{{1,32}}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rf"({_NAME}+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
# A second one of these makes the message mean different things to different readers.
_ONCE = frozenset({"content-length", "host", "authorization", "inference-header-content-length"})

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
# Written here, whatever the answer's own headers say.
_FRAMING = frozenset({"connection", "content-length", "date", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of a request.

    Attributes:
        method: As sent.
        path: Percent-decoded, without the query string.
        headers: Values by lower-case name; fields sent more than once are joined with a comma.
        length: Bytes of the body; -1 where it is chunked.
        keep_alive: Whether the caller lets the connection stay open after the answer.
        minor: 0 for HTTP/1.0, 1 for HTTP/1.1.
        expects_continue: Whether the caller waits for `100 Continue` before it sends the body.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    length: int
    keep_alive: bool
    minor: int
    expects_continue: bool


class Stage(Enum):
    """How far a `RequestReader` is in its current request."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


def parse_head(block: bytes) -> Head:
    r"""Parse the head of a request.

    Args:
        block: Request line and fields, without the empty line that ends them.

    Raises:
        RequestError: For anything that RFC 9112 forbids or that two readers could understand differently.
    """
    lines = block.decode("latin-1").split("\r\n")
    if (line := _REQUEST_LINE.fullmatch(lines[0])) is None:
        raise _malformed("the request line is not `METHOD /path HTTP/1.1`")
    method, target, major, minor = line.groups()
    if major != "1" or minor not in "01":
        raise RequestError(ErrorCode.UNSUPPORTED, f"HTTP/{major}.{minor} is not spoken here: send HTTP/1.1", status=505)
    if len(lines) > HEAD_FIELDS + 1:
        message = f"the request has {len(lines) - 1} header fields and {HEAD_FIELDS} are allowed: send fewer"
        raise RequestError(ErrorCode.INVALID_ARGUMENT, message, status=431)
    headers: dict[str, str] = {}
    for text in lines[1:]:
        if (found := _FIELD.fullmatch(text)) is None:
            raise _malformed("a header field is not `Name: value` in visible characters on one line")
        name = found[1].lower()
        value = found[2].rstrip(" \t")
        if name in headers:
            if name in _ONCE:
                raise _malformed(f"the header field {name!r} is sent more than once")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    modern = minor == "1"
    if modern and "host" not in headers:
        raise _malformed("the header field 'host' is missing, which HTTP/1.1 requires")
    length = _body_length(headers, modern=modern)
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    keep_alive = "close" not in options if modern else "keep-alive" in options and "close" not in options
    expects = headers.get("expect", "").lower()
    if expects and expects != "100-continue":
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"the expectation {expects!r} cannot be met", status=417)
    return Head(
        method=method,
        path=_path(target),
        headers=headers,
        length=length,
        keep_alive=keep_alive,
        minor=int(minor),
        # HTTP/1.0 has no interim answers; such a caller sends its body anyway (RFC 9110, section 10.1.1).
        expects_continue=modern and bool(expects) and length != 0,
    )


def _body_length(headers: Mapping[str, str], *, modern: bool) -> int:
    coding = headers.get("transfer-encoding")
    declared = headers.get("content-length")
    if coding is not None:
        if declared is not None:
            raise _malformed("both 'content-length' and 'transfer-encoding' are sent; a body has one length")
        if not modern:
            raise _malformed("'transfer-encoding' needs HTTP/1.1")
        if coding.lower() != "chunked":
            message = f"the transfer encoding {coding!r} is not supported: send `chunked` or a content-length"
            raise RequestError(ErrorCode.UNSUPPORTED, message)
        return -1
    if declared is None:
        return 0
    if _LENGTH.fullmatch(declared) is None:
        raise _malformed(f"the content-length {declared!r} is not a number of bytes")
    return int(declared)


def _path(target: str) -> str:
    if not target.startswith("/"):
        if target == "*":
            return target
        # The absolute form is what callers send through a proxy; servers must accept it (RFC 9112, section 3.2.2).
        scheme, _, rest = target.partition("://")
        if scheme.lower() not in {"http", "https"} or not rest:
            raise _malformed("the request target is neither a path nor a URL")
        try:
            target = urlsplit(target).path or "/"
        except ValueError:
            raise _malformed("the request target is not a valid URL") from None
    path = target.partition("?")[0]
    if "%" not in path:
        return path
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise _malformed("the path is not UTF-8 after percent-decoding") from None


def _malformed(reason: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, f"malformed HTTP request: {reason}")


def too_large(request_bytes: int, size: int | None = None) -> RequestError:
    """Return the refusal of a body over the limit; `size` is its declared length, where it declares one."""
    what = "the request body" if size is None else f"the request body of {size} bytes"
    message = f"{what} is over the limit of {request_bytes} bytes: send fewer rows at once"
    return RequestError(ErrorCode.INVALID_ARGUMENT, message, status=413)


class RequestReader:
    """Cuts the bytes of one connection into requests.

    Feed it what arrives, then call `next` until it returns None. After it has raised, the rest of the connection has no meaning: answer and
    close. Callers that send the same head again and again, as keep-alive clients do, have it parsed once.

    Args:
        request_bytes: The largest body that is accepted.
        head_bytes: The largest head that is accepted, request line included.

    Attributes:
        head: The head of the request whose body is being read.
    """

    __slots__ = (
        "_at",
        "_body",
        "_buffer",
        "_chunk",
        "_filled",
        "_head_bytes",
        "_last_block",
        "_last_head",
        "_request_bytes",
        "_trailer_bytes",
        "head",
    )

    def __init__(self, *, request_bytes: int, head_bytes: int = HEAD_BYTES) -> None:
        self._request_bytes = request_bytes
        self._head_bytes = head_bytes
        # What was fed, and how much of it has been read: cutting the front off every time would be quadratic in small chunks.
        self._buffer = b""
        self._at = 0
        self.head: Head | None = None
        self._last_block = b""
        self._last_head: Head | None = None
        # A large or chunked body as far as it has arrived.
        self._body: bytearray | None = None
        self._filled = 0
        # Bytes left of the current chunk; or _SIZE, _DATA_END, _TRAILER: the line that is due.
        self._chunk = _SIZE
        self._trailer_bytes = 0

    @property
    def stage(self) -> Stage:
        """How far the current request is."""
        if self.head is not None:
            return Stage.BODY
        return Stage.HEAD if self._at < len(self._buffer) else Stage.IDLE

    @property
    def idle(self) -> bool:
        """Whether nothing of the next request has arrived."""
        return self.head is None and self._at >= len(self._buffer)

    @property
    def received(self) -> int:
        """Bytes of the current request's body that have arrived."""
        return len(self._buffer) - self._at + (0 if self._body is None else max(self._filled, len(self._body)))

    def feed(self, data: bytes) -> None:
        """Take what the socket delivered."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def room(self) -> memoryview | None:
        """Return where the socket may write next, while a large body of known length is on its way; else None and `feed` is the way."""
        head, body = self.head, self._body
        if head is None or body is None or head.length < 0:
            return None
        if self._filled == len(body):
            # Doubled as it arrives: what a caller only announces costs nobody memory.
            body.extend(bytes(min(head.length - len(body), len(body))))
        return memoryview(body)[self._filled :]

    def filled(self, count: int) -> None:
        """Tell that the socket wrote `count` bytes into `room()`."""
        self._filled += count

    def next(self) -> tuple[Head, bytes | memoryview] | None:
        """Return the next whole request, or None until more bytes arrive.

        Raises:
            RequestError: The bytes are not an acceptable request; its `status` says what to answer before closing.
        """
        head = self.head
        if head is None:
            head = self._read_head()
            if head is None:
                return None
            if head.length > self._request_bytes:
                raise too_large(self._request_bytes, head.length)
            self.head = head
            if head.length < 0:
                self._body = bytearray()
                self._chunk = _SIZE
                self._trailer_bytes = 0
            elif head.length > SMALL_BODY_BYTES:
                self._start_large(head.length)
        body: bytes | memoryview | None
        if head.length == 0:
            body = b""
        elif self._body is None:
            if len(self._buffer) - self._at < head.length:
                return None
            body = self._take(head.length)
        else:
            body = self._read_chunks(self._body) if head.length < 0 else self._finish_large(self._body, head.length)
            if body is None:
                return None
            self._body = None
        self.head = None
        return head, body

    def _read_head(self) -> Head | None:
        buffer = self._buffer
        if self._at == len(buffer):
            return None
        # A caller that repeats itself, as keep-alive clients do, is recognized without looking for the end.
        if self._last_head is not None and buffer.startswith(self._last_block, self._at):
            self._at += len(self._last_block)
            return self._last_head
        # An empty line before a request is the habit of some old clients (RFC 9112, section 2.2).
        while buffer.startswith(b"\r\n", self._at):
            self._at += 2
        end = buffer.find(b"\r\n\r\n", self._at, self._at + self._head_bytes)
        if end < 0:
            if len(buffer) - self._at >= self._head_bytes:
                message = f"the head of the request is over the limit of {self._head_bytes} bytes: send smaller headers"
                raise RequestError(ErrorCode.INVALID_ARGUMENT, message, status=431)
            return None
        block = buffer[self._at : end]
        self._at = end + 4
        head = parse_head(block)
        self._last_block, self._last_head = block + b"\r\n\r\n", head
        return head

    def _take(self, count: int) -> bytes:
        at, buffer = self._at, self._buffer
        if at == 0 and count >= len(buffer):
            taken = buffer
        else:
            taken = buffer[at : at + count]
            at += len(taken)
            if at < len(buffer):
                self._at = at
                return taken
        # Nothing is kept for an idle connection.
        self._buffer, self._at = b"", 0
        return taken

    def _start_large(self, length: int) -> None:
        taken = self._take(length)
        body = bytearray(max(len(taken), min(length, RESERVE_BYTES)))
        body[: len(taken)] = taken
        self._body = body
        self._filled = len(taken)

    def _finish_large(self, body: bytearray, length: int) -> memoryview | None:
        # Bytes that came through `feed` while a large body was due.
        if self._at < len(self._buffer) and self._filled < length:
            taken = self._take(length - self._filled)
            body[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
        return memoryview(body).toreadonly() if self._filled == length else None

    def _read_chunks(self, body: bytearray) -> bytes | None:
        while True:
            if self._chunk > 0:
                taken = self._take(self._chunk)
                if not taken:
                    return None
                body += taken
                self._chunk = self._chunk - len(taken) or _DATA_END
                continue
            line = self._read_line()
            if line is None:
                return None
            if self._chunk == _TRAILER:
                if not line:
                    return bytes(body)
                self._skip_trailer(line)
            elif self._chunk == _DATA_END:
                if line:
                    raise _malformed("a chunk is longer than its size says")
                self._chunk = _SIZE
            else:
                self._chunk = self._chunk_size(line, len(body)) or _TRAILER

    def _chunk_size(self, line: bytes, before: int) -> int:
        if (found := _CHUNK_SIZE.fullmatch(line)) is None:
            raise _malformed("a chunk has no valid size")
        size = int(found[1], 16)
        if before + size > self._request_bytes:
            raise too_large(self._request_bytes)
        return size

    def _read_line(self) -> bytes | None:
        limit = self._head_bytes if self._chunk == _TRAILER else CHUNK_LINE_BYTES
        end = self._buffer.find(b"\r\n", self._at, self._at + limit)
        if end < 0:
            if len(self._buffer) - self._at >= limit:
                raise _malformed(f"a line of the chunked body is over {limit} bytes")
            return None
        line = self._buffer[self._at : end]
        self._at = end + 2
        return line

    def _skip_trailer(self, line: bytes) -> None:
        # Trailers are read past and never merged into the headers: they arrive after everything was decided on those.
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > self._head_bytes:
            message = f"the trailer of the request is over the limit of {self._head_bytes} bytes"
            raise RequestError(ErrorCode.INVALID_ARGUMENT, message, status=431)
        if _FIELD.fullmatch(line.decode("latin-1")) is None:
            raise _malformed("a trailer field is not `Name: value` in visible characters on one line")


_SIZE = -1
_DATA_END = -2
_TRAILER = -3


class _Clock:
    """The `date` field, formatted once a second."""

    __slots__ = ("field", "second")

    def __init__(self) -> None:
        self.second = 0
        self.field = ""

    def now(self) -> str:
        second = int(time.time())
        if second != self.second:
            self.second = second
            self.field = f"date: {formatdate(second, usegmt=True)}\r\n"
        return self.field


_clock = _Clock()


def format_head(status: int, headers: Mapping[str, str], length: int, *, keep_alive: bool, minor: int = 1) -> bytes:
    """Return the head of an answer, the empty line included.

    Args:
        status: HTTP status.
        headers: Values by name. Those that frame the message are written here and ignored in it.
        length: Bytes of the body that this answer has, or would have for a method other than HEAD.
        keep_alive: Whether the connection stays open after it.
        minor: The caller's HTTP/1 minor version.

    Raises:
        ValueError: A header has a line break in it.
    """
    if not _FRAMING.isdisjoint(headers):
        headers = {name: value for name, value in headers.items() if name not in _FRAMING}
    text = "\r\n".join([*map(": ".join, headers.items()), ""])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header of the answer has a line break in it")
    # HTTP/1.1 stays open unless told otherwise; HTTP/1.0 closes unless told otherwise.
    option = "" if minor else "connection: keep-alive\r\n"
    connection = option if keep_alive else "connection: close\r\n"
    line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
    return f"{line}{text}{_clock.now()}{connection}content-length: {length}\r\n\r\n".encode("latin-1", "replace")
