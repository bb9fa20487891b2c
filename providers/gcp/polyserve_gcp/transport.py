"""How Google's libraries make their calls here: through httpx, with deadlines, once, and at the addresses that the settings give."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx
from google.auth.exceptions import TransportError
from google.auth.transport import Request, Response

from polyserve_gcp.settings import GcpSettings

__all__ = ["Transport", "tls_context"]

TIMEOUT_S = 20.0
CONNECT_S = 5.0


@cache
def tls_context() -> ssl.SSLContext:
    """Return how servers are verified, SSL_CERT_FILE and SSL_CERT_DIR included. To read all authorities takes 25 ms."""
    return httpx.create_ssl_context()


class Transport(Request):  # type: ignore[misc]
    """Makes the calls of google-auth. Safe to use from many threads.

    Args:
        settings: Which hosts are somewhere else.
    """

    def __init__(self, settings: GcpSettings) -> None:
        self._settings = settings
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> httpx.Client:
        """The connections."""
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(verify=tls_context(), timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S))
            return self._client

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Response:
        """Make a call, and return what was answered.

        Raises:
            TransportError: Nobody answered, or somebody who cannot at the moment: whoever asked decides whether to ask again.
        """
        waits = httpx.Timeout(min(timeout or TIMEOUT_S, TIMEOUT_S), connect=min(timeout or CONNECT_S, CONNECT_S))
        place = self.moved(url)
        try:
            reply = self.client.request(method, place, content=body, headers=dict(headers or {}), timeout=waits)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransportError(
                f"{method} {urlsplit(place).netloc}: {str(error) or type(error).__name__}", retryable=True
            ) from error
        if reply.status_code in {429, 500, 502, 503, 504}:
            # The libraries would sleep and ask again, three times.
            raise TransportError(f"{method} {urlsplit(place).netloc}: HTTP {reply.status_code}", retryable=True)
        return _Reply(reply)

    def moved(self, url: str) -> str:
        """Return the same URL where the settings have its host."""
        parts = urlsplit(url)
        given = self._settings.endpoints.get(parts.netloc)
        if given is None:
            return url
        return given.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")

    def after_fork(self) -> None:
        """Leave the parent its connections."""
        self._lock, self._client = threading.Lock(), None

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class _Reply(Response):  # type: ignore[misc]
    """An answer as google-auth reads it."""

    def __init__(self, reply: httpx.Response) -> None:
        self._reply = reply

    @property
    def status(self) -> int:
        return self._reply.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self._reply.headers

    @property
    def data(self) -> bytes:
        return self._reply.content
