"""App Service plans, of the one kind that is emulated: Flex Consumption."""

from __future__ import annotations

import re
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError, bad_request, conflict, missing
from polyserve_azure.emulator.groups import check_location, check_tags
from polyserve_azure.emulator.operations import Operations
from polyserve_azure.emulator.resources import Resource, Resources
from polyserve_azure.emulator.stacks import WITHOUT_FLEX

KIND = "Microsoft.Web/serverFarms"
SITES = "Microsoft.Web/sites"
_NAME = re.compile(r"[\w-]{1,60}", re.ASCII)


class Plans:
    """The operations on plans.

    Args:
        resources: What there is.
        operations: Where the making of a plan runs.
    """

    def __init__(self, resources: Resources, operations: Operations) -> None:
        self._resources, self._operations = resources, operations

    def table(self) -> Table:
        """Return the operations."""
        low = KIND.lower()
        return {
            ("GET", low, False): Operation(f"{KIND}/Read", self.list_plans),
            ("GET", low, True): Operation(f"{KIND}/Read", self.get),
            ("PUT", low, True): Operation(f"{KIND}/Write", self.put),
            ("DELETE", low, True): Operation(f"{KIND}/Delete", self.delete),
        }

    async def list_plans(self, ask: Ask) -> Answer:
        """List plans, in a group or the whole subscription."""
        return ask.paged([self._show(one) for one in self._resources.of_kind(KIND, ask.target.scope)])

    async def get(self, ask: Ask) -> Answer:
        """Describe a plan."""
        found = self._resources.find(ask.target.path)
        if found is None:
            raise missing(KIND, ask.target.name, ask.target.group)
        return json_answer(200, self._show(found))

    async def put(self, ask: Ask) -> Answer:
        """Make a plan, or change its tags."""
        name, body = ask.target.name, ask.body
        if not _NAME.fullmatch(name):
            raise bad_request(
                f"The name '{name}' is not a valid App Service plan name: 1 to 60 letters, digits and hyphens."
            )
        location, tags, sku = check_location(body), check_tags(body), dict(body.get("sku") or {})
        if str(sku.get("name", "")).upper() != "FC1":
            raise ServiceError(
                501, "NotSupportedByEmulator", f"The emulator has Flex Consumption plans (FC1), not {sku}."
            )
        if not (body.get("properties") or {}).get("reserved"):
            raise bad_request("Flex Consumption is for Linux: the plan needs properties.reserved = true.")
        if location == WITHOUT_FLEX:
            raise bad_request(f"The requested SKU FlexConsumption is not available in the location '{location}'.")
        found = self._resources.find(ask.target.path)
        made = found or Resource(ask.target.path, name, KIND, ask.target.group, location)
        made.tags = tags
        made.more = {
            "kind": body.get("kind", "functionapp"),
            "sku": {"name": "FC1", "tier": "FlexConsumption", "size": "FC1", "family": "FC", "capacity": 0},
        }
        made.properties = {"reserved": True, "provisioningState": "InProgress", "status": "Ready"}
        self._resources.put(made)

        async def finish() -> tuple[int, Any]:
            made.properties["provisioningState"] = "Succeeded"
            return 200, self._show(made)

        def failed() -> None:
            made.properties["provisioningState"] = "Failed"

        headers = self._operations.start(ask.call, ask.target.subscription, finish, failed)
        answer = json_answer(202, self._show(made))
        return Answer(202, {**answer.headers, **headers}, answer.body)

    async def delete(self, ask: Ask) -> Answer:
        """Delete a plan that has no app."""
        found = self._resources.find(ask.target.path)
        if found is None:
            return Answer(204)
        apps = self.apps(found)
        if apps:
            message = f"Server farm '{found.name}' cannot be deleted because it has web app(s) {', '.join(apps)} assigned to it."
            raise conflict(message)
        self._resources.remove(found.path)
        return Answer(200)

    def apps(self, plan: Resource) -> list[str]:
        """Return the names of a plan's apps."""
        return [
            one.name
            for one in self._resources.of_kind(SITES)
            if str(one.properties.get("serverFarmId", "")).lower() == plan.path.lower()
        ]

    def _show(self, plan: Resource) -> dict[str, Any]:
        shown = plan.show()
        shown["properties"]["numberOfSites"] = len(self.apps(plan))
        return shown
