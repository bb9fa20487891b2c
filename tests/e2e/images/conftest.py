"""Registries to push to: a strict one of our own, which is always there, and Debian's docker-registry where it is installed.

The strict one holds its callers to the OCI specifications of distribution and images more narrowly than registries in the wild do: places
of uploads change with every answer, chunks must be in order, a manifest must name blobs of its own repository by their right sizes, and
every layer must unpack to what the configuration says.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import re
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from polyserve.bundle.registry_auth import Credentials

USER, PASSWORD = "deployer", "open sesame"
# Of PASSWORD: htpasswd files of docker-registry take bcrypt only, and nothing in the standard library makes it.
BCRYPT = "$2a$05$rhVo53Tzf5vcu3ptjLSB0.cUiBGaPgjVphXFk0viWnH0JaalfUbza"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


@dataclass
class Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class StrictRegistry:
    """The state of the strict registry, its faults, and what was asked of it.

    Attributes:
        auth: `""`, `"basic"` or `"bearer"`.
        mounts: Whether blobs can be taken over from other repositories.
        redirects: Whether blobs are read from another host.
        faults: By method, for its next requests: a status, 0 for a connection that is cut in the middle of the body, -1 for none.
        asked: Method and path of every request that was let in.
    """

    def __init__(self) -> None:
        self.auth = ""
        self.mounts = True
        self.redirects = False
        self.faults: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str]] = []
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.tokens: dict[str, set[str]] = {}
        self.broken: list[str] = []
        registry = self

        class Handler(_Handler):
            state = registry

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def sent(self, method: str, part: str) -> list[str]:
        """Return the paths that were asked for with a method, and have a part."""
        return [path for verb, path in self.asked if verb == method and part in path]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


class _Handler(BaseHTTPRequestHandler):
    state: StrictRegistry
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *args: Any) -> None:
        return

    def do(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.left = int(self.headers.get("content-length") or 0)
        try:
            if "transfer-encoding" in self.headers:
                raise Refused(411, "SIZE_INVALID", "a length is needed")
            if url.path == "/token":
                self.token(parse_qs(url.query).get("scope", []))
            elif url.path.startswith("/storage/"):
                self.storage(url.path)
            else:
                self.authorize(url.path)
                self.state.asked.append((self.command, url.path))
                if self.state.faults.get(self.command):
                    self.fail(self.state.faults[self.command].pop(0), url.path)
                self.route(url.path)
        except Refused as refused:
            self.read()
            body = json.dumps({"errors": [{"code": refused.code, "message": refused.message}]}).encode()
            self.answer(refused.status, body, **refused.headers)
        except ConnectionAbortedError:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def read(self) -> bytes:
        count, self.left = self.left, 0
        return self.rfile.read(count)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", headers.get("length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, path: str) -> None:
        if status < 0:
            return
        if status:
            raise Refused(status, "UNKNOWN", "broken on purpose", retry_after="0")
        # Half of a body arrives and counts, then the connection is gone.
        upload = self.state.uploads.get(self.query.get("session", ""))
        if upload is not None and self.command == "PATCH":
            upload[1].extend(self.rfile.read(self.left // 2))
        raise ConnectionAbortedError

    # --- who asks -----------------------------------------------------------------------------------------------------

    def knows(self) -> bool:
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        return scheme == "Basic" and base64.b64decode(value).decode() == f"{USER}:{PASSWORD}"

    def token(self, scopes: list[str]) -> None:
        if self.query.get("service") != "strict":
            raise Refused(400, "UNSUPPORTED", "for which service?")
        if self.headers.get("authorization") and not self.knows():
            raise Refused(401, "UNAUTHORIZED", "wrong password")
        token = secrets.token_urlsafe(8)
        granted: set[str] = set()
        for scope in scopes:
            kind, name, verbs = scope.split(":")
            assert kind == "repository"
            # Nobody needs to say who he is to read what is public.
            granted |= {
                f"{name}:{verb}" for verb in verbs.split(",") if self.knows() or (verb == "pull" and "public" in name)
            }
        self.state.tokens[token] = granted
        self.answer(
            200, json.dumps({"access_token": token, "expires_in": 300}).encode(), content_type="application/json"
        )

    def authorize(self, path: str) -> None:
        if self.state.auth == "basic" and not self.knows():
            raise Refused(401, "UNAUTHORIZED", "who are you?", www_authenticate='Basic realm="strict, registry"')
        if self.state.auth == "bearer":
            name = path.removeprefix("/v2/").rpartition("/blobs/" if "/blobs/" in path else "/manifests/")[0]
            name = name.removesuffix("/blobs")
            verb = "pull" if self.command in {"GET", "HEAD"} and "/uploads/" not in path else "push"
            wanted = {f"{name}:{verb}"} | ({f"{self.query['from']}:pull"} if "from" in self.query else set())
            scheme, _, token = self.headers.get("authorization", "").partition(" ")
            if scheme != "Bearer" or not wanted <= self.state.tokens.get(token, set()):
                scope = f"repository:{name}:{'pull' if verb == 'pull' else 'pull,push'}"
                challenge = f'Bearer realm="http://{self.state.host}/token",service="strict",scope="{scope}"'
                raise Refused(401, "UNAUTHORIZED", "a token with that scope is needed", www_authenticate=challenge)

    # --- what is asked ------------------------------------------------------------------------------------------------

    def route(self, path: str) -> None:
        name = r"/v2/([a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
        if found := re.fullmatch(rf"{name}/blobs/(sha256:[0-9a-f]{{64}})", path):
            self.blob(self.repository(found[1]), found[2])
        elif found := re.fullmatch(rf"{name}/blobs/uploads/", path):
            self.begin(found[1])
        elif found := re.fullmatch(rf"{name}/blobs/uploads/(\d+)", path):
            self.upload(found[1])
        elif found := re.fullmatch(rf"{name}/manifests/([\w.:-]+)", path):
            self.put_manifest(found[1], found[2]) if self.command == "PUT" else self.manifest(found[1], found[2])
        else:
            raise Refused(404, "NAME_INVALID", path)

    def repository(self, name: str) -> Repository:
        return self.state.repositories.setdefault(name, Repository())

    def blob(self, repository: Repository, digest: str) -> None:
        if digest not in repository.blobs:
            raise Refused(404, "BLOB_UNKNOWN", digest)
        body = repository.blobs[digest]
        if self.state.redirects and self.command == "GET":
            port = self.state.server.server_port
            self.answer(307, location=f"http://localhost:{port}/storage/{digest}?signature=yes")
            return
        shown = b"" if self.command == "HEAD" else body
        self.answer(200, shown, docker_content_digest=digest, **({"length": str(len(body))} if not shown else {}))

    def storage(self, path: str) -> None:
        """Be the host where the blobs really are: its key is in the URL, and a password sent here is a password lost."""
        if "authorization" in self.headers:
            self.state.broken.append("a credential went to the storage")
        digest = path.removeprefix("/storage/")
        bodies = [each.blobs[digest] for each in self.state.repositories.values() if digest in each.blobs]
        self.answer(200, bodies[0])

    def begin(self, name: str) -> None:
        mount, source = self.query.get("mount"), self.query.get("from")
        if self.command != "POST" or self.read():
            raise Refused(405, "UNSUPPORTED", "an upload begins with an empty POST")
        if mount and source and self.state.mounts and mount in self.repository(source).blobs:
            self.repository(name).blobs[mount] = self.repository(source).blobs[mount]
            self.answer(201, location=f"/v2/{name}/blobs/{mount}", docker_content_digest=mount)
            return
        self.proceed(202, name, bytearray())

    def proceed(self, status: int, name: str, held: bytearray) -> None:
        """Tell the upload's next place: another one every time, and relative, with a query that has to be kept."""
        session = secrets.token_urlsafe(8) + "=="
        self.state.uploads[session] = (name, held)
        place = f"/v2/{name}/blobs/uploads/{len(self.state.uploads)}?session={session}&_state=a%2Fb"
        self.answer(status, location=place, range=f"0-{max(0, len(held) - 1)}")

    def upload(self, name: str) -> None:
        session = self.query.get("session", "")
        known = self.state.uploads.get(session)
        if known is None or known[0] != name or self.query.get("_state") != "a/b":
            raise Refused(404, "BLOB_UPLOAD_UNKNOWN", "that is not the upload's place")
        held = known[1]
        if self.command == "DELETE":
            del self.state.uploads[session]
            self.answer(204)
        elif self.command == "GET":
            del self.state.uploads[session]
            self.proceed(204, name, held)
        elif self.command == "PATCH":
            given = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("content-range", ""))
            if given is None or int(given[1]) != len(held) or int(given[2]) - int(given[1]) + 1 != self.left:
                raise Refused(416, "BLOB_UPLOAD_INVALID", "out of order", range=f"0-{max(0, len(held) - 1)}")
            held += self.read()
            del self.state.uploads[session]
            self.proceed(202, name, held)
        elif self.command == "PUT":
            held += self.read()
            wanted = self.query.get("digest", "")
            if digest_of(bytes(held)) != wanted:
                raise Refused(400, "DIGEST_INVALID", f"the content has {digest_of(bytes(held))}")
            del self.state.uploads[session]
            self.repository(name).blobs[wanted] = bytes(held)
            self.answer(201, location=f"/v2/{name}/blobs/{wanted}", docker_content_digest=wanted)

    def manifest(self, name: str, reference: str) -> None:
        repository = self.repository(name)
        digest = repository.tags.get(reference, reference)
        if digest not in repository.manifests:
            raise Refused(404, "MANIFEST_UNKNOWN", reference)
        media_type, body = repository.manifests[digest]
        if media_type not in self.headers.get("accept", ""):
            raise Refused(404, "MANIFEST_UNKNOWN", "not in a form that is accepted")
        shown = b"" if self.command == "HEAD" else body
        self.answer(200, shown, docker_content_digest=digest, content_type=media_type)

    def put_manifest(self, name: str, reference: str) -> None:
        body = self.read()
        described = json.loads(body)
        if described.get("mediaType") != self.headers.get("content-type") or described.get("schemaVersion") != 2:
            raise Refused(400, "MANIFEST_INVALID", "media type and schema have to be said, twice the same")
        if "manifests" not in described:
            self.check_image(self.repository(name), described)
        digest = digest_of(body)
        self.repository(name).manifests[digest] = (described["mediaType"], body)
        if not reference.startswith("sha256:"):
            self.repository(name).tags[reference] = digest
        self.answer(201, location=f"/v2/{name}/manifests/{digest}", docker_content_digest=digest)

    @staticmethod
    def check_image(repository: Repository, described: dict[str, Any]) -> None:
        for each in [described["config"], *described["layers"]]:
            if len(repository.blobs.get(each["digest"], b"")) != each["size"]:
                raise Refused(400, "MANIFEST_BLOB_UNKNOWN", each["digest"])
        config = json.loads(repository.blobs[described["config"]["digest"]])
        unpacked = [digest_of(gzip.decompress(repository.blobs[each["digest"]])) for each in described["layers"]]
        lines = [each for each in config["history"] if not each.get("empty_layer")]
        if config["rootfs"] != {"type": "layers", "diff_ids": unpacked} or len(lines) != len(unpacked):
            raise Refused(400, "MANIFEST_INVALID", "the configuration does not fit the layers")
        if not {"architecture", "os"} <= config.keys():
            raise Refused(400, "MANIFEST_INVALID", "for which platform?")


@pytest.fixture
def strict() -> Iterator[StrictRegistry]:
    """Give a strict registry to which everybody may push."""
    registry = StrictRegistry()
    yield registry
    registry.close()
    assert registry.broken == []


@pytest.fixture
def another() -> Iterator[StrictRegistry]:
    """Give one more strict registry."""
    registry = StrictRegistry()
    yield registry
    registry.close()


@dataclass(frozen=True)
class Place:
    """A registry to push to, whoever runs it."""

    host: str
    credentials: Credentials | None


HAVE_REGISTRY, HAVE_SKOPEO = shutil.which("docker-registry"), shutil.which("skopeo")


@pytest.fixture(params=["strict", *(["docker-registry"] if HAVE_REGISTRY else [])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Give each registry that there is here; the strict one always is."""
    if request.param == "strict":
        registry = StrictRegistry()
        registry.auth = "bearer"
        yield Place(registry.host, Credentials(username=USER, password=PASSWORD))
        registry.close()
        assert registry.broken == []
        return
    with docker_registry(tmp_path / "registry") as host:
        yield Place(host, Credentials(username=USER, password=PASSWORD))


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Place]:
    """Give Debian's docker-registry, to those who looked whether it is there."""
    with docker_registry(tmp_path / "registry") as host:
        yield Place(host, Credentials(username=USER, password=PASSWORD))


@contextlib.contextmanager
def docker_registry(directory: Path) -> Iterator[str]:
    """Run Debian's docker-registry on a free port of loopback, for those who know the password."""
    directory.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (directory / "users").write_text(f"{USER}:{BCRYPT}\n")
    settings = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": True}, "level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": host, "secret": "for these tests"},
        "auth": {"htpasswd": {"realm": "tests", "path": str(directory / "users")}},
    }
    # JSON is YAML.
    (directory / "settings.yml").write_text(json.dumps(settings))
    assert HAVE_REGISTRY is not None
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([HAVE_REGISTRY, "serve", str(directory / "settings.yml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://{host}/v2/", trust_env=False)
                break
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield host
    finally:
        process.kill()
        process.wait()
