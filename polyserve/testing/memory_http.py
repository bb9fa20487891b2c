"""The loopback server of the provider in memory: signed URLs of objects, and its functions behind a token."""

from __future__ import annotations

import hmac
import io
import secrets
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from polyserve.driver import PutAttributes
from polyserve.runtime.messages import HTTP_STATUS, ErrorCode, Request, Response, error_body

if TYPE_CHECKING:
    from polyserve.testing.memory import MemoryProvider

__all__ = ["Loopback"]


class Loopback:
    """An HTTP server on a free port of loopback.

    Attributes:
        url: Its base URL, without a trailing slash.
        token: What a call of a function has to bring as its bearer token.
    """

    def __init__(self, provider: MemoryProvider) -> None:
        self._provider = provider
        self._secret = secrets.token_bytes(32)
        self.token = secrets.token_urlsafe(24)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.loopback = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def sign(self, bucket: str, key: str, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a URL for one method on one object, until it expires."""
        expires = f"{time.time() + expires_in.total_seconds():.6f}"
        path = f"/objects/{bucket}/{quote(key, safe='')}"
        return f"{self.url}{path}?expires={expires}&signature={self._signature(method, path, expires)}"

    def _signature(self, method: str, path: str, expires: str) -> str:
        return hmac.digest(self._secret, f"{method} {path} {expires}".encode(), "sha256").hex()

    def answer(self, request: Request) -> Response:
        """Answer a call of an object or of a function."""
        if request.path.startswith("/objects/"):
            return self._object(request)
        if request.path.startswith(("/functions/", "/apps/")):
            if not hmac.compare_digest(request.headers.get("authorization", ""), f"Bearer {self.token}"):
                return _refuse(ErrorCode.UNAUTHENTICATED, "a function is called with its bearer token")
            return self._provider.answer(request)
        return _refuse(ErrorCode.NOT_FOUND, f"nothing is at {request.path!r}")

    def _object(self, request: Request) -> Response:
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if not hmac.compare_digest(signature, self._signature(request.method, parts.path, expires)):
            return _refuse(ErrorCode.PERMISSION_DENIED, "the signature is not valid for this method and object")
        if float(expires) < time.time():
            return _refuse(ErrorCode.PERMISSION_DENIED, "the signature has expired")
        _, _, bucket, key = parts.path.split("/")
        store = self._provider.store(bucket)
        try:
            if request.method == "PUT":
                attrs = PutAttributes(content_type=request.headers.get("content-type", PutAttributes().content_type))
                store.put(unquote(key), io.BytesIO(request.body), attrs=attrs)
                return Response(status=200)
            meta, body = store.get(unquote(key))
        except Exception as error:
            return _refuse(self._provider.classify(error), str(error))
        return Response(status=200, headers={"content-type": meta.content_type}, body=body.read())


def _refuse(code: ErrorCode, message: str) -> Response:
    body = error_body(code, message, "")
    return Response(status=HTTP_STATUS[code], headers={"content-type": "application/json"}, body=body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A server that is closed must not wait for a client that keeps its connection.
    block_on_close = False
    loopback: Loopback


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; without this the second waits for the client's acknowledgement.
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(method=self.command, path=self.path, headers=headers, body=self.rfile.read(length))
        response = self.server.loopback.answer(request)
        self.send_response(response.status)
        for name, value in response.headers.items():
            if name != "content-length":
                self.send_header(name, value)
        self.send_header("content-length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    # The names that http.server looks for.
    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Keep standard error clean: the tests look at it."""
