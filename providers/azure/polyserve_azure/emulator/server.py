"""The emulator: all parts put together behind one address, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from polyserve.emulation.http import Answer, Call, Listener, json_answer
from polyserve_azure.emulator import stacks
from polyserve_azure.emulator.arm import ResourceManager
from polyserve_azure.emulator.asking import Part
from polyserve_azure.emulator.azurite import Azurite
from polyserve_azure.emulator.entra import Entra
from polyserve_azure.emulator.errors import ServiceError, bad_request, format_error
from polyserve_azure.emulator.faults import Faults
from polyserve_azure.emulator.front import Front
from polyserve_azure.emulator.grants import Grants
from polyserve_azure.emulator.groups import Groups
from polyserve_azure.emulator.hosting import HostingPlatform
from polyserve_azure.emulator.identities import Identities
from polyserve_azure.emulator.insights import Insights
from polyserve_azure.emulator.installing import install_engine
from polyserve_azure.emulator.limits import Limits
from polyserve_azure.emulator.operations import Operations
from polyserve_azure.emulator.plans import Plans
from polyserve_azure.emulator.principals import LIFETIME_S, Principal, Principals
from polyserve_azure.emulator.publishing import Publishing
from polyserve_azure.emulator.resources import Resources
from polyserve_azure.emulator.roles import OWNER, Roles
from polyserve_azure.emulator.sites import Sites
from polyserve_azure.emulator.storage import Storage

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
LOCATION = "eastus"
GROUP = "polyserve"
SETTLE_S = 0.05
"""How long an operation or a step of a deployment takes; Azure takes seconds."""


class Emulator:
    """Azure Resource Manager, Blob Storage, and Functions on Flex Consumption on loopback.

    Apps really run. State is in memory and below the directory, and is gone when the emulator is closed.

    Args:
        directory: Where everything is kept.
        port: Port on 127.0.0.1; 0 for a free one.
        settle_s: How long an operation takes, in seconds.
        limits: What apps may take.

    Attributes:
        url: Address of all services but blobs, once it is started.
        options: Provider options with which `polyserve_azure` talks to it, once it is started.
        faults: Failures that are wanted.
        limits: What apps may take.
    """

    def __init__(
        self, directory: Path, *, port: int = 0, settle_s: float = SETTLE_S, limits: Limits | None = None
    ) -> None:
        self.url = ""
        self.options: dict[str, str] = {}
        self.faults = Faults()
        self._directory, self._port, self._settle_s = directory.absolute(), port, settle_s
        self.limits = limits or Limits()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start serving; returns when it answers.

        Raises:
            OSError: The port is taken, or Azurite cannot be installed or started.
        """
        logging.getLogger("aiohttp").setLevel(logging.ERROR)
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in ("wwwroot", "scratch"):
            shutil.rmtree(self._directory / name, ignore_errors=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="azure-emulator", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        """End every app and Azurite, and stop serving."""
        if self._loop is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._end_loop()

    def add_principal(self, *roles: tuple[str, str]) -> tuple[Principal, str]:
        """Make a service principal; returns it and a token for Resource Manager.

        Args:
            roles: Pairs of a role definition's identifier (the GUID) and the scope where the principal has it.
        """
        made = self._principals.add("made by hand")
        for number, (role, scope) in enumerate(roles):
            self._roles.assign(made.object_id, role, scope, name=f"{made.object_id}-{number}")
        return made, self._principals.issue(made, "https://management.azure.com")

    def _end_loop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    async def _open(self) -> None:
        self._azurite = Azurite(self._directory)
        # First, since a port that is taken ends it all.
        self._listener = Listener(self._answer)
        self.url = f"http://127.0.0.1:{await self._listener.open(self._port)}"
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        try:
            # What can take long takes long here, and not in the first deployment.
            await asyncio.gather(self._azurite.start(), asyncio.to_thread(install_engine, own))
        except BaseException:
            await self._listener.close()
            await self._azurite.stop()
            raise
        self._assemble()
        self.options = self._make_options()

    def _assemble(self) -> None:
        self._principals, self._roles = Principals(), Roles()
        self._resources = Resources(self._roles.forget)
        owner = self._principals.add("owner")
        self._roles.assign(owner.object_id, OWNER, f"/subscriptions/{SUBSCRIPTION}", name=owner.object_id)
        self._token = self._principals.issue(owner)
        self._owner = owner
        resources, principals, roles = self._resources, self._principals, self._roles
        self._operations = operations = Operations(self.faults, self._settle_s, self._address)
        self._insights = Insights(resources, principals, roles)
        self._platform = HostingPlatform(self._directory, principals, self._insights.write, self.limits, self._address)
        self._front = Front(self.limits)
        self._publishing = Publishing(
            self._directory, resources, self._platform, self._azurite, principals=principals, roles=roles,
            faults=self.faults, settle_s=self._settle_s,
        )  # fmt: skip
        storage, plans = Storage(resources, operations, self._azurite), Plans(resources, operations)
        sites = Sites(
            resources, operations, plans, principals, roles, changed=self._platform.changed, restarted=self._platform.restart,
            removed=self._platform.removed,
        )  # fmt: skip
        identities = Identities(resources, principals)
        removers = {
            "microsoft.storage/storageaccounts": storage.remove,
            "microsoft.web/sites": sites.remove,
            "microsoft.managedidentity/userassignedidentities": identities.remove,
            "microsoft.insights/components": self._insights.remove,
        }
        self._entra = Entra(principals, self._platform)
        parts: list[Part] = [
            Groups(resources, operations, removers),
            storage,
            plans,
            sites,
            identities,
            Grants(roles, principals),
            self._insights,
        ]
        self._manager = ResourceManager(
            SUBSCRIPTION, principals=principals, roles=roles, resources=resources, faults=self.faults, operations=operations,
            tables=[stacks.table(), *(part.table() for part in parts)], url=self._address,
        )  # fmt: skip

    def _make_options(self) -> dict[str, str]:
        token_file = self._directory / "token.json"
        token_file.touch(mode=0o600)
        token = {"access_token": self._token, "token_type": "Bearer", "expires_on": int(time.time() + LIFETIME_S)}
        token_file.write_text(json.dumps(token), encoding="utf-8")
        return {
            "subscription_id": SUBSCRIPTION,
            "tenant_id": self._principals.tenant,
            "location": LOCATION,
            "resource_group": GROUP,
            "management_url": self.url,
            "token_file": os.fspath(token_file),
            "app_url_template": f"{self.url}/apps/{{name}}",
            "scm_url_template": f"{self.url}/scm/{{name}}",
            "insights_url": self.url,
            "authority_url": self.url,
        }

    def _address(self) -> str:
        return self.url

    async def _shut(self) -> None:
        await self._listener.close()
        await self._publishing.close()
        await self._operations.close()
        await self._platform.close()
        await self._azurite.stop()

    async def _answer(self, call: Call) -> Answer:
        """Answer one request to any service."""
        if not self.options:
            return Answer(503, {"retry-after": "1"}, b"The emulator is starting.")
        area, _, rest = call.raw_path.lstrip("/").partition("/")
        if area == "apps":
            return await self._answer_app(call, rest)
        if area == "scm":
            name, _, path = rest.partition("/")
            return await self._publishing.answer(call, name, f"/{unquote(path)}", f"{self.url}/scm/{name}")
        tokens = area == "msi" or call.raw_path.endswith("/oauth2/v2.0/token")
        own = {"v1": self._insights.query, "_emulator": self._control}.get(area, self._entra.answer if tokens else None)
        if own is None:
            return await self._manager.answer(call)
        try:
            return own(call)
        except ServiceError as error:
            return format_error(error)

    async def _answer_app(self, call: Call, rest: str) -> Answer:
        name, _, path = rest.partition("/")
        hosting = self._platform.find(name)
        if hosting is None:
            return Answer(404, {"content-type": "text/html"}, b"<h1>404 Web Site not found.</h1>")
        return await self._front.answer(hosting, call, f"/{path}")

    def _control(self, call: Call) -> Answer:
        """Answer what only an emulator can be asked: failures, limits and principals that are wanted."""
        if self._principals.read(call.headers.get("Authorization", "")) is not self._owner:
            raise ServiceError(403, "Forbidden", "Only the owner of the subscription has a say in the emulator.")
        if call.path == "/_emulator/faults" and call.method == "POST":
            self.faults.add(**call.json)
            return Answer(204)
        if call.path == "/_emulator/faults" and call.method == "DELETE":
            self.faults.clear()
            return Answer(204)
        if call.path == "/_emulator/limits" and call.method == "POST":
            for name, value in call.json.items():
                if name not in Limits.__slots__ or type(value) not in {int, float, bool}:
                    raise bad_request(f"no limit: {name} = {value!r}")
                setattr(self.limits, name, value)
            return Answer(204)
        if call.path == "/_emulator/principals" and call.method == "POST":
            made, token = self.add_principal(*((one["role"], one["scope"]) for one in call.json.get("roles", ())))
            shown: dict[str, Any] = {
                "object_id": made.object_id,
                "client_id": made.client_id,
                "client_secret": made.secret,
            }
            return json_answer(201, shown | {"access_token": token})
        raise ServiceError(404, "NotFound", f"The emulator has no '{call.method} {call.path}'.")
