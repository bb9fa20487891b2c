"""Subscriptions, resource groups, and lists of resources of all types."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError
from polyserve_azure.emulator.operations import Operations
from polyserve_azure.emulator.resources import Resource, Resources, matches
from polyserve_azure.emulator.stacks import LOCATIONS

_NAME = re.compile(r"[-\w._()]{0,89}[-\w_()]")
_SUBSCRIPTIONS = "microsoft.resources/subscriptions"
_READ = "Microsoft.Resources/subscriptions/resourceGroups/read"
NAMESPACES = {
    name.lower(): name
    for name in (
        "Microsoft.Authorization", "Microsoft.Insights", "Microsoft.ManagedIdentity", "Microsoft.Storage", "Microsoft.Web",
    )
}  # fmt: skip
"""The resource providers there are, by their names in lower case."""
Remover = Callable[[Resource], Awaitable[None]]


class Groups:
    """The operations on resource groups.

    Args:
        resources: What there is.
        operations: Where the deletion of a group runs.
        removers: What else has to be done when a resource is deleted, by its type in lower case.
    """

    def __init__(self, resources: Resources, operations: Operations, removers: Mapping[str, Remover]) -> None:
        self._resources, self._operations, self._removers = resources, operations, removers

    def table(self) -> Table:
        """Return the operations."""
        groups = f"{_SUBSCRIPTIONS}/resourcegroups"
        write, delete = _READ.replace("read", "write"), _READ.replace("read", "delete")
        return {
            ("GET", _SUBSCRIPTIONS, True): Operation("Microsoft.Resources/subscriptions/read", self.subscription),
            ("GET", groups, False): Operation(_READ, self.list_groups),
            ("GET", groups, True): Operation(_READ, self.get),
            ("HEAD", groups, True): Operation(_READ, self.exists),
            ("PUT", groups, True): Operation(write, self.put),
            ("PATCH", groups, True): Operation(write, self.patch),
            ("DELETE", groups, True): Operation(delete, self.delete),
            ("GET", f"{groups}/resources", False): Operation(
                _READ.replace("read", "resources/read"), self.list_resources
            ),
            ("GET", f"{_SUBSCRIPTIONS}/resources", False): Operation(
                "Microsoft.Resources/subscriptions/resources/read", self.list_resources
            ),
            **{
                ("GET", namespace, True): Operation("Microsoft.Resources/subscriptions/providers/read", self.provider)
                for namespace in NAMESPACES
            },
            **{
                ("POST", f"{namespace}/register", False): Operation(f"{spelled}/register/action", self.provider)
                for namespace, spelled in NAMESPACES.items()
            },
        }

    async def subscription(self, ask: Ask) -> Answer:
        """Describe the subscription."""
        found = ask.target.subscription
        return json_answer(
            200,
            {"id": f"/subscriptions/{found}", "subscriptionId": found, "displayName": "Emulator", "state": "Enabled"},
        )

    async def provider(self, ask: Ask) -> Answer:
        """Describe a resource provider: all are registered."""
        namespace = NAMESPACES[ask.target.kind.removesuffix("/register")]
        return json_answer(200, {"namespace": namespace, "registrationState": "Registered"})

    async def list_groups(self, ask: Ask) -> Answer:
        """List resource groups."""
        text = ask.call.query.get("$filter", "")
        found = self._resources.of_kind("Microsoft.Resources/resourceGroups")
        return ask.paged([one.show() for one in found if matches(one, text)])

    async def get(self, ask: Ask) -> Answer:
        """Describe a resource group."""
        return json_answer(200, self._found(ask).show())

    async def exists(self, ask: Ask) -> Answer:
        """Say whether a resource group is there."""
        return Answer(204 if self._resources.find(ask.target.path) else 404)

    async def put(self, ask: Ask) -> Answer:
        """Make a resource group, or change its tags."""
        name = ask.target.group
        if not _NAME.fullmatch(name):
            message = f"The provided resource group name '{name}' has these invalid characters or is longer than 90 characters."
            raise ServiceError(400, "InvalidResourceGroup", message)
        body, found = ask.body, self._resources.find(ask.target.path)
        location = check_location(body)
        if found is not None and found.location != location:
            message = (
                f"Invalid resource group location '{location}'. The Resource group already exists in location "
                f"'{found.location}'."
            )
            raise ServiceError(409, "InvalidResourceGroupLocation", message)
        made = found or Resource(ask.target.path, name, "Microsoft.Resources/resourceGroups", location=location)
        made.tags, made.properties = check_tags(body), {"provisioningState": "Succeeded"}
        self._resources.put(made)
        return json_answer(200 if found else 201, made.show())

    async def patch(self, ask: Ask) -> Answer:
        """Change a resource group's tags."""
        found = self._found(ask)
        found.tags = check_tags(ask.body) if "tags" in ask.body else found.tags
        return json_answer(200, found.show())

    async def delete(self, ask: Ask) -> Answer:
        """Delete a resource group and all that is in it."""
        found = self._found(ask)
        found.properties["provisioningState"] = "Deleting"

        async def finish() -> tuple[int, Any]:
            for inside in self._resources.within(found.path):
                await self.forget(inside)
            self._resources.remove(found.path)
            return 200, None

        headers = self._operations.start(ask.call, ask.target.subscription, finish)
        del headers["azure-asyncoperation"]
        return Answer(202, headers)

    async def forget(self, resource: Resource) -> None:
        """Remove one resource with everything that hangs on it."""
        remover = self._removers.get(resource.kind.lower())
        if remover is not None:
            await remover(resource)
        self._resources.remove(resource.path)

    async def list_resources(self, ask: Ask) -> Answer:
        """List resources of all types, in a group or the whole subscription."""
        text = ask.call.query.get("$filter", "")
        found = self._resources.within(ask.target.above(1))
        return ask.paged([one.summarize() for one in found if matches(one, text)])

    def _found(self, ask: Ask) -> Resource:
        found = self._resources.find(ask.target.path)
        if found is None:
            raise ServiceError(404, "ResourceGroupNotFound", f"Resource group '{ask.target.group}' could not be found.")
        return found


def check_location(body: dict[str, Any]) -> str:
    """Return the region of a body in Azure's short form, `eastus` for `East US`.

    Raises:
        ServiceError: There is none, or it is none.
    """
    given = str(body.get("location") or "")
    if not given:
        raise ServiceError(400, "LocationRequired", "The location property is required for this definition.")
    short = given.replace(" ", "").lower()
    if short not in LOCATIONS:
        message = (
            f"The provided location '{given}' is not available for resource group. List of available regions is "
            f"'{','.join(LOCATIONS)}'."
        )
        raise ServiceError(400, "LocationNotAvailableForResourceGroup", message)
    return short


def check_tags(body: dict[str, Any]) -> dict[str, str]:
    """Return the tags of a body.

    Raises:
        ServiceError: They break a rule: 50 at most, names up to 512 characters without some, values up to 256.
    """
    tags = body.get("tags") or {}
    if not isinstance(tags, dict) or any(not isinstance(value, str) for value in tags.values()):
        raise ServiceError(400, "InvalidRequestContent", "The request content was invalid: tags are texts by name.")
    for name, value in tags.items():
        if len(tags) > 50 or not 0 < len(name) <= 512 or len(value) > 256 or set(name) & set("<>%&\\?/"):
            message = (
                f"The tag '{name}' breaks a rule: at most 50 tags, a name of 1 to 512 characters without <>%&\\?/, a value of "
                "at most 256 characters."
            )
            raise ServiceError(
                400, "InvalidTagNameCharacters" if set(name) & set("<>%&\\?/") else "TagLimitExceeded", message
            )
    return dict(tags)
