"""The entrypoint takes the events of Lambda: its own client's, a function URL's and an HTTP API's; and keeps to the time."""

import base64
import json
import sys
from types import SimpleNamespace

import pytest

from polyserve.testing.packages import times
from polyserve_aws import entrypoint


class Context:
    """Lambda's context, with a time that is left."""

    def __init__(self, seconds=30.0):
        self.seconds = seconds

    def get_remaining_time_in_millis(self):
        return int(self.seconds * 1000)


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Give the service of an unpacked bundle with a model that doubles."""
    (tmp_path / "package").symlink_to(times(2).root)
    given = entrypoint.Service(
        tmp_path, {"POLYSERVE_REVISION": "4", "POLYSERVE_TIMEOUT_S": "5", "POLYSERVE_REQUEST_BYTES": "1000"}
    )
    monkeypatch.setattr(entrypoint, "SERVICE", given, raising=False)
    before = set(sys.modules)
    assert given.load()
    yield given
    for name in set(sys.modules) - before:
        del sys.modules[name]


def direct(body, path="/invocations", **headers):
    text = base64.b64encode(body).decode()
    return {"polyserve": 1, "method": "POST", "path": path, "headers": {"x-request-id": "abc", **headers}, "body": text}


def over_http(body=b"", path="/invocations", method="POST", stage="$default", binary=False):
    event = {
        "version": "2.0",
        "rawPath": path,
        "headers": {"X-Request-Id": "abc", "content-type": "application/json"},
        "requestContext": {"http": {"method": method, "path": path}, "stage": stage},
        "isBase64Encoded": binary,
    }
    if body:
        event["body"] = base64.b64encode(body).decode() if binary else body.decode()
    return event


def test_a_direct_event_is_answered_in_kind(service):
    answer = entrypoint.handler(direct(b"[[1, 2]]"), Context())

    assert answer["status"] == 200
    assert base64.b64decode(answer["body"]) == b"[[2.0,4.0]]" or json.loads(base64.b64decode(answer["body"])) == [
        [2, 4]
    ]
    assert (answer["headers"]["x-request-id"], answer["headers"]["x-polyserve-revision"]) == ("abc", "4")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("path", "stage"), [("/invocations", "$default"), ("/prod/invocations", "prod")])
def test_an_http_event_is_answered_as_http(service, binary, path, stage):
    answer = entrypoint.handler(over_http(b"[[1, 2]]", path, stage=stage, binary=binary), Context())

    assert (answer["statusCode"], json.loads(answer["body"])) == (200, [[2, 4]])
    assert answer["headers"]["x-request-id"] == "abc"
    assert "isBase64Encoded" not in answer


def test_a_get_without_a_body_is_answered(service):
    answer = entrypoint.handler(over_http(path="/v2/health/ready", method="GET"), Context())

    assert answer["statusCode"] == 200


def test_what_is_no_text_goes_as_base64(service):
    tensor = {"name": "input", "datatype": "FP64", "shape": [1, 2], "data": [1, 2]}
    infer = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    answer = entrypoint.handler(over_http(infer, "/v2/models/contract-times/infer"), Context())

    assert answer["isBase64Encoded"] is True
    assert base64.b64decode(answer["body"]).endswith(b"\x00\x00\x00\x00\x00\x00\x00@\x00\x00\x00\x00\x00\x00\x10@")


def test_an_event_that_is_neither_is_refused(service):
    with pytest.raises(ValueError, match="payload format 2"):
        entrypoint.handler({"Records": []}, Context())


def test_a_body_over_the_limit_is_refused(service):
    answer = entrypoint.handler(direct(b" " * 1001), Context())

    assert answer["status"] == 413


def test_a_model_that_takes_too_long_is_given_up_in_time_and_waited_for_by_the_next(service):
    slow = entrypoint.handler(direct(b"[[-0.6, 0]]"), Context(0.4))
    after = entrypoint.handler(direct(b"[[1, 2]]"), Context())

    assert (slow["status"], json.loads(base64.b64decode(slow["body"]))["code"]) == (504, "DEADLINE_EXCEEDED")
    assert after["status"] == 200


def test_an_environment_whose_model_never_ends_asks_its_callers_to_try_another_and_gives_itself_up(
    service, monkeypatch
):
    monkeypatch.setattr(entrypoint, "GRACE_S", 0.01)
    ended = []
    monkeypatch.setattr(entrypoint.os, "_exit", lambda code: ended.append(code))
    entrypoint.handler(direct(b"[[-5, 0]]"), Context(0.35))

    answers = [entrypoint.handler(direct(b"[[1, 2]]"), Context())["status"] for _ in range(entrypoint.PATIENCE)]
    entrypoint.handler(direct(b"[[1, 2]]"), Context())

    assert answers == [503] * entrypoint.PATIENCE
    assert ended == [entrypoint.STUCK]


def test_a_package_that_cannot_be_loaded_is_told_to_every_caller(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    given = entrypoint.Service(tmp_path, {})
    monkeypatch.setattr(entrypoint, "SERVICE", given, raising=False)
    assert not given.load()

    answer = entrypoint.handler(direct(b"[[1, 2]]"), Context())

    told = json.loads(base64.b64decode(answer["body"]))
    assert (answer["status"], told["code"], told["request_id"]) == (500, "INTERNAL", "abc")
    assert "cannot be loaded" in told["error"]


def test_what_is_too_large_for_an_event_goes_into_an_object_beside_the_bundle(service, monkeypatch):
    written = {}
    bucket = SimpleNamespace(put=lambda place, body, kind: written.update({place: (body, kind)}))
    monkeypatch.setattr(service, "bucket", bucket)
    monkeypatch.setattr(service, "payloads", "models/payloads/")
    monkeypatch.setattr(entrypoint, "EVENT_BYTES", 5)

    for event in (direct(b"[[1, 2]]"), over_http(b"[[1, 2]]")):
        answer = entrypoint.handler(event, Context())
        name = answer["headers"]["x-polyserve-answer"]
        head, _, body = written[f"models/payloads/{name}"][0].partition(b"\n")
        assert answer["body"] == ""
        assert (json.loads(head)["status"], json.loads(body)) == (200, [[2, 4]])


def test_credentials_of_a_snapshot_are_asked_for_anew(monkeypatch):
    asked = []

    class Connection:
        def __init__(self, host, timeout):
            asked.append(host)

        def request(self, method, path, headers):
            asked.append((method, path, headers["authorization"]))

        def getresponse(self):
            return SimpleNamespace(read=lambda: b'{"AccessKeyId": "A", "SecretAccessKey": "S", "Token": "T"}')

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(entrypoint.http.client, "HTTPConnection", Connection)
    bucket = entrypoint.Bucket(
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/v1/c", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "t"}
    )

    assert bucket._credentials() == ("A", "S", "T")
    assert asked == ["127.0.0.1:9", ("GET", "/v1/c", "t"), "closed"]
