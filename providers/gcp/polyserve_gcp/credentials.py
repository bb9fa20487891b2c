"""Who calls Google Cloud: access tokens for its APIs, ID tokens for services, signatures. All are kept in memory alone.

Tokens are asked for ahead of their end, in the background, so that whoever calls never waits for one twice. The SDK's clients are given
`native`, which has the tokens from here: their own credentials would ask an API of Google's about regional boundaries in a thread of
their own, wherever they were told to call.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.auth import credentials as google

from polyserve_gcp.errors import ServiceError, TokenError, refusal
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.sources import METADATA_HOST, SCOPE, Source, find_source
from polyserve_gcp.tokens import KeptToken, Token, token_until
from polyserve_gcp.transport import Transport

__all__ = ["Credentials", "NativeCredentials"]

IAM_HOST = "iamcredentials.googleapis.com"

_PERMISSIONS: Mapping[str, str] = {
    "generateAccessToken": "iam.serviceAccounts.getAccessToken",
    "generateIdToken": "iam.serviceAccounts.getOpenIdToken",
    "signBlob": "iam.serviceAccounts.signBlob",
}


class Credentials:
    """Tokens and signatures of one identity. Safe to use from many threads; nothing is asked before it is needed.

    Args:
        settings: Where they come from.
    """

    def __init__(self, settings: GcpSettings) -> None:
        self._settings = settings
        self.transport = Transport(settings)
        self._source: Source | None = None
        self._project = ""
        self._lock = threading.Lock()
        self._own = KeptToken(self._ask_own)
        self._access = KeptToken(self._ask_access)
        self._ids: dict[str, KeptToken] = {}
        self._native: NativeCredentials | None = None
        _LIVE.add(self)

    def _after_fork(self) -> None:
        """Leave the parent its connections, and what its threads hold."""
        self._lock = threading.Lock()
        for kept in (self._own, self._access, *self._ids.values()):
            kept.after_fork()
        self.transport.after_fork()

    # --- who it is ----------------------------------------------------------------------------------------------------------

    def source(self) -> Source:
        """Return where the credentials come from.

        Raises:
            TokenError: There are none.
        """
        with self._lock:
            if self._source is None:
                self._source = find_source(self._settings)
            return self._source

    @property
    def project(self) -> str:
        """The project: of the settings, of `GOOGLE_CLOUD_PROJECT`, of the credentials, of the machine.

        Raises:
            TokenError: Nobody names one.
        """
        named = self._settings.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "") or self._project
        if named:
            return named
        source = self.source()
        self._project = source.project or (self._metadata("project/project-id") if source.kind == "metadata" else "")
        if not self._project:
            raise TokenError("no project is named: give project, or set GOOGLE_CLOUD_PROJECT")
        return self._project

    @property
    def service_account_email(self) -> str:
        """The service account that calls.

        Raises:
            TokenError: A person calls.
        """
        source = self.source()
        if source.principal:
            return source.principal
        if source.kind == "key":
            return str(source.native.service_account_email)
        if source.kind == "metadata":
            if source.native.service_account_email == "default":
                self._own.get()
            return str(source.native.service_account_email)
        message = f"the credentials from {source.origin} are not of a service account: set impersonate to one"
        raise TokenError(message)

    @property
    def native(self) -> NativeCredentials:
        """Credentials for the SDK's clients."""
        if self._native is None:
            # Two of them are as good as one.
            self._native = NativeCredentials(self)
        return self._native

    @property
    def quota_project(self) -> str:
        """The project that a person's calls are counted for; empty for all others."""
        source = self.source()
        return "" if source.principal else str(source.native.quota_project_id or "")

    # --- tokens -------------------------------------------------------------------------------------------------------------

    def url(self, host: str) -> str:
        """Return the address of an API of Google's, such as `run.googleapis.com`, without a trailing slash."""
        return self._settings.address(host)

    def access_token(self) -> str:
        """Return a token for Google's APIs."""
        return self.access().value

    def access(self) -> Token:
        """Return a token for Google's APIs, with its end.

        Raises:
            TokenError: There are no credentials.
            ServiceError: The service account may not be impersonated.
            GoogleAuthError: There is no token for them.
        """
        return (self._access if self.source().principal else self._own).get()

    def headers(self) -> dict[str, str]:
        """Return what a call of an API needs to be allowed."""
        found = {"authorization": f"Bearer {self.access_token()}"}
        if quota := self.quota_project:
            found["x-goog-user-project"] = quota
        return found

    def id_token(self, audience: str) -> str:
        """Return a token that tells a service who calls it."""
        return self.identity(audience).value

    def id_token_until(self, audience: str) -> tuple[str, datetime]:
        """Return the same, with its end."""
        found = self.identity(audience)
        return found.value, datetime.fromtimestamp(found.ends_at, UTC)

    def identity(self, audience: str) -> Token:
        """Return a token that tells a service who calls it.

        Args:
            audience: The service's address.

        Raises:
            TokenError: There are no credentials, or those of a person, who cannot have one.
            ServiceError: The service account may not be impersonated.
            GoogleAuthError: There is no token for them.
        """
        return self._identity(audience).get()

    def newest_identity(self, audience: str) -> Token | None:
        """Return the same if there is one already, and see to the next one. Never waits."""
        return self._identity(audience).newest()

    def _identity(self, audience: str) -> KeptToken:
        with self._lock:
            kept = self._ids.get(audience)
            if kept is None:
                kept = self._ids[audience] = KeptToken(lambda: self._ask_identity(audience))
            return kept

    def forget(self, token: str | None = None) -> None:
        """Ask for every token anew, or for one that was refused."""
        with self._lock:
            every = [self._own, self._access, *self._ids.values()]
        for kept in every:
            kept.forget(token)

    # --- signatures ---------------------------------------------------------------------------------------------------------

    def sign_bytes(self, data: bytes) -> bytes:
        """Sign as the service account: with its key, or by the IAM API.

        Raises:
            TokenError: A person cannot sign.
            ServiceError: The caller may not have that service account sign.
        """
        source = self.source()
        if source.kind == "key" and not source.principal:
            return bytes(source.native.sign_bytes(data))
        email = self.service_account_email
        return base64.b64decode(self._as(email, "signBlob", {"payload": base64.b64encode(data).decode()})["signedBlob"])

    # --- how they are asked for -------------------------------------------------------------------------------------------

    def _ask_own(self) -> Token:
        native = self.source().native
        # Not its `before_request`, which asks for more than a token.
        native.refresh(self.transport)
        return token_until(str(native.token), native.expiry)

    def _ask_access(self) -> Token:
        source = self.source()
        told = self._as(source.principal, "generateAccessToken", {"scope": [SCOPE], "lifetime": f"{source.life_s}s"})
        ends = datetime.fromisoformat(str(told["expireTime"]))
        return Token(value=str(told["accessToken"]), ends_at=ends.timestamp())

    def _ask_identity(self, audience: str) -> Token:
        source = self.source()
        native: Any
        if source.principal:
            told = self._as(source.principal, "generateIdToken", {"audience": audience, "includeEmail": True})
            value = str(told["token"])
            return Token(value=value, ends_at=_end_of(value))
        if source.kind == "key":
            from google.oauth2.service_account import IDTokenCredentials

            native = IDTokenCredentials(
                signer=source.native.signer,
                service_account_email=source.native.service_account_email,
                token_uri=source.token_uri,
                target_audience=audience,
            )
        elif source.kind == "metadata":
            from google.auth.compute_engine import IDTokenCredentials as MachineCredentials

            native = MachineCredentials(self.transport, audience, use_metadata_identity_endpoint=True)
        else:
            message = (
                f"the credentials from {source.origin} are those of a person and get no ID token for {audience}: set "
                "impersonate to a service account that may call it and that you may be (roles/iam.serviceAccountTokenCreator), "
                "give the key of one as credentials_file, or deploy with public = true"
                if source.kind == "user"
                else f"the credentials from {source.origin} get no ID token for {audience}: set impersonate to a service account "
                "that may call it"
            )
            raise TokenError(message)
        native.refresh(self.transport)
        return token_until(str(native.token), native.expiry)

    def _as(self, email: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Have the IAM API do something as a service account."""
        source = self.source()
        if source.delegates and email == source.principal:
            body["delegates"] = [f"projects/-/serviceAccounts/{each}" for each in source.delegates]
        url = f"{self.url(IAM_HOST)}/v1/projects/-/serviceAccounts/{email}:{verb}"
        own = self._own.get().value
        headers = {"authorization": f"Bearer {own}", "content-type": "application/json"}
        reply = self.transport(url, method="POST", body=json.dumps(body).encode(), headers=headers)
        if reply.status == 401:
            self._own.forget(own)
        if reply.status >= 400:
            raise _refusal(reply.status, reply.data, _PERMISSIONS[verb], email)
        told: dict[str, Any] = json.loads(reply.data)
        return told

    def _metadata(self, path: str) -> str:
        host = os.environ.get("GCE_METADATA_HOST", METADATA_HOST)
        url = f"http://{host}/computeMetadata/v1/{path}"
        reply = self.transport(url, headers={"metadata-flavor": "Google"})
        return bytes(reply.data).decode().strip() if reply.status == 200 else ""

    def close(self) -> None:
        """Forget all tokens and close the connections."""
        with self._lock:
            self._ids.clear()
        self.forget()
        self.transport.close()


class NativeCredentials(google.Signing, google.Credentials):  # type: ignore[misc]
    """What an SDK's client takes as credentials; the tokens are those of `Credentials`.

    Args:
        credentials: Has the tokens.
    """

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials
        self._quota_project_id = credentials.quota_project or None

    def refresh(self, request: object) -> None:
        """Take another token: the one that this has was refused, or is over."""
        del request
        if self.token:
            self._credentials.forget(self.token)
        self._take(self._credentials.access())

    def before_request(self, request: object, method: str, url: str, headers: dict[str, str]) -> None:
        """Put the token that there is now into the headers."""
        del request, method, url
        self._take(self._credentials.access())
        self.apply(headers)

    def _take(self, token: Token) -> None:
        self.token = token.value
        self.expiry = datetime.fromtimestamp(token.ends_at, UTC).replace(tzinfo=None)

    def sign_bytes(self, message: bytes) -> bytes:
        """Sign as the service account."""
        return self._credentials.sign_bytes(message)

    @property
    def signer_email(self) -> str:
        """The service account that signs."""
        return self._credentials.service_account_email

    @property
    def signer(self) -> NativeCredentials:
        """Who signs."""
        return self

    def sign(self, message: bytes | str) -> bytes:
        """Sign as the service account; what a `signer` does."""
        return self.sign_bytes(message.encode() if isinstance(message, str) else message)


_LIVE: weakref.WeakSet[Credentials] = weakref.WeakSet()


def _after_fork() -> None:
    for credentials in list(_LIVE):
        credentials._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _end_of(id_token: str) -> float:
    """Return when an ID token ends; its signature is for others to look at."""
    from google.auth import jwt

    return float(jwt.decode(id_token, verify=False)["exp"])


def _refusal(status: int, body: bytes, permission: str, email: str) -> ServiceError:
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    error = refusal(status, told if isinstance(told, dict) else {})
    if status == 403 and not error.reason and permission not in str(error):
        message = f"{error} (the caller may lack the permission {permission} on {email})"
        return ServiceError(status, "", message, retry_after=error.retry_after)
    return error
