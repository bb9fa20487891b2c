"""What apps wrote: each has a component of Application Insights of its own, which goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from polyserve.driver import LogEvent
from polyserve_azure.errors import ServiceError
from polyserve_azure.publish import moment
from polyserve_azure.resources import ResourceManager, Types
from polyserve_azure.settings import AzureSettings

__all__ = ["Logs"]

INSIGHTS = "https://api.applicationinsights.io"
PAGE = 10_000
"""Lines of one query: the API answers with half a million rows or 64 MB at most ("Service limits", 2026-11)."""
_BEGINNING = datetime(2020, 1, 1, tzinfo=UTC)


class Logs:
    """Components of Application Insights, and what is in them.

    Args:
        settings: Where they are and where they are asked.
        manager: Calls Azure.
    """

    def __init__(self, settings: AzureSettings, manager: ResourceManager) -> None:
        self._settings = settings
        self._manager = manager

    def ensure(self, site: str, tags: dict[str, str]) -> str:
        """Make the component of an app exist, and return the connection string that lets it write there."""
        found = self._manager.find(Types.INSIGHTS, site)
        if found is None:
            found = self._manager.put(
                Types.INSIGHTS,
                site,
                {
                    "location": self._settings.location,
                    "kind": "web",
                    "tags": tags,
                    "properties": {"Application_Type": "web", "Request_Source": "rest"},
                },
            ).body
        return str(found["properties"]["ConnectionString"])

    def read(self, site: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what an app wrote, oldest first; Azure has it some minutes after."""
        component = self._manager.find(Types.INSIGHTS, site)
        if component is None:
            return
        url = f"{self._settings.insights_url.rstrip('/')}/v1/apps/{component['properties']['AppId']}/query"
        begin, told = since or _BEGINNING, set[tuple[str, str, str]]()
        while True:
            rows = self._query(url, site, begin)
            fresh = [row for row in rows if (row[0], row[1], row[2]) not in told]
            for row in fresh:
                yield LogEvent(at=_at(row[0]), message=row[1], instance=row[2])
            if len(rows) < PAGE or not fresh:
                return
            # The next page begins with the last moment of this one, of which there may be more.
            begin = _at(rows[-1][0])
            told = {(row[0], row[1], row[2]) for row in rows if row[0] == rows[-1][0]}

    def _query(self, url: str, site: str, begin: datetime) -> list[Any]:
        text = (
            f"traces | where cloud_RoleName == '{site}' and timestamp >= datetime({begin.astimezone(UTC).isoformat()}) "
            f"| order by timestamp asc | take {PAGE} | project timestamp, message, cloud_RoleInstance, customDimensions"
        )
        try:
            reply = self._manager.send("GET", url, INSIGHTS, params={"query": text})
        except ServiceError as error:
            if error.status == 404:
                return []
            raise
        return list(reply.json()["tables"][0]["rows"])

    def delete(self, site: str) -> bool:
        """Delete the component of an app with all that is in it, and return whether it was there."""
        return self._manager.delete(Types.INSIGHTS, site)


def _at(text: str) -> datetime:
    found = moment(text)
    assert found is not None
    return found
