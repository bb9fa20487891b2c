"""Where tokens come from: Entra's endpoint for service principals, and the endpoint of managed identities in an app."""

from __future__ import annotations

import time
from urllib.parse import parse_qsl

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_azure.emulator.errors import ServiceError
from polyserve_azure.emulator.hosting import HostingPlatform
from polyserve_azure.emulator.principals import LIFETIME_S, Principal, Principals


class Entra:
    """Gives out tokens.

    Args:
        principals: Who may have some.
        platform: Knows which app a managed identity's caller is.
    """

    def __init__(self, principals: Principals, platform: HostingPlatform) -> None:
        self._principals, self._platform = principals, platform

    def answer(self, call: Call) -> Answer:
        """Answer one request for a token."""
        if call.path == "/msi/token":
            return self._managed(call)
        form = dict(parse_qsl(call.body.decode("utf-8", "replace")))
        if form.get("grant_type") != "client_credentials":
            return _refuse(400, "unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type.")
        principal = self._principals.find_client(form.get("client_id", ""))
        if principal is None:
            return _refuse(400, "unauthorized_client", "AADSTS700016: The application was not found in the directory.")
        if form.get("client_secret") != principal.secret:
            return _refuse(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        audience = form.get("scope", "").removesuffix("/.default")
        if not audience:
            return _refuse(
                400, "invalid_request", "AADSTS900144: The request body must contain the parameter: 'scope'."
            )
        token = self._principals.issue(principal, audience)
        return json_answer(200, {"token_type": "Bearer", "expires_in": LIFETIME_S, "access_token": token})

    def _managed(self, call: Call) -> Answer:
        site = self._platform.headers.get(call.headers.get("X-IDENTITY-HEADER", ""))
        resource = call.query.get("resource", "")
        if site is None or not resource:
            raise ServiceError(400, "BadRequest", "The identity header or the resource is missing or wrong.")
        identity, client = site.more.get("identity") or {}, call.query.get("client_id") or call.query.get("mi_res_id")
        users = [
            one["principalId"]
            for path, one in (identity.get("userAssignedIdentities") or {}).items()
            if client in {None, one["clientId"], path}
        ]
        holder = identity.get("principalId") if not client else None
        principal = self._principals.find(str(holder or (users[0] if users else "")))
        if principal is None:
            raise ServiceError(400, "BadRequest", "No managed identity was found for the specified client id.")
        return json_answer(200, self._show(principal, resource.rstrip("/")))

    def _show(self, principal: Principal, resource: str) -> dict[str, str]:
        token = self._principals.issue(principal, resource)
        until = str(int(time.time() + LIFETIME_S))
        return {
            "access_token": token, "expires_on": until, "resource": resource, "token_type": "Bearer",
            "client_id": principal.client_id,
        }  # fmt: skip


def _refuse(status: int, error: str, text: str) -> Answer:
    return json_answer(
        status,
        {
            "error": error,
            "error_description": text,
            "error_codes": [int(text.removeprefix("AADSTS").partition(":")[0])],
        },
    )
