"""Signature Version 4, checked: who signed this request, and did he?

Written against the public description of the algorithm ("Create a signed AWS API request", IAM user guide), so that
what a real SDK signs is judged by somebody who did not write it. Header signatures and presigned queries are taken;
Signature Version 2 is refused, as S3 refuses it for every bucket made since June 2020.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from posixpath import normpath
from urllib.parse import parse_qsl, quote, unquote

from polyserve.emulation.http import Call
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.identities import Identities, Principal

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = timedelta(minutes=15)
UNHASHED = frozenset(
    {
        "UNSIGNED-PAYLOAD",
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    }
)
_FIELD = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)")
_SPACES = re.compile(r" +")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a request claims about its signer.

    Attributes:
        key_id: The access key.
        date: Day of the signing key, `20261121`.
        region: Region of the signing key.
        service: Service of the signing key, as it is spelled in signatures: `s3`, `lambda`, `apigateway`.
        signed: Names of the signed header fields.
        value: The signature, in hexadecimal.
        timestamp: When it was made, `20261121T054100Z`.
        expires_s: How long a presigned URL holds, in seconds; `None` for a header signature.
        token: Session token that came with it.
    """

    key_id: str
    date: str
    region: str
    service: str
    signed: tuple[str, ...]
    value: str
    timestamp: str
    expires_s: int | None
    token: str | None


def read_signature(call: Call) -> Signature | None:
    """Return what a request says about its signer; `None` where it says nothing.

    Raises:
        ServiceError: What it says cannot be read.
    """
    header = call.headers.get("Authorization", "")
    if header.startswith(ALGORITHM):
        fields = dict(_FIELD.findall(header))
        # Clients that cannot set Date send X-Amz-Date, and the SDKs always do.
        timestamp = call.headers.get("X-Amz-Date", "")
        token, expires_s = call.headers.get("X-Amz-Security-Token"), None
    elif "X-Amz-Algorithm" in call.query:
        query = call.query
        fields = {name: query.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature")}
        timestamp, token = query.get("X-Amz-Date", ""), query.get("X-Amz-Security-Token")
        expires_s = int(query.get("X-Amz-Expires", "0") or 0)
    elif header.startswith("AWS ") or "AWSAccessKeyId" in call.query:
        message = "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
        raise ServiceError(400, "InvalidRequest", message)
    else:
        return None
    scope = fields.get("Credential", "").split("/")
    if len(scope) != 5 or not fields.get("Signature") or not re.fullmatch(r"\d{8}T\d{6}Z", timestamp):
        raise ServiceError(400, "IncompleteSignature", "The request signature does not conform to AWS standards.")
    return Signature(
        key_id=scope[0], date=scope[1], region=scope[2], service=scope[3],
        signed=tuple(fields.get("SignedHeaders", "").split(";")), value=fields["Signature"], timestamp=timestamp,
        expires_s=expires_s, token=token,
    )  # fmt: skip


def check_signature(
    call: Call, signature: Signature, identities: Identities, *, now: datetime | None = None
) -> Principal:
    """Return who signed a request.

    Raises:
        ServiceError: The key is nobody's, the token is another session's, the request is too old, was signed with
            another secret, or was changed on the way.
    """
    s3 = signature.service == "s3"
    principal = identities.find(signature.key_id)
    if principal is None:
        if s3:
            message = "The AWS Access Key Id you provided does not exist in our records."
            raise ServiceError(403, "InvalidAccessKeyId", message)
        code = "InvalidClientTokenId" if signature.service in {"iam", "sts"} else "UnrecognizedClientException"
        raise ServiceError(403, code, "The security token included in the request is invalid.")
    if (principal.token or None) != signature.token:
        code = "InvalidToken" if s3 else "UnrecognizedClientException"
        raise ServiceError(403, code, "The security token included in the request is invalid.")
    _check_time(signature, now or datetime.now(UTC))
    expected = _sign(call, signature, principal.secret)
    if not hmac.compare_digest(expected, signature.value):
        code = "SignatureDoesNotMatch" if s3 or signature.service in {"iam", "sts"} else "InvalidSignatureException"
        message = (
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method."
        )
        raise ServiceError(403, code, message)
    claimed = call.headers.get("X-Amz-Content-SHA256")
    hashed = claimed and claimed not in UNHASHED and signature.expires_s is None
    if hashed and hashlib.sha256(call.body).hexdigest() != claimed:
        message = "The provided 'x-amz-content-sha256' header does not match what was computed."
        raise ServiceError(400, "XAmzContentSHA256Mismatch", message)
    return principal


def _check_time(signature: Signature, now: datetime) -> None:
    made = datetime.strptime(signature.timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if signature.expires_s is not None:
        if now > made + timedelta(seconds=signature.expires_s):
            raise ServiceError(403, "AccessDenied", "Request has expired")
    elif abs(now - made) > SKEW:
        if signature.service == "s3":
            message = "The difference between the request time and the current time is too large."
            raise ServiceError(403, "RequestTimeTooSkewed", message)
        raise ServiceError(
            403, "InvalidSignatureException", f"Signature expired: {signature.timestamp} is too far away."
        )


def _sign(call: Call, signature: Signature, secret: str) -> str:
    canonical = "\n".join(
        (
            call.method,
            _canonical_path(call.raw_path, signature.service),
            _canonical_query(call.raw_query),
            *(f"{name}:{_canonical_header(call, name)}" for name in signature.signed),
            "",
            ";".join(signature.signed),
            _payload_hash(call, signature),
        )
    )
    scope = f"{signature.date}/{signature.region}/{signature.service}/aws4_request"
    text = "\n".join((ALGORITHM, signature.timestamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = _signing_key(secret, signature.date, signature.region, signature.service)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _canonical_path(raw: str, service: str) -> str:
    if service == "s3":
        # S3 alone escapes once and keeps double slashes: its keys may have them.
        return quote(unquote(raw), safe="/~")
    normal = normpath(raw).replace("//", "/")
    if raw.endswith("/") and not normal.endswith("/"):
        normal += "/"
    return quote(normal, safe="/~")


def _canonical_query(raw: str) -> str:
    # A plus sign in a query is a space to forms, and a plus sign to signatures.
    pairs = parse_qsl(raw.replace("+", "%2B"), keep_blank_values=True)
    escaped = sorted(
        (quote(name, safe="~"), quote(value, safe="~")) for name, value in pairs if name != "X-Amz-Signature"
    )
    return "&".join(f"{name}={value}" for name, value in escaped)


def _canonical_header(call: Call, name: str) -> str:
    return ",".join(_SPACES.sub(" ", value.strip()) for value in call.headers.getall(name, []))


def _payload_hash(call: Call, signature: Signature) -> str:
    if signature.expires_s is not None and signature.service == "s3":
        return "UNSIGNED-PAYLOAD"
    return call.headers.get("X-Amz-Content-SHA256") or hashlib.sha256(call.body).hexdigest()


@lru_cache(maxsize=256)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
