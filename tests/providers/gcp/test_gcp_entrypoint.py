"""The entrypoint by itself: tokens from the metadata server, files from the bucket, and models that cannot be loaded."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

import polyserve
from polyserve.driver import AppSpec, Artifact, FunctionSpec, Scaling
from polyserve.runtime.messages import Request
from polyserve.testing.packages import BREAKS_IMPORT, times
from polyserve_gcp import entrypoint


class Metadata:
    """A metadata server, and a bucket, that give what a test wants."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.life_s = 3600.0
        self.status = 200
        self.objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = outer.answer(self.path, self.headers)
                self.send_response(outer.status if body is not None else 404)
                self.end_headers()
                self.wfile.write(body or b'{"error": {"message": "No such object"}}')

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=lambda: self._server.serve_forever(poll_interval=0.02))
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, headers: Any) -> bytes | None:
        place, _, query = path.partition("?")
        if place.startswith("/storage/"):
            assert headers["authorization"].startswith("Bearer access-")
            return self.objects.get(place)
        assert headers["metadata-flavor"] == "Google"
        if place.endswith("/token"):
            return json.dumps({"access_token": f"access-{len(self.asked)}", "expires_in": self.life_s}).encode()
        claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + self.life_s, "for": query}).encode())
        return b"head." + claims.rstrip(b"=") + b".%d" % len(self.asked)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """Give a metadata server that the entrypoint finds."""
    made = Metadata()
    monkeypatch.setenv("GCE_METADATA_HOST", made.host)
    yield made
    made.close()


def spec(**changes: Any) -> FunctionSpec:
    """Return what a revision that doubles is."""
    made = FunctionSpec(
        name="tried",
        revision=7,
        artifact=Artifact(bucket="b", key="k", sha256="0" * 64, size=1),
        package_digest=times(2).digest,
        entrypoint="polyserve_entrypoint",
        python="3.11",
        architecture="x86_64",
        requirements=(),
        memory_mb=512,
        timeout=timedelta(seconds=30),
        environment={},
        request_bytes=1000,
        scaling=Scaling(),
        labels={},
    )
    return replace(made, **changes)


def text_of(given: FunctionSpec) -> str:
    """Return the variable that says so."""
    return AppSpec(app="tried", spec=given, front=False, scaling=Scaling()).to_json()


def bundle_at(root: Path) -> Path:
    """Lay out a bundle that doubles."""
    shutil.copytree(times(2).root, root / "package")
    return root


def test_a_token_is_asked_for_once_while_it_is_good(metadata):
    identity = entrypoint.Identity()

    assert identity.access_token() == identity.access_token() == "access-1"
    first = identity.id_token("http://one")
    assert first == identity.id_token("http://one") != identity.id_token("http://two")
    assert len(metadata.asked) == 3
    assert "audience=http%3A%2F%2Fone" in metadata.asked[1]


def test_a_token_near_its_end_is_renewed_and_used_all_the_same_where_that_fails(metadata):
    metadata.life_s = entrypoint.EARLY_S - 1
    identity = entrypoint.Identity()
    assert identity.access_token() == "access-1"
    assert identity.access_token() == "access-2"

    metadata.status = 503
    assert identity.access_token() == "access-2"


def test_no_token_at_all_is_an_error_that_says_so(metadata):
    metadata.status = 404

    with pytest.raises(OSError, match="metadata server answers 404"):
        entrypoint.Identity().access_token()


def test_files_of_the_model_come_from_the_bucket_with_the_functions_own_token(metadata, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = bundle_at(tmp_path / "bundle")
    path, entry = next(iter(sorted(times(2).manifest.files.items())))
    held = (root / "package" / path).read_bytes()
    (root / "package" / path).unlink()
    prefix = "deployments/tried/models/"
    models = (Artifact(bucket="b", key=f"{prefix}{entry.sha256}", sha256=entry.sha256, size=entry.size),)
    name = f"{prefix}{entry.sha256}".replace("/", "%2F")
    environment = {"POLYSERVE_APP": text_of(spec(models=models)), "POLYSERVE_STORAGE": f"http://{metadata.host}"}

    service = entrypoint.Service(root, environment)
    refused = service.answer(Request(method="GET", path="/v2/health/ready"))
    assert refused.status == 500
    assert b"No such object" in bytes(refused.body)

    metadata.objects[f"/storage/v1/b/b/o/{name}"] = held
    answered = service.answer(Request(method="POST", path="/invocations", headers={}, body=b"[[1, 2]]"))
    assert json.loads(bytes(answered.body)) == [[2.0, 4.0]]


def test_a_request_of_flask_is_read_past_its_own_bounds_and_answered(tmp_path, monkeypatch):
    environment = {"POLYSERVE_APP": text_of(spec())}
    service = entrypoint.Service(bundle_at(tmp_path / "bundle"), environment)
    monkeypatch.setattr(entrypoint, "_known", [service])
    body = b"[[1, 2]]"
    environ = {
        "wsgi.input": SimpleNamespace(read=lambda *_: body),
        "CONTENT_LENGTH": str(len(body)),
        "RAW_URI": "/invocations?x=1",
    }
    request = SimpleNamespace(method="POST", path="/", headers={"X-Request-Id": "abc"}, environ=environ)

    content, status, headers = entrypoint.answer(request)

    assert (json.loads(content), status) == ([[2.0, 4.0]], 200)
    assert (headers["x-request-id"], headers["x-polyserve-revision"]) == ("abc", "7")


def test_on_cloud_run_a_model_that_cannot_be_loaded_ends_the_instance_before_it_listens(tmp_path):
    root = bundle_at(tmp_path / "bundle")
    shutil.copy(entrypoint.__file__, root / "main.py")
    library = Path(polyserve.__file__).parent
    shutil.copytree(library / "runtime", root / "polyserve" / "runtime")
    shutil.copy(library / "__init__.py", root / "polyserve")
    variables = {"POLYSERVE_APP": text_of(spec()), "PORT": "1", "HOST": "127.0.0.1", BREAKS_IMPORT: "1"}

    ran = subprocess.run(
        [sys.executable, "-I", "main.py"],
        cwd=root,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 1
    assert "broken on purpose" in ran.stdout
