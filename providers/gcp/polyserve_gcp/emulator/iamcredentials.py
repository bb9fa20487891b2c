"""The IAM Service Account Credentials API: tokens and signatures of one account for another that may have them."""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from typing import Any

from polyserve.emulation.http import Answer, Call
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError, denied, invalid
from polyserve_gcp.emulator.identities import CLOUD_PLATFORM, IAM, LIFETIME_S, Principal
from polyserve_gcp.emulator.paths import Paths, Request

SERVICE = "iamcredentials.googleapis.com"


class IamCredentials:
    """Answers calls to `iamcredentials.googleapis.com`.

    Args:
        access: Who may do what.
    """

    def __init__(self, access: Access) -> None:
        self._access, self._identities = access, access.identities
        start = "POST /v1/projects/{project}/serviceAccounts/{account}:"
        self._paths = Paths(
            SERVICE,
            access,
            {
                f"{start}generateAccessToken": self._access_token, f"{start}generateIdToken": self._id_token,
                f"{start}signBlob": self._sign_blob, f"{start}signJwt": self._sign_jwt,
            },
            (CLOUD_PLATFORM, IAM),
        )  # fmt: skip

    async def answer(self, call: Call) -> Answer:
        """Answer one call."""
        return await self._paths.answer(call)

    async def _access_token(self, request: Request) -> dict[str, Any]:
        account = self._account(request, "iam.serviceAccounts.getAccessToken")
        scopes = [str(scope) for scope in request.body.get("scope") or ()]
        if not scopes:
            raise invalid("Request contains an invalid argument: scope must name at least one.")
        lifetime = _read_duration(str(request.body.get("lifetime") or f"{int(LIFETIME_S)}s"))
        token = self._identities.issue_access_token(account, scopes, lifetime_s=lifetime)
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + lifetime))
        return {"accessToken": token, "expireTime": until}

    async def _id_token(self, request: Request) -> dict[str, Any]:
        account = self._account(request, "iam.serviceAccounts.getOpenIdToken")
        audience = str(request.body.get("audience") or "")
        if not audience:
            raise invalid("Request contains an invalid argument: audience must not be empty.")
        email = bool(request.body.get("includeEmail"))
        return {"token": self._identities.issue_id_token(account, audience, email=email)}

    async def _sign_blob(self, request: Request) -> dict[str, Any]:
        account = self._account(request, "iam.serviceAccounts.signBlob")
        try:
            payload = base64.b64decode(str(request.body.get("payload") or ""), validate=True)
        except binascii.Error:
            raise invalid("Invalid value at 'payload' (TYPE_BYTES), Base64 decoding failed.") from None
        identifier, signature = self._identities.sign(account, payload)
        return {"keyId": identifier, "signedBlob": base64.b64encode(signature).decode()}

    async def _sign_jwt(self, request: Request) -> dict[str, Any]:
        account = self._account(request, "iam.serviceAccounts.signJwt")
        try:
            claims = json.loads(str(request.body.get("payload") or ""))
        except ValueError:
            claims = None
        if not isinstance(claims, dict):
            raise invalid("Request contains an invalid argument: payload must be a JSON object of claims.")
        if float(claims.get("exp") or 0) > time.time() + 12 * 3600:
            raise invalid("The expiration of the JWT must be no more than 12 hours in the future.")
        identifier, signed = self._identities.sign_token(account, claims)
        return {"keyId": identifier, "signedJwt": signed}

    def _account(self, request: Request, permission: str) -> Principal:
        account = self._identities.find(request.names["account"])
        if account is None or account.person:
            raise ServiceError("NOT_FOUND", f"Not found; Gaia id not found for email {request.names['account']}")
        resource = f"projects/{self._identities.project}/serviceAccounts/{account.email}"
        if request.body.get("delegates"):
            raise invalid("The emulator has no chains of delegates: leave them out, or try it on a real project.")
        if not self._access.allows(request.principal, permission, resource):
            raise denied(permission, resource, f"Permission '{permission}' denied on resource (or it may not exist).")
        if account.disabled:
            raise ServiceError("FAILED_PRECONDITION", f"The service account {account.email} is disabled.")
        return account


def _read_duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)s", text)
    if match is None:
        raise invalid(f"Invalid value at 'lifetime' (type.googleapis.com/google.protobuf.Duration), \"{text}\"")
    if not 0 < float(match[1]) <= LIFETIME_S:
        raise invalid(f"The lifetime of an access token is {int(LIFETIME_S)}s at most, and not {text}.")
    return float(match[1])
