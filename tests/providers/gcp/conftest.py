"""Two Googles: the emulator's, and one that answers as it is told, for what no emulator does: to fail, to dawdle, to be brief."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import threading
import time
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from google.cloud import storage as sdk
from google.oauth2.credentials import Credentials as Token

from polyserve_gcp.credentials import Credentials
from polyserve_gcp.emulator.ground import Ground
from polyserve_gcp.gcs import GcsStore
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.storage import Buckets

PROJECT = "polyserve-tests"
ACCOUNT = f"deployer@{PROJECT}.iam.gserviceaccount.com"
MACHINE = "123456789-compute@developer.gserviceaccount.com"
HOSTS = (
    "iamcredentials.googleapis.com",
    "logging.googleapis.com",
    "oauth2.googleapis.com",
    "storage.googleapis.com",
    "sts.googleapis.com",
)


class Asked(NamedTuple):
    """One call that came in."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@cache
def private_key() -> str:
    """Make a key of a service account, once for all tests: it takes a while."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return made.private_bytes(*form).decode()


class Google:
    """Where tokens come from, the IAM API, a metadata server, Cloud Logging and whatever a test adds, at one address.

    Attributes:
        asked: What came in.
        life_s: How long a token lives that is given out now.
        refuse: Answers to give instead, by a pattern of `METHOD path?query`: status, and what is told as JSON.
        gate: Closed, every answer waits until it is opened.
    """

    def __init__(self, directory: Path) -> None:
        self.asked: list[Asked] = []
        self.life_s = 3600.0
        self.refuse: dict[str, tuple[int, Any]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.pages: list[Any] = []
        self.issued = 0
        self._directory = directory
        google = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # As others answer: what is sent in two pieces waits for the first to be acknowledged.
            wbufsize = -1

            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                parts = urlsplit(self.path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Asked(self.command, parts.path, parse_qs(parts.query), headers, body)
                google.asked.append(call)
                assert google.gate.wait(30)
                status, told = google.answer(call, f"{self.command} {self.path}")
                extra: dict[str, str] = {}
                if isinstance(told, dict) and "headers" in told:
                    extra, told = told["headers"], told["body"]
                content = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                self.send_header("metadata-flavor", "Google")
                for name, value in {"content-type": "application/json", **extra}.items():
                    self.send_header(name, value)
                if "content-length" not in extra:
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    # --- what it answers --------------------------------------------------------------------------------------------

    def answer(self, call: Asked, line: str) -> tuple[int, Any]:
        for pattern, told in self.refuse.items():
            if re.search(pattern, line):
                return told
        if call.path == "/token":
            form = parse_qs(call.body.decode())
            claims = claims_of(form["assertion"][0]) if "assertion" in form else {}
            if "target_audience" in claims:
                return 200, {"id_token": self.id_token(claims["target_audience"])}
            return 200, self._access()
        if call.path == "/sts":
            return 200, self._access() | {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
        if call.path.startswith("/computeMetadata/v1/"):
            return self._machine(call)
        if call.path.endswith(":generateAccessToken"):
            ends = datetime.fromtimestamp(time.time() + self.life_s, UTC)
            return 200, {"accessToken": self._number("as"), "expireTime": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
        if call.path.endswith(":generateIdToken"):
            return 200, {"token": self.id_token(call.json()["audience"])}
        if call.path.endswith(":signBlob"):
            return 200, {"keyId": "k", "signedBlob": base64.b64encode(b"signed by IAM").decode()}
        if call.path == "/v2/entries:list":
            return 200, self.pages.pop(0)
        return 404, {"error": {"code": 404, "status": "NOT_FOUND", "message": f"nobody answers {line}"}}

    def _machine(self, call: Asked) -> tuple[int, Any]:
        path = call.path.removeprefix("/computeMetadata/v1/")
        text = {"headers": {"content-type": "application/text"}}
        if call.headers.get("metadata-flavor") != "Google":
            return 403, {}
        if path == "project/project-id":
            return 200, text | {"body": PROJECT.encode()}
        if path == "instance/service-accounts/default/":
            return 200, {"email": MACHINE, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        if path == "instance/service-accounts/default/token":
            return 200, self._access()
        if path == "instance/service-accounts/default/identity":
            return 200, text | {"body": self.id_token(call.query["audience"][0]).encode()}
        return 404, {}

    def _number(self, kind: str) -> str:
        self.issued += 1
        return f"secret-{kind}-{self.issued}"

    def _access(self) -> dict[str, Any]:
        return {"access_token": self._number("access"), "expires_in": int(self.life_s), "token_type": "Bearer"}

    def id_token(self, audience: str) -> str:
        claims = {
            "aud": audience,
            "exp": int(time.time() + self.life_s),
            "iat": int(time.time()),
            "jti": self._number("id"),
        }
        return ".".join(encoded(part) for part in ({"alg": "RS256"}, claims, "signature"))

    # --- how it is reached ----------------------------------------------------------------------------------------------

    def count(self, pattern: str) -> int:
        return len([call for call in list(self.asked) if re.search(pattern, f"{call.method} {call.path}")])

    def file(self, **fields: Any) -> str:
        path = self._directory / f"credentials-{len(list(self._directory.iterdir()))}.json"
        path.write_text(json.dumps(fields))
        return str(path)

    def key_file(self) -> str:
        return self.file(
            type="service_account",
            project_id=PROJECT,
            client_email=ACCOUNT,
            private_key=private_key(),
            private_key_id="k1",
            token_uri=f"{self.url}/token",
        )

    def person_file(self) -> str:
        about = {"client_id": "c", "client_secret": "s", "refresh_token": "r", "quota_project_id": "mine-to-pay"}
        return self.file(type="authorized_user", token_uri=f"{self.url}/token", **about)

    def settings(self, *, machine: bool = False, **changed: Any) -> GcpSettings:
        endpoints = dict.fromkeys(HOSTS, self.url)
        if machine:
            endpoints["metadata.google.internal"] = self.url
        return GcpSettings(endpoints=endpoints, **changed)

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """Give a Google; nothing of the developer's own leads to another one."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CONFIG", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP", "K_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    directory = tmp_path / "credentials"
    directory.mkdir()
    found = Google(directory)
    yield found
    found.close()


class Cloud:
    """Cloud Storage as the emulator has it, in a thread of its own, with Google's client beside the driver."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.ground = Ground(directory)
        self._run(self.ground.open())
        self.settings = GcpSettings(**self.ground.options)
        self.credentials = Credentials(self.settings)
        self.buckets = Buckets(self.settings, self.credentials)
        self._numbers = itertools.count(1)
        # A token, and not its key: with one Google's own credentials ask an API of Google's about boundaries, wherever they are used.
        token = Token(self.ground.identities.issue_access_token(self.ground.deployer))
        self.url = self.settings.address("storage.googleapis.com")
        self.raw = sdk.Client(self.settings.project, token, client_options={"api_endpoint": self.url})
        # What it asks in the background would go on after the emulator's end.
        self.raw._bucket_metadata_cache = None

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def name(self) -> str:
        return f"polyserve-gcs-{next(self._numbers)}"

    def store(self, bucket: str) -> GcsStore:
        return GcsStore(self.buckets, self.settings, bucket)

    def account(self, *roles: str) -> Any:
        """Make a service account with these roles on the project."""
        made = self.ground.identities.add_service_account(f"somebody-{next(self._numbers)}")
        for role in roles:
            self.ground.access.grant(role, made.member)
        return made

    def person(self, *roles: str) -> Any:
        """Make a person with these roles on the project."""
        made = self.ground.identities.add_person(f"somebody-{next(self._numbers)}@example.com")
        for role in roles:
            self.ground.access.grant(role, made.member)
        return made

    def settings_of(self, somebody: Any, **changed: Any) -> GcpSettings:
        """Return the settings with which somebody calls."""
        identities = self.ground.identities
        content = identities.add_refresh_token(somebody) if somebody.person else identities.add_key(somebody)
        file = self.ground.write_key_file(f"{somebody.email}-{next(self._numbers)}.json", content)
        return GcpSettings(**{**self.ground.options, "credentials_file": str(file), **changed})

    def settings_on_machine_of(self, account: Any) -> GcpSettings:
        """Return the settings with which what runs as a service account calls."""
        server = self._run(self.ground.metadata.address(account.email))
        endpoints = {**self.ground.options["endpoints"], "metadata.google.internal": f"http://{server}"}
        return GcpSettings(endpoints=endpoints)

    def close(self) -> None:
        self.buckets.close()
        self.credentials.close()
        self.raw.close()
        self._run(self.ground.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Give Cloud Storage and identities as the emulator has them."""
    found = Cloud(tmp_path_factory.mktemp("cloud"))
    yield found
    found.close()
