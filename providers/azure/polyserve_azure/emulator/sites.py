"""Function apps: made, changed, described and deleted as Resource Manager does."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError, bad_request, conflict, missing
from polyserve_azure.emulator.groups import check_location, check_tags
from polyserve_azure.emulator.operations import Operations
from polyserve_azure.emulator.plans import KIND as PLANS
from polyserve_azure.emulator.plans import SITES as KIND
from polyserve_azure.emulator.plans import Plans
from polyserve_azure.emulator.principals import Principals
from polyserve_azure.emulator.resources import Resource, Resources
from polyserve_azure.emulator.roles import Roles
from polyserve_azure.emulator.siterules import check_name, check_settings, complete_config
from polyserve_azure.emulator.sitesettings import SiteSettings

IDENTITIES = "Microsoft.ManagedIdentity/userAssignedIdentities"


class Sites:
    """The operations on function apps.

    Args:
        resources: What there is.
        operations: Where the making of an app runs.
        plans: The plans of the apps.
        principals: Where an app's own identity is.
        roles: Who may do what; an identity's roles go with it.
        changed: Called when something that instances are started from has changed.
        restarted: Called when instances are to be started anew without that.
        removed: Called when an app is gone.
    """

    def __init__(
        self,
        resources: Resources,
        operations: Operations,
        plans: Plans,
        principals: Principals,
        roles: Roles,
        *,
        changed: Callable[[Resource], Awaitable[None]],
        restarted: Callable[[Resource], Awaitable[None]],
        removed: Callable[[Resource], Awaitable[None]],
    ) -> None:
        self._resources, self._operations, self._plans = resources, operations, plans
        self._principals, self._roles = principals, roles
        self._changed, self._restarted, self._removed = changed, restarted, removed

    def table(self) -> Table:
        """Return the operations."""
        low = KIND.lower()
        return {
            ("GET", low, False): Operation(f"{KIND}/Read", self.list_sites),
            ("GET", low, True): Operation(f"{KIND}/Read", self.get),
            ("PUT", low, True): Operation(f"{KIND}/Write", self.put),
            ("PATCH", low, True): Operation(f"{KIND}/Write", self.patch),
            ("DELETE", low, True): Operation(f"{KIND}/Delete", self.delete),
            **SiteSettings(self.found, self._changed, self._restarted).table(),
        }

    async def list_sites(self, ask: Ask) -> Answer:
        """List apps, in a group or the whole subscription."""
        return ask.paged([one.show() for one in self._resources.of_kind(KIND, ask.target.scope)])

    async def get(self, ask: Ask) -> Answer:
        """Describe an app."""
        return json_answer(200, self.found(ask).show())

    async def put(self, ask: Ask) -> Answer:
        """Make an app, or replace what it is configured as."""
        name, body = ask.target.name, ask.body
        check_name(name)
        location, tags, given = check_location(body), check_tags(body), dict(body.get("properties") or {})
        found = self._resources.find(ask.target.path)
        taken = next((one for one in self._resources.of_kind(KIND) if one.name.lower() == name.lower()), None)
        if found is None and taken is not None:
            raise conflict(f"Website with given name {name} already exists.")
        if "functionapp" not in str(body.get("kind", "")) or "linux" not in str(body.get("kind", "")):
            raise bad_request("A Flex Consumption app has kind 'functionapp,linux'.")
        plan = self._check_plan(ask, given, location, found)
        config = complete_config(given.get("functionAppConfig"))
        site_config = dict(given.pop("siteConfig", None) or {})
        settings = site_config.pop("appSettings", None)
        if settings is not None:
            settings = {str(one["name"]): str(one.get("value") or "") for one in settings}
            check_settings(settings)
        made = found or Resource(ask.target.path, name, KIND, ask.target.group, location)
        self._set_identity(ask, made, body.get("identity"))
        made.tags, made.more = tags, {**made.more, "kind": body["kind"]}
        made.properties = given | {
            "functionAppConfig": config,
            "serverFarmId": plan.path,
            "sku": "FlexConsumption",
            "state": made.properties.get("state", "Running"),
            "enabled": True,
            "availabilityState": "Normal",
            "siteConfig": site_config,
            **_hosts(name),
        }
        if settings is not None or found is None:
            made.hidden["settings"] = settings or {}
        self._resources.put(made)
        return self._under_way(ask, made)

    async def patch(self, ask: Ask) -> Answer:
        """Change parts of an app."""
        found, body = self.found(ask), ask.body
        given = dict(body.get("properties") or {})
        if "functionAppConfig" in given:
            found.properties["functionAppConfig"] = complete_config(
                _merged(found.properties["functionAppConfig"], given.pop("functionAppConfig"))
            )
        if "siteConfig" in given:
            found.properties["siteConfig"] = {**found.properties["siteConfig"], **(given.pop("siteConfig") or {})}
        given.pop("serverFarmId", None)
        found.properties |= given
        found.tags = check_tags(body) if "tags" in body else found.tags
        if "identity" in body:
            self._set_identity(ask, found, body["identity"])
        return self._under_way(ask, found)

    def _under_way(self, ask: Ask, site: Resource) -> Answer:
        site.modified()

        async def finish() -> tuple[int, Any]:
            await self._changed(site)
            return 200, site.show()

        headers = self._operations.start(ask.call, ask.target.subscription, finish)
        answer = json_answer(202, site.show())
        return Answer(202, {**answer.headers, **headers}, answer.body)

    async def delete(self, ask: Ask) -> Answer:
        """Delete an app, and its plan unless told otherwise, since no other app can have it."""
        found = self._resources.find(ask.target.path)
        if found is None:
            return Answer(204)
        plan = self._resources.find(str(found.properties["serverFarmId"]))
        await self.remove(found)
        self._resources.remove(found.path)
        if (
            plan is not None
            and ask.call.query.get("deleteEmptyServerFarm", "true").lower() != "false"
            and not self._plans.apps(plan)
        ):
            self._resources.remove(plan.path)
        return Answer(200)

    async def remove(self, site: Resource) -> None:
        """End what runs for an app, and forget its identity."""
        self._forget_identity(site)
        await self._removed(site)

    def found(self, ask: Ask) -> Resource:
        """Return the app that a call is about.

        Raises:
            ServiceError: There is none.
        """
        path = "/".join(ask.target.path.split("/")[:9])
        found = self._resources.find(path)
        if found is None:
            raise missing(KIND, ask.target.name, ask.target.group)
        return found

    def _check_plan(self, ask: Ask, given: dict[str, Any], location: str, found: Resource | None) -> Resource:
        path = str(given.get("serverFarmId") or "")
        plan = self._resources.find(path)
        if plan is None or plan.kind != PLANS:
            message = f"Cannot find serverFarm with name {path.rpartition('/')[2]}."
            raise ServiceError(404, "NotFound", message)
        ask.roles.demand_linked(ask.principal, f"{PLANS}/join/action", ask.target.path, plan.path)
        if plan.location != location:
            raise bad_request(f"The app and its plan have to be in one region: '{location}' is not '{plan.location}'.")
        others = [name for name in self._plans.apps(plan) if found is None or name != found.name]
        if others:
            raise conflict(f"A Flex Consumption plan can have one app only, and '{plan.name}' has '{others[0]}'.")
        return plan

    def _set_identity(self, ask: Ask, site: Resource, given: Any) -> None:
        """Give an app the identities that a body names; the system's own stays the same while it is wanted."""
        wanted = str((given or {}).get("type") or "None")
        system = "SystemAssigned" in wanted
        if not system:
            self._forget_identity(site)
        elif "identity" not in site.hidden:
            site.hidden["identity"] = self._principals.add(site.name).object_id
        users: dict[str, Any] = {}
        if "UserAssigned" in wanted:
            for path in given.get("userAssignedIdentities") or {}:
                identity = self._resources.find(path)
                if identity is None or identity.kind != IDENTITIES:
                    raise ServiceError(400, "FailedIdentityOperation", f"Resource '{path}' was not found.")
                ask.roles.demand_linked(ask.principal, f"{IDENTITIES}/assign/action", site.path, identity.path)
                users[identity.path] = {name: identity.properties[name] for name in ("principalId", "clientId")}
            if not users:
                raise ServiceError(
                    400, "InvalidIdentity", "An identity of type UserAssigned names at least one identity."
                )
        site.more.pop("identity", None)
        if system or users:
            shown: dict[str, Any] = {"type": wanted}
            if system:
                shown |= {"principalId": site.hidden["identity"], "tenantId": self._principals.tenant}
            site.more["identity"] = shown | ({"userAssignedIdentities": users} if users else {})

    def _forget_identity(self, site: Resource) -> None:
        identity = site.hidden.pop("identity", None)
        if identity is not None:
            self._principals.remove(identity)


def _hosts(name: str) -> dict[str, Any]:
    """Return the host names that an app has on Azure; nothing answers to them here."""
    host, repository = f"{name}.azurewebsites.net", f"{name}.scm.azurewebsites.net"
    return {
        "defaultHostName": host,
        "hostNames": [host],
        "enabledHostNames": [host, repository],
        "hostNameSslStates": [{"name": host, "hostType": "Standard"}, {"name": repository, "hostType": "Repository"}],
        "repositorySiteName": name,
        "customDomainVerificationId": uuid.uuid5(uuid.NAMESPACE_DNS, host).hex.upper(),
    }


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in (new or {}).items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
