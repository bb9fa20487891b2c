"""Cloud Logging: what functions print and fronts note is read back as entries."""

import json
from datetime import UTC, datetime, timedelta

import pytest

PROJECT = "projects/polyserve-emulated"


@pytest.fixture(scope="module")
def spoken(cloud, source):
    """Return a function that has written lines of each kind, once."""
    made = cloud.make(source("logs"), environment_variables={"PYTHONUNBUFFERED": "1"})
    assert made.call("/?do=log").status_code == 200
    assert made.call("/?do=raise").status_code == 500
    return made


def entries(cloud, text, **more):
    answer = cloud.rest(
        "logging",
        "POST",
        "/v2/entries:list",
        json={"resourceNames": [PROJECT], "filter": text, "pageSize": 1000, **more},
    )
    assert answer.status_code == 200, answer.text
    return answer.json().get("entries", [])


def of(made, *more):
    """Return the filter of a function's entries."""
    start = f'resource.type="cloud_run_revision" AND resource.labels.service_name="{made.short}"'
    return " AND ".join((start, *more))


@pytest.fixture
def lines(cloud, spoken, eventually):
    """Return a function's entries, once they are all there: the pipe is read when it is."""
    eventually(
        lambda: (
            len(
                entries(cloud, of(spoken, 'textPayload:"broken on purpose" OR jsonPayload.message:"broken on purpose"'))
            )
            > 0
        )
    )
    return entries(cloud, of(spoken))


def test_lines_are_entries_of_their_revision_and_instance(lines, spoken):
    found = next(one for one in lines if "printed by" in json.dumps(one))
    assert found["logName"] == f"{PROJECT}/logs/run.googleapis.com%2Fstdout"
    assert found["resource"]["type"] == "cloud_run_revision"
    labels = found["resource"]["labels"]
    assert labels["service_name"] == labels["configuration_name"] == spoken.short
    assert labels["revision_name"].startswith(f"{spoken.short}-00001-")
    assert labels["location"] == "us-central1"
    assert found["labels"]["goog-managed-by"] == "cloudfunctions"
    assert len(found["labels"]["instanceId"]) == 96


def test_a_line_of_json_is_an_object_with_a_severity(lines):
    found = next(one for one in lines if "warned" in json.dumps(one))
    assert found["severity"] == "WARNING"
    assert found["jsonPayload"]["mark"] == "logs"
    assert "severity" not in found["jsonPayload"]


def test_requests_are_noted_with_their_status(cloud, lines, spoken):
    found = entries(
        cloud, of(spoken, f'logName="{PROJECT}/logs/run.googleapis.com%2Frequests"', "httpRequest.status>=500")
    )
    assert [one["httpRequest"]["status"] for one in found] == [500]
    assert found[0]["severity"] == "ERROR"


def test_entries_are_filtered_by_time_severity_and_words(cloud, lines, spoken):
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    earlier = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert entries(cloud, of(spoken, f'timestamp>"{later}"')) == []
    assert len(entries(cloud, of(spoken, f"timestamp>={earlier.replace('+00:00', 'Z')}"))) == len(lines)
    assert all(one["severity"] in {"WARNING", "ERROR"} for one in entries(cloud, of(spoken, "severity>=WARNING")))
    assert entries(cloud, of(spoken, "severity>=WARNING"))
    assert [one for one in entries(cloud, of(spoken, '"printed by"')) if "printed by" in json.dumps(one)]
    assert entries(cloud, of(spoken, "NOT resource.type:*")) == []
    assert entries(cloud, of(spoken, '(textPayload=~"^nothing" OR severity="WARNING")'))
    assert entries(cloud, of(spoken, 'labels."goog-managed-by"="cloudfunctions"'))
    assert entries(cloud, of(spoken, 'logName:("stdout" OR "stderr")'))
    assert entries(cloud, of(spoken, f'-resource.labels.service_name="{spoken.short}"')) == []


def test_entries_come_in_order_and_by_pages(cloud, lines, spoken):
    stamps = [one["timestamp"] for one in lines]
    assert stamps == sorted(stamps)
    backwards = [one["timestamp"] for one in entries(cloud, of(spoken), orderBy="timestamp desc")]
    assert backwards == stamps[::-1]
    found, token = [], ""
    while True:
        body = {"resourceNames": [PROJECT], "filter": of(spoken), "pageSize": 2, "pageToken": token}
        answer = cloud.rest("logging", "POST", "/v2/entries:list", json=body).json()
        found += answer["entries"]
        token = answer.get("nextPageToken", "")
        if not token:
            break
    assert [one["insertId"] for one in found] == [one["insertId"] for one in lines]


@pytest.mark.parametrize(
    "body",
    [
        {"resourceNames": [PROJECT], "filter": "timestamp>=yesterday"},
        {"resourceNames": [PROJECT], "filter": "severity=LOUD"},
        {"resourceNames": [PROJECT], "filter": "(a=b"},
        {"resourceNames": [PROJECT], "filter": "a="},
        {"resourceNames": [PROJECT], "filter": 'a=~"("'},
        {"resourceNames": [PROJECT], "orderBy": "severity"},
        {"resourceNames": [PROJECT], "pageToken": "none"},
        {"resourceNames": []},
        {"resourceName": PROJECT},
    ],
)
def test_what_cannot_be_asked_is_refused(cloud, body):
    answer = cloud.rest("logging", "POST", "/v2/entries:list", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_reading_entries_needs_the_permission(cloud):
    body = {"resourceNames": [PROJECT]}
    answer = cloud.as_account().rest("logging", "POST", "/v2/entries:list", json=body)
    assert answer.status_code == 403
    assert "logging.logEntries.list" in answer.json()["error"]["message"]
    viewer = cloud.as_account("roles/logging.viewer")
    assert viewer.rest("logging", "POST", "/v2/entries:list", json=body).status_code == 200
    other = {"resourceNames": ["projects/another"]}
    assert cloud.rest("logging", "POST", "/v2/entries:list", json=other).status_code == 403
