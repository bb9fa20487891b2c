"""The metadata server of instances: who they are, and tokens for that. Each account has one of its own, on loopback."""

from __future__ import annotations

import json

from polyserve.emulation.http import Answer, Call, Listener
from polyserve_gcp.emulator.identities import CLOUD_PLATFORM, LIFETIME_S, Identities, Principal

_FLAVOR = {"metadata-flavor": "Google", "server": "Metadata Server for VM"}
_ROOT = "/computeMetadata/v1/"


class Metadata:
    """The metadata servers of all accounts as which something runs.

    Give an instance the address as `GCE_METADATA_HOST` and `GCE_METADATA_IP` both: with the first alone `google.auth` asks
    169.254.169.254 whether it is there.

    Args:
        identities: Who there is.
        region: Where instances run.
    """

    def __init__(self, identities: Identities, region: str) -> None:
        self._identities, self._region = identities, region
        self._open: dict[str, tuple[Listener, str]] = {}

    async def address(self, email: str) -> str:
        """Return the metadata server of a service account, `127.0.0.1:PORT`, opened on first use."""
        if email not in self._open:

            async def answer(call: Call) -> Answer:
                return self._answer(call, email)

            listener = Listener(answer)
            self._open[email] = (listener, f"127.0.0.1:{await listener.open()}")
        return self._open[email][1]

    async def close(self) -> None:
        """Close all of them."""
        for listener, _ in self._open.values():
            await listener.close()
        self._open.clear()

    def _answer(self, call: Call, email: str) -> Answer:
        path = call.path
        if path == "/":
            return Answer(200, {**_FLAVOR, "content-type": "application/text"}, b"computeMetadata/\n")
        if call.headers.get("Metadata-Flavor") != "Google":
            return Answer(403, {**_FLAVOR, "content-type": "text/html"}, b"Missing required header: Metadata-Flavor")
        account = self._identities.find(email)
        if not path.startswith(_ROOT) or account is None or account.disabled:
            return _missing()
        return self._answer_value(call, account, path.removeprefix(_ROOT).rstrip("/"))

    def _answer_value(self, call: Call, account: Principal, name: str) -> Answer:
        identities = self._identities
        plain = {
            "project/project-id": identities.project, "project/numeric-project-id": identities.number,
            "instance/region": f"projects/{identities.number}/regions/{self._region}",
            "instance/zone": f"projects/{identities.number}/zones/{self._region}-1", "universe/universe-domain": "googleapis.com",
            "instance/service-accounts": f"default/\n{account.email}/\n",
        }  # fmt: skip
        if name in plain:
            return _text(plain[name])
        place, _, rest = name.removeprefix("instance/service-accounts/").partition("/")
        if not name.startswith("instance/service-accounts/") or place not in {"default", account.email}:
            return _missing()
        if rest == "identity":
            return self._answer_identity(call, account)
        if rest == "token":
            scopes = [scope for scope in call.query.get("scopes", "").split(",") if scope] or [CLOUD_PLATFORM]
            token = identities.issue_access_token(account, scopes)
            return _json({"access_token": token, "expires_in": int(LIFETIME_S) - 1, "token_type": "Bearer"})
        if not rest and call.query.get("recursive") == "true":
            return _json({"aliases": ["default"], "email": account.email, "scopes": [CLOUD_PLATFORM]})
        texts = {
            "": "aliases\nemail\nidentity\nscopes\ntoken\n",
            "email": account.email,
            "scopes": f"{CLOUD_PLATFORM}\n",
        }
        return _text(texts[rest]) if rest in texts else _missing()

    def _answer_identity(self, call: Call, account: Principal) -> Answer:
        audience = call.query.get("audience", "")
        if not audience:
            return Answer(400, {**_FLAVOR, "content-type": "text/html"}, b"non-empty audience parameter required")
        return _text(self._identities.issue_id_token(account, audience, email=call.query.get("format") == "full"))


def _text(text: str) -> Answer:
    return Answer(200, {**_FLAVOR, "content-type": "application/text"}, text.encode())


def _json(value: object) -> Answer:
    return Answer(200, {**_FLAVOR, "content-type": "application/json"}, json.dumps(value).encode())


def _missing() -> Answer:
    return Answer(404, {**_FLAVOR, "content-type": "text/html; charset=UTF-8"}, b"Not Found")
