"""What belongs to a function app: its settings, its keys, its functions, and starting and stopping it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError
from polyserve_azure.emulator.front import Hosting
from polyserve_azure.emulator.plans import SITES as KIND
from polyserve_azure.emulator.resources import Resource
from polyserve_azure.emulator.siterules import check_settings


class SiteSettings:
    """The operations below a function app.

    Args:
        found: Returns the app that a call is about.
        changed: Called when something that instances are started from has changed.
        restarted: Called when they are to be started anew without that.
    """

    def __init__(
        self,
        found: Callable[[Ask], Resource],
        changed: Callable[[Resource], Awaitable[None]],
        restarted: Callable[[Resource], Awaitable[None]],
    ) -> None:
        self._found, self._changed, self._restarted = found, changed, restarted

    def table(self) -> Table:
        """Return the operations."""
        low = KIND.lower()
        return {
            ("PUT", f"{low}/config", True): Operation(f"{KIND}/config/Write", self.put_config),
            ("GET", f"{low}/config", True): Operation(f"{KIND}/config/Read", self.get_config),
            ("POST", f"{low}/config/list", False): Operation(f"{KIND}/config/list/Action", self.list_config),
            ("POST", f"{low}/host/listkeys", False): Operation(f"{KIND}/host/listkeys/action", self.list_keys),
            ("PUT", f"{low}/host/functionkeys", True): Operation(f"{KIND}/host/functionkeys/write", self.put_key),
            ("DELETE", f"{low}/host/functionkeys", True): Operation(
                f"{KIND}/host/functionkeys/delete", self.delete_key
            ),
            ("GET", f"{low}/functions", False): Operation(f"{KIND}/functions/Read", self.list_functions),
            ("POST", f"{low}/host/sync", False): Operation(f"{KIND}/host/sync/action", self.sync),
            ("POST", f"{low}/syncfunctiontriggers", False): Operation(f"{KIND}/syncfunctiontriggers/action", self.sync),
            ("POST", f"{low}/restart", False): Operation(f"{KIND}/restart/Action", self.restart),
            ("POST", f"{low}/stop", False): Operation(f"{KIND}/stop/Action", self.stop),
            ("POST", f"{low}/start", False): Operation(f"{KIND}/start/Action", self.start),
        }

    async def put_config(self, ask: Ask) -> Answer:
        """Replace the app settings, or the rules for callers; the app starts anew with them."""
        site, name, given = self._found(ask), ask.target.names[-1].lower(), dict(ask.body.get("properties") or {})
        if name == "appsettings":
            settings = {key: str(value) for key, value in given.items()}
            check_settings(settings)
            site.hidden["settings"] = settings
        elif name == "authsettingsv2":
            site.hidden["authentication"] = given
        else:
            raise _unknown(name)
        site.modified()
        await self._changed(site)
        return json_answer(200, _shown(site, name, given))

    async def get_config(self, ask: Ask) -> Answer:
        """Return the rules for callers, or the site's own configuration; app settings are not to be read this way."""
        site, name = self._found(ask), ask.target.names[-1].lower()
        if name == "authsettingsv2":
            return json_answer(200, _shown(site, name, site.hidden.get("authentication", {})))
        if name == "web":
            return json_answer(200, _shown(site, name, site.properties["siteConfig"]))
        raise _unknown(name)

    async def list_config(self, ask: Ask) -> Answer:
        """Return the app settings."""
        site, name = self._found(ask), ask.target.names[-1].lower()
        if name == "appsettings":
            return json_answer(200, _shown(site, name, site.hidden["settings"]))
        if name == "authsettingsv2":
            return json_answer(200, _shown(site, name, site.hidden.get("authentication", {})))
        raise _unknown(name)

    async def list_keys(self, ask: Ask) -> Answer:
        """Return the keys of an app's host."""
        keys = self._hosting(ask).keys
        return json_answer(200, {"masterKey": keys.master, "functionKeys": dict(keys.functions), "systemKeys": {}})

    async def put_key(self, ask: Ask) -> Answer:
        """Set a key of an app's host, or have a new one made."""
        keys, name = self._hosting(ask).keys, ask.target.names[-1]
        fresh = name not in keys.functions
        value = (ask.body.get("properties") or ask.body).get("value") or secrets.token_urlsafe(40)
        keys.functions[name] = str(value)
        body = {"id": ask.target.path, "name": name, "properties": {"name": name, "value": value}}
        return json_answer(201 if fresh else 200, body)

    async def delete_key(self, ask: Ask) -> Answer:
        """Delete a key of an app's host."""
        gone = self._hosting(ask).keys.functions.pop(ask.target.names[-1], None)
        return Answer(204 if gone else 404)

    async def list_functions(self, ask: Ask) -> Answer:
        """List the functions that were found in what was published; none in what does not start."""
        site = self._found(ask)
        shown = []
        for function in site.hidden.get("functions", ()):
            properties: dict[str, Any] = {
                "name": function.name,
                "language": "python",
                "isDisabled": False,
                "config": {"bindings": list(function.bindings)},
                "invoke_url_template": f"https://{site.name}.azurewebsites.net/",
            }
            shown.append(
                {
                    "id": f"{site.path}/functions/{function.name}",
                    "name": f"{site.name}/{function.name}",
                    "type": f"{KIND}/functions",
                    "properties": properties,
                }
            )
        return ask.paged(shown)

    async def sync(self, ask: Ask) -> Answer:
        """Have the triggers read again, which is always done here."""
        self._found(ask)
        return Answer(204)

    async def restart(self, ask: Ask) -> Answer:
        """Start an app's instances anew."""
        await self._restarted(self._found(ask))
        return Answer(200)

    async def stop(self, ask: Ask) -> Answer:
        """Stop an app: its requests are refused."""
        site = self._found(ask)
        site.properties["state"] = "Stopped"
        await self._hosting(ask).app.halt()
        return Answer(200)

    async def start(self, ask: Ask) -> Answer:
        """Start an app that was stopped."""
        site = self._found(ask)
        site.properties["state"] = "Running"
        self._hosting(ask).app.stopped = False
        return Answer(200)

    def _hosting(self, ask: Ask) -> Hosting:
        hosting = self._found(ask).hidden.get("hosting")
        if not isinstance(hosting, Hosting):
            # Real apps take a moment as well until their host has keys.
            raise ServiceError(400, "BadRequest", "Encountered an error (ServiceUnavailable) from host runtime.")
        return hosting


def _shown(site: Resource, name: str, properties: Any) -> dict[str, Any]:
    return {
        "id": f"{site.path}/config/{name}",
        "name": name,
        "type": f"{KIND}/config",
        "location": site.location,
        "properties": properties,
    }


def _unknown(name: str) -> ServiceError:
    return ServiceError(404, "NotFound", f"The emulator has no configuration named '{name}'.")
