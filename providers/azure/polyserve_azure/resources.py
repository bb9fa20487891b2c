"""Azure Resource Manager, and the other services that take a token, over httpx. One call is one request; nothing is tried twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from polyserve_azure.credentials import Credentials, subscription_of
from polyserve_azure.errors import ServiceError, seconds_of
from polyserve_azure.settings import AzureSettings

__all__ = ["Answer", "ResourceManager", "Types"]

MANAGEMENT = "https://management.azure.com"


class Types:
    """Types of resources, each with the version of its API."""

    GROUP = ("", "2024-03-01")
    STORAGE = ("Microsoft.Storage/storageAccounts", "2024-01-01")
    PLAN = ("Microsoft.Web/serverfarms", "2024-04-01")
    # The first with `functionAppConfig.siteUpdateStrategy` that azure-mgmt-web 11.0 speaks.
    SITE = ("Microsoft.Web/sites", "2025-05-01")
    INSIGHTS = ("Microsoft.Insights/components", "2020-02-02")
    IDENTITY = ("Microsoft.ManagedIdentity/userAssignedIdentities", "2023-01-31")
    STACKS = ("Microsoft.Web/locations", "2024-04-01")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Resource Manager answered.

    Attributes:
        status: HTTP status.
        body: The answer's object.
        retry_after: When to look at what was begun, if it says so.
    """

    status: int
    body: dict[str, Any]
    retry_after: timedelta | None = None


class ResourceManager:
    """Calls Azure. Safe to use from many threads.

    Args:
        settings: Where it is, and which subscription and group are meant.
        credentials: Who calls.
    """

    def __init__(self, settings: AzureSettings, credentials: Credentials) -> None:
        self._settings = settings
        self._credentials = credentials
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> httpx.Client:
        """The connections."""
        with self._lock:
            if self._client is None:
                limits = httpx.Limits(max_connections=32, max_keepalive_connections=8)
                self._client = httpx.Client(timeout=httpx.Timeout(60.0, connect=10.0), limits=limits)
            return self._client

    def group_path(self) -> str:
        """Return the identifier of the resource group."""
        return f"/subscriptions/{subscription_of(self._settings)}/resourceGroups/{self._settings.resource_group}"

    def path(self, kind: tuple[str, str], name: str = "", *below: str) -> str:
        """Return the identifier of a resource in the group, of what is below it, or of all of its type."""
        parts = [self.group_path(), *(["providers", kind[0]] if kind[0] else []), *([name] if name else []), *below]
        return "/".join(parts)

    def call(self, method: str, path: str, version: str, body: Any = None, **query: str) -> Answer:
        """Make one call of Resource Manager and return its answer.

        Raises:
            ServiceError: It was refused.
        """
        parameters = {"api-version": version, **query}
        content = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if content is not None else {}
        # A link to the next page has its query already.
        linked = path.startswith("http")
        url = path if linked else self._settings.management_url.rstrip("/") + path
        reply = self.send(
            method, url, MANAGEMENT, params=None if linked else parameters, content=content, headers=headers
        )
        wait = seconds_of(reply.headers.get("retry-after", ""))
        return Answer(status=reply.status_code, body=_object(reply), retry_after=wait)

    def find(self, kind: tuple[str, str], name: str, *below: str) -> dict[str, Any] | None:
        """Return a resource, or `None` where it is not there."""
        try:
            return self.call("GET", self.path(kind, name, *below), kind[1]).body
        except ServiceError as error:
            if error.status == 404:
                return None
            raise

    def put(self, kind: tuple[str, str], name: str, body: Mapping[str, Any], *below: str) -> Answer:
        """Make a resource be this, and return what the service makes of it so far."""
        return self.call("PUT", self.path(kind, name, *below), kind[1], body)

    def post(self, kind: tuple[str, str], name: str, *below: str, body: Any = None) -> dict[str, Any]:
        """Ask a resource something that is not to be read by everybody."""
        return self.call("POST", self.path(kind, name, *below), kind[1], {} if body is None else body).body

    def delete(self, kind: tuple[str, str], name: str, *below: str, **query: str) -> bool:
        """Delete a resource, and return whether it was there."""
        try:
            status = self.call("DELETE", self.path(kind, name, *below), kind[1], **query).status
        except ServiceError as error:
            if error.status == 404:
                return False
            raise
        return status != 204

    def list(self, kind: tuple[str, str], name: str = "", *below: str) -> Iterator[dict[str, Any]]:
        """Yield all resources of a type in the group; none where the group is not there."""
        path: str | None = self.path(kind, name, *below)
        while path:
            try:
                page = self.call("GET", path, kind[1]).body
            except ServiceError as error:
                if error.name == "ResourceGroupNotFound":
                    return
                raise
            yield from page.get("value", ())
            path = page.get("nextLink")

    def send(
        self,
        method: str,
        url: str,
        resource: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request with a token, and return the answer.

        Args:
            method: Its method.
            url: Its address.
            resource: What the token is for.
            params: Its query.
            content: Its body.
            headers: Its headers.

        Raises:
            ServiceError: It was refused.
        """
        authorized = {**(headers or {}), "authorization": f"Bearer {self._credentials.token(resource)}"}
        reply = self.client.request(method, url, params=params, content=content, headers=authorized)
        if reply.status_code == 401:
            # It may have been withdrawn: the next call asks for another one.
            self._credentials.forget()
        if reply.status_code >= 400:
            raise _refusal(method, url, reply)
        return reply

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def _object(reply: httpx.Response) -> dict[str, Any]:
    if not reply.content:
        return {}
    try:
        found = reply.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {"value": found}


def _refusal(method: str, url: str, reply: httpx.Response) -> ServiceError:
    told = _object(reply)
    error = told.get("error")
    if not isinstance(error, dict):
        error = told
    name = str(error.get("code") or error.get("Code") or "")
    message = str(error.get("message") or error.get("Message") or "") or f"HTTP {reply.status_code}"
    if reply.status_code == 403 and "perform action" not in message:
        # The publish API and Application Insights do not say what is missing.
        action = "Microsoft.Web/sites/publish/Action" if "/api/" in url else "Microsoft.Insights/components/Read"
        message = f"{message} (the caller may lack the permission {action})"
    wait = seconds_of(reply.headers.get("retry-after", ""))
    return ServiceError(reply.status_code, name, message, retry_after=wait if reply.status_code in {429, 503} else None)
