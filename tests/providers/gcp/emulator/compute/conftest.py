"""The whole emulator, and Google's own clients to drive it: nothing of polyserve's adapter is imported here."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import socket
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.api_core.future.polling import DEFAULT_POLLING
from google.cloud import functions_v2, run_v2, storage
from google.cloud.functions_v2.services.function_service.transports import FunctionServiceGrpcTransport
from google.cloud.run_v2.services.revisions.transports import RevisionsGrpcTransport
from google.cloud.run_v2.services.services.transports import ServicesGrpcTransport
from google.oauth2.credentials import Credentials

from polyserve_gcp.emulator import Emulator
from polyserve_gcp.emulator.limits import Limits

RUNTIME = f"python{sys.version_info.major}{sys.version_info.minor}"
POLLING = DEFAULT_POLLING.with_delay(initial=0.02, maximum=0.05, multiplier=1.2)
ACTOR = '''
"""Does what the request says."""
import json, os, socket, sys, time
from flask import Response


def act(request):
    what = request.args.get("do")
    if what == "raise":
        raise ValueError("broken on purpose")
    if what == "exit":
        # The worker alone, or the whole instance.
        if "all" in request.args:
            os.kill(os.getppid(), 9)
        os._exit(1)
    if what == "log":
        print("printed by", MARK)
        print(json.dumps({"severity": "WARNING", "message": "warned", "mark": MARK}), flush=True)
        print("to the other", file=sys.stderr, flush=True)
    if what == "hold":
        held = bytearray(int(request.args["mb"]) * 2**20)
        for page in range(0, len(held), 4096):
            held[page] = 1
        time.sleep(30)
    if what == "large":
        return bytes(int(request.args["bytes"]))
    if what == "stream":
        return Response((f"piece {number}\\n" for number in range(3)), mimetype="text/plain")
    if what == "meet":
        # Says that it runs, and goes on when it is told to.
        with socket.create_connection(("127.0.0.1", int(request.args["port"]))) as met:
            met.sendall(b"1")
            met.recv(1)
    answer = {
        "mark": MARK, "path": request.path, "query": request.query_string.decode(), "method": request.method, "pid": os.getpid(),
        "headers": {name.lower(): value for name, value in request.headers.items()}, "length": len(request.get_data()),
        "environment": dict(os.environ), "search": sys.path,
    }
    return json.dumps(answer), 200, {"content-type": "application/json", "x-mark": str(MARK)}
'''
SERVER = '''
"""The same without a framework: what is deployed without a build has to bring what it needs."""
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.dumps({"mark": MARK, "environment": dict(os.environ), "search": sys.path, "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


if __name__ == "__main__":
    Server((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
'''
_numbers = itertools.count(1)
_opened: list[httpx.Client] = []


def archive(files: Mapping[str, str | bytes]) -> bytes:
    """Return files as a zip."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as found:
        for name, content in files.items():
            found.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return target.getvalue()


def tarball(files: Mapping[str, str | bytes]) -> bytes:
    """Return files as a tar.gz."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as found:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            found.addfile(member, io.BytesIO(data))
    return gzip.compress(target.getvalue(), mtime=0)


def actor(mark: object = 0, *, more: str = "", **files: str) -> bytes:
    """Return the actor's archive; the mark tells one deployment from another."""
    return archive({"main.py": f"{ACTOR}\nMARK = {mark!r}\n{more}", **files})


def server(mark: object = 0) -> bytes:
    """Return the archive of a server that needs no framework."""
    return tarball({"app.py": f"MARK = {mark!r}\n{SERVER}"})


class _Signed(grpc.UnaryUnaryClientInterceptor):
    """Puts a token into calls over a channel without TLS, which Google's own credentials refuse to do."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), *([("authorization", f"Bearer {self._token}")] if self._token else [])]
        return continuation(details._replace(metadata=metadata), request)


class Function:
    """One function, and its address."""

    def __init__(self, cloud: Cloud, name: str) -> None:
        self.cloud, self.name = cloud, name
        self.short = name.rpartition("/")[2]

    @property
    def service(self) -> str:
        return self.name.replace("/functions/", "/services/")

    @property
    def url(self) -> str:
        return str(self.cloud.functions.get_function(name=self.name).service_config.uri)

    def call(self, path: str = "/", method: str = "POST", **more: Any) -> httpx.Response:
        """Call the function as its owner."""
        url = self.url
        headers = {"authorization": f"Bearer {self.cloud.id_token(url)}"} | more.pop("headers", {})
        return self.cloud.http.request(method, f"{url}{path}", headers=headers, **more)

    def mark(self) -> Any:
        return self.call().json()["mark"]

    def update(self, archive: bytes | None = None, *paths: str, **config: Any) -> Any:
        """Update the function, and wait until it is."""
        function = functions_v2.Function(name=self.name, service_config=config)
        mask = [*(f"service_config.{name}" for name in config), *paths]
        if archive is not None:
            function.build_config = self.cloud.build(archive)
            mask.append("build_config")
        return self.cloud.functions.update_function(
            function=function, update_mask={"paths": mask}
        ).result(polling=POLLING, timeout=60)  # fmt: skip


class Service:
    """One service of Cloud Run, and its address."""

    def __init__(self, cloud: Cloud, name: str) -> None:
        self.cloud, self.name = cloud, name
        self.short = name.rpartition("/")[2]

    def get(self) -> Any:
        return self.cloud.services.get_service(name=self.name)

    def call(self, url: str = "", **more: Any) -> httpx.Response:
        found = self.get().uri
        headers = {"authorization": f"Bearer {self.cloud.id_token(found)}"} | more.pop("headers", {})
        return self.cloud.http.post(f"{url or found}/", headers=headers, **more)

    def mark(self, url: str = "") -> Any:
        return self.call(url).json()["mark"]

    def update(self, *paths: str, **fields: Any) -> Any:
        service = run_v2.Service(name=self.name, **fields)
        mask = {"paths": list(paths or fields)}
        return self.cloud.services.update_service(
            run_v2.UpdateServiceRequest(service=service, update_mask=mask)
        ).result(polling=POLLING, timeout=60)  # fmt: skip


class Cloud:
    """A signed-in client of an emulator, and the few calls that most tests begin with."""

    runtime, polling = RUNTIME, POLLING

    def __init__(self, emulator: Emulator, email: str = "") -> None:
        self.emulator, self.options = emulator, emulator.options
        owner = json.loads(Path(self.options["credentials_file"]).read_bytes())["client_email"]
        self.email = email or owner
        # Not those of a service account: with them google-auth asks Google, from a thread, where the account may be used.
        self.credentials = Credentials(self.token)
        self.parent = f"projects/{self.options['project']}/locations/{self.options['region']}"
        self.http = httpx.Client(timeout=60, trust_env=False)
        _opened.append(self.http)
        self.functions = functions_v2.FunctionServiceClient(**self._over_rest("cloudfunctions"))
        self.services = run_v2.ServicesClient(**self._over_rest("run"))
        self.revisions = run_v2.RevisionsClient(**self._over_rest("run"))
        self.storage = storage.Client(
            project=self.options["project"], credentials=Credentials(self.token_of(owner)),
            client_options={"api_endpoint": self.endpoint("storage")},
        )  # fmt: skip
        # It asks after each bucket for its traces, from a thread that outlives the emulator.
        self.storage._bucket_metadata_cache = None

    def endpoint(self, api: str) -> str:
        return str(self.options["endpoints"][f"{api}.googleapis.com"])

    def _over_rest(self, api: str) -> dict[str, Any]:
        return {
            "credentials": self.credentials, "transport": "rest", "client_options": {"api_endpoint": self.endpoint(api)},
        }  # fmt: skip

    @property
    def token(self) -> str:
        """An access token of whose client this is."""
        return self.token_of(self.email)

    def token_of(self, email: str) -> str:
        return str(self.emulator.identities.issue_access_token(self.emulator.identities.find(email)))

    def over_grpc(self, token: str | None = None) -> tuple[Any, Any, Any]:
        """Return clients of functions, services and revisions over gRPC."""
        channel = grpc.insecure_channel(self.emulator.grpc_address)
        signed = grpc.intercept_channel(channel, _Signed(self.token if token is None else token))
        return (
            functions_v2.FunctionServiceClient(transport=FunctionServiceGrpcTransport(channel=signed)),
            run_v2.ServicesClient(transport=ServicesGrpcTransport(channel=signed)),
            run_v2.RevisionsClient(transport=RevisionsGrpcTransport(channel=signed)),
        )

    def as_account(self, *roles: str) -> Cloud:
        """Return a client of another service account, which has these roles on the project."""
        made = self.emulator.identities.add_service_account(f"somebody-{next(_numbers)}")
        for role in roles:
            self.emulator.access.grant(role, made.member)
        return Cloud(self.emulator, made.email)

    def id_token(self, audience: str) -> str:
        return str(self.emulator.identities.issue_id_token(self.emulator.identities.find(self.email), audience))

    def upload(self, content: bytes) -> dict[str, str]:
        """Put a source into a bucket; returns where it is."""
        bucket = self.storage.bucket("sources")
        if not bucket.exists():
            bucket = self.storage.create_bucket("sources", location="us-central1")
        name = f"source-{next(_numbers)}"
        bucket.blob(name).upload_from_string(content, content_type="application/zip")
        return {"bucket": "sources", "object_": name}

    def build(self, content: bytes, **more: Any) -> Any:
        """Upload a source; returns the configuration of its build."""
        return functions_v2.BuildConfig(
            **({"runtime": RUNTIME, "entry_point": "act"} | more), source={"storage_source": self.upload(content)}
        )  # fmt: skip

    def name(self, start: str = "fn") -> str:
        return f"{start}-{next(_numbers)}"

    def begin(self, content: bytes, name: str = "", **config: Any) -> Any:
        """Begin to create a function; returns its operation."""
        function = functions_v2.Function(build_config=self.build(content), service_config=config)
        return self.functions.create_function(
            parent=self.parent, function_id=name or self.name(), function=function
        )  # fmt: skip

    def make(self, content: bytes | None = None, name: str = "", **config: Any) -> Function:
        """Create a function, and wait until it is there."""
        operation = self.begin(actor() if content is None else content, name, **config)
        return Function(self, operation.result(polling=POLLING, timeout=60).name)

    def template(
        self, content: bytes, *, revision: str = "", variables: Mapping[str, str] | None = None, **more: Any
    ) -> Any:
        """Return the template of a service whose source is deployed without a build."""
        container = run_v2.Container(
            image="scratch",
            base_image_uri=f"us-central1-docker.pkg.dev/serverless-runtimes/google-22/runtimes/{RUNTIME}",
            source_code={"cloud_storage_source": self.upload(content)},
            command=["python3", "app.py"],
            env=[run_v2.EnvVar(name=name, value=value) for name, value in (variables or {}).items()],
            resources={"limits": more.pop("limits", {})},
        )
        return run_v2.RevisionTemplate(revision=revision, containers=[container], **more)

    def serve(self, content: bytes | None = None, name: str = "", **fields: Any) -> Service:
        """Create a service, and wait until it is there."""
        name = name or self.name("svc")
        fields.setdefault("template", self.template(server() if content is None else content))
        operation = self.services.create_service(
            parent=self.parent, service_id=name, service=run_v2.Service(**fields)
        )  # fmt: skip
        return Service(self, operation.result(polling=POLLING, timeout=60).name)

    def rest(self, api: str, method: str, path: str, **more: Any) -> httpx.Response:
        """Call an API by hand."""
        headers = {"authorization": f"Bearer {self.token}"} | more.pop("headers", {})
        return self.http.request(method, f"{self.endpoint(api)}{path}", headers=headers, **more)


@pytest.fixture(scope="session")
def emulator(session_root: Path) -> Iterator[Emulator]:
    """Yield an emulator in this process, for all tests."""
    found = Emulator(session_root / "gcp", settle_s=0.02, limits=Limits(start_s=20, queue_s=0.5))
    found.start()
    yield found
    for client in _opened:
        client.close()
    found.close()


@pytest.fixture(scope="session")
def cloud(emulator: Emulator) -> Cloud:
    """Return the owner's client."""
    return Cloud(emulator)


@pytest.fixture(scope="session")
def function(cloud: Cloud) -> Function:
    """Return a function that does what requests say, and that no test changes."""
    return cloud.make(actor("shared"), available_memory="512M", max_instance_request_concurrency=4, available_cpu="1")


@pytest.fixture(scope="session")
def service(cloud: Cloud) -> Service:
    """Return a service that no test changes."""
    return cloud.serve(server("shared"))


@pytest.fixture(scope="session")
def source() -> Callable[..., bytes]:
    """Return what makes the actor's archive with a mark."""
    return actor


@pytest.fixture(scope="session")
def served() -> Callable[..., bytes]:
    """Return what makes the server's archive with a mark."""
    return server


@pytest.fixture(scope="session")
def pack() -> Callable[..., bytes]:
    """Return what makes a zip of files."""
    return archive


@pytest.fixture(scope="session")
def pack_tar() -> Callable[..., bytes]:
    """Return what makes a tar.gz of files."""
    return tarball


@pytest.fixture
def meeting() -> Any:
    """Return a port at which calls say that they run, and what waits for one and lets it go on."""

    @contextmanager
    def meet() -> Iterator[tuple[int, Callable[[], None], Callable[[], None]]]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(30)
            waiting: list[socket.socket] = []

            def arrive() -> None:
                connection, _ = listening.accept()
                connection.recv(1)
                waiting.append(connection)

            def leave() -> None:
                with waiting.pop(0) as connection:
                    connection.sendall(b"1")

            yield listening.getsockname()[1], arrive, leave
            for connection in waiting:
                connection.close()

    return meet


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Return what asks again until something is so."""

    def ask(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, "it did not come true"

    return ask
