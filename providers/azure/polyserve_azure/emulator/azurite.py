"""Blob Storage: Azurite, as a process of the emulator's own, with accounts that come and go.

Azurite reads its accounts from a variable when it starts. Storage accounts are made and deleted while it runs and their
keys change, so a few lines run inside of it which take the accounts from its standard input, and put the place of theirs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from polyserve.emulation.lifeline import life_line
from polyserve_azure.emulator.installing import find_node, install_azurite

START_PATIENCE_S = 30.0
HOOK = Path(__file__).with_name("azurite_accounts.js")


@dataclass(slots=True)
class Account:
    """A storage account and its two keys."""

    name: str
    keys: list[str] = field(default_factory=lambda: [_new_key(), _new_key()])

    def renew(self, number: int) -> None:
        """Make one of the keys anew."""
        self.keys[number] = _new_key()


class Azurite:
    """The process of Azurite.

    Args:
        directory: Where it writes its log.
    """

    def __init__(self, directory: Path) -> None:
        self.url = ""
        self.accounts: dict[str, Account] = {}
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._taking = asyncio.Lock()

    async def start(self) -> None:
        """Start it; returns when it listens.

        Raises:
            OSError: It cannot be installed or does not start.
        """
        program = await asyncio.to_thread(install_azurite)
        self._directory.mkdir(parents=True, exist_ok=True)
        # It is driven by the threads of node alone, and ends with this process.
        with (self._directory / "azurite.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *life_line(), find_node(), "-r", str(HOOK), str(program), "--blobHost", "127.0.0.1", "--blobPort", "0",
                "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--disableProductStyleUrl",
                cwd=self._directory, env={**os.environ, "NODE_OPTIONS": "", "AZURITE_ACCOUNTS": f"unused:{_new_key()}"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            line = await asyncio.wait_for(self._await_line("successfully listens on "), START_PATIENCE_S)
        except TimeoutError:
            raise OSError(f"Azurite does not answer; its log is {self._directory / 'azurite.log'}") from None
        self.url = line.rpartition(" ")[2].rstrip("/")

    async def add(self, name: str) -> Account:
        """Make an account; returns when its keys are good."""
        account = self.accounts[name] = Account(name)
        await self.tell()
        return account

    async def remove(self, name: str) -> None:
        """Delete an account and what is in it."""
        account = self.accounts.get(name)
        if account is None:
            return
        await asyncio.to_thread(self._empty, account)
        del self.accounts[name]
        await self.tell()

    async def tell(self) -> None:
        """Have Azurite know the accounts and keys that there are now."""
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._taking:
            known = {one.name: one.keys for one in self.accounts.values()}
            self._process.stdin.write(json.dumps(known).encode() + b"\n")
            await self._process.stdin.drain()
            await self._await_line("accounts are")

    def endpoint(self, account: str) -> str:
        """Return the address of an account, with a slash at its end as Azure has it."""
        return f"{self.url}/{account}/"

    def connection_string(self, account: str) -> str:
        """Return a connection string with the first key."""
        key = self.accounts[account].keys[0]
        return (
            f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={self.url}/{account};"
        )

    async def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Its log of requests may have filled the pipe; until that is read, asyncio does not see that the process is gone.
        await self._process.communicate()

    async def _await_line(self, text: str) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            line = (await self._process.stdout.readline()).decode()
            if not line:
                raise OSError(f"Azurite ended: {(self._directory / 'azurite.log').read_text(errors='replace')[-600:]}")
            if text in line:
                return line.strip()

    def _empty(self, account: Account) -> None:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.connection_string(account.name)) as client:
            for container in client.list_containers():
                client.delete_container(container.name)


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(64)).decode()
