"""The entrypoint: which description an app answers as while it is changed, in time, with its lines in the invocation's log."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import azure.functions as func
import pytest

from polyserve.driver import AppSpec, Artifact, FunctionSpec, Scaling
from polyserve.runtime.host import LoadError
from polyserve.testing.packages import times
from polyserve_azure import entrypoint
from polyserve_azure.readiness import mark_of


def spec(revision: int, factor: int, **changes: Any) -> FunctionSpec:
    """Return what a revision that multiplies by a factor is."""
    made = FunctionSpec(
        name="tried",
        revision=revision,
        artifact=Artifact(bucket="b", key="k", sha256="0" * 64, size=1),
        package_digest=times(factor).digest,
        entrypoint="polyserve_entrypoint",
        python="3.11",
        architecture="x86_64",
        requirements=(),
        memory_mb=512,
        timeout=timedelta(seconds=5),
        environment={},
        request_bytes=1000,
        scaling=Scaling(),
        labels={},
    )
    return replace(made, **changes)


def description(revision: int, factor: int, **changes: Any) -> str:
    """Return the setting that says so."""
    return AppSpec(
        app=f"tried-r{revision}", spec=spec(revision, factor, **changes), front=False, scaling=Scaling()
    ).to_json()


Serve = Callable[..., entrypoint.Service]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Give what makes the service of an unpacked bundle whose model multiplies by two."""
    before, made = set(sys.modules), []

    def make(**settings: str) -> entrypoint.Service:
        (tmp_path / "package").symlink_to(times(2).root)
        service = entrypoint.Service(tmp_path, settings)
        monkeypatch.setattr(entrypoint, "SERVICE", service, raising=False)
        made.append(service)
        return service

    yield make
    for service in made:
        service._threads.shutdown()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def ask(path: str = "/invocations", body: bytes = b"[[1, 2]]", **headers: str) -> func.HttpResponse:
    """Ask the app as the worker does."""
    request = func.HttpRequest(
        method="POST" if body else "GET", url=f"https://app.azurewebsites.net{path}", headers=headers, body=body
    )
    return asyncio.run(entrypoint.answer.build().get_user_function()(request))


def test_a_request_is_answered_with_the_mark_of_what_the_app_is_asked_to_be(serve: Serve) -> None:
    text = description(4, 2)
    assert serve(POLYSERVE_APP=text).load()

    told = ask(**{"X-Request-Id": "abc"})

    assert (told.status_code, json.loads(told.get_body())) == (200, [[2, 4]])
    assert told.headers["x-polyserve-app"] == mark_of(text)
    assert (told.headers["x-request-id"], told.headers["x-polyserve-revision"]) == ("abc", "4")


def test_a_package_that_is_still_there_answers_as_what_it_was_with_its_own_variables(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The settings of an app are the variables of its process: those of the revision to come are there already.
    monkeypatch.setenv("COMES", "1")
    monkeypatch.setenv("WAS", "")
    before = description(1, 2, environment={"WAS": "1"})
    service = serve(POLYSERVE_APP=description(2, 3, environment={"COMES": "1"}), POLYSERVE_APP_BEFORE=before)

    assert service.load()

    assert ask().headers["x-polyserve-app"] == mark_of(before)
    assert (os.environ.get("COMES"), os.environ["WAS"]) == (None, "1")


def test_a_package_that_nobody_asked_for_has_no_mark(serve: Serve) -> None:
    assert serve(POLYSERVE_APP=description(2, 3)).load()

    assert ask().headers["x-polyserve-app"] == ""


def test_a_model_that_cannot_be_loaded_is_told_with_the_reason_and_no_traceback(serve: Serve) -> None:
    service = serve(POLYSERVE_APP=description(1, 2))
    service.host.load = _refuse  # type: ignore[method-assign]

    told = ask()

    assert told.status_code == 500
    assert json.loads(told.get_body())["error"] == "the model cannot be loaded: broken on purpose"


def _refuse() -> None:
    raise LoadError("broken on purpose")


def test_a_model_that_takes_too_long_is_answered_for_in_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrypoint, "GRACE_S", 60.0)
    assert serve(POLYSERVE_APP=description(1, 2, timeout=timedelta(seconds=0.2))).load()

    told = ask(body=b"[[-0.5, 1]]")

    assert told.status_code == 504
    assert json.loads(told.get_body())["code"] == "DEADLINE_EXCEEDED"
    assert "0.2 s" in json.loads(told.get_body())["error"]


def test_a_worker_whose_model_does_not_return_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(entrypoint.os, "_exit", ended.append)
    running: Future[Any] = Future()
    entrypoint._give_up(running)
    running.set_result(None)
    entrypoint._give_up(running)

    assert ended == [entrypoint.STUCK]


def test_the_lines_of_the_runtime_are_logged_within_the_invocation(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    assert serve(POLYSERVE_APP=description(3, 2)).load()
    with caplog.at_level(logging.INFO, "polyserve"):
        ask()

    lines = [json.loads(record.getMessage()) for record in caplog.records if record.getMessage().startswith("{")]
    assert [line["event"] for line in lines] == ["start", "request"]
    assert {line["revision"] for line in lines} == {3}


class Blobs(BaseHTTPRequestHandler):
    """Blob Storage with one blob; keeps what it was asked."""

    asked: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        token = self.path.startswith("/token?")
        found = token or self.path == "/account/models/deployments/a%20b/" + "1" * 64
        self.send_response(200 if found else 404)
        body = b'{"access_token": "of-the-platform"}' if token else b"content" if found else b""
        self.send_header("content-length", str(len(body)))
        if not found:
            self.send_header("x-ms-error-code", "BlobNotFound")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def bucket() -> Iterator[entrypoint.Bucket]:
    """Give a bucket on a service that looks at nothing."""
    Blobs.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Blobs) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        key = base64.b64encode(b"key").decode()
        endpoint = f"http://127.0.0.1:{server.server_port}/account"
        connection = f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey={key};BlobEndpoint={endpoint};"
        yield entrypoint.Bucket(entrypoint.Key(connection), "models/deployments/a b/")
        server.shutdown()
        thread.join()


def test_a_blob_is_read_with_the_accounts_key_which_does_not_travel(bucket: entrypoint.Bucket) -> None:
    with bucket.open("1" * 64) as found:
        assert found.read() == b"content"

    ((_, headers),) = Blobs.asked
    assert headers["authorization"].startswith("SharedKey account:")
    assert base64.b64encode(b"key").decode() not in str(headers)


def test_a_blob_that_is_not_there_is_told_with_the_code_of_the_service(bucket: entrypoint.Bucket) -> None:
    with pytest.raises(OSError, match=r"404 \(BlobNotFound\)"):
        bucket.open("2" * 64)


def test_the_public_address_of_an_account_is_made_of_its_name() -> None:
    key = base64.b64encode(b"key").decode()
    found = entrypoint.Key(f"AccountName=account;AccountKey={key};EndpointSuffix=core.chinacloudapi.cn")

    assert found.endpoint == "https://account.blob.core.chinacloudapi.cn"


def test_an_identity_reads_a_blob_with_a_token_that_the_platform_gives(bucket: entrypoint.Bucket) -> None:
    host = bucket._holder.endpoint.removesuffix("/account")
    environment = {
        "POLYSERVE_STORAGE": f"{host}/account",
        "AzureWebJobsStorage__clientId": "client",
        "IDENTITY_ENDPOINT": f"{host}/token",
        "IDENTITY_HEADER": "secret",
    }
    mine = entrypoint.Bucket(entrypoint.Identity(environment), "models/deployments/a b/")

    with mine.open("1" * 64) as found:
        assert found.read() == b"content"

    (path, asked), (_, headers) = Blobs.asked
    assert {"resource=https%3A%2F%2Fstorage.azure.com%2F", "client_id=client"} <= set(path.partition("?")[2].split("&"))
    assert asked["x-identity-header"] == "secret"
    assert headers["authorization"] == "Bearer of-the-platform"
