"""The HTTP front of the Functions host: routes, keys, limits, and the statuses it answers with by itself.

Sources: "Azure Functions HTTP trigger" (limits, keys), "Azure Functions hosting options" (230 s), read 2026-11-21. The host
itself is not to be had for loopback, so its own answers are as true as they are written down here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_azure.emulator.fleet import App, NotRunning
from polyserve_azure.emulator.instances import Instance, Reply
from polyserve_azure.emulator.limits import Limits
from polyserve_azure.emulator.routes import Route, find_route, make_routes

TARGET_LIMIT = 8192
"""Longest path and query: Kestrel's limit of a request line."""
HOMEPAGE = b"<!DOCTYPE html><html><body><h1>Your Azure Function App is up and running.</h1></body></html>"
_DROPPED = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"})


@dataclass(slots=True)
class Keys:
    """The keys of an app's host."""

    master: str = field(default_factory=lambda: secrets.token_urlsafe(40))
    functions: dict[str, str] = field(default_factory=lambda: {"default": secrets.token_urlsafe(40)})

    def open(self, level: str, given: str) -> bool:
        """Whether a key opens a function of this level."""
        accepted = [self.master, *(self.functions.values() if level == "function" else ())]
        return level == "anonymous" or any(hmac.compare_digest(key.encode(), given.encode()) for key in accepted)


@dataclass(slots=True, eq=False)
class Hosting:
    """What runs for a site.

    Attributes:
        name: The site's name.
        app: Its instances.
        keys: Its keys.
        prefix: The route prefix of `host.json`.
        function_timeout_s: Its `functionTimeout`; `None` for the plan's own, which no HTTP request lives to see.
        homepage: Whether the root answers with the host's own page.
        callers: Checks a bearer token where the site wants one (App Service authentication); `None` where it does not.
        changing: Held while what runs is replaced: a setting and a package may be changed at once, and the last one counts.
    """

    name: str
    app: App
    keys: Keys = field(default_factory=Keys)
    prefix: str = "api"
    function_timeout_s: float | None = None
    homepage: bool = True
    callers: Callable[[str], bool] | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    routes: dict[Instance, list[Route]] = field(default_factory=dict)


class Front:
    """Answers the requests to apps.

    Args:
        limits: What is allowed.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def answer(self, hosting: Hosting, call: Call, path: str) -> Answer:
        """Answer one request.

        Args:
            hosting: The app.
            call: The request.
            path: Its path on the app's own host, as it was sent.
        """
        refusal = self._refuse(hosting, call, path)
        if refusal is not None:
            return refusal
        try:
            async with asyncio.timeout(self._limits.response_s):
                return await self._through_instance(hosting, call, path)
        except TimeoutError:
            return _page(504, "504.0 GatewayTimeout")

    def _refuse(self, hosting: Hosting, call: Call, path: str) -> Answer | None:
        """Answer what no instance gets to see."""
        allowed = hosting.callers is None or hosting.callers(call.headers.get("Authorization", ""))
        refused = Answer(401, {"www-authenticate": f'Bearer realm="{hosting.name}.azurewebsites.net"'})
        for holds, answer in (
            (hosting.app.stopped, _page(403, "Error 403 - This web app is stopped.")),
            (len(path) + len(call.raw_query) > TARGET_LIMIT, Answer(414)),
            (len(call.body) > self._limits.request_bytes, Answer(413)),
            (not allowed, refused),
            (path == "/" and hosting.homepage, Answer(200, {"content-type": "text/html"}, HOMEPAGE)),
        ):
            if holds:
                return answer
        return None

    async def _through_instance(self, hosting: Hosting, call: Call, path: str) -> Answer:
        try:
            instance = await hosting.app.acquire()
        except NotRunning:
            return _not_running(hosting)
        try:
            return await self._route(hosting, instance, call, path)
        finally:
            hosting.app.release(instance)

    async def _route(self, hosting: Hosting, instance: Instance, call: Call, path: str) -> Answer:
        given = call.headers.get("x-functions-key") or call.query.get("code", "")
        if path.startswith("/admin/"):
            return _administer(hosting, call, path, given)
        inner = path.lstrip("/")
        if hosting.prefix:
            first, _, inner = inner.partition("/")
            if first.lower() != hosting.prefix.lower():
                return Answer(404)
        found = find_route(_routes(hosting, instance), call.method, inner)
        if found is None:
            return Answer(404)
        route, values = found
        if not hosting.keys.open(route.level, given):
            return Answer(401)
        reply = await self._invoke(hosting, instance, route, _header(hosting, route, call, path, values), call.body)
        if reply.error:
            return Answer(502 if instance.retired else 500)
        headers = {name: value for name, value in reply.headers.items() if name.lower() not in _DROPPED}
        if reply.cookies:
            headers["set-cookie"] = "\n".join(reply.cookies)
        return Answer(reply.status, headers, reply.body)

    async def _invoke(
        self, hosting: Hosting, instance: Instance, route: Route, header: Mapping[str, Any], body: bytes
    ) -> Reply:
        try:
            async with asyncio.timeout(hosting.function_timeout_s):
                return await instance.invoke(route.function, header, body)
        except TimeoutError:
            # The host cannot stop a function that takes too long, so it ends the whole worker.
            await instance.stop()
            return Reply(error=f"Timeout value of {hosting.function_timeout_s} s exceeded by {route.function.name}")


def _header(hosting: Hosting, route: Route, call: Call, path: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Return a request as the host hands it over; its address is the one that the app has on Azure."""
    query = f"?{call.raw_query}" if call.raw_query else ""
    return {
        "binding": route.binding,
        "method": call.method,
        "url": f"https://{hosting.name}.azurewebsites.net{path}{query}",
        "headers": _merge(call),
        "query": dict(parse_qsl(call.raw_query, keep_blank_values=True)),
        "params": dict(values),
    }


def _routes(hosting: Hosting, instance: Instance) -> list[Route]:
    found = hosting.routes.get(instance)
    if found is None:
        for gone in [one for one in hosting.routes if not one.alive]:
            del hosting.routes[gone]
        found = hosting.routes[instance] = make_routes(instance.functions)
    return found


def _merge(call: Call) -> dict[str, str]:
    """Return one value for each header name, as the host hands them over."""
    merged: dict[str, str] = {}
    for name, value in call.headers.items():
        key = next((one for one in merged if one.lower() == name.lower()), name) if name not in merged else name
        merged[key] = f"{merged[key]}, {value}" if key in merged else value
    return merged


def _not_running(hosting: Hosting) -> Answer:
    generation = hosting.app.current
    if generation is None:
        return _page(404, "This Azure Function App has no content yet.")
    if generation.indexed:
        return Answer(404)  # the host runs, and has found no function in the app
    return Answer(503, {"content-type": "text/plain"}, b"Function host is not running.")


def _administer(hosting: Hosting, call: Call, path: str, given: str) -> Answer:
    if not hosting.keys.open("admin", given):
        return Answer(401)
    if path == "/admin/host/status" and call.method == "GET":
        state = {
            "id": hosting.name,
            "state": "Running",
            "version": "4.1042.0",
            "processUptime": int(time.monotonic() * 1000),
        }
        return json_answer(200, state)
    if path == "/admin/host/ping":
        return Answer(200)
    return Answer(404)


def _page(status: int, text: str) -> Answer:
    return Answer(
        status, {"content-type": "text/html"}, f"<!DOCTYPE html><html><body><h1>{text}</h1></body></html>".encode()
    )


def read_timeout(text: object) -> float | None:
    """Return a `functionTimeout` of `host.json` in seconds; `None` for none, or for no limit."""
    if not isinstance(text, str) or text == "-1":
        return None
    days, _, clock = text.rpartition(".") if text.count(":") == 2 and "." in text.partition(":")[0] else ("", "", text)
    hours, minutes, seconds = clock.split(":")
    return int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def read_host_json(data: bytes) -> dict[str, object]:
    """Return `host.json` as an object.

    Raises:
        ValueError: It is none.
    """
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("host.json is no object")
    return found
