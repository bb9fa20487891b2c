"""Application Insights: components, and the part of its query API that reads an app's lines back.

An app writes to the component that its `APPLICATIONINSIGHTS_CONNECTION_STRING` names, and nowhere else. The only query there is:

    traces | where cloud_RoleName == 'NAME' and timestamp >= datetime(2026-11-21T07:00:00Z) [| where message has 'WORD']
           | order by timestamp asc [| take N] | project timestamp, message, cloud_RoleInstance, customDimensions
"""

from __future__ import annotations

import json
import re
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError, bad_request, missing
from polyserve_azure.emulator.groups import check_location, check_tags
from polyserve_azure.emulator.instances import Line
from polyserve_azure.emulator.principals import INSIGHTS, Principals
from polyserve_azure.emulator.resources import Resource, Resources
from polyserve_azure.emulator.roles import Roles

KIND = "Microsoft.Insights/components"
KEPT = 200_000
"""Lines that are kept of a component."""
MESSAGE_LIMIT = 32_768
"""Longest message; what is longer is cut ("Application Insights telemetry data model", read 2026-11-21)."""
SETTING = "APPLICATIONINSIGHTS_CONNECTION_STRING"
_QUERY = re.compile(
    r"traces\s*\|\s*where\s+cloud_RoleName\s*==\s*(?P<q>['\"])(?P<app>[\w-]+)(?P=q)\s+and\s+timestamp\s*>=?\s*"
    r"datetime\((?P<since>[^)]+)\)(?:\s*\|\s*where\s+message\s+has\s+(?P<w>['\"])(?P<word>[^'\"]*)(?P=w))?"
    r"\s*\|\s*order\s+by\s+timestamp\s+asc(?:\s*\|\s*take\s+(?P<take>\d+))?"
    r"\s*\|\s*project\s+timestamp,\s*message,\s*cloud_RoleInstance,\s*customDimensions\s*"
)
_COLUMNS = (
    ("timestamp", "datetime"),
    ("message", "string"),
    ("cloud_RoleInstance", "string"),
    ("customDimensions", "dynamic"),
)


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of one instance."""

    at: float
    app: str
    instance: str
    message: str
    severity: int


class Insights:
    """The components, and what was written to them.

    Args:
        resources: What there is.
        principals: Who may ask.
        roles: Who may do what.
    """

    def __init__(self, resources: Resources, principals: Principals, roles: Roles) -> None:
        self._resources, self._principals, self._roles = resources, principals, roles
        self._traces: dict[str, deque[Trace]] = {}

    def table(self) -> Table:
        """Return the operations."""
        low = KIND.lower()
        return {
            ("GET", low, False): Operation(f"{KIND}/Read", self.list_components),
            ("GET", low, True): Operation(f"{KIND}/Read", self.get),
            ("PUT", low, True): Operation(f"{KIND}/Write", self.put),
            ("DELETE", low, True): Operation(f"{KIND}/Delete", self.delete),
        }

    def write(self, site: Resource, instance: str, lines: list[Line]) -> None:
        """Keep the lines of an instance, where the app is connected to a component."""
        text = site.hidden.get("settings", {}).get(SETTING, "")
        key = dict(part.split("=", 1) for part in text.split(";") if "=" in part).get("InstrumentationKey", "")
        kept = self._traces.get(key)
        if kept is not None:
            kept.extend(
                Trace(at, site.name, instance, message[:MESSAGE_LIMIT], severity) for at, message, severity in lines
            )

    async def list_components(self, ask: Ask) -> Answer:
        """List components, in a group or the whole subscription."""
        return ask.paged([one.show() for one in self._resources.of_kind(KIND, ask.target.scope)])

    async def get(self, ask: Ask) -> Answer:
        """Describe a component."""
        found = self._resources.find(ask.target.path)
        if found is None:
            raise missing(KIND, ask.target.name, ask.target.group)
        return json_answer(200, found.show())

    async def put(self, ask: Ask) -> Answer:
        """Make a component, or change it; what was written to it stays."""
        name, body = ask.target.name, ask.body
        location, tags, given = check_location(body), check_tags(body), dict(body.get("properties") or {})
        if not body.get("kind") or not given.get("Application_Type"):
            raise bad_request("A component needs kind and properties.Application_Type.")
        made = self._resources.find(ask.target.path)
        if made is None:
            made = Resource(ask.target.path, name, KIND, ask.target.group, location)
            key, app = str(uuid.uuid4()), str(uuid.uuid4())
            endpoints = f"IngestionEndpoint=https://{location}-0.in.applicationinsights.azure.com/"
            made.properties = {
                "AppId": app, "ApplicationId": name, "InstrumentationKey": key,
                "ConnectionString": f"InstrumentationKey={key};{endpoints};ApplicationId={app}",
                "provisioningState": "Succeeded",
            }  # fmt: skip
            self._traces[key] = deque(maxlen=KEPT)
        made.tags, made.more = tags, {"kind": body["kind"]}
        made.properties = given | made.properties
        self._resources.put(made)
        return json_answer(200, made.show())

    async def delete(self, ask: Ask) -> Answer:
        """Delete a component with all that was written to it."""
        found = self._resources.find(ask.target.path)
        if found is None:
            return Answer(204)
        await self.remove(found)
        self._resources.remove(found.path)
        return Answer(200)

    async def remove(self, resource: Resource) -> None:
        """Forget what was written to a component."""
        self._traces.pop(resource.properties["InstrumentationKey"], None)

    def query(self, call: Call) -> Answer:
        """Answer a query: `GET` or `POST /v1/apps/{AppId}/query`.

        Raises:
            ServiceError: It is not allowed, or none that the emulator understands.
        """
        principal = self._principals.read(call.headers.get("Authorization", ""), INSIGHTS)
        parts = call.path.strip("/").split("/")
        if len(parts) != 4 or parts[1] != "apps" or parts[3] != "query":
            raise ServiceError(404, "PathNotFoundError", f"The requested path '{call.path}' does not exist.")
        found = next((one for one in self._resources.of_kind(KIND) if one.properties["AppId"] == parts[2]), None)
        if found is None:
            raise ServiceError(404, "ApplicationNotFoundError", "The application could not be found.")
        if not self._roles.allow(principal, f"{KIND}/Read", found.path):
            raise ServiceError(
                403,
                "InsufficientAccessError",
                "The provided credentials have insufficient access to perform the requested operation",
            )
        text = str(call.json.get("query", "")) if call.method == "POST" else call.query.get("query", "")
        given = _QUERY.fullmatch(text.strip())
        if given is None:
            message = f"The emulator does not understand this query; the one that it does is in the docstring of {__name__}: {text}"
            raise ServiceError(400, "BadArgumentError", message)
        traces = self._traces[found.properties["InstrumentationKey"]]
        return json_answer(200, {"tables": [_table(given, traces)]})


def _table(given: re.Match[str], traces: deque[Trace]) -> dict[str, Any]:
    try:
        since = datetime.fromisoformat(given["since"].strip("'\" "))
    except ValueError:
        raise ServiceError(400, "BadArgumentError", f"'{given['since']}' is no datetime.") from None
    begin = (since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp()
    word = (given["word"] or "").lower()
    rows = [
        one for one in traces
        if one.app.lower() == given["app"].lower() and one.at >= begin and word in one.message.lower()
    ]  # fmt: skip
    rows.sort(key=lambda one: one.at)
    shown = [
        [
            _stamp(one.at),
            one.message,
            one.instance,
            json.dumps({"LogLevel": _LEVELS[one.severity], "Category": "Host.Function.Console"}),
        ]
        for one in rows[: int(given["take"]) if given["take"] else None]
    ]
    columns = [{"name": name, "type": kind} for name, kind in _COLUMNS]
    return {"name": "PrimaryResult", "columns": columns, "rows": shown}


_LEVELS = ("Debug", "Information", "Warning", "Error", "Critical")


def _stamp(at: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(at * 1e6))
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
