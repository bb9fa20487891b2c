"""The front of a service: who may call it, which revision answers, and the statuses that Cloud Run answers with by itself.

Sources: "Authenticate service-to-service", "About instance autoscaling", "Quotas and limits", "Troubleshoot Cloud Run issues"
and "Memory limits", read 2026-11-21. The real front is Google's; its own answers are as true as they are written down here.
"""

from __future__ import annotations

import asyncio
import io
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from yarl import URL

from polyserve.emulation.http import Answer, Call, Listener
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.fleet import Fleet, NoInstance, NotRunning
from polyserve_gcp.emulator.instances import Instance
from polyserve_gcp.emulator.limits import Limits

KEEP_ALIVE_S = 1.0
"""How long a connection to an instance is used again: gunicorn closes its own after two seconds."""
PIECE = 2**20
"""Largest body that is handed on in one piece."""
TRIES = 3
"""How many instances a request is offered to that cannot be reached."""
INVOKE = "run.routes.invoke"
REMOVED = "SIGNATURE_REMOVED_BY_GOOGLE"
_HOP = frozenset({
    "connection", "content-length", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_BROKEN = (
    "The request failed because either the HTTP response was malformed or connection to the instance had an error."
)
_MEMORY = "Memory limit of {:.0f} MiB exceeded with {:.0f} MiB used. Consider increasing the memory limit, see https://cloud.google.com/run/docs/configuring/memory-limits"
_FULL = "The request was aborted because there was no available instance."
_LATE = "The request has been terminated because it has reached the maximum request timeout. To change this limit, see https://cloud.google.com/run/docs/configuring/request-timeout"


@dataclass(slots=True, eq=False, kw_only=True)
class Runner:
    """One revision, as the front sees it.

    Attributes:
        name: The revision's name.
        fleet: Its instances.
        timeout_s: How long it may take to answer, in seconds.
    """

    name: str
    fleet: Fleet
    timeout_s: float


@dataclass(slots=True, eq=False, kw_only=True)
class Routes:
    """How a service's requests are answered now; what the service's owner changes, and the front reads.

    Attributes:
        resource: The service's name, `projects/p/locations/l/services/s`.
        weights: Revisions and their parts of 100.
        tags: Revisions by their tags.
        audiences: What an ID token for the service may name, beside the service's address.
        public: Whether anybody may call it, whatever its policy.
        internal: Whether nobody may from outside of the project's networks.
    """

    resource: str
    weights: Sequence[tuple[Runner, int]] = ()
    tags: Mapping[str, Runner] = field(default_factory=dict)
    audiences: Sequence[str] = ()
    public: bool = False
    internal: bool = False


Requests = Callable[[str, str, dict[str, Any], str], None]
"""Takes the log of a request: the revision, the instance, `httpRequest`, and what went wrong."""


class Front:
    """The addresses of one service: its own, and one for each tag.

    Args:
        routes: How its requests are answered.
        access: Who may call.
        limits: What is allowed.
        client: Calls instances.
        log: Takes the log of each request.

    Attributes:
        url: Address of the service, once it is open.
    """

    def __init__(
        self, routes: Routes, access: Access, limits: Limits, client: aiohttp.ClientSession, log: Requests
    ) -> None:
        self.routes, self.url = routes, ""
        self._access, self._limits, self._client, self._log = access, limits, client, log
        self._listeners: dict[str, tuple[Listener, str]] = {}

    async def open(self) -> None:
        """Open the service's own address."""
        self.url = await self.open_tag("")

    async def open_tag(self, tag: str) -> str:
        """Return the address of a tag, opened on first use: loopback has no names to tell tags apart by."""
        if tag not in self._listeners:

            async def answer(call: Call) -> Answer:
                return await self._answer(call, tag)

            listener = Listener(answer)
            self._listeners[tag] = (listener, f"http://127.0.0.1:{await listener.open()}")
        return self._listeners[tag][1]

    async def close(self) -> None:
        """Close all addresses."""
        listeners, self._listeners = self._listeners, {}
        await asyncio.gather(*(listener.close() for listener, _ in listeners.values()))

    async def _answer(self, call: Call, tag: str) -> Answer:
        refusal = self._refuse(call)
        if refusal is not None:
            return refusal
        runner = self.routes.tags.get(tag) if tag else self._pick()
        if runner is None:
            return _page(404, "Page not found", "The requested URL was not found on this server.")
        begun = time.monotonic()
        answer, why, instance = await self._through(runner, call)
        size = len(answer.body) if answer.stream is None else 0
        request = {
            "requestMethod": call.method, "requestUrl": f"{self.url}{call.target}", "requestSize": str(len(call.body)),
            "status": answer.status, "responseSize": str(size), "userAgent": call.headers.get("User-Agent", ""),
            "remoteIp": call.peer, "latency": f"{time.monotonic() - begun:.9f}s", "protocol": "HTTP/1.1",
        }  # fmt: skip
        self._log(runner.name, instance, request, why)
        return answer

    def _refuse(self, call: Call) -> Answer | None:
        """Answer what no instance gets to see."""
        routes = self.routes
        if routes.internal:
            return _page(404, "Page not found", "The requested URL was not found on this server.")
        if len(call.body) > self._limits.request_bytes:
            return _page(413, "Request Entity Too Large", "Your client issued a request that was too large.")
        if routes.public or self._access.allows(None, INVOKE, routes.resource):
            return None
        given = call.headers.get("X-Serverless-Authorization") or call.headers.get("Authorization")
        if not given:
            return _forbidden(call)
        accepted = [self.url, f"{self.url}/", *routes.audiences]
        try:
            principal = self._access.identities.read_id_token(given, accepted)
        except ValueError as error:
            challenge = 'Bearer error="invalid_token" error_description="The access token could not be verified"'
            page = _page(401, "Unauthorized", f"Your client does not have permission to the requested URL. ({error})")
            return Answer(401, {**page.headers, "www-authenticate": challenge}, page.body)
        return None if self._access.allows(principal, INVOKE, routes.resource) else _forbidden(call)

    def _pick(self) -> Runner | None:
        wanted = random.random() * 100  # noqa: S311 - which revision answers is no secret
        for runner, weight in self.routes.weights:
            wanted -= weight
            if wanted < 0:
                return runner
        return None

    async def _through(self, runner: Runner, call: Call) -> tuple[Answer, str, str]:
        """Have a revision answer; returns the answer, what went wrong, and which instance it was."""
        for _ in range(TRIES):
            try:
                async with asyncio.timeout(runner.timeout_s):
                    instance = await runner.fleet.acquire()
            except NotRunning:
                break
            except NoInstance:
                return _text(429, "Rate exceeded."), _FULL, ""
            except TimeoutError:
                return _text(504, "upstream request timeout"), _LATE, ""
            release = partial(runner.fleet.release, instance)
            streaming = False
            try:
                answer, why = await self._forward(runner, instance, call, release)
                streaming = answer.stream is not None
            except aiohttp.ClientConnectorError:
                # It has heard nothing of the request, which another one can answer.
                await instance.ending()
                continue
            finally:
                if not streaming:
                    release()
            return answer, why, instance.identifier
        return _text(503, "Service Unavailable"), _BROKEN, ""

    async def _forward(
        self, runner: Runner, instance: Instance, call: Call, release: Callable[[], None]
    ) -> tuple[Answer, str]:
        timeout = aiohttp.ClientTimeout(total=runner.timeout_s)
        try:
            response = await self._client.request(
                call.method, URL(f"{instance.url}{call.target}", encoded=True), data=_body(call.body), headers=_onward(call),
                timeout=timeout, allow_redirects=False, skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )  # fmt: skip
            headers = _back(response)
            length = response.content_length
            if length is None and response.headers.get("Transfer-Encoding") and call.method != "HEAD":
                return Answer(response.status, headers, stream=_Pieces(response, release)), ""
            async with response:
                body = await response.read()
        except TimeoutError:
            return _text(504, "upstream request timeout"), _LATE
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientError, OSError):
            await instance.ending()
            if instance.over_memory_mb:
                limit = instance.recipe.memory_mb
                return _text(500, "Internal Server Error"), _MEMORY.format(limit, instance.over_memory_mb)
            return _text(503, "Service Unavailable"), _BROKEN
        if len(body) > self._limits.response_bytes:
            return _text(
                500, "Internal Server Error"
            ), "Response size was too large. Please consider reducing response size."
        return Answer(response.status, headers, body), ""


class _Pieces:
    """A response piece by piece; its instance is given back when it ends, however that happens."""

    def __init__(self, response: aiohttp.ClientResponse, release: Callable[[], None]) -> None:
        self._response: aiohttp.ClientResponse | None = response
        self._release = release

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        if self._response is None:
            raise StopAsyncIteration
        try:
            piece = await self._response.content.readany()
        except BaseException:
            self._end()
            raise
        if not piece:
            self._end()
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End it where its reader has gone: that reads nothing, not even to an error."""
        self._end()

    def _end(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()
            self._release()


def _body(body: bytes) -> bytes | io.BytesIO | None:
    """Return a body as aiohttp takes it: a large one in pieces, so that the loop goes on meanwhile."""
    return io.BytesIO(body) if len(body) > PIECE else body or None


def _onward(call: Call) -> list[tuple[str, str]]:
    """Return the header fields of a request as Cloud Run hands them on."""
    trace, span = secrets.token_hex(16), secrets.randbits(63)
    found = [(name, value) for name, value in call.headers.items() if name.lower() not in _HOP]
    # An identity that the front has checked goes on without what would let the service be the caller elsewhere.
    found = [(name, _unsigned(value) if name.lower().endswith("authorization") else value) for name, value in found]
    added = (
        ("X-Forwarded-For", call.peer), ("X-Forwarded-Proto", "https"), ("Forwarded", f'for="{call.peer}";proto=https'),
        ("X-Cloud-Trace-Context", f"{trace}/{span}"), ("Traceparent", f"00-{trace}-{span:016x}-00"),
    )  # fmt: skip
    return [*found, *(field for field in added if field[0] not in call.headers)]


def _unsigned(value: str) -> str:
    head, _, signature = value.rpartition(".")
    return f"{head}.{REMOVED}" if head.count(".") == 1 and signature else value


def _back(response: aiohttp.ClientResponse) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in response.headers.items():
        if name.lower() not in _HOP:
            found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def _forbidden(call: Call) -> Answer:
    return _page(
        403,
        "Forbidden",
        f"Your client does not have permission to get URL <code>{call.raw_path}</code> from this server.",
    )


def _text(status: int, text: str) -> Answer:
    return Answer(status, {"content-type": "text/plain"}, text.encode())


def _page(status: int, title: str, text: str) -> Answer:
    page = (
        f"<html><head><title>{status} {title}</title></head><body><h1>Error: {title}</h1><h2>{text}</h2></body></html>"
    )
    return Answer(status, {"content-type": "text/html; charset=UTF-8"}, page.encode())
