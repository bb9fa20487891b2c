"""The emulator: all parts put together behind one address, in a thread of its own."""

from __future__ import annotations

import asyncio
import configparser
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polyserve.emulation.http import Answer, Call, Handler, Listener
from polyserve_aws.emulator import services
from polyserve_aws.emulator.access import Access
from polyserve_aws.emulator.actions import Need
from polyserve_aws.emulator.control import Control
from polyserve_aws.emulator.errors import ServiceError, format_error
from polyserve_aws.emulator.fleet import Fleet
from polyserve_aws.emulator.functions import Functions
from polyserve_aws.emulator.grants import Grants
from polyserve_aws.emulator.http_api import HttpApis
from polyserve_aws.emulator.identities import Identities
from polyserve_aws.emulator.images import Images
from polyserve_aws.emulator.invoking import Invoking
from polyserve_aws.emulator.lambda_api import LambdaApi
from polyserve_aws.emulator.launching import Launcher
from polyserve_aws.emulator.logs import Logs
from polyserve_aws.emulator.registry import Blobs, Registry
from polyserve_aws.emulator.signatures import Signature, read_signature
from polyserve_aws.emulator.traffic import Traffic
from polyserve_aws.emulator.uploads import Uploads
from polyserve_aws.emulator.urls import Urls

REGION = "us-east-1"
SETTLE_S = 0.1
"""How long a new or changed function is not ready; AWS takes seconds."""
IDLE_S = 300.0
"""How long an execution environment is kept without work."""


class Emulator:
    """Amazon S3, IAM, STS, Lambda, ECR, CloudWatch Logs and API Gateway on loopback.

    Functions really run. State is in memory and below the directory, and is gone when the emulator is closed. There can
    be one in a process at a time: moto keeps its state in its modules.

    Args:
        directory: Where everything is kept.
        port: Port on 127.0.0.1; 0 for a free one.
        settle_s: How long a new or changed function is Pending or InProgress, in seconds.
        idle_s: How long an execution environment is kept without work, in seconds.

    Attributes:
        url: Address of all services, once it is started.
        options: Provider options with which `polyserve_aws` talks to it, once it is started.
    """

    _running = False

    def __init__(self, directory: Path, *, port: int = 0, settle_s: float = SETTLE_S, idle_s: float = IDLE_S) -> None:
        self.url = ""
        self.options: dict[str, str] = {}
        self._directory, self._port, self._settle_s, self._idle_s = directory.absolute(), port, settle_s, idle_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listeners: dict[int, Listener] = {}
        self._workers = ThreadPoolExecutor(8, thread_name_prefix="moto")

    def start(self) -> None:
        """Start serving; returns when it answers.

        Raises:
            OSError: The port is taken.
            RuntimeError: There is one in this process already.
        """
        if Emulator._running:
            raise RuntimeError("there can be one emulator in a process: moto keeps its state in its modules")
        Emulator._running = True
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in ("archives", "blobs", "images", "runtime", "scratch", "tasks"):
            shutil.rmtree(self._directory / name, ignore_errors=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aws-emulator", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        """End every function and stop serving."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._end_loop()

    def _end_loop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._workers.shutdown()
        self._loop = self._thread = None
        Emulator._running = False

    async def _open(self) -> None:
        services.reset()
        self._services = services.Services()
        self._identities = Identities()
        self._access = Access(self._identities)
        key, secret = self._identities.make_administrator()
        port = await self._listen(self._answer, self._port)
        self.url = f"http://127.0.0.1:{port}"
        credentials = self._directory / "credentials"
        _write_credentials(credentials, key, secret)
        self.options = {"region": REGION, "endpoint_url": self.url, "shared_credentials_file": str(credentials)}
        self._assemble()

    def _assemble(self) -> None:
        functions = Functions()
        blobs = Blobs(self._directory)
        self._registry = Registry(self._access, blobs, self._listen)
        images = Images(self._directory, self._registry, blobs)
        launcher = Launcher(self._directory, self._identities, self.url)
        logs = Logs(self._identities)
        self._fleet = Fleet(launcher.make, logs.write, self._idle_s)
        self._invoking = Invoking(functions, self._fleet)
        self._control = Control(
            functions, self._fleet, Uploads(self._directory), self._identities, pull=images.pull, settle_s=self._settle_s,
            own_url=lambda: self.url,
        )  # fmt: skip
        urls = Urls(functions, self._invoking, self._access, listen=self._listen, close=self._close_port)
        self._control.forgotten.append(urls.forget)
        self._apis = HttpApis(functions, self._invoking, self._access, listen=self._listen, close=self._close_port)
        operations = {
            **self._control.operations(),
            **self._invoking.operations(),
            **Traffic(functions, self._fleet).operations(),
            **Grants(functions).operations(),
            **urls.operations(),
        }
        self._lambda = LambdaApi(functions, self._access, operations)
        self._undo = services.send_events_to(self._send_for_service)

    async def _shut(self) -> None:
        self._undo()
        for listener in list(self._listeners.values()):
            await listener.close()
        self._listeners.clear()
        await self._fleet.close()

    async def _listen(self, handler: Handler, port: int = 0) -> int:
        listener = Listener(handler)
        found = await listener.open(port)
        self._listeners[found] = listener
        return found

    async def _close_port(self, port: int) -> None:
        listener = self._listeners.pop(port, None)
        if listener is not None:
            await listener.close()

    async def _answer(self, call: Call) -> Answer:
        """Answer one request to any service."""
        service = "s3"
        try:
            if call.raw_path.startswith("/_code/"):
                archive = self._control.location(call.raw_path.removeprefix("/_code/"))
                return Answer(200, {"content-type": "application/zip"}, archive)
            claimed = read_signature(call)
            service = claimed.service if claimed else "s3"
            principal, signature = self._access.authenticate(call, claimed)
            if service == "lambda":
                return await self._lambda.answer(call, principal, signature)
            self._access.permit_service_call(call, principal, signature)
            if service == "apigateway":
                self._apis.check(call)
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._workers, self._services.answer, call)
            if service == "apigateway":
                return await self._apis.follow(answer)
            if service == "ecr":
                return await self._registry.follow(answer, signature.region, principal)
            return self._hide_missing(call, signature, answer)
        except ServiceError as error:
            return format_error(service, error, resource=call.raw_path, head=call.method == "HEAD")

    def _hide_missing(self, call: Call, signature: Signature, answer: Answer) -> Answer:
        """Answer 403 for a missing object to whoever may not list its bucket, as S3 does."""
        if signature.service != "s3" or answer.status != 404 or call.method not in {"GET", "HEAD"}:
            return answer
        bucket, _, key = call.path.lstrip("/").partition("/")
        principal = self._identities.find(signature.key_id)
        if not key or principal is None or self._access.may(principal, "s3:ListBucket", f"arn:aws:s3:::{bucket}"):
            return answer
        self._access.permit(principal, Need("s3:ListBucket", (f"arn:aws:s3:::{bucket}",)), service="s3")
        return answer

    def _send_for_service(self, name: str, event: bytes) -> None:
        """Take an event of one of moto's services, on one of its threads; nobody waits for the function."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._invoking.send, name, event)


def _write_credentials(path: Path, key: str, secret: str) -> None:
    logging.getLogger("aiohttp").setLevel(logging.ERROR)
    parser = configparser.ConfigParser()
    parser["default"] = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8") as file:
        parser.write(file)
