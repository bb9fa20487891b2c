"""Cloud Logging: what instances print and fronts note, as entries, and `entries:list`, which reads them back."""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError, format_error, invalid
from polyserve_gcp.emulator.instances import Line
from polyserve_gcp.emulator.log_filters import SEVERITIES, Filter, parse_filter

API = "logging.googleapis.com"
KEPT = 200_000
"""Entries that are kept; older ones go."""
MOST = 1000
"""Largest page of `entries:list`."""
_LABELS, _TRACE = "logging.googleapis.com/labels", "logging.googleapis.com/trace"
_SPAN, _INSERT = "logging.googleapis.com/spanId", "logging.googleapis.com/insertId"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where entries come from.

    Attributes:
        service: Name of the service.
        location: Its region.
        revision: Name of the revision; empty where it is in the entry.
        function: Whether the service belongs to a function.
    """

    service: str
    location: str
    revision: str = ""
    function: bool = False


class Logs:
    """All entries of the project.

    Args:
        project: The project's identifier.
        access: Who may read them.
    """

    def __init__(self, project: str, access: Access) -> None:
        self._project, self._access = project, access
        self._entries: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def line_writer(self, source: Source) -> Callable[[str, list[Line]], None]:
        """Return what takes the lines that an instance prints, with its identifier."""

        def write(instance: str, lines: list[Line]) -> None:
            for at, stream, text in lines:
                self._write(source, instance, f"run.googleapis.com%2F{stream}", at, _read_line(text))

        return write

    def request_writer(self, source: Source) -> Callable[[str, str, dict[str, Any], str], None]:
        """Return what takes the log of a request: its revision, its instance, `httpRequest`, and what went wrong."""

        def write(revision: str, instance: str, request: dict[str, Any], why: str) -> None:
            status = int(request["status"])
            entry: dict[str, Any] = {
                "httpRequest": request, "severity": "ERROR" if status >= 500 else "WARNING" if status >= 400 else "INFO",
            }  # fmt: skip
            if why:
                entry["textPayload"] = why
            self._write(replace(source, revision=revision), instance, "run.googleapis.com%2Frequests", _now(), entry)

        return write

    def write_system(self, source: Source, text: str) -> None:
        """Note what the platform has to say about a revision."""
        log = "run.googleapis.com%2Fvarlog%2Fsystem"
        self._write(source, "", log, _now(), {"severity": "ERROR", "textPayload": text})

    async def answer(self, call: Call) -> Answer:
        """Answer one call to the API."""
        try:
            if (call.method, call.path) != ("POST", "/v2/entries:list"):
                raise ServiceError("NOT_FOUND", f"Method not found: {call.method} {call.path}")
            return self._list(call)
        except ServiceError as error:
            return format_error(error)

    def _list(self, call: Call) -> Answer:
        given = call.json
        unknown = sorted(set(given) - {"resourceNames", "filter", "orderBy", "pageSize", "pageToken"})
        if unknown:
            raise invalid(f'Invalid JSON payload received. Unknown name "{unknown[0]}": Cannot find field.')
        principal = self._access.enter(call, API)
        names = given.get("resourceNames") or []
        if not names:
            raise invalid("resource_names: at least one must be set.")
        for name in names:
            self._access.demand(principal, "logging.logEntries.list", str(name))
            if str(name).split("/")[:2] != ["projects", self._project]:
                raise ServiceError(
                    "PERMISSION_DENIED", f"Permission 'logging.logEntries.list' denied on resource '{name}'."
                )
        order = given.get("orderBy") or "timestamp asc"
        if order not in {"timestamp", "timestamp asc", "timestamp desc"}:
            raise invalid(f"order_by: '{order}' must be 'timestamp asc' or 'timestamp desc'.")
        wanted = parse_filter(str(given.get("filter") or ""))
        return json_answer(200, self._page(given, wanted, latest_first=order.endswith("desc")))

    def _page(self, given: Mapping[str, Any], wanted: Filter, *, latest_first: bool) -> dict[str, Any]:
        size = min(int(given.get("pageSize") or 50), MOST)
        if size < 1:
            raise invalid("page_size: must not be negative.")
        token = str(given.get("pageToken") or "0")
        if not token.isdigit():
            raise invalid("page_token: it is not one of this list.")
        found = [one for one in self._entries if wanted(one)]
        found.sort(key=lambda one: str(one["timestamp"]), reverse=latest_first)
        page = found[int(token) : int(token) + size]
        after = int(token) + size
        return {"entries": page} | ({"nextPageToken": str(after)} if after < len(found) else {})

    def _write(self, source: Source, instance: str, log: str, at: float, content: Mapping[str, Any]) -> None:
        labels = {"instanceId": instance} | ({"goog-managed-by": "cloudfunctions"} if source.function else {})
        resource = {
            "project_id": self._project, "service_name": source.service, "revision_name": source.revision,
            "configuration_name": source.service, "location": source.location,
        }  # fmt: skip
        entry = {
            "insertId": secrets.token_hex(10),
            "logName": f"projects/{self._project}/logs/{log}",
            "resource": {"type": "cloud_run_revision", "labels": resource},
            "timestamp": _stamp(at),
            "receiveTimestamp": _stamp(at),
            **content,
        }
        entry["labels"] = {name: value for name, value in labels.items() if value} | dict(content.get("labels") or {})
        self._entries.append(entry)


def _read_line(text: str) -> dict[str, Any]:
    """Return what becomes of a line: an object has fields that mean something ("Structured logging", read 2026-11-21)."""
    try:
        given = json.loads(text) if text.startswith("{") else None
    except ValueError:
        given = None
    if not isinstance(given, dict):
        return {"textPayload": text}
    found: dict[str, Any] = {}
    severity = str(given.get("severity", "")).upper()
    if severity in SEVERITIES:
        found["severity"] = severity
        del given["severity"]
    for name, target in ((_LABELS, "labels"), (_TRACE, "trace"), (_SPAN, "spanId"), (_INSERT, "insertId")):
        if name in given:
            found[target] = given.pop(name)
    if isinstance(given.get("httpRequest"), dict):
        found["httpRequest"] = given.pop("httpRequest")
    if isinstance(given.get("time"), str):
        at = _read_stamp(given["time"])
        if at:
            found["timestamp"] = at
            del given["time"]
    # An entry whose payload is its message alone is text.
    if set(given) == {"message"} and isinstance(given["message"], str):
        return {**found, "textPayload": given["message"]}
    return {**found, "jsonPayload": given}


def _read_stamp(text: str) -> str:
    try:
        return _stamp(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return ""


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
