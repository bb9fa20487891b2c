"""A function app: load the model when the worker starts, answer every request of one catch-all route.

This file travels in the bundle as `function_app.py`, where the worker of Azure Functions looks for a `FunctionApp` of the second
programming model. What the app is to be is in the setting `POLYSERVE_APP`; while it is being changed, `POLYSERVE_APP_BEFORE` has what it
was, so that the package that is still there goes on as that.

Models answer on threads, so that a caller is told in time that it takes too long. Standard library, `polyserve.runtime` and the library
that function apps are written with.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import hmac
import http.client
import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlencode, urlsplit

import azure.functions as func

from polyserve.runtime import manifest
from polyserve.runtime.forwarding import Front, shares_of
from polyserve.runtime.host import Host, LoadError
from polyserve.runtime.messages import ErrorCode, Request, Response, error_body
from polyserve.runtime.remote import Remote

MARK = "x-polyserve-app"
"""Header of every answer: which description the app answers as."""
GRACE_S = 20.0
"""How long a model that took too long may still take before the worker is given up, with whatever else it is doing."""
STUCK = 70
"""Exit code of a worker that was given up; the host starts another one."""

_log = logging.getLogger("polyserve")


class Lines:
    """Lines of the runtime on their way to the platform's log, which wants them from within an invocation."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()

    def write(self, lines: bytes) -> None:
        """Take lines; a sink of the runtime."""
        self._waiting.extend(lines.decode("utf-8", "replace").splitlines())

    def flush(self) -> None:
        """Hand over what is there."""
        while self._waiting:
            _log.info("%s", self._waiting.popleft())


class Key:
    """The key of a storage account.

    Args:
        connection: The account's connection string.
    """

    def __init__(self, connection: str) -> None:
        given = dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
        self._account, self._key = given["AccountName"], given["AccountKey"]
        suffix = given.get("EndpointSuffix", "core.windows.net")
        protocol = given.get("DefaultEndpointsProtocol", "https")
        self.endpoint = given.get("BlobEndpoint") or f"{protocol}://{self._account}.blob.{suffix}"

    def sign(self, path: str, headers: Mapping[str, str]) -> str:
        """Return what authorizes reading a blob."""
        # "Authorize with Shared Key": method, eleven empty fields, x-ms- headers by name, account and path.
        fields = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
        text = "GET" + "\n" * 12 + f"{fields}/{self._account}{path}"
        signature = base64.b64encode(hmac.digest(base64.b64decode(self._key), text.encode(), "sha256")).decode()
        return f"SharedKey {self._account}:{signature}"


class Identity:
    """The identity of an app, which the platform has tokens for.

    Args:
        environment: The app's settings.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.endpoint = environment["POLYSERVE_STORAGE"]
        self._environment = environment

    def sign(self, path: str, headers: Mapping[str, str]) -> str:
        """Return what authorizes reading a blob; tokens are kept by the platform."""
        given = self._environment
        client = given["AzureWebJobsStorage__clientId"]
        query = urlencode({"api-version": "2019-08-01", "resource": "https://storage.azure.com/", "client_id": client})
        found = _get(f"{given['IDENTITY_ENDPOINT']}?{query}", {"X-IDENTITY-HEADER": given["IDENTITY_HEADER"]})
        with found:
            return f"Bearer {json.load(found)['access_token']}"


class Bucket:
    """Blobs below one prefix, by plain HTTP.

    Args:
        holder: Who may read them.
        place: Container and prefix.
    """

    def __init__(self, holder: Key | Identity, place: str) -> None:
        self._holder, self._place = holder, place

    def open(self, name: str) -> BinaryIO:
        """Open a blob for reading."""
        where = urlsplit(self._holder.endpoint)
        path = quote(f"{where.path.rstrip('/')}/{self._place}{name}", safe="/-_.~")
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        authorized = {**headers, "authorization": self._holder.sign(path, headers)}
        return _get(f"{where.scheme}://{where.netloc}{path}", authorized)


def _get(url: str, headers: Mapping[str, str]) -> BinaryIO:
    """Open what an address answers with.

    Raises:
        OSError: It is a refusal.
    """
    where = urlsplit(url)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    connection = kind(where.netloc, timeout=60)
    try:
        connection.request("GET", where.path + (f"?{where.query}" if where.query else ""), headers=dict(headers))
        answer = connection.getresponse()
        if answer.status >= 300:
            raise OSError(f"{where.netloc} answers {answer.status} ({answer.headers.get('x-ms-error-code', '')})")
    except BaseException:
        connection.close()
        raise
    return cast("BinaryIO", answer)


class Description:
    """What an app is asked to be: one of the settings that `polyserve.driver.AppSpec.to_json` wrote."""

    def __init__(self, text: str) -> None:
        self.text = text
        told = json.loads(text)
        self.spec: Mapping[str, Any] = told["spec"]
        self.revision = int(self.spec["revision"])
        self.mark = hashlib.sha256(text.encode()).hexdigest()[:32]
        """Which description it is; empty where the package is another's."""

    @staticmethod
    def find(environment: Mapping[str, str], digest: str) -> Description:
        """Return the description of the package that is here: of two, the first that names its digest."""
        texts = [environment[name] for name in ("POLYSERVE_APP", "POLYSERVE_APP_BEFORE") if environment.get(name)]
        found = [Description(text) for text in texts]
        chosen = next((each for each in found if each.spec["package_digest"] == digest), None)
        if chosen is None:
            found[0].mark = ""
            return found[0]
        if chosen is not found[0]:
            # The settings have the variables of the revision to come.
            for name in found[0].spec["environment"]:
                os.environ.pop(name, None)
            os.environ.update(chosen.spec["environment"])
        return chosen


class Service:
    """The model of this worker, the front before it, and the threads that it answers on.

    Args:
        root: Where the bundle is.
        environment: The app's settings.
    """

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        package = root / "package"
        self.lines = Lines()
        self.description = Description.find(environment, manifest.read(package).digest)
        spec = self.description.spec
        self.timeout_s = float(spec["timeout"])
        self.host = Host(
            package,
            revision=self.description.revision,
            request_bytes=int(spec["request_bytes"]),
            sink=self.lines.write,
            remote=self._remote(spec, environment),
        )
        others: Mapping[str, Mapping[str, str]] = json.loads(environment.get("POLYSERVE_FORWARDS") or "{}")
        keys = {other["url"]: other["key"] for other in others.values()}
        self._front = Front(
            self.host,
            shares_of(self.description.text, {app: other["url"] for app, other in others.items()}),
            authorize=lambda url: {"x-functions-key": keys[url]},
            timeout=self.timeout_s,
            sink=self.lines.write,
        )
        self._failure = ""
        self._loading = threading.Lock()
        self._threads = ThreadPoolExecutor(
            int(environment.get("POLYSERVE_CONCURRENCY") or 16), thread_name_prefix="polyserve-model"
        )

    @staticmethod
    def _remote(spec: Mapping[str, Any], environment: Mapping[str, str]) -> Remote | None:
        if not spec["models"]:
            return None
        first = spec["models"][0]
        place = f"{first['bucket']}/{first['key'].removesuffix(first['sha256'])}"
        connection = environment.get("AzureWebJobsStorage")
        bucket = Bucket(Key(connection) if connection else Identity(environment), place)
        # The one directory of an instance that can be written to.
        return Remote(fetch=bucket.open, into=Path(tempfile.gettempdir()) / "polyserve-models")

    def load(self) -> bool:
        """Load the model unless it is, and return whether it is. Why it is not was logged, and callers are told."""
        if self.host.ready:
            return True
        with self._loading:
            try:
                self.host.load()
            except LoadError as error:
                self._failure = f"the model cannot be loaded: {error}"
                return False
            # What was loaded lives as long as the worker: the collector need not look at it.
            gc.collect()
            gc.freeze()
            return True

    async def answer(self, request: Request) -> Response:
        """Answer a request, within the app's time."""
        work = self._threads.submit(self._work, request)
        try:
            response = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(work)), self.timeout_s)
        except TimeoutError:
            asyncio.get_running_loop().call_later(GRACE_S, _give_up, work)
            message = f"the model took longer than its timeout of {self.timeout_s:g} s"
            response = self._refusal(request, ErrorCode.DEADLINE_EXCEEDED, message, 504)
        self.lines.flush()
        return response

    def _work(self, request: Request) -> Response:
        if not self.load():
            return self._refusal(request, ErrorCode.INTERNAL, self._failure, 500)
        return self._front.handle(request)

    def _refusal(self, request: Request, code: ErrorCode, message: str, status: int) -> Response:
        headers = {
            "content-type": "application/json",
            "x-request-id": request.request_id,
            "x-polyserve-revision": str(self.description.revision),
        }
        return Response(status=status, headers=headers, body=error_body(code, message, request.request_id))


def _give_up(work: Future[Response]) -> None:
    """End the worker if a model that took too long has not come to its end: a thread cannot be stopped."""
    if not work.done():
        _log.error("a predict does not return: this worker gives up")
        os._exit(STUCK)


def _start() -> Service:
    """Load the model while the worker starts, which costs the first caller nothing."""
    service = Service(Path(__file__).resolve().parent, os.environ)
    service.load()
    service.lines.flush()
    return service


# Where callers show tokens, the platform looks at them before the worker hears of a call.
_LEVEL = func.AuthLevel.ANONYMOUS if os.environ.get("POLYSERVE_CALLERS") == "entra" else func.AuthLevel.FUNCTION
app = func.FunctionApp(http_auth_level=_LEVEL)


@app.function_name("polyserve")
@app.route(route="{*path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def answer(req: func.HttpRequest) -> func.HttpResponse:
    """Answer one HTTP request.

    Args:
        req: The request, as the worker hands it over.
    """
    headers = {name.lower(): value for name, value in req.headers.items()}
    request = Request(
        method=req.method,
        path=urlsplit(req.url).path or "/",
        headers=headers,
        body=req.get_body(),
        request_id=headers.get("x-request-id") or uuid.uuid4().hex,
        received=time.perf_counter(),
    )
    response = await SERVICE.answer(request)
    told = {**response.headers, MARK: SERVICE.description.mark}
    return func.HttpResponse(response.body, status_code=response.status, headers=told)


SERVICE: Service
if "POLYSERVE_APP" in os.environ:
    SERVICE = _start()
