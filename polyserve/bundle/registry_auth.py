"""How a registry is convinced of who asks: nothing, Basic, or a bearer token that its token service gives for one scope at a time.

The token flow is that of https://distribution.github.io/distribution/spec/auth/token/, which every public registry speaks. Knows requests
and answers, and nothing of images.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from polyserve.bundle.references import is_loopback
from polyserve.errors import UnauthenticatedError

__all__ = ["Authorizer", "Credentials"]

_CHALLENGE = re.compile(r"(?:^|,\s*)(?P<scheme>Basic|Bearer)(?:\s+|$)", re.IGNORECASE)
_PARAMETER = re.compile(r'(?P<name>\w+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]+))')
_SHORTEST_LIFE_S = 60.0
"""How long a token lives whose service does not say: what the specification sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user's name and password, as a registry's tools give them: `AWS` and a token, an access token's user and its value.

    Attributes:
        username: The name.
        password: The password or token; never shown, recorded or sent to anybody but the registry and its token service.
    """

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    value: str = field(repr=False)
    expires_at: float


class Authorizer(httpx.Auth):
    """Answers a registry's challenges, and remembers the answers by scope. An `httpx.Auth`: requests to other hosts go without.

    Args:
        host: The registry's host, with its port.
        credentials: Who asks; without them only what is public can be had.
    """

    def __init__(self, host: str, credentials: Credentials | None) -> None:
        self._host = host
        self._credentials = credentials
        self._basic = False
        self._tokens: dict[str, _Token] = {}

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request; where the registry asks who it is from, say so and send it again."""
        scope = str(request.extensions.get("scope", ""))
        if _host_of(request.url) != self._host:
            # An upload's or a blob's place may be somebody else's storage, with its own key in the URL.
            yield request
            return
        self._authorize(request, scope)
        response = yield request
        if response.status_code != 401:
            return
        challenges = dict(_challenges(response.headers.get_list("www-authenticate")))
        if "bearer" in challenges:
            self._tokens.pop(scope, None)
            response = yield self._token_request(challenges["bearer"], scope)
            response.read()
            self._tokens[scope] = self._token(response)
        elif "basic" in challenges and self._credentials is not None and not self._basic:
            self._basic = True
        else:
            return
        self._authorize(request, scope)
        yield request

    def _authorize(self, request: httpx.Request, scope: str) -> None:
        token = self._tokens.get(scope)
        if token is not None and time.monotonic() < token.expires_at:
            request.headers["authorization"] = f"Bearer {token.value}"
        elif self._basic and self._credentials is not None:
            request.headers["authorization"] = _basic(self._credentials)

    def _token_request(self, asked: Mapping[str, str], scope: str) -> httpx.Request:
        realm = httpx.URL(asked.get("realm", ""))
        if not realm.host:
            raise self._refused("it asks for a token and does not say where to get one")
        if realm.scheme != "https" and not is_loopback(realm.host) and self._credentials is not None:
            raise self._refused(f"it wants the password sent to {str(realm)!r}, which is not encrypted")
        # Ours before the registry's: a mount needs two repositories, and the challenge knows of one.
        scopes = scope.split() or asked.get("scope", "").split()
        query: list[tuple[str, str | int | float | bool | None]] = [("scope", each) for each in scopes]
        if "service" in asked:
            query.append(("service", asked["service"]))
        headers = {"accept": "application/json"}
        if self._credentials is not None:
            headers["authorization"] = _basic(self._credentials)
        return httpx.Request("GET", realm.copy_merge_params(httpx.QueryParams(query)), headers=headers)

    def _token(self, response: httpx.Response) -> _Token:
        if response.status_code != 200:
            raise self._refused(f"its token service answered with status {response.status_code}")
        try:
            told: dict[str, Any] = response.json()
            value = told.get("token") or told["access_token"]
            life = max(float(told.get("expires_in") or 0), _SHORTEST_LIFE_S)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._refused("the answer of its token service has no token") from error
        # A tenth less: it must not end while a request is on its way.
        return _Token(value=str(value), expires_at=time.monotonic() + 0.9 * life)

    def _refused(self, reason: str) -> UnauthenticatedError:
        who = f"user {self._credentials.username!r}" if self._credentials else "no credentials"
        message = (
            f"authenticate with {self._host!r} failed for {who}: {reason}; log in again, or give other credentials"
        )
        return UnauthenticatedError(message, operation="authenticate", resource=self._host)


def _challenges(headers: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield scheme and parameters of each challenge; a header may hold several."""
    for header in headers:
        found = list(_CHALLENGE.finditer(header))
        for place, challenge in enumerate(found):
            end = found[place + 1].start() if place + 1 < len(found) else len(header)
            parameters = {
                each["name"].lower(): re.sub(r"\\(.)", r"\1", each["quoted"])
                if each["quoted"] is not None
                else each["bare"]
                for each in _PARAMETER.finditer(header, challenge.end(), end)
            }
            yield challenge["scheme"].lower(), parameters


def _basic(credentials: Credentials) -> str:
    request = httpx.Request("GET", "https://registry.invalid")
    flow = httpx.BasicAuth(credentials.username, credentials.password).sync_auth_flow(request)
    return str(next(flow).headers["authorization"])


def _host_of(url: httpx.URL) -> str:
    return url.netloc.decode("ascii")
