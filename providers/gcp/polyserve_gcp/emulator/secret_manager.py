"""Secret Manager: secrets and their versions, which revisions have in their environment without anybody else seeing them."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError, invalid
from polyserve_gcp.emulator.identities import Principal

API = "secretmanager.googleapis.com"
LATEST = "latest"
"""What the version that was made last is called."""
LARGEST = 64 * 1024
"""Most bytes of one version ("Quotas and limits", read 2026-11-21)."""
_PATH = re.compile(
    r"/v1/projects/(?P<project>[^/]+)/secrets(?:/(?P<secret>[^/:]+))?(?:/versions(?:/(?P<version>[^/:]+))?)?(?::(?P<verb>\w+))?"
)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(slots=True, eq=False)
class Version:
    """One version of a secret."""

    number: int
    data: bytes
    state: str = "ENABLED"
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat())


@dataclass(slots=True, eq=False)
class Secret:
    """One secret and its versions, oldest first."""

    name: str
    given: Mapping[str, Any]
    versions: list[Version] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat())


@dataclass(frozen=True, slots=True)
class _Asked:
    """One call: who makes it, and the parts of its path."""

    principal: Principal
    call: Call
    secret: str
    version: str


class Secrets:
    """All secrets of the project.

    Args:
        access: Who may do what.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._project, self._number = access.identities.project, access.identities.number
        self._all: dict[str, Secret] = {}

    async def answer(self, call: Call) -> Answer:
        """Answer one call to the API; refusals are raised."""
        match = _PATH.fullmatch(call.path)
        if match is None:
            raise ServiceError("NOT_FOUND", f"Method not found: {call.method} {call.path}")
        kind = "version" if "/versions" in call.path and match["verb"] != "addVersion" else "secret"
        named = bool(match[kind])
        # Where a verb is in the path, it tells the method; else the HTTP method does.
        verb = match["verb"] or {("GET", True): "get", ("GET", False): "list", ("POST", False): "create",
                                 ("DELETE", True): "delete"}.get((call.method, named), "")  # fmt: skip
        method = self._methods().get((kind, verb))
        if method is None or match["project"] not in {self._project, self._number}:
            raise ServiceError("NOT_FOUND", f"Method not found: {call.method} {call.path}")
        permission, answer = method
        principal = self._access.enter(call, API)
        where = f"projects/{self._project}"
        self._access.demand(principal, permission, f"{where}/secrets/{match['secret']}" if match["secret"] else where)
        return json_answer(200, answer(_Asked(principal, call, match["secret"] or "", match["version"] or "")))

    def read(self, account: str, secret: str, version: str) -> str:
        """Return what a version holds, for a revision that runs as an account.

        Args:
            account: Address of the account.
            secret: Name of the secret, alone or with its project.
            version: Number of the version, or `latest`.

        Raises:
            ServiceError: There is no such version, or the account may not have it.
        """
        short = secret.rpartition("/")[2]
        shown = f"projects/{self._number}/secrets/{short}/versions/{version}"
        principal = self._access.identities.find(account)
        if not self._access.allows(
            principal, "secretmanager.versions.access", f"projects/{self._project}/secrets/{short}"
        ):
            message = (
                f"Permission denied on secret: {shown} for Revision service account {account}. The service account used must "
                "be granted the 'Secret Manager Secret Accessor' role (roles/secretmanager.secretAccessor) at the secret, "
                "project or higher level."
            )
            raise ServiceError("FAILED_PRECONDITION", message)
        try:
            return self._version(short, version).data.decode()
        except ServiceError as error:
            raise ServiceError("FAILED_PRECONDITION", f"Secret {shown} was not found: {error.message}") from error
        except UnicodeDecodeError as error:
            raise ServiceError("FAILED_PRECONDITION", f"Secret {shown} is not UTF-8.") from error

    def _methods(self) -> Mapping[tuple[str, str], tuple[str, Callable[[_Asked], Any]]]:
        return {
            ("secret", "create"): ("secretmanager.secrets.create", self._create),
            ("secret", "get"): ("secretmanager.secrets.get", lambda ask: self._show(self._found(ask.secret))),
            ("secret", "list"): ("secretmanager.secrets.list", self._list),
            ("secret", "delete"): ("secretmanager.secrets.delete", self._delete),
            ("secret", "addVersion"): ("secretmanager.versions.add", self._add),
            ("secret", "getIamPolicy"): ("secretmanager.secrets.getIamPolicy", self._policy),
            ("secret", "setIamPolicy"): ("secretmanager.secrets.setIamPolicy", self._set_policy),
            ("version", "get"): ("secretmanager.versions.get", self._get_version),
            ("version", "list"): ("secretmanager.versions.list", self._list_versions),
            ("version", "access"): ("secretmanager.versions.access", self._access_version),
            ("version", "enable"): ("secretmanager.versions.enable", lambda ask: self._change(ask, "ENABLED")),
            ("version", "disable"): ("secretmanager.versions.disable", lambda ask: self._change(ask, "DISABLED")),
            ("version", "destroy"): ("secretmanager.versions.destroy", lambda ask: self._change(ask, "DESTROYED")),
        }

    def _create(self, ask: _Asked) -> Any:
        name, given = ask.call.query.get("secretId", ""), ask.call.json
        if _NAME.fullmatch(name) is None:
            raise invalid(f"secret_id: '{name}' must have 1 to 255 letters, digits, underscores and hyphens.")
        if not given.get("replication"):
            raise invalid("secret.replication: must be set.")
        if name in self._all:
            raise ServiceError("ALREADY_EXISTS", f"Secret [projects/{self._number}/secrets/{name}] already exists.")
        self._all[name] = Secret(name, {"replication": given["replication"], "labels": given.get("labels") or {}})
        return self._show(self._all[name])

    def _list(self, ask: _Asked) -> Any:
        return {"secrets": [self._show(one) for _, one in sorted(self._all.items())], "totalSize": len(self._all)}

    def _delete(self, ask: _Asked) -> Any:
        self._found(ask.secret)
        del self._all[ask.secret]
        self._access.forget(f"projects/{self._project}/secrets/{ask.secret}")
        return {}

    def _add(self, ask: _Asked) -> Any:
        found = self._found(ask.secret)
        try:
            data = base64.b64decode((ask.call.json.get("payload") or {}).get("data") or "", validate=True)
        except ValueError:
            raise invalid("payload.data: Base64 decoding failed.") from None
        if not data or len(data) > LARGEST:
            raise invalid(f"payload.data: must have 1 to {LARGEST} bytes, not {len(data)}.")
        made = Version(len(found.versions) + 1, data)
        found.versions.append(made)
        return self._show_version(found, made)

    def _policy(self, ask: _Asked) -> Any:
        self._found(ask.secret)
        return self._access.policy(f"projects/{self._project}/secrets/{ask.secret}").show()

    def _set_policy(self, ask: _Asked) -> Any:
        self._found(ask.secret)
        given = ask.call.json.get("policy") or {}
        return self._access.set_policy(f"projects/{self._project}/secrets/{ask.secret}", given).show()

    def _get_version(self, ask: _Asked) -> Any:
        return self._show_version(self._found(ask.secret), self._version(ask.secret, ask.version, any_state=True))

    def _list_versions(self, ask: _Asked) -> Any:
        found = self._found(ask.secret)
        return {"versions": [self._show_version(found, one) for one in reversed(found.versions)]}

    def _access_version(self, ask: _Asked) -> Any:
        version = self._version(ask.secret, ask.version)
        name = self._show_version(self._found(ask.secret), version)["name"]
        return {"name": name, "payload": {"data": base64.b64encode(version.data).decode()}}

    def _change(self, ask: _Asked, state: str) -> Any:
        version = self._version(ask.secret, ask.version, any_state=True)
        if version.state == "DESTROYED":
            raise ServiceError(
                "FAILED_PRECONDITION", f"Version {version.number} of {ask.secret} is in DESTROYED state."
            )
        version.state = state
        if state == "DESTROYED":
            version.data = b""
        return self._show_version(self._found(ask.secret), version)

    def _found(self, name: str) -> Secret:
        found = self._all.get(name)
        if found is None:
            raise ServiceError("NOT_FOUND", f"Secret [projects/{self._number}/secrets/{name}] not found.")
        return found

    def _version(self, secret: str, version: str, *, any_state: bool = False) -> Version:
        versions = self._found(secret).versions
        number = str(len(versions)) if version == LATEST else version
        found = next((one for one in versions if str(one.number) == number), None)
        shown = f"projects/{self._number}/secrets/{secret}/versions/{version}"
        if found is None:
            raise ServiceError("NOT_FOUND", f"Secret Version [{shown}] not found.")
        if found.state != "ENABLED" and not any_state:
            raise ServiceError("FAILED_PRECONDITION", f"Secret Version [{shown}] is in {found.state} state.")
        return found

    def _show(self, secret: Secret) -> dict[str, Any]:
        return {"name": f"projects/{self._number}/secrets/{secret.name}", "createTime": secret.created, **secret.given}

    def _show_version(self, secret: Secret, version: Version) -> dict[str, Any]:
        name = f"projects/{self._number}/secrets/{secret.name}/versions/{version.number}"
        return {"name": name, "createTime": version.created, "state": version.state}
