"""User-assigned managed identities."""

from __future__ import annotations

import re

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import bad_request, missing
from polyserve_azure.emulator.groups import check_location, check_tags
from polyserve_azure.emulator.principals import Principals
from polyserve_azure.emulator.resources import Resource, Resources
from polyserve_azure.emulator.sites import IDENTITIES as KIND

_NAME = re.compile(r"[A-Za-z0-9][\w-]{2,127}", re.ASCII)


class Identities:
    """The operations on user-assigned identities.

    Args:
        resources: What there is.
        principals: Where an identity's principal is.
    """

    def __init__(self, resources: Resources, principals: Principals) -> None:
        self._resources, self._principals = resources, principals

    def table(self) -> Table:
        """Return the operations."""
        low = KIND.lower()
        return {
            ("GET", low, False): Operation(f"{KIND}/read", self.list_identities),
            ("GET", low, True): Operation(f"{KIND}/read", self.get),
            ("PUT", low, True): Operation(f"{KIND}/write", self.put),
            ("DELETE", low, True): Operation(f"{KIND}/delete", self.delete),
        }

    async def list_identities(self, ask: Ask) -> Answer:
        """List identities, in a group or the whole subscription."""
        return ask.paged([one.show() for one in self._resources.of_kind(KIND, ask.target.scope)])

    async def get(self, ask: Ask) -> Answer:
        """Describe an identity."""
        found = self._resources.find(ask.target.path)
        if found is None:
            raise missing(KIND, ask.target.name, ask.target.group)
        return json_answer(200, found.show())

    async def put(self, ask: Ask) -> Answer:
        """Make an identity, or change its tags."""
        name, body = ask.target.name, ask.body
        if not _NAME.fullmatch(name):
            raise bad_request(
                f"The identity name '{name}' is invalid: 3 to 128 letters, digits, hyphens and underscores."
            )
        location, tags = check_location(body), check_tags(body)
        found = self._resources.find(ask.target.path)
        if found is None:
            principal = self._principals.add(name)
            made = Resource(ask.target.path, name, KIND, ask.target.group, location, tags)
            made.properties = {
                "tenantId": self._principals.tenant, "principalId": principal.object_id, "clientId": principal.client_id,
            }  # fmt: skip
            self._resources.put(made)
            return json_answer(201, made.show())
        found.tags = tags
        return json_answer(200, found.show())

    async def delete(self, ask: Ask) -> Answer:
        """Delete an identity; apps that have it have a name without meaning from now on."""
        found = self._resources.find(ask.target.path)
        if found is None:
            return Answer(204)
        await self.remove(found)
        self._resources.remove(found.path)
        return Answer(200)

    async def remove(self, resource: Resource) -> None:
        """Forget the principal of an identity."""
        self._principals.remove(resource.properties["principalId"])
