"""The publish API of an app's SCM site: a zip comes in, is looked at, kept in the deployment container, and started.

Statuses and behaviour as the Azure CLI reads them (its `functionapp` commands, 2.91): 202 with the deployment's identifier,
409 while another is under way, and `/api/deployments/latest` with a number that says how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import shutil
import stat
import time
import uuid
import zipfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_azure.emulator.azurite import Azurite
from polyserve_azure.emulator.errors import ServiceError, format_error
from polyserve_azure.emulator.faults import Faults
from polyserve_azure.emulator.front import read_host_json
from polyserve_azure.emulator.hosting import HostingPlatform
from polyserve_azure.emulator.plans import SITES
from polyserve_azure.emulator.principals import Principals
from polyserve_azure.emulator.resources import Resource, Resources
from polyserve_azure.emulator.roles import Roles

PENDING, BUILDING, DEPLOYING, FAILED, SUCCESS = range(5)
RELEASED = "released-package.zip"
"""The one name under which a package is kept: each deployment takes the place of the last."""
KEPT = 8
"""Unpacked packages that stay though no app runs them."""
_WRITE = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write"


@dataclass(slots=True, eq=False)
class Deployment:
    """One deployment of one app."""

    site: str
    deployer: str
    author: str
    identifier: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: int = PENDING
    text: str = ""
    received: float = field(default_factory=time.time)
    ended: float = 0.0
    log: list[str] = field(default_factory=list)

    def show(self, *, active: bool, url: str) -> dict[str, Any]:
        """Return it as the publish API does."""
        return {
            "id": self.identifier,
            "status": self.status,
            "status_text": self.text,
            "author_email": "N/A",
            "author": self.author,
            "deployer": self.deployer,
            "remoteBuild": False,
            "message": "",
            "progress": "",
            "received_time": _stamp(self.received),
            "start_time": _stamp(self.received),
            "end_time": _stamp(self.ended) if self.ended else None,
            "last_success_end_time": _stamp(self.ended) if self.status == SUCCESS else None,
            "complete": self.status in {FAILED, SUCCESS},
            "active": active,
            "is_temp": False,
            "is_readonly": True,
            "url": f"{url}/api/deployments/{self.identifier}",
            "log_url": f"{url}/api/deployments/{self.identifier}/log",
            "site_name": self.site,
        }


class Publishing:
    """The SCM sites of all apps.

    Args:
        directory: Where packages are unpacked.
        resources: What there is.
        platform: Runs what is published.
        azurite: Keeps what is published.
        principals: Who may call.
        roles: Who may do what.
        faults: Failures that are wanted.
        settle_s: How long each step of a deployment takes at least.
    """

    def __init__(
        self,
        directory: Path,
        resources: Resources,
        platform: HostingPlatform,
        azurite: Azurite,
        *,
        principals: Principals,
        roles: Roles,
        faults: Faults,
        settle_s: float,
    ) -> None:
        self._directory, self._resources, self._platform, self._azurite = directory, resources, platform, azurite
        self._principals, self._roles, self._faults, self._settle_s = principals, roles, faults, settle_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._recent: deque[Path] = deque(maxlen=KEPT)

    async def answer(self, call: Call, name: str, path: str, url: str) -> Answer:
        """Answer one request to an SCM site.

        Args:
            call: The request.
            name: The app's name.
            path: Its path on the SCM site's own host.
            url: Address of the SCM site.
        """
        try:
            return self._answer(call, name, path, url)
        except ServiceError as error:
            return format_error(error)

    def _answer(self, call: Call, name: str, path: str, url: str) -> Answer:
        principal = self._principals.read(call.headers.get("Authorization", ""))
        site = next((one for one in self._resources.of_kind(SITES) if one.name.lower() == name.lower()), None)
        if site is None:
            raise ServiceError(404, "NotFound", f"There is no app named '{name}'.")
        self._roles.demand(principal, "Microsoft.Web/sites/publish/Action", site.path)
        fault = self._faults.take(call.method, call.path)
        if fault is not None and not fault.late:
            raise fault.error()
        answer = self._do(call, site, path.rstrip("/"), url, principal.client_id)
        if fault is not None:
            raise fault.error()
        return answer

    def _do(self, call: Call, site: Resource, path: str, url: str, author: str) -> Answer:
        deployments: list[Deployment] = site.hidden.setdefault("deployments", [])
        if path == "/api/publish" and call.method == "POST":
            return self._publish(call, site, deployments, author)
        if call.method != "GET" or not path.startswith("/api/deployments"):
            raise ServiceError(404, "NotFound", f"The emulator's SCM sites have no '{call.method} {path}'.")
        active = next((one for one in reversed(deployments) if one.status == SUCCESS), None)
        if path == "/api/deployments":
            return json_answer(200, [one.show(active=one is active, url=url) for one in reversed(deployments)])
        identifier, _, part = path.removeprefix("/api/deployments/").partition("/")
        found = next((one for one in reversed(deployments) if identifier in {"latest", one.identifier}), None)
        if found is None:
            return Answer(404)
        if part == "log":
            return json_answer(200, [{"log_time": _stamp(found.received), "message": line} for line in found.log])
        return json_answer(200 if found.ended else 202, found.show(active=found is active, url=url))

    def _publish(self, call: Call, site: Resource, deployments: list[Deployment], author: str) -> Answer:
        if not call.headers.get("Content-Type", "").startswith(("application/zip", "application/octet-stream")):
            raise ServiceError(415, "UnsupportedMediaType", "A package is published as application/zip.")
        if call.query.get("RemoteBuild", "false").lower() == "true":
            message = "The emulator does not build: publish with RemoteBuild=false what was built for the app's Python."
            raise ServiceError(400, "NotSupportedByEmulator", message)
        if any(not one.ended for one in deployments):
            raise ServiceError(409, "Conflict", "Another deployment is in progress. Please try again later.")
        made = Deployment(site=site.name, deployer=call.query.get("Deployer", ""), author=author)
        deployments.append(made)
        fault = self._faults.take(call.method, call.path, "deployment")
        task = asyncio.get_running_loop().create_task(
            self._deploy(made, site, call.body, fault.message if fault else "")
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return json_answer(202, made.identifier)

    async def close(self) -> None:
        """Give up on deployments that are under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deploy(self, deployment: Deployment, site: Resource, data: bytes, failure: str) -> None:
        try:
            await asyncio.sleep(self._settle_s)
            deployment.status = BUILDING
            if failure:
                raise ValueError(failure)
            deployment.log.append("[PackageZipValidation] starting.")
            root = await asyncio.to_thread(self._unpack, data)
            deployment.log.append(f"[UploadPackageStep] {len(data)} bytes")
            await asyncio.to_thread(self._store, site, data)
            deployment.status = DEPLOYING
            await asyncio.sleep(self._settle_s)
            why = await self._activate(site, root)
            if why:
                deployment.log.append(f"[StartUp] {why}")
                if not self._platform.limits.broken_publish_succeeds:
                    raise ValueError(why)
            deployment.status, deployment.text = SUCCESS, ""
            deployment.log.append("Deployment was successful.")
        except Exception as error:  # whatever it is, a deployment has an end
            deployment.status, deployment.text = FAILED, f"Deployment failed: {error}"
            deployment.log.append(deployment.text)
        finally:
            deployment.ended = time.time()

    def _unpack(self, data: bytes) -> Path:
        """Unpack a package once, whichever apps run it, and look at it: apps only read theirs.

        Raises:
            ValueError: It is no archive, or none of an app.
        """
        root = self._directory / "wwwroot" / hashlib.sha256(data).hexdigest()
        if root.is_dir():
            return root
        making = root.with_name(f".{os.urandom(8).hex()}")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if "host.json" not in archive.namelist():
                    raise ValueError("[PackageZipValidation] host.json was not found at the root of the package.")
                read_host_json(archive.read("host.json"))
                for member in archive.infolist():
                    _extract(archive, member, making)
            with contextlib.suppress(OSError):  # another deployment of the same was faster
                making.rename(root)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"[PackageZipValidation] the package is not a valid zip archive: {error}") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return root

    def _tidy(self) -> None:
        """Delete what no app runs and none ran lately: instances that still finish what they do may read theirs."""
        used = {Path(one.hidden["root"]) for one in self._resources.of_kind(SITES) if "root" in one.hidden}
        for root in [one for one in (self._directory / "wwwroot").iterdir() if not one.name.startswith(".")]:
            if root not in used and root not in self._recent:
                shutil.rmtree(root, ignore_errors=True)

    def _store(self, site: Resource, data: bytes) -> None:
        """Keep a package in the deployment container, with the app's own means.

        Raises:
            ValueError: The app cannot reach the container.
        """
        from azure.core.exceptions import AzureError
        from azure.storage.blob import BlobServiceClient

        storage = site.properties["functionAppConfig"]["deployment"]["storage"]
        path = urlsplit(storage["value"]).path.strip("/")
        account, _, container = path.partition("/")
        if account not in self._azurite.accounts:
            raise ValueError(f"[StorageAccessibleCheck] the storage account of '{storage['value']}' does not exist.")
        connection = self._connection(site, storage["authentication"], account)
        try:
            with BlobServiceClient.from_connection_string(connection, retry_total=0) as client:
                client.get_blob_client(container, RELEASED).upload_blob(data, overwrite=True)
        except (AzureError, ValueError) as error:
            raise ValueError(
                f"[StorageAccessibleCheck] the package cannot be written to '{storage['value']}': {error}"
            ) from error

    def _connection(self, site: Resource, authentication: dict[str, Any], account: str) -> str:
        if authentication["type"] == "StorageAccountConnectionString":
            name = authentication["storageAccountConnectionStringName"]
            found = site.hidden["settings"].get(name)
            if not found:
                raise ValueError(f"[StorageAccessibleCheck] there is no app setting '{name}' with a connection string.")
            return str(found)
        identity = site.more.get("identity") or {}
        if authentication["type"] == "SystemAssignedIdentity":
            holder = identity.get("principalId")
        else:
            users = {path.lower(): one for path, one in (identity.get("userAssignedIdentities") or {}).items()}
            holder = (users.get(str(authentication["userAssignedIdentityResourceId"]).lower()) or {}).get("principalId")
        principal = self._principals.find(str(holder))
        resource = next(one for one in self._resources if one.name == account and one.kind.endswith("storageAccounts"))
        if principal is None or not self._roles.allow(principal, _WRITE, resource.path, data=True):
            who = f"'{holder}'" if holder else f"({authentication['type']}), which the app does not have,"
            raise ValueError(f"[StorageAccessibleCheck] the identity {who} may not write blobs of '{account}' (403).")
        return self._azurite.connection_string(account)

    async def _activate(self, site: Resource, root: Path) -> str:
        """Start what was published; returns why it does not start, or nothing."""
        hosting = self._platform.find(site.name)
        if hosting is None:
            raise ValueError("the app was deleted meanwhile")
        async with hosting.changing:
            before = site.hidden.get("root")
            site.hidden["root"] = str(root)
            self._recent.append(root)
            recipe = await asyncio.to_thread(self._platform.recipe, site)
            keep = not self._platform.limits.broken_publish_succeeds
            why = await hosting.app.update(recipe, keep_on_failure=keep)
            if why and hosting.app.rolling and keep and before is not None:
                site.hidden["root"] = before
                return why
        await asyncio.to_thread(self._tidy)
        self._platform.read_host_json(site, hosting)
        generation = hosting.app.current
        site.hidden["functions"] = generation.instances[0].functions if generation and generation.instances else []
        return why


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, root: Path) -> None:
    """Unpack one member with the mode that the archive gives it; links out of the package are refused."""
    mode = member.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise ValueError(f"[PackageZipValidation] {member.filename} is a link")
    path = Path(archive.extract(member, root))
    if not member.is_dir() and mode:
        path.chmod(stat.S_IMODE(mode) | stat.S_IRUSR)


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e7):07d}Z"
