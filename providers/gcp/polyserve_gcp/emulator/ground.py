"""The ground that everything else stands on: identities, access and storage, each API behind a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from polyserve.emulation.http import Answer, Call, Handler, Listener
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError, format_error
from polyserve_gcp.emulator.iam import Iam
from polyserve_gcp.emulator.iamcredentials import IamCredentials
from polyserve_gcp.emulator.identities import Identities, Principal
from polyserve_gcp.emulator.metadata import Metadata
from polyserve_gcp.emulator.projects import Projects, Usage
from polyserve_gcp.emulator.storage import Storage
from polyserve_gcp.emulator.tokens import Tokens

PROJECT = "polyserve-emulated"
NUMBER = "100000000001"
REGION = "us-central1"


class Ground:
    """One project, who is in it, and Cloud Storage. It lives in one event loop; the emulator adds the services that run code.

    Args:
        directory: Where everything is kept.

    Attributes:
        identities: Who there is.
        access: Who may do what.
        storage: Cloud Storage.
        metadata: What tells instances who they are.
        deployer: A service account that owns the project; its key file is in `options`.
        endpoints: Address of each API that is served, by its host name: `http://127.0.0.1:PORT`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self.identities = Identities(PROJECT, NUMBER)
        self.access = Access(self.identities)
        self.storage = Storage(self._directory, self.identities, self.access)
        self.metadata = Metadata(self.identities, REGION)
        self.deployer: Principal = self.identities.add_service_account("deployer", display_name="Owns the project")
        self.endpoints: dict[str, str] = {}
        self._listeners: list[Listener] = []
        self.access.grant("roles/owner", self.deployer.member)
        self.access.grant("roles/editor", self.identities.default_account.member)

    async def open(self) -> None:
        """Start fake-gcs-server and serve every API that is here.

        Raises:
            OSError: fake-gcs-server is not installed or does not start.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        await self.storage.start()
        try:
            self.identities.token_uri = (
                await self.serve("oauth2.googleapis.com", Tokens(self.identities).answer) + "/token"
            )
            self.storage.url = await self.serve("storage.googleapis.com", self.storage.answer)
            for service, handler in self._apis().items():
                await self.serve(service, handler)
            # Keys take long to make, and the first call should not.
            content = await asyncio.to_thread(self.identities.add_key, self.deployer)
            await asyncio.to_thread(lambda: self.identities.signer)
        except BaseException:
            await self.close()
            raise
        self.write_key_file("deployer.json", content)

    def _apis(self) -> dict[str, Handler]:
        access = self.access
        return {
            "iam.googleapis.com": Iam(access).answer, "iamcredentials.googleapis.com": IamCredentials(access).answer,
            "cloudresourcemanager.googleapis.com": Projects(access).answer, "serviceusage.googleapis.com": Usage(access).answer,
        }  # fmt: skip

    async def serve(self, service: str, handler: Handler, port: int = 0) -> str:
        """Serve one more API; returns its address, which is in `endpoints` from now on.

        Args:
            service: Its host name, `run.googleapis.com`.
            handler: Answers its calls; a `ServiceError` out of it is written as Google's REST APIs do.
            port: Port on 127.0.0.1; 0 for a free one.
        """

        async def answer(call: Call) -> Answer:
            try:
                return await handler(call)
            except ServiceError as error:
                return format_error(error)

        listener = Listener(answer)
        address = f"http://127.0.0.1:{await listener.open(port)}"
        self._listeners.append(listener)
        self.endpoints[service] = address
        return address

    def write_key_file(self, name: str, content: dict[str, str]) -> Path:
        """Write a key file that its owner alone can read; returns where it is."""
        path = self._directory / name
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file)
        return path

    async def close(self) -> None:
        """Stop serving, and end fake-gcs-server."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        await self.metadata.close()
        await self.storage.close()

    @property
    def options(self) -> dict[str, Any]:
        """The provider's options with which it is reached."""
        return {
            "project": PROJECT, "region": REGION, "credentials_file": str(self._directory / "deployer.json"),
            "endpoints": dict(self.endpoints),
        }  # fmt: skip
