"""Who calls: principals, their secrets and tokens; the part of Microsoft Entra ID that clients without a person use."""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from dataclasses import dataclass, field

from polyserve_azure.emulator.errors import ServiceError

LIFETIME_S = 3600 * 24
"""How long a token is good."""
MANAGEMENT = ("https://management.azure.com", "https://management.core.windows.net")
STORAGE = ("https://storage.azure.com",)
INSIGHTS = ("https://api.applicationinsights.io", "https://api.loganalytics.io")


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """One service principal or managed identity."""

    object_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(30))
    name: str = ""


@dataclass(frozen=True, slots=True)
class _Issued:
    principal: Principal
    audience: str
    until: float


class Principals:
    """All principals of the tenant."""

    def __init__(self) -> None:
        self.tenant = str(uuid.uuid4())
        self._all: dict[str, Principal] = {}
        self._issued: dict[str, _Issued] = {}

    def add(self, name: str) -> Principal:
        """Make a principal."""
        made = Principal(name=name)
        self._all[made.object_id] = made
        return made

    def remove(self, object_id: str) -> None:
        """Forget a principal; its tokens are good for nothing from now on."""
        self._all.pop(object_id, None)

    def find(self, object_id: str) -> Principal | None:
        """Return a principal by its object id."""
        return self._all.get(object_id)

    def find_client(self, client_id: str) -> Principal | None:
        """Return a principal by its client id."""
        return next((one for one in self._all.values() if one.client_id == client_id), None)

    def issue(self, principal: Principal, audience: str = "*", *, lifetime_s: float = LIFETIME_S) -> str:
        """Return a token.

        Args:
            principal: Whose it is.
            audience: What it is for, `https://management.azure.com`; `*` for everything.
            lifetime_s: How long it is good, in seconds.
        """
        until = time.time() + lifetime_s
        claims = {
            "aud": audience, "iss": f"https://sts.windows.net/{self.tenant}/", "oid": principal.object_id,
            "appid": principal.client_id, "tid": self.tenant, "exp": int(until), "iat": int(time.time()), "ver": "1.0",
        }  # fmt: skip
        parts = [
            json.dumps({"typ": "JWT", "alg": "none"}).encode(),
            json.dumps(claims).encode(),
            secrets.token_bytes(32),
        ]
        token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
        self._issued[token] = _Issued(principal, audience.rstrip("/"), until)
        return token

    def read(self, authorization: str, audiences: tuple[str, ...] = MANAGEMENT) -> Principal:
        """Return who a bearer token belongs to.

        Args:
            authorization: The header field.
            audiences: What the token may be for.

        Raises:
            ServiceError: There is none, it has expired, or it is for something else.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            message = "Authentication failed. The 'Authorization' header is missing or has an invalid format."
            raise _unauthorized("AuthenticationFailed", message)
        found = self._issued.get(token.strip())
        if found is None or found.principal.object_id not in self._all:
            raise _unauthorized("InvalidAuthenticationToken", "The access token is invalid.")
        if found.until < time.time():
            ended = time.strftime("%m/%d/%Y %I:%M:%S %p", time.gmtime(found.until))
            message = f"The access token expiry UTC time '{ended}' is earlier than current UTC time."
            raise _unauthorized("ExpiredAuthenticationToken", message)
        if found.audience not in ("*", *audiences):
            message = (
                f"The access token has been obtained for wrong audience or resource '{found.audience}'. It should exactly "
                f"match with one of the allowed audiences '{','.join(audiences)}'."
            )
            raise _unauthorized("InvalidAuthenticationTokenAudience", message)
        return found.principal


def _unauthorized(code: str, message: str) -> ServiceError:
    challenge = f'Bearer authorization_uri="https://login.microsoftonline.com/", error="invalid_token", error_description="{message}"'
    return ServiceError(401, code, message, {"www-authenticate": challenge})
