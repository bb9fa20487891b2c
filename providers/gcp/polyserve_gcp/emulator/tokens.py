"""Where tokens come from: Google's OAuth 2 endpoint for key files and for people, and the certificates of ID tokens."""

from __future__ import annotations

from urllib.parse import parse_qsl

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.identities import LIFETIME_S, Identities

BEARER_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"

TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
"""What Google's clients write as the audience of what they sign, wherever their key file sends it."""


class Tokens:
    """Gives out tokens.

    Args:
        identities: Who may have some.
    """

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def answer(self, call: Call) -> Answer:
        """Answer one call to `oauth2.googleapis.com`, or for the certificates that are at `www.googleapis.com`."""
        if call.method == "POST" and call.path == "/token":
            return self._answer_token(dict(parse_qsl(call.body.decode("utf-8", "replace"))))
        if call.method == "GET" and call.path == "/oauth2/v1/certs":
            return json_answer(200, self._identities.certificates())
        if call.method == "GET" and call.path == "/oauth2/v3/certs":
            return json_answer(200, {"keys": [self._identities.signer.jwk()]})
        return Answer(404, {"content-type": "text/html"}, b"Not Found")

    def _answer_token(self, form: dict[str, str]) -> Answer:
        kind = form.get("grant_type", "")
        if kind == BEARER_GRANT:
            return self._answer_assertion(form.get("assertion", ""))
        if kind == "refresh_token":
            shown = (form.get("refresh_token", ""), form.get("client_id", ""), form.get("client_secret", ""))
            person = self._identities.read_refresh_token(*shown)
            if person is None:
                return _refuse("invalid_grant", "Token has been expired or revoked.")
            given = _granted(self._identities.issue_access_token(person))
            # What a person gets is for the client that asked, and for no service.
            return json_answer(200, {**given, "id_token": self._identities.issue_id_token(person, shown[1])})
        return _refuse("unsupported_grant_type", f"Invalid grant_type: {kind}")

    def _answer_assertion(self, assertion: str) -> Answer:
        try:
            claims = self._identities.read_assertion(assertion, (TOKEN_URI, self._identities.token_uri))
        except ValueError as error:
            return _refuse("invalid_grant", f"Invalid grant: {error}")
        principal = self._identities.find(str(claims["iss"]))
        assert principal is not None
        if claims.get("target_audience"):
            return json_answer(
                200, {"id_token": self._identities.issue_id_token(principal, str(claims["target_audience"]))}
            )
        scopes = str(claims.get("scope", "")).split()
        if not scopes:
            return _refuse("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        return json_answer(200, _granted(self._identities.issue_access_token(principal, scopes)))


def _granted(token: str) -> dict[str, object]:
    return {"access_token": token, "expires_in": int(LIFETIME_S) - 1, "token_type": "Bearer"}


def _refuse(error: str, text: str) -> Answer:
    return json_answer(400, {"error": error, "error_description": text})
