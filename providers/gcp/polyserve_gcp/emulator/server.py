"""The emulator: all parts put together, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyserve.emulation.http import Answer, Call
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.building import Images
from polyserve_gcp.emulator.functions_api import FunctionsApi
from polyserve_gcp.emulator.ground import Ground
from polyserve_gcp.emulator.grpc_door import GrpcDoor
from polyserve_gcp.emulator.identities import Identities
from polyserve_gcp.emulator.installing import OWN_RUNTIME, RUNTIMES, install_framework
from polyserve_gcp.emulator.limits import Limits
from polyserve_gcp.emulator.logs import API as LOGGING
from polyserve_gcp.emulator.logs import Logs
from polyserve_gcp.emulator.methods import FUNCTIONS, RUN, methods
from polyserve_gcp.emulator.operations import Operations
from polyserve_gcp.emulator.rest import RestDoor
from polyserve_gcp.emulator.run_api import RunApi
from polyserve_gcp.emulator.secret_manager import API as SECRETS
from polyserve_gcp.emulator.secret_manager import Secrets
from polyserve_gcp.emulator.services import Services

SETTLE_S = 0.2
"""How long an operation takes at least; Google Cloud takes seconds, and minutes where it builds."""

RETRY_S = 0.5
"""How long a client had better wait that is told that a function is busy."""


class Emulator:
    """One project of Google Cloud on loopback: Cloud Storage, Cloud Run functions, and what they stand on.

    Functions really run. State is in memory and below the directory, and is gone when the emulator is closed.

    Args:
        directory: Where everything is kept.
        port: Port of the Cloud Functions API on 127.0.0.1; 0 for a free one. The other APIs have free ones.
        settle_s: How long an operation takes at least, in seconds.
        limits: What functions may take.

    Attributes:
        url: Address of the Cloud Functions API, once it is started.
        grpc_address: Address of both APIs over gRPC, `127.0.0.1:PORT`, once it is started.
        options: Provider options with which `polyserve_gcp` reaches it, once it is started.
        limits: What functions may take.
    """

    def __init__(
        self, directory: Path, *, port: int = 0, settle_s: float = SETTLE_S, limits: Limits | None = None
    ) -> None:
        self.url = ""
        self.grpc_address = ""
        self.options: dict[str, Any] = {}
        self.limits = limits or Limits()
        self._directory, self._port, self._settle_s = directory.absolute(), port, settle_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def access(self) -> Access:
        """Who may do what: for those that run the emulator in their own process."""
        return self._ground.access

    @property
    def identities(self) -> Identities:
        """Who there is: for those that run the emulator in their own process."""
        return self._ground.identities

    @property
    def endpoints(self) -> Mapping[str, str]:
        """Address of each API, by its host name."""
        return self._ground.endpoints

    def instances(self, service: str) -> list[int]:
        """Return the processes of a service's instances: for those that run the emulator in their own process.

        Args:
            service: `projects/p/locations/l/services/s`.
        """
        found = self._services.find(service)
        runners = [one.runner for one in found.revisions.values()] if found is not None else []
        return [instance.pid for runner in runners if runner is not None for instance in runner.fleet.instances]

    def start(self) -> None:
        """Start serving; returns when it answers.

        Raises:
            OSError: The port is taken, or fake-gcs-server or functions-framework cannot be had or started.
        """
        logging.getLogger("aiohttp").setLevel(logging.ERROR)
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in ("sources", "scratch"):
            shutil.rmtree(self._directory / name, ignore_errors=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gcp-emulator", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        """End every instance and fake-gcs-server, and stop serving."""
        if self._loop is None:
            return
        self._grpc.close()
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._end_loop()

    def _end_loop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    async def _open(self) -> None:
        self._ground = ground = Ground(self._directory)
        self._assemble(ground)
        await ground.open()
        try:
            if OWN_RUNTIME in RUNTIMES:
                # What can take long takes long here, and not in the first deployment.
                await asyncio.to_thread(install_framework, OWN_RUNTIME)
            self.url = await ground.serve(FUNCTIONS, self._functions, self._port)
            await ground.serve(RUN, self._run)
            await ground.serve(LOGGING, self._logs.answer)
            await ground.serve(SECRETS, self._secrets.answer)
            self.grpc_address = await asyncio.to_thread(self._grpc.open, asyncio.get_running_loop())
        except BaseException:
            await ground.close()
            raise
        self.options = {**ground.options, "retry_s": RETRY_S}

    def _assemble(self, ground: Ground) -> None:
        access, storage = ground.access, ground.storage
        methods()  # read here once, which takes a moment
        self._operations = Operations(self._settle_s, access)
        self._logs = Logs(ground.identities.project, access)
        self._secrets = Secrets(access)
        images = Images(self._directory / "sources")
        self._services = Services(
            self._directory / "scratch", images=images, storage=storage, access=access, limits=self.limits, logs=self._logs,
            secrets=self._secrets, identify=self._identify,
        )  # fmt: skip
        functions = FunctionsApi(self._services, images, storage, self._operations, access)
        run = RunApi(self._services, self._operations, access)
        handlers = {**functions.handlers(), **run.handlers(), **self._operations.handlers()}
        self._rest, self._grpc = RestDoor(handlers), GrpcDoor(handlers)

    async def _identify(self, account: str) -> dict[str, str]:
        """Return the variables with which an instance finds out who it is, and never asks a link-local address."""
        address = await self._ground.metadata.address(account)
        return {"GCE_METADATA_HOST": address, "GCE_METADATA_IP": address, "GCE_METADATA_ROOT": address}

    async def _functions(self, call: Call) -> Answer:
        return await self._rest.answer(FUNCTIONS, call)

    async def _run(self, call: Call) -> Answer:
        return await self._rest.answer(RUN, call)

    async def _shut(self) -> None:
        await self._operations.close()
        await self._services.close()
        await self._ground.close()
