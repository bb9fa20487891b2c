"""The gateway's side of the control interface: JSON over HTTP on loopback, for callers that hold the token.

Knows HTTP and the token; what a verb does is the gateway's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from polyserve.driver import ErrorCode
from polyserve.runtime.messages import HTTP_STATUS
from polyserve_local.errors import GatewayError, classify
from polyserve_local.places import write_atomic

BODY_BYTES = 16 << 20
EXCHANGE_S = 10.0

Act = Callable[[str, Mapping[str, Any]], Awaitable[Any]]


class ControlServer:
    """Answers drivers.

    Args:
        act: Does what a verb says, and returns a JSON value.
        version: Version of polyserve, for drivers to compare.
        answered: Called when a call is over.
    """

    def __init__(self, act: Act, *, version: str, answered: Callable[[], None]) -> None:
        self._act = act
        self._answered = answered
        self._version = version
        self._token = secrets.token_urlsafe(32)
        self._server: asyncio.Server | None = None
        self._calls = 0

    @property
    def busy(self) -> bool:
        """Return whether somebody waits for an answer."""
        return self._calls > 0

    async def start(self, contact: Path) -> None:
        """Listen on a free port of loopback, and write to `contact` how to reach it."""
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0, limit=64 * 1024)
        port = self._server.sockets[0].getsockname()[1]
        fields = {"pid": os.getpid(), "port": port, "token": self._token, "version": self._version}
        write_atomic(contact, json.dumps(fields).encode())

    def close(self, contact: Path) -> None:
        """Stop listening."""
        contact.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._calls += 1
        try:
            async with asyncio.timeout(EXCHANGE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(_header(line) for line in head[1:] if line)
                size = int(headers.get("content-length", "0"))
                if not 0 <= size <= BODY_BYTES:
                    return
                body = await reader.readexactly(size)
            status, answer = await self._answer(head[0], headers, body)
            out = json.dumps(answer).encode()
            start = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\n"
            writer.write(f"{start}content-length: {len(out)}\r\nconnection: close\r\n\r\n".encode() + out)
            await writer.drain()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # Not a driver, or one that went away: there is nobody to tell.
            pass
        finally:
            self._calls -= 1
            self._answered()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, first: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        wanted = f"Bearer {self._token}"
        if not hmac.compare_digest(headers.get("authorization", "").encode(), wanted.encode()):
            return 401, {"error": "the control interface needs its token", "code": ErrorCode.UNAUTHENTICATED.value}
        method, path, _ = first.split(" ")
        if method != "POST":
            return 400, {"error": f"{method} is no verb here", "code": ErrorCode.INVALID_ARGUMENT.value}
        try:
            return 200, await self._act(path[1:], json.loads(body))
        except GatewayError as error:
            return HTTP_STATUS[error.code], _failure(error.code, str(error), error)
        except Exception as error:
            code = classify(error)
            if code is ErrorCode.UNKNOWN:
                traceback.print_exc()
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            named = f"{reason}: {error.filename}" if isinstance(error, OSError) and error.filename else reason
            return HTTP_STATUS[code], _failure(code, named or type(error).__name__, None)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _failure(code: ErrorCode, message: str, error: GatewayError | None) -> dict[str, Any]:
    wait = None if error is None or error.retry_after is None else error.retry_after.total_seconds()
    return {"error": message, "code": code.value, "retry_after_s": wait}
