"""What functions wrote, as Cloud Logging tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import ServiceError
from polyserve_gcp.google_api import GoogleApi
from polyserve_gcp.logs import Logs


@pytest.fixture
def logs(google: Any) -> Iterator[Logs]:
    """Give the log entries of a region."""
    settings = google.settings(credentials_file=google.key_file(), region="europe-west1")
    with closing(Credentials(settings)) as credentials, closing(GoogleApi(settings, credentials)) as api:
        yield Logs(settings, credentials, api)


def entry(at: str, **fields: Any) -> dict[str, Any]:
    labels = {"service_name": "iris", "revision_name": "iris-r2"}
    return {
        "timestamp": at,
        "resource": {"type": "cloud_run_revision", "labels": labels},
        "labels": {"instanceId": "00" * 20 + "0123456789ab"},
        **fields,
    }


def test_one_service_of_one_region_is_asked_for_from_a_time_on(google: Any, logs: Logs) -> None:
    google.pages = [{}]

    assert list(logs.read("iris", since=datetime(2026, 11, 21, 9, 30, tzinfo=UTC))) == []

    (asked,) = [call.json() for call in google.asked if call.path == "/v2/entries:list"]
    stream = '"projects/polyserve-tests/logs/run.googleapis.com%2F{}"'.format
    assert asked["filter"].split(" AND ") == [
        'resource.type="cloud_run_revision"',
        'resource.labels.service_name="iris"',
        'resource.labels.location="europe-west1"',
        f"logName=({stream('stdout')} OR {stream('stderr')} OR {stream('varlog%2Fsystem')})",
        'timestamp>="2026-11-21T09:30:00Z"',
    ]
    assert (asked["resourceNames"], asked["orderBy"]) == (["projects/polyserve-tests"], "timestamp asc")


def test_lines_are_told_as_they_were_written(google: Any, logs: Logs) -> None:
    line = {"event": "request", "at": 1795255200.25, "revision": 2, "error": "née"}
    google.pages = [
        {
            "entries": [
                entry("2026-11-21T10:00:00.5Z", textPayload="plain é\n"),
                entry("2026-11-21T10:00:01.123456789Z", jsonPayload={"message": "only this"}),
                entry("2026-11-21T10:00:02Z", jsonPayload={"at": 17.5, "mine": True}),
                entry("2026-11-21T10:00:03Z", jsonPayload=line),
            ]
        }
    ]

    events = list(logs.read("iris", since=None, number=lambda name: int(name.rpartition("-r")[2])))

    assert [event.message for event in events[1:3]] == ["plain é", "only this"]
    # A function knows better when it was, and nobody else's clock is believed.
    assert (json.loads(events[0].message), events[0].at.timestamp()) == (line, 1795255200.25)
    assert events[3].at == datetime(2026, 11, 21, 10, 0, 2, tzinfo=UTC)
    assert {(event.revision, event.instance) for event in events} == {(2, "0123456789ab")}


def test_pages_are_read_to_the_last_one_empty_or_not(google: Any, logs: Logs) -> None:
    first, second, third = (entry(f"2026-11-21T10:00:0{n}Z", textPayload=str(n)) for n in range(3))
    google.pages = [
        {"entries": [first], "nextPageToken": "a"},
        {"nextPageToken": "b"},
        {"entries": [second, third], "nextPageToken": "c"},
        {},
    ]

    events = list(logs.read("iris", since=None))

    assert [event.message for event in events] == ["0", "1", "2"]
    tokens = [call.json().get("pageToken") for call in google.asked if call.path == "/v2/entries:list"]
    assert tokens == [None, "a", "b", "c"]


def test_what_a_function_wrote_before_is_left_out(google: Any, logs: Logs) -> None:
    since = datetime(2026, 11, 21, 10, tzinfo=UTC)
    late = entry("2026-11-21T10:00:00Z", jsonPayload={"event": "request", "at": since.timestamp() - 1})
    google.pages = [{"entries": [late, entry("2026-11-21T10:00:01Z", textPayload="after")]}]

    assert [event.message for event in logs.read("iris", since=since)] == ["after"]


def test_who_may_not_read_is_told_so(google: Any, logs: Logs) -> None:
    message = "Permission 'logging.logEntries.list' denied on resource"
    google.refuse = {"entries:list": (403, {"error": {"status": "PERMISSION_DENIED", "message": message}})}

    with pytest.raises(ServiceError, match=r"logging\.logEntries\.list"):
        list(logs.read("iris", since=None))
