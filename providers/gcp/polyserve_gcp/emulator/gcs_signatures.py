"""Signed URLs: whose signature they have, whether it is of this request, and whether it is still good.

Version 4 and the older version 2, both with the RSA key of a service account ("V4 signing process with Cloud Storage
tooling", "Canonical requests", read 2026-11-21). HMAC keys are not emulated.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import re
import time
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote

from polyserve.emulation.http import Call
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_errors import bad
from polyserve_gcp.emulator.identities import Identities, Principal

ALGORITHM = "GOOG4-RSA-SHA256"
LONGEST_S = 7 * 24 * 3600
"""How long a URL of version 4 can be good, in seconds."""
_SKEW_S = 15 * 60


class SignatureError(ServiceError):
    """A signature that is another one.

    Args:
        details: Elements that say what should have been signed, as XML.
    """

    def __init__(self, details: str) -> None:
        message = "Access denied."
        super().__init__("PERMISSION_DENIED", message, reason="SignatureDoesNotMatch")
        self.elements = details


def is_signed(call: Call) -> bool:
    """Whether a request shows a signature in its query."""
    return "X-Goog-Signature" in call.query or "X-Goog-Algorithm" in call.query or "Signature" in call.query


def read_signature(call: Call, identities: Identities) -> Principal:
    """Return who has signed a URL.

    Args:
        call: The request that shows it.
        identities: Who there is.

    Raises:
        ServiceError: The signature is no good, or has expired.
    """
    return _read_v2(call, identities) if "Signature" in call.query else _read_v4(call, identities)


def canonical_request(call: Call, signed: str) -> str:
    """Return what version 4 signs of a request.

    Args:
        call: The request.
        signed: Names of the header fields that are signed, with semicolons between them.
    """
    pairs = [pair for pair in parse_qsl(call.raw_query, keep_blank_values=True) if pair[0] != "X-Goog-Signature"]
    escaped = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs)
    query = "&".join(f"{name}={value}" for name, value in escaped)
    names = signed.split(";")
    headers = "".join(
        f"{name}:{','.join(_squeeze(value) for value in call.headers.getall(name, []))}\n" for name in names
    )
    payload = call.headers.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD")
    return "\n".join([call.method, call.raw_path, query, headers, signed, payload])


def _read_v4(call: Call, identities: Identities) -> Principal:
    query = call.query
    needed = (
        "X-Goog-Algorithm",
        "X-Goog-Credential",
        "X-Goog-Date",
        "X-Goog-Expires",
        "X-Goog-SignedHeaders",
        "X-Goog-Signature",
    )
    gone = [name for name in needed if not query.get(name)]
    if gone:
        raise _malformed(f"The query lacks {', '.join(gone)}.")
    if query["X-Goog-Algorithm"] != ALGORITHM:
        raise _malformed(f"The emulator verifies {ALGORITHM} only, and the URL has {query['X-Goog-Algorithm']}.")
    email, _, scope = query["X-Goog-Credential"].partition("/")
    at_text, signed = query["X-Goog-Date"], query["X-Goog-SignedHeaders"]
    if not re.fullmatch(rf"{at_text[:8]}/[\w-]+/storage/goog4_request", scope) or not query["X-Goog-Expires"].isdigit():
        raise _malformed("X-Goog-Credential, X-Goog-Date or X-Goog-Expires is malformed.")
    if "host" not in signed.split(";"):
        raise _malformed("X-Goog-SignedHeaders must have host.")
    try:
        at = datetime.strptime(at_text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        signature = binascii.unhexlify(query["X-Goog-Signature"])
    except ValueError:
        raise _malformed("X-Goog-Date or X-Goog-Signature is malformed.") from None
    if int(query["X-Goog-Expires"]) > LONGEST_S:
        raise _malformed(f"X-Goog-Expires must be at most {LONGEST_S} seconds (a week).")
    request = canonical_request(call, signed)
    text = "\n".join([ALGORITHM, at_text, scope, hashlib.sha256(request.encode()).hexdigest()])
    found = identities.verify(email, signature, text.encode())
    if found is None:
        raise SignatureError(
            f"<StringToSign>{html.escape(text)}</StringToSign><CanonicalRequest>{html.escape(request)}</CanonicalRequest>"
        )
    now = time.time()
    if at > now + _SKEW_S:
        raise ServiceError("PERMISSION_DENIED", "The signature is of the future.", reason="RequestTimeTooSkewed")
    until = at + int(query["X-Goog-Expires"])
    if now > until:
        raise _expired(until)
    return found


def _read_v2(call: Call, identities: Identities) -> Principal:
    query = call.query
    email, until = query.get("GoogleAccessId", ""), query.get("Expires", "")
    if not email or not until.isdigit():
        raise _malformed("The query lacks GoogleAccessId or Expires.")
    extra = sorted(
        (name.lower(), _squeeze(value)) for name, value in call.headers.items() if name.lower().startswith("x-goog-")
    )
    fields = "".join(f"{name}:{value}\n" for name, value in extra)
    text = "\n".join([
        "GET" if call.method == "HEAD" else call.method, call.headers.get("Content-MD5", ""),
        call.headers.get("Content-Type", ""), until, fields + call.raw_path,
    ])  # fmt: skip
    try:
        signature = base64.b64decode(query["Signature"], validate=True)
    except ValueError:
        raise _malformed("Signature is malformed.") from None
    found = identities.verify(email, signature, text.encode())
    if found is None:
        raise SignatureError(f"<StringToSign>{html.escape(text)}</StringToSign>")
    if time.time() > int(until):
        raise _expired(int(until))
    return found


def _expired(until: float) -> ServiceError:
    at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(until))
    return bad(f"Request signature expired at: {at}", "ExpiredToken")


def _malformed(message: str) -> ServiceError:
    return bad(message, "AuthenticationRequestInvalid")


def _squeeze(value: str) -> str:
    return re.sub(r"\s+", " ", value.strip())
