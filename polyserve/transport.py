"""HTTP/1.1 to a deployed function from many threads: connections that are kept, one deadline, nothing that is not needed.

`httpx.Client` spends four times as long on a small call as the socket under it, so the common case has a connection of its own here, and
httpx stays for what it is good at: proxies and certificate stores. `polyserve.transport_async` is the same for event loops. Both take an
`HttpCall` and a deadline, return an `HttpReply` or raise ConnectionError or TimeoutError, follow no redirect, keep no cookie and retry
nothing but a kept connection that the server had closed in the meantime. Knows no provider and no model.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from polyserve.driver import HttpCall, HttpReply

if TYPE_CHECKING:
    import httpx

__all__ = ["Closed", "Connections", "Origin", "format_head", "parse_head", "proxy_of", "route", "tls_context"]

IDLE_SECONDS = 50.0
"""How long a connection is kept without use: below the 60 s after which the usual load balancers close theirs."""
KEPT = 64
"""How many idle connections are kept, per origin."""

_HEAD_BYTES = 64 << 10
_READ_BYTES = 64 << 10
_SEND_BYTES = 256 << 10
_ROUTES = 512


class Origin(NamedTuple):
    """Where a connection goes: everything that two URLs must share to share one."""

    scheme: str
    host: str
    port: int


def route(url: str) -> tuple[Origin, str, str]:
    """Split a URL into its origin, the value of its Host header and the target of its request line.

    Raises:
        ValueError: It is not an absolute http or https URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"expected an http or https URL, got {url!r}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Origin(parts.scheme, parts.hostname, port), parts.netloc.rpartition("@")[2], target


def proxy_of(origin: Origin) -> str | None:
    """Return the proxy that the environment asks for, or `None`. Loopback never goes through one."""
    from urllib.request import getproxies, proxy_bypass

    host = origin.host
    if host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1":
        return None
    proxies = getproxies()
    proxy = proxies.get(origin.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(f"{host}:{origin.port}") or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@cache
def tls_context() -> ssl.SSLContext:
    """Return how servers are verified: as httpx does, SSL_CERT_FILE and SSL_CERT_DIR included."""
    import httpx

    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def format_head(call: HttpCall, host: str, target: str) -> bytes:
    """Write the head of a request.

    Raises:
        ValueError: A header holds a line break, or characters that HTTP cannot carry.
    """
    lines = [f"{call.method} {target} HTTP/1.1"]
    named = False
    for name, value in call.headers.items():
        lines.append(f"{name}: {value}")
        named = named or name.lower() == "host"
    if not named:
        lines.append(f"host: {host}")
    lines.append(f"content-length: {len(call.body)}\r\n\r\n")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) + 1 or head.count("\r") != len(lines) + 1:
        raise ValueError("a header or the URL of the call holds a line break")
    return head.encode("latin-1")


class Closed(ConnectionResetError):
    """The other side closed the connection before the first byte of its answer."""


class _Connection:
    """One connection: one call at a time, over and over."""

    __slots__ = ("_idle_since", "_poll", "_socket", "keep")

    def __init__(self, origin: Origin, timeout: float) -> None:
        self.keep = True
        self._idle_since = 0.0
        raw = socket.create_connection((origin.host, origin.port), timeout=timeout)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = (
                tls_context().wrap_socket(raw, server_hostname=origin.host) if origin.scheme == "https" else raw
            )
        except BaseException:
            raw.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def __del__(self) -> None:
        # A connection that nobody holds any more is closed without a word: an Endpoint need not be closed by hand.
        if hasattr(self, "_socket"):
            self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def rest(self) -> None:
        """Note that it is idle from now on."""
        self._idle_since = time.monotonic()

    def usable(self) -> bool:
        """Whether it is worth a try: young enough, and the server has neither closed it nor said a word unasked."""
        return time.monotonic() - self._idle_since < IDLE_SECONDS and not self._poll.poll(0)

    def exchange(self, head: bytes, body: bytes | memoryview, deadline: float) -> HttpReply:
        """Send a request and read its answer."""
        self._socket.settimeout(_left(deadline))
        refused: OSError | None = None
        try:
            if len(body) <= _SEND_BYTES:
                self._socket.sendall(b"".join((head, body)))
            else:
                self._send_large(head, body, deadline)
        except TimeoutError:
            raise
        except (ConnectionError, ssl.SSLError) as error:
            # A server that refuses a body often answers and hangs up before it has read all of it: look for that answer.
            refused = error
            self.keep = False
        try:
            return self._receive(deadline)
        except Closed:
            if refused is not None and len(body) > _SEND_BYTES:
                raise ConnectionResetError(
                    f"the server closed the connection while it was sent {len(body)} bytes"
                ) from refused
            raise

    def _send_large(self, head: bytes, body: bytes | memoryview, deadline: float) -> None:
        """Send in pieces, and stop where the server already answers."""
        self._socket.sendall(head)
        view = memoryview(body).cast("B")
        for at in range(0, len(view), _SEND_BYTES):
            # Records of TLS itself look the same from outside, so only plain connections can tell an answer.
            if self._poll.poll(0) and not isinstance(self._socket, ssl.SSLSocket):
                self.keep = False
                return
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(view[at : at + _SEND_BYTES])

    def _receive(self, deadline: float) -> HttpReply:
        try:
            data = self._socket.recv(_READ_BYTES)
        except ConnectionError as error:
            raise Closed(str(error)) from error
        if not data:
            raise Closed("the server closed the connection without an answer")
        while True:
            end = data.find(b"\r\n\r\n")
            while end < 0:
                if len(data) > _HEAD_BYTES:
                    raise ConnectionError(f"the head of the answer is over {_HEAD_BYTES} bytes")
                data += self._more(deadline, "in its head")
                end = data.find(b"\r\n\r\n")
            status, modern, headers = parse_head(data[:end])
            data = data[end + 4 :]
            if status >= 200:
                break
            # 100 Continue and 103 Early Hints announce the real answer.
            if not data:
                data = self._more(deadline, "after an interim answer")
        connection = headers.get("connection", "").lower()
        if "close" in connection or not (modern or "keep-alive" in connection):
            self.keep = False
        if status in {204, 304}:
            return HttpReply(status=status, headers=headers, body=b"")
        return HttpReply(status=status, headers=headers, body=self._body(headers, data, deadline))

    def _body(self, headers: Mapping[str, str], data: bytes, deadline: float) -> bytes:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._chunked(data, deadline)
        text = headers.get("content-length")
        if text is None:
            return self._rest(data, deadline)
        if not text.isascii() or not text.isdigit():
            raise ConnectionError(f"the answer has content-length {text!r}")
        length = int(text)
        if len(data) == length:
            return data
        pieces = [data]
        got = len(data)
        while got < length:
            piece = self._more(deadline, f"after {got} of {length} bytes", size=min(length - got, 1 << 20))
            pieces.append(piece)
            got += len(piece)
        if got > length:
            raise ConnectionError(f"the answer is longer than its content-length of {length} bytes")
        return b"".join(pieces)

    def _rest(self, data: bytes, deadline: float) -> bytes:
        """Read until the server closes, which is how HTTP/1.0 ends a body."""
        self.keep = False
        pieces = [data]
        while True:
            self._socket.settimeout(_left(deadline))
            piece = self._socket.recv(1 << 20)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)

    def _chunked(self, data: bytes, deadline: float) -> bytes:
        buffer = bytearray(data)
        pieces: list[bytes] = []

        def line() -> bytes:
            while (end := buffer.find(b"\r\n")) < 0:
                if len(buffer) > _HEAD_BYTES:
                    raise ConnectionError("the answer has a malformed chunk")
                buffer.extend(self._more(deadline, "between two chunks"))
            text = bytes(buffer[:end])
            del buffer[: end + 2]
            return text

        while True:
            text = line().partition(b";")[0].strip()
            try:
                size = int(text, 16)
            except ValueError:
                raise ConnectionError(f"the answer has a chunk of size {text[:20]!r}") from None
            if size == 0:
                while line():
                    pass
                return b"".join(pieces)
            while len(buffer) < size + 2:
                buffer.extend(self._more(deadline, "within a chunk", size=max(_READ_BYTES, size + 2 - len(buffer))))
            pieces.append(bytes(buffer[:size]))
            del buffer[: size + 2]

    def _more(self, deadline: float, where: str, *, size: int = _READ_BYTES) -> bytes:
        self._socket.settimeout(_left(deadline))
        data = self._socket.recv(min(size, 1 << 20))
        if not data:
            raise ConnectionResetError(f"the answer was cut off {where}")
        return data


class Connections:
    """Connections kept for many threads, by origin; each is in use by one call at a time."""

    def __init__(self) -> None:
        # deque.append and .pop are atomic, so that no lock is held, or inherited in the wrong state by a fork.
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._routes: dict[str, tuple[Origin, str, str]] = {}
        self._proxied: dict[Origin, httpx.Client | None] = {}

    def send(self, call: HttpCall, deadline: float) -> HttpReply:
        """Send a call and return its answer, whatever its status.

        Args:
            call: The call.
            deadline: When to give up, as `time.monotonic()` counts.

        Raises:
            ConnectionError: Nothing listens, or the connection ended before the answer was complete.
            TimeoutError: The deadline passed.
            ssl.SSLCertVerificationError: The server is not who it says.
            ValueError: The call is not one that HTTP can carry.
        """
        found = self._routes.get(call.url)
        if found is None:
            if len(self._routes) >= _ROUTES:
                self._routes.clear()
            found = self._routes[call.url] = route(call.url)
        origin, host, target = found
        idle = self._idle.get(origin)
        if idle is None:
            client = self._client(origin)
            if client is not None:
                return _send_through(client, call, deadline)
            idle = self._idle.setdefault(origin, deque(maxlen=KEPT))
        head = format_head(call, host, target)
        connection = _take(idle)
        if connection is not None:
            try:
                return _exchange(connection, idle, head, call.body, deadline)
            except Closed:
                # The server closed a connection that it had kept. Nothing was answered, and a prediction may be asked for twice.
                pass
        return _exchange(_connect(origin, deadline), idle, head, call.body, deadline)

    def _client(self, origin: Origin) -> httpx.Client | None:
        """Return the client that goes through a proxy, where there is one."""
        if origin not in self._proxied:
            proxy = proxy_of(origin)
            if proxy is not None:
                import httpx

                self._proxied[origin] = httpx.Client(proxy=proxy, trust_env=False, verify=tls_context())
            else:
                self._proxied[origin] = None
        return self._proxied[origin]

    def close(self) -> None:
        """Close every connection that is not in use. The next call opens new ones."""
        for idle in list(self._idle.values()):
            while idle:
                idle.pop().close()
        for client in [client for client in self._proxied.values() if client is not None]:
            client.close()
        self._proxied.clear()
        self._idle.clear()

    def forget(self) -> None:
        """Drop every connection without a word to the server: after a fork they are the parent's, and go on."""
        self._idle = {}
        self._proxied = {}


def _take(idle: deque[_Connection]) -> _Connection | None:
    """Return the connection used last that still is good."""
    while True:
        try:
            connection = idle.pop()
        except IndexError:
            return None
        if connection.usable():
            return connection
        connection.close()


def _exchange(
    connection: _Connection, idle: deque[_Connection], head: bytes, body: bytes | memoryview, deadline: float
) -> HttpReply:
    """Use a connection once; keep it for the next call if it is still good."""
    try:
        reply = connection.exchange(head, body, deadline)
    except (ConnectionError, TimeoutError):
        connection.close()
        raise
    except OSError as error:
        connection.close()
        raise ConnectionError(f"the connection broke: {error}") from error
    except BaseException:
        # Ctrl-C in the middle of an answer: whoever used it next would read the rest of this one.
        connection.close()
        raise
    if connection.keep:
        connection.rest()
        idle.append(connection)
    else:
        connection.close()
    return reply


def _connect(origin: Origin, deadline: float) -> _Connection:
    try:
        return _Connection(origin, _left(deadline))
    except (TimeoutError, ssl.SSLCertVerificationError):
        raise
    except OSError as error:
        raise ConnectionError(f"cannot connect to {origin.host}:{origin.port}: {error.strerror or error}") from error


def _send_through(client: httpx.Client, call: HttpCall, deadline: float) -> HttpReply:
    import httpx

    try:
        response = client.request(
            call.method,
            call.url,
            headers={"accept-encoding": "identity", **call.headers},
            content=bytes(call.body),
            timeout=_left(deadline),
        )
    except httpx.TimeoutException as error:
        raise TimeoutError(str(error)) from error
    except httpx.TransportError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    return HttpReply(status=response.status_code, headers=dict(response.headers), body=response.content)


def parse_head(block: bytes) -> tuple[int, bool, dict[str, str]]:
    """Return status, whether it is HTTP/1.1, and the headers by lower-case name."""
    first, _, rest = str(block, "latin-1").partition("\r\n")
    if first[:7] != "HTTP/1." or not first[9:12].isdigit():
        raise ConnectionError(f"the answer is not HTTP/1.1: it starts with {first[:40]!r}")
    headers: dict[str, str] = {}
    for line in rest.split("\r\n") if rest else ():
        name, colon, value = line.partition(":")
        if not colon:
            raise ConnectionError(f"the answer has a malformed header {line[:40]!r}")
        name = name.lower()
        value = value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return int(first[9:12]), first[7] != "0", headers


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline passed")
    return left
