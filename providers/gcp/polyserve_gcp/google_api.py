"""Google's APIs over httpx: Cloud Functions, Cloud Run, IAM. One call is one request; nothing is tried twice."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import ServiceError, refusal
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.transport import tls_context

__all__ = ["FUNCTIONS", "RUN", "STORAGE", "GoogleApi", "mask_of", "piece"]

FUNCTIONS = "cloudfunctions.googleapis.com"
RUN = "run.googleapis.com"
STORAGE = "storage.googleapis.com"
PAGE = 100


class GoogleApi:
    """Calls Google's APIs. Safe to use from many threads.

    Args:
        settings: Where they are, and which project and region are meant.
        credentials: Who calls.
    """

    def __init__(self, settings: GcpSettings, credentials: Credentials) -> None:
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
                timeout = httpx.Timeout(60.0, connect=10.0)
                self._client = httpx.Client(verify=tls_context(), timeout=timeout, limits=limits)
            return self._client

    @property
    def project(self) -> str:
        """The project."""
        return self._credentials.project

    @property
    def location(self) -> str:
        """The region, as resources are named below it: `projects/P/locations/R`."""
        return f"projects/{self._credentials.project}/locations/{self._settings.region}"

    def call(
        self, method: str, host: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Make one call and return its answer's object.

        Args:
            method: HTTP method.
            host: The API, such as `run.googleapis.com`.
            path: What is below it, such as `/v2/projects/p/locations/r/services`.
            body: The request's object, if it has one.
            query: The query's parameters.

        Raises:
            ServiceError: It was refused.
        """
        content = None if body is None else json.dumps(body, sort_keys=True).encode()
        headers = dict(self._credentials.headers())
        if content is not None:
            headers["content-type"] = "application/json"
        url = f"{self._settings.address(host)}{path}"
        reply = self.client.request(method, url, params=dict(query or {}), content=content, headers=headers)
        if reply.status_code == 401:
            # It may have been withdrawn: the next call asks for another one.
            self._credentials.forget()
        told = _object(reply)
        if reply.status_code >= 400:
            raise refusal(reply.status_code, told, retry=reply.headers.get("retry-after", ""))
        return told

    def find(self, host: str, path: str) -> dict[str, Any] | None:
        """Return a resource, or `None` where it is not there."""
        try:
            return self.call("GET", host, path)
        except ServiceError as error:
            if error.status == 404:
                return None
            raise

    def list(self, host: str, path: str, field: str) -> Iterator[dict[str, Any]]:
        """Yield the resources of a collection, page by page.

        Args:
            host: The API.
            path: The collection.
            field: Where a page has its resources.
        """
        token = ""
        while True:
            query = {"pageSize": str(PAGE)} | ({"pageToken": token} if token else {})
            page = self.call("GET", host, path, query=query)
            yield from page.get(field) or ()
            token = str(page.get("nextPageToken") or "")
            if not token:
                return

    def policy(self, host: str, resource: str) -> dict[str, Any]:
        """Return the IAM policy of a resource, such as `/v2/projects/p/locations/r/services/s`."""
        return self.call("GET", host, f"{resource}:getIamPolicy", query={"options.requestedPolicyVersion": "3"})

    def bind(self, host: str, resource: str, role: str, members: frozenset[str]) -> bool:
        """Let members have a role on a resource beside who has it already; returns whether anything was to be done."""
        policy = self.policy(host, resource)
        bindings = [dict(each) for each in policy.get("bindings") or ()]
        present = next((each for each in bindings if each["role"] == role and not each.get("condition")), None)
        if present is not None and members <= set(present["members"]):
            return False
        if present is None:
            bindings.append({"role": role, "members": sorted(members)})
        else:
            present["members"] = sorted({*present["members"], *members})
        self._set_policy(host, resource, {**policy, "bindings": bindings})
        return True

    def unbind(self, host: str, resource: str, role: str, members: frozenset[str]) -> bool:
        """Take a role from members on a resource; returns whether anything was to be done."""
        policy = self.policy(host, resource)
        bindings = [dict(each) for each in policy.get("bindings") or ()]
        changed = False
        for each in bindings:
            if each["role"] == role and not each.get("condition") and members & set(each["members"]):
                each["members"] = sorted({*each["members"]} - members)
                changed = True
        if changed:
            kept = [each for each in bindings if each["members"]]
            self._set_policy(host, resource, {**policy, "bindings": kept})
        return changed

    def _set_policy(self, host: str, resource: str, policy: Mapping[str, Any]) -> None:
        # The etag within makes it the next version of what was read, or a refusal.
        self.call("POST", host, f"{resource}:setIamPolicy", {"policy": policy})

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def mask_of(fields: Iterable[str]) -> str:
    """Return an update mask as it goes into a query: paths in the words of JSON."""
    return ",".join(re.sub(r"_([a-z])", lambda found: found[1].upper(), field) for field in fields)


def piece(name: str) -> str:
    """Return a name as one piece of a path."""
    return quote(name, safe="")


def _object(reply: httpx.Response) -> dict[str, Any]:
    if not reply.content:
        return {}
    try:
        found = reply.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {"value": found}
