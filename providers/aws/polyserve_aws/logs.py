"""The log of a function: a group of CloudWatch Logs, which is made before Lambda would make one that is kept for ever."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from polyserve.driver import LogEvent
from polyserve_aws.clients import Clients
from polyserve_aws.errors import code_of
from polyserve_aws.names import log_group
from polyserve_aws.settings import AwsSettings

__all__ = ["Logs"]

# A stream is named `2026/11/21/[3]0123...`: day, version, environment.
_STREAM = re.compile(r".*\[([^\]]+)\]([0-9a-f]+)$")

# What Lambda notes itself: "Log formats for Lambda managed runtimes" in its developer guide, 2026-11. A report of a failure has a
# status, and may be the only line that says why.
_PLATFORM = re.compile(
    r"((START|END) RequestId: .*"
    r"|(REPORT|RESTORE_REPORT|INIT_REPORT) (?!.*\bStatus: (?!success)).*"
    r"|(INIT_START|RESTORE_START) .*"
    r"|EXTENSION\tName: .*)",
    re.DOTALL,
)


class Logs:
    """Log groups of functions.

    Args:
        clients: The SDK's clients.
        settings: How long events are kept.
    """

    def __init__(self, clients: Clients, settings: AwsSettings) -> None:
        self._clients = clients
        self._days = settings.log_retention_days

    @property
    def _logs(self) -> Any:
        return self._clients.get("logs")

    def ensure(self, name: str, labels: Mapping[str, str]) -> None:
        """Make the group of a function exist, and events in it end."""
        try:
            self._logs.create_log_group(logGroupName=log_group(name), tags=dict(labels))
        except self._logs.exceptions.ResourceAlreadyExistsException:
            if not self._days:
                self._logs.delete_retention_policy(logGroupName=log_group(name))
        if self._days:
            self._logs.put_retention_policy(logGroupName=log_group(name), retentionInDays=self._days)

    def delete(self, name: str) -> bool:
        """Delete the group of a function, and return whether there was one."""
        try:
            self._logs.delete_log_group(logGroupName=log_group(name))
        except self._logs.exceptions.ClientError as error:
            if code_of(error) != "ResourceNotFoundException":
                raise
            return False
        return True

    def read(self, name: str, *, since: datetime | None, versions: Mapping[str, int]) -> Iterator[LogEvent]:
        """Yield what a function wrote, oldest first; nothing where there is no group.

        Args:
            name: The function.
            since: From when on.
            versions: Number of the revision by Lambda's own version.
        """
        asked = {"logGroupName": log_group(name), "startTime": 0 if since is None else int(since.timestamp() * 1000)}
        while True:
            try:
                answer = self._logs.filter_log_events(**asked)
            except self._logs.exceptions.ResourceNotFoundException:
                return
            # They come in the order of CloudWatch's milliseconds; ours are finer, and of one instant several streams may tell.
            events = sorted((_event(each, versions) for each in answer["events"]), key=lambda event: event.at)
            yield from (event for event in events if since is None or event.at >= since)
            if not answer.get("nextToken"):
                return
            asked["nextToken"] = answer["nextToken"]


def _event(found: Mapping[str, Any], versions: Mapping[str, int]) -> LogEvent:
    message = found["message"].rstrip("\n")
    stream = _STREAM.fullmatch(found.get("logStreamName", ""))
    return LogEvent(
        at=_told_at(message, found["timestamp"] / 1000),
        message=message,
        revision=versions.get(stream[1], 0) if stream else 0,
        instance=stream[2][:12] if stream else "",
        platform=_PLATFORM.fullmatch(message) is not None,
    )


def _told_at(message: str, fallback: float) -> datetime:
    """Return when a line was written: our own say so to the microsecond, and CloudWatch has when they arrived."""
    at = fallback
    if message.startswith("{") and '"at"' in message:
        try:
            told = json.loads(message).get("at")
        except ValueError:
            told = None
        # A line of the model's own may have anything there.
        if isinstance(told, float) and abs(told - fallback) < 900:
            at = told
    return datetime.fromtimestamp(at, UTC)
