"""How a front passes shares of its requests on to apps that run other revisions, where the platform cannot split traffic.

The share is decided by the request's id alone, so that one id always comes to the same revision while the weights stay. What cannot be
passed on is answered by the front itself: a canary that is gone or does not answer costs its caller nothing. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from time import time
from typing import Protocol
from urllib.parse import urlsplit

from polyserve.runtime import logs
from polyserve.runtime.messages import Request, Response

__all__ = ["Front", "Share", "pick"]

FORWARDED = "x-polyserve-forwarded"
"""Header that a forwarded request carries, so that it is never passed on twice."""

ANSWERED = "x-polyserve-revision"
"""Header of every answer that a model service gave; what lacks it came from the platform in front of it."""

KEPT = 16
"""Idle connections that are kept to one app."""

POINTS = 10_000
"""Points that a request's id may fall on; a percent has a hundred of them."""

_DROPPED = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "transfer-encoding",
        "upgrade",
        "te",
        "trailer",
        "authorization",
        "cookie",
        "x-functions-key",
    }
)
"""Headers that belong to the way to the front, its credentials among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of the requests and where it goes.

    Attributes:
        revision: The revision that answers there.
        percent: Its percent of the requests.
        url: Base URL of the app, without a trailing slash.
    """

    revision: int
    percent: int
    url: str


class Service(Protocol):
    """What answers requests: a `polyserve.runtime.host.Host`, or a front before one."""

    @property
    def revision(self) -> int:
        """The revision that it is."""
        ...

    def handle(self, request: Request) -> Response:
        """Answer one request."""
        ...


def pick(shares: Sequence[Share], request_id: str) -> Share | None:
    """Return the share that a request falls into, `None` for the rest, which is the front's own."""
    point = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") % POINTS
    for share in shares:
        point -= share.percent * (POINTS // 100)
        if point < 0:
            return share
    return None


class Front:
    """A service before another one, which passes shares of its requests on.

    Args:
        service: What answers the rest.
        shares: The shares.
        authorize: Returns the headers that let a call in at a URL; called for every request, so it keeps what it found.
        timeout: Seconds that another app may take, a cold start included.
        sink: Takes the log's lines.
    """

    def __init__(
        self,
        service: Service,
        shares: Sequence[Share],
        *,
        authorize: Callable[[str], Mapping[str, str]],
        timeout: float,
        sink: logs.Sink = logs.standard_output,
    ) -> None:
        self._service = service
        self._shares = tuple(shares)
        self._authorize = authorize
        self._timeout = timeout
        self._sink = sink
        self._lock = threading.Lock()
        self._idle: dict[str, list[HTTPConnection]] = {}
        self._closed = False

    @property
    def revision(self) -> int:
        """The revision that it runs itself."""
        return self._service.revision

    def handle(self, request: Request) -> Response:
        """Answer one request, here or there."""
        if not self._shares or FORWARDED in request.headers or not _counts(request):
            return self._service.handle(request)
        request_id = request.request_id or request.headers.get("x-request-id", "") or uuid.uuid4().hex
        request = replace(request, request_id=request_id, headers={**request.headers, "x-request-id": request_id})
        share = self._share(request)
        if share is None:
            return self._service.handle(request)
        try:
            response = self._send(share, request)
        except (OSError, HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            if ANSWERED in response.headers:
                return response
            reason = f"status {response.status} and no model's answer"
        self._note(share, request_id, reason)
        return self._service.handle(request)

    def _share(self, request: Request) -> Share | None:
        _, versions, rest = request.path.partition("/versions/")
        if versions:
            # The caller names a revision: the weights have no say.
            number = rest.partition("/")[0]
            return next((share for share in self._shares if str(share.revision) == number), None)
        return pick(self._shares, request.request_id)

    def _send(self, share: Share, request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROPPED}
        headers |= {FORWARDED: str(self.revision), **self._authorize(share.url)}
        path = urlsplit(share.url).path + request.path
        kept = self._take(share.url)
        if kept is not None:
            try:
                return self._exchange(share.url, kept, request, path, headers)
            except TimeoutError:
                raise
            except (OSError, HTTPException):
                pass  # it was closed meanwhile; a new connection tells the truth
        return self._exchange(share.url, self._connect(share.url), request, path, headers)

    def _exchange(
        self, url: str, line: HTTPConnection, request: Request, path: str, headers: Mapping[str, str]
    ) -> Response:
        try:
            line.request(request.method, path, bytes(request.body), dict(headers))
            reply = line.getresponse()
            body = reply.read()
        except BaseException:
            line.close()
            raise
        self._give_back(url, line, usable=not reply.will_close)
        told = {name.lower(): value for name, value in reply.getheaders()}
        return Response(
            status=reply.status,
            headers={name: value for name, value in told.items() if name not in _DROPPED | {"date", "server"}},
            body=body,
        )

    def _take(self, url: str) -> HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(url)
            return idle.pop() if idle else None

    def _give_back(self, url: str, line: HTTPConnection, *, usable: bool) -> None:
        with self._lock:
            idle = self._idle.setdefault(url, [])
            if usable and not self._closed and len(idle) < KEPT:
                idle.append(line)
                return
        line.close()

    def close(self) -> None:
        """Close the connections that are kept, and keep none any more; requests are answered all the same."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, {}, True
        for line in (line for lines in idle.values() for line in lines):
            line.close()

    def _connect(self, url: str) -> HTTPConnection:
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self._timeout)

    def _note(self, share: Share, request_id: str, reason: str) -> None:
        event = {
            "event": "forward",
            "at": round(time(), 6),
            "request_id": request_id,
            "revision": self.revision,
            "to": share.revision,
            "error": f"{reason}; answered by revision {self.revision}",
        }
        logs.write(self._sink, [event])


def _counts(request: Request) -> bool:
    """Whether a request is one that the weights are about: an inference, not a question about the service."""
    return request.method == "POST" and (request.path == "/invocations" or request.path.endswith("/infer"))


def shares_of(text: str, urls: Mapping[str, str]) -> tuple[Share, ...]:
    """Return the shares that an app's description asks for.

    Args:
        text: What `polyserve.driver.AppSpec.to_json` wrote.
        urls: Base URL by app.
    """
    return tuple(
        Share(revision=forward["revision"], percent=forward["percent"], url=urls[forward["app"]])
        for forward in json.loads(text)["forwards"]
    )
