"""Who there is: service accounts and people, their keys, and the tokens that they show.

Access tokens are opaque, as Google's are; whoever has one from here can show it, and nobody can make one up. ID tokens
are signed, and their certificates published, so that `google.auth` verifies them too. A token that a service account
signed itself is an access token to Google's newer clients, and to this emulator.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyserve_gcp.emulator.errors import ServiceError, unauthenticated
from polyserve_gcp.emulator.keys import Key, make_key, read_token

ISSUER = "https://accounts.google.com"
LIFETIME_S = 3600.0
"""How long a token is good, in seconds: Google's own default, and its most for what is not asked for specially."""
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
IAM = "https://www.googleapis.com/auth/iam"
SKEW_S = 10.0
"""How far clocks may be apart, in seconds."""


@dataclass(slots=True, kw_only=True)
class Principal:
    """A service account or a person.

    Attributes:
        email: What policies name it by.
        person: Whether it is one.
        agent: Whether it is a service agent of Google's, which no list shows.
        unique_id: Google's number for it, 21 digits: `sub` in its tokens.
        display_name: What it is called.
        description: What it is for.
        disabled: Whether it may do nothing for now.
        keys: A service account's keys by their identifiers.
    """

    email: str
    person: bool = False
    agent: bool = False
    unique_id: str = field(default_factory=lambda: "1" + "".join(secrets.choice("0123456789") for _ in range(20)))
    display_name: str = ""
    description: str = ""
    disabled: bool = False
    keys: dict[str, Key] = field(default_factory=dict)

    @property
    def member(self) -> str:
        """What a policy calls it: `serviceAccount:x@p.iam.gserviceaccount.com`."""
        return f"{'user' if self.person else 'serviceAccount'}:{self.email}"


@dataclass(frozen=True, slots=True)
class _Issued:
    principal: Principal
    scopes: frozenset[str]
    until: float


class Identities:
    """All identities of the emulated project.

    Args:
        project: Id of the project.
        number: Its number.

    Attributes:
        token_uri: Address of the token endpoint, which key files name; set by whoever opens it.
    """

    def __init__(self, project: str, number: str) -> None:
        self.project, self.number = project, number
        self.token_uri = ""
        self._all: dict[str, Principal] = {}
        self._issued: dict[str, _Issued] = {}
        self._refresh: dict[str, tuple[Principal, str, str]] = {}
        self._signer: Key | None = None
        # The account as which functions run that name none (Cloud Run, "Service identity", read 2026-11-21).
        self.default_account = self._add(
            Principal(
                email=f"{number}-compute@developer.gserviceaccount.com", display_name="Default compute service account"
            )
        )

    @property
    def signer(self) -> Key:
        """Google's own key, which signs ID tokens."""
        if self._signer is None:
            self._signer = make_key(user_managed=False)
        return self._signer

    def accounts(self) -> list[Principal]:
        """Return the service accounts, in order of their addresses."""
        return sorted(
            (one for one in self._all.values() if not one.person and not one.agent), key=lambda one: one.email
        )

    def find(self, name: str) -> Principal | None:
        """Return who has an address or a number."""
        found = self._all.get(name)
        return found or next((one for one in self._all.values() if one.unique_id == name), None)

    def add_service_account(self, account_id: str, *, display_name: str = "", description: str = "") -> Principal:
        """Make a service account without roles: `ACCOUNT_ID@PROJECT.iam.gserviceaccount.com`."""
        email = f"{account_id}@{self.project}.iam.gserviceaccount.com"
        return self._add(Principal(email=email, display_name=display_name, description=description))

    def add_person(self, email: str) -> Principal:
        """Make a person without roles."""
        return self._add(Principal(email=email, person=True))

    def add_agent(self, email: str) -> Principal:
        """Make a service agent: an account of Google's own, as which one of its services works in the project."""
        return self._add(Principal(email=email, agent=True))

    def remove(self, principal: Principal) -> None:
        """Forget an identity; its keys and tokens are good for nothing from now on."""
        self._all.pop(principal.email, None)

    def add_key(self, principal: Principal) -> dict[str, str]:
        """Make a key of a service account; returns the content of its key file."""
        made = make_key()
        principal.keys[made.identifier] = made
        return {
            "type": "service_account", "project_id": self.project, "private_key_id": made.identifier, "private_key": made.pem(),
            "client_email": principal.email, "client_id": principal.unique_id, "token_uri": self.token_uri,
            "universe_domain": "googleapis.com",
        }  # fmt: skip

    def add_refresh_token(self, person: Principal) -> dict[str, str]:
        """Let a person be logged in; returns what `gcloud auth application-default login` would write."""
        token, client, secret = (secrets.token_urlsafe(24) for _ in range(3))
        self._refresh[token] = (person, f"{client}.apps.googleusercontent.com", secret)
        return {
            "type": "authorized_user", "client_id": self._refresh[token][1], "client_secret": secret, "refresh_token": token,
            "token_uri": self.token_uri, "quota_project_id": self.project, "universe_domain": "googleapis.com",
        }  # fmt: skip

    def read_refresh_token(self, token: str, client: str, secret: str) -> Principal | None:
        """Return whom a refresh token belongs to; `None` where it is nobody's, or another client shows it."""
        found = self._refresh.get(token)
        return found[0] if found is not None and found[1:] == (client, secret) and self._is_here(found[0]) else None

    def issue_access_token(
        self, principal: Principal, scopes: Iterable[str] = (CLOUD_PLATFORM,), *, lifetime_s: float = LIFETIME_S
    ) -> str:
        """Return an access token.

        Args:
            principal: Whose it is.
            scopes: What it is good for.
            lifetime_s: How long, in seconds.
        """
        token = f"ya29.{secrets.token_urlsafe(96)}"
        self._issued[token] = _Issued(principal, frozenset(scopes), time.time() + lifetime_s)
        return token

    def issue_id_token(
        self, principal: Principal, audience: str, *, email: bool = True, lifetime_s: float = LIFETIME_S
    ) -> str:
        """Return an ID token.

        Args:
            principal: Whose it is.
            audience: Whom it is for: the address of a service.
            email: Whether it names the principal's address.
            lifetime_s: How long it is good, in seconds.
        """
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER, "aud": audience, "azp": principal.unique_id, "sub": principal.unique_id, "iat": now,
            "exp": int(now + lifetime_s),
        }  # fmt: skip
        if email:
            claims |= {"email": principal.email, "email_verified": True}
        return self.signer.sign_token(claims)

    def read_access_token(
        self, authorization: str, service: str, scopes: Sequence[str] = (CLOUD_PLATFORM,)
    ) -> Principal:
        """Return who calls an API.

        Args:
            authorization: The header field: `Bearer` and a token.
            service: The API, `cloudfunctions.googleapis.com`.
            scopes: Of these the token needs one.

        Raises:
            ServiceError: There is no token, it is not from here, it has expired, or it is for something else.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthenticated()
        issued = self._issued.get(token.strip()) or self._read_self_signed(token.strip(), service)
        if not self._is_here(issued.principal):
            raise unauthenticated(
                f"The account {issued.principal.email} is disabled or deleted.", "ACCOUNT_STATE_INVALID"
            )
        if issued.until < time.time():
            raise unauthenticated(_INVALID, "ACCESS_TOKEN_EXPIRED")
        if issued.scopes.isdisjoint(scopes):
            raise _insufficient(service)
        return issued.principal

    def read_id_token(self, authorization: str, audiences: Sequence[str]) -> Principal:
        """Return who calls a service.

        Args:
            authorization: The header field: `Bearer` and a token.
            audiences: Of these the token must name one.

        Raises:
            ValueError: There is no token that is good; its message says why.
        """
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise ValueError("there is no bearer token")
        token = read_token(text.strip())
        now, claims = time.time(), token.claims
        if not token.is_by(self.signer) or claims.get("iss") != ISSUER:
            raise ValueError("the token is not signed by Google")
        if not float(claims.get("iat", 0)) - SKEW_S <= now <= float(claims.get("exp", 0)) + SKEW_S:
            raise ValueError("the token has expired")
        if claims.get("aud") not in audiences:
            raise ValueError(f"the token is for {claims.get('aud')}")
        found = self.find(str(claims.get("sub", "")))
        if found is None or not self._is_here(found):
            raise ValueError("the token's account is disabled or deleted")
        return found

    def read_assertion(self, text: str, audiences: Sequence[str]) -> dict[str, Any]:
        """Return the claims of a token that a service account has signed itself.

        Args:
            text: The token.
            audiences: Of these its `aud` must be one; none where it is looked at elsewhere.

        Raises:
            ValueError: It is no such token; the message says why.
        """
        token = read_token(text)
        found = self._all.get(str(token.claims.get("iss", "")))
        if found is None or not self._is_here(found):
            raise ValueError(f"account not found: {token.claims.get('iss')}")
        named = found.keys.get(str(token.head.get("kid", "")))
        if not any(token.is_by(key) for key in ([named] if named else found.keys.values())):
            raise ValueError("invalid JWT signature")
        now, claims = time.time(), token.claims
        since, until = float(claims.get("iat", 0)), float(claims.get("exp", 0))
        if since - SKEW_S > now or until + SKEW_S < now or until - since > LIFETIME_S + SKEW_S:
            raise ValueError(
                "the token must be short-lived (60 minutes) and in a reasonable timeframe: check iat and exp"
            )
        if audiences and claims.get("aud") not in audiences:
            raise ValueError(f"the audience is {claims.get('aud')}, and not {audiences[0]}")
        return claims

    def sign(self, account: Principal, data: bytes) -> tuple[str, bytes]:
        """Sign bytes with the key of a service account that Google alone has.

        Returns:
            The key's identifier, and the signature.
        """
        own = self._own_key(account)
        return own.identifier, own.sign(data)

    def sign_token(self, account: Principal, claims: dict[str, Any]) -> tuple[str, str]:
        """Sign a token with the key of a service account that Google alone has.

        Returns:
            The key's identifier, and the token.
        """
        own = self._own_key(account)
        return own.identifier, own.sign_token(claims)

    def verify(self, email: str, signature: bytes, data: bytes) -> Principal | None:
        """Return the service account that has signed bytes; `None` where it has not."""
        found = self._all.get(email)
        if found is None or not self._is_here(found):
            return None
        return found if any(key.verify(signature, data) for key in found.keys.values()) else None

    def certificates(self) -> dict[str, str]:
        """Return the certificates with which ID tokens are verified, by the identifiers of their keys."""
        return {self.signer.identifier: self.signer.certificate()}

    def _add(self, made: Principal) -> Principal:
        return self._all.setdefault(made.email, made)

    def _own_key(self, account: Principal) -> Key:
        own = next((key for key in account.keys.values() if not key.user_managed), None)
        if own is None:
            own = make_key(user_managed=False)
            account.keys[own.identifier] = own
        return own

    def _is_here(self, principal: Principal) -> bool:
        return self._all.get(principal.email) is principal and not principal.disabled

    def _read_self_signed(self, text: str, service: str) -> _Issued:
        try:
            claims = self.read_assertion(text, ())
        except ValueError:
            raise unauthenticated(_INVALID, "ACCESS_TOKEN_TYPE_UNSUPPORTED") from None
        scopes = str(claims.get("scope", "")).split()
        if not scopes and str(claims.get("aud", "")).rstrip("/") != f"https://{service}":
            raise unauthenticated(_INVALID, "ACCESS_TOKEN_TYPE_UNSUPPORTED")
        principal = self._all[str(claims["iss"])]
        return _Issued(principal, frozenset(scopes or [CLOUD_PLATFORM]), float(claims["exp"]) + SKEW_S)


_INVALID = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)


def _insufficient(service: str) -> ServiceError:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
        "domain": "googleapis.com", "metadata": {"service": service},
    }  # fmt: skip
    return ServiceError(
        "PERMISSION_DENIED",
        "Request had insufficient authentication scopes.",
        details=[info],
        reason="insufficientPermissions",
    )
