"""What functions wrote: Cloud Run hands their lines to Cloud Logging, which is asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from polyserve.driver import LogEvent
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.google_api import GoogleApi
from polyserve_gcp.settings import GcpSettings

__all__ = ["LOGGING", "Logs"]

LOGGING = "logging.googleapis.com"
PAGE = 1000
"""Entries of one answer: the most there are (entries.list in the API's reference, 2026-11)."""
STREAMS = ("stdout", "stderr", "varlog%2Fsystem")
"""What a function wrote, and what the platform says of its instances, such as that one had not enough memory."""
_OLDEST = datetime(1970, 1, 1, tzinfo=UTC)


class Logs:
    """The log entries of services.

    Args:
        settings: Which region is meant.
        credentials: Which project is meant.
        api: Calls Google.
    """

    def __init__(self, settings: GcpSettings, credentials: Credentials, api: GoogleApi) -> None:
        self._settings = settings
        self._credentials = credentials
        self._api = api

    def read(
        self, service: str, *, since: datetime | None, number: Callable[[str], int] = lambda revision: 0
    ) -> Iterator[LogEvent]:
        """Yield what a service wrote, oldest first; Cloud Logging has it some seconds after.

        Entries outlive their service: give the time at which it was made as `since` where its name was used before.

        Args:
            service: The Cloud Run service.
            since: From when on.
            number: Gives the number of a revision by its name.
        """
        project = self._credentials.project
        asked: dict[str, Any] = {
            "resourceNames": [f"projects/{project}"],
            "filter": self._filter(project, service, since or _OLDEST),
            "orderBy": "timestamp asc",
            "pageSize": PAGE,
        }
        while True:
            page = self._api.call("POST", LOGGING, "/v2/entries:list", asked)
            # They come in the order of Google's clock; ours are told by the function itself.
            found = sorted((_event(each, number) for each in page.get("entries") or ()), key=lambda event: event.at)
            yield from (event for event in found if since is None or event.at >= since)
            # A page may be empty and not the last one.
            asked["pageToken"] = page.get("nextPageToken")
            if not asked["pageToken"]:
                return

    def _filter(self, project: str, service: str, since: datetime) -> str:
        names = " OR ".join(f'"projects/{project}/logs/run.googleapis.com%2F{stream}"' for stream in STREAMS)
        moment = since.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return (
            f'resource.type="cloud_run_revision" AND resource.labels.service_name="{service}" '
            f'AND resource.labels.location="{self._settings.region}" AND logName=({names}) AND timestamp>="{moment}"'
        )


def _event(entry: Mapping[str, Any], number: Callable[[str], int]) -> LogEvent:
    message, told = _message(entry)
    at = datetime.fromisoformat(entry["timestamp"])
    # A line of the model's own may have anything there.
    if isinstance(told, float) and abs(told - at.timestamp()) < 900:
        at = datetime.fromtimestamp(told, UTC)
    return LogEvent(
        at=at,
        message=message,
        revision=number(str(entry.get("resource", {}).get("labels", {}).get("revision_name", ""))),
        instance=str(entry.get("labels", {}).get("instanceId", ""))[-12:],
    )


def _message(entry: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a line as it was written, or nearly, and when it says that it was: Cloud Run takes lines of JSON to pieces."""
    payload = entry.get("jsonPayload")
    if payload is None:
        return str(entry.get("textPayload", "")).rstrip("\n"), None
    if payload.keys() == {"message"}:
        return str(payload["message"]), None
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False), payload.get("at")
