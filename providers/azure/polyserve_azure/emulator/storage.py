"""Storage accounts: their names, keys and containers. Each is an account of Azurite, which has its blobs."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.azurite import Azurite
from polyserve_azure.emulator.errors import ServiceError, missing
from polyserve_azure.emulator.groups import check_location, check_tags
from polyserve_azure.emulator.operations import Operations
from polyserve_azure.emulator.resources import Resource, Resources

KIND = "Microsoft.Storage/storageAccounts"
CONTAINERS = f"{KIND}/blobServices/containers"
_NAME = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_SKUS = frozenset(
    [
        "Standard_LRS",
        "Standard_GRS",
        "Standard_RAGRS",
        "Standard_ZRS",
        "Premium_LRS",
        "Standard_GZRS",
        "Standard_RAGZRS",
    ]
)


class Storage:
    """The operations on storage accounts.

    Args:
        resources: What there is.
        operations: Where the making of an account runs.
        azurite: Has the blobs.
    """

    def __init__(self, resources: Resources, operations: Operations, azurite: Azurite) -> None:
        self._resources, self._operations, self._azurite = resources, operations, azurite

    def table(self) -> Table:
        """Return the operations."""
        low, containers = KIND.lower(), CONTAINERS.lower()
        return {
            ("POST", "microsoft.storage/checknameavailability", False): Operation(
                "Microsoft.Storage/checknameavailability/read", self.check_name
            ),
            ("GET", low, False): Operation(f"{KIND}/read", self.list_accounts),
            ("GET", low, True): Operation(f"{KIND}/read", self.get),
            ("PUT", low, True): Operation(f"{KIND}/write", self.put),
            ("PATCH", low, True): Operation(f"{KIND}/write", self.patch),
            ("DELETE", low, True): Operation(f"{KIND}/delete", self.delete),
            ("POST", f"{low}/listkeys", False): Operation(f"{KIND}/listKeys/action", self.list_keys),
            ("POST", f"{low}/regeneratekey", False): Operation(f"{KIND}/regenerateKey/action", self.regenerate_key),
            ("GET", containers, False): Operation(f"{CONTAINERS}/read", self.list_containers),
            ("GET", containers, True): Operation(f"{CONTAINERS}/read", self.get_container),
            ("PUT", containers, True): Operation(f"{CONTAINERS}/write", self.put_container),
            ("DELETE", containers, True): Operation(f"{CONTAINERS}/delete", self.delete_container),
        }

    async def remove(self, resource: Resource) -> None:
        """Delete what an account holds."""
        await self._azurite.remove(resource.name)

    async def check_name(self, ask: Ask) -> Answer:
        """Say whether a name is free."""
        name = str(ask.body.get("name", ""))
        if not _NAME.fullmatch(name):
            return json_answer(
                200, {"nameAvailable": False, "reason": "AccountNameInvalid", "message": _invalid(name).message}
            )
        if name in self._azurite.accounts:
            message = f"The storage account named {name} is already taken."
            return json_answer(200, {"nameAvailable": False, "reason": "AlreadyExists", "message": message})
        return json_answer(200, {"nameAvailable": True})

    async def list_accounts(self, ask: Ask) -> Answer:
        """List accounts, in a group or the whole subscription."""
        return ask.paged([one.show() for one in self._resources.of_kind(KIND, ask.target.scope)])

    async def get(self, ask: Ask) -> Answer:
        """Describe an account."""
        return json_answer(200, self._found(ask).show())

    async def put(self, ask: Ask) -> Answer:
        """Make an account, or change it."""
        name, body = ask.target.name, ask.body
        if not _NAME.fullmatch(name):
            raise _invalid(name)
        location, tags = check_location(body), check_tags(body)
        sku = str((body.get("sku") or {}).get("name", ""))
        if sku not in _SKUS:
            raise ServiceError(
                400, "InvalidValuesForRequestParameters", f"Values for request parameters are invalid: sku '{sku}'."
            )
        found = self._resources.find(ask.target.path)
        if found is None:
            if name in self._azurite.accounts:
                raise ServiceError(
                    409, "StorageAccountAlreadyTaken", f"The storage account named {name} is already taken."
                )
            return await self._make(ask, location, tags, sku)
        if found.location != location:
            message = f"The location of the storage account '{name}' cannot be changed."
            raise ServiceError(409, "InvalidResourceLocation", message)
        found.tags = tags
        found.properties |= _given(body)
        return json_answer(200, found.show())

    async def _make(self, ask: Ask, location: str, tags: dict[str, str], sku: str) -> Answer:
        name, body = ask.target.name, ask.body
        await self._azurite.add(name)
        more = {"kind": body.get("kind", "StorageV2"), "sku": {"name": sku, "tier": sku.partition("_")[0]}}
        made = Resource(ask.target.path, name, KIND, ask.target.group, location, tags, more=more)
        made.properties = _given(body) | {
            "provisioningState": "Creating",
            "primaryLocation": location,
            "statusOfPrimary": "available",
            "primaryEndpoints": {"blob": self._azurite.endpoint(name)},
        }
        self._resources.put(made)

        async def finish() -> tuple[int, Any]:
            made.properties["provisioningState"] = "Succeeded"
            return 200, made.show()

        def failed() -> None:
            self._resources.remove(made.path)

        headers = self._operations.start(ask.call, ask.target.subscription, finish, failed)
        del headers["azure-asyncoperation"]
        return Answer(202, headers)

    async def patch(self, ask: Ask) -> Answer:
        """Change an account."""
        found, body = self._found(ask), ask.body
        found.tags = check_tags(body) if "tags" in body else found.tags
        found.properties |= _given(body)
        return json_answer(200, found.show())

    async def delete(self, ask: Ask) -> Answer:
        """Delete an account with all its blobs."""
        found = self._resources.find(ask.target.path)
        if found is None:
            return Answer(204)
        await self.remove(found)
        self._resources.remove(found.path)
        return Answer(200)

    async def list_keys(self, ask: Ask) -> Answer:
        """Return an account's keys."""
        return json_answer(200, self._keys(self._found(ask).name))

    async def regenerate_key(self, ask: Ask) -> Answer:
        """Make one of an account's keys anew; the old one is good for nothing from now on."""
        found, name = self._found(ask), str(ask.body.get("keyName", ""))
        if name not in {"key1", "key2"}:
            raise ServiceError(
                400, "InvalidRequestPropertyValue", f"The value '{name}' is not allowed for property keyName."
            )
        self._azurite.accounts[found.name].renew(int(name[-1]) - 1)
        await self._azurite.tell()
        return json_answer(200, self._keys(found.name))

    def _keys(self, name: str) -> dict[str, Any]:
        keys = self._azurite.accounts[name].keys
        return {"keys": [{"keyName": f"key{n}", "value": key, "permissions": "FULL"} for n, key in enumerate(keys, 1)]}

    async def list_containers(self, ask: Ask) -> Answer:
        """List the containers of an account."""
        self._found(ask)
        names = await asyncio.to_thread(self._containers, ask.target.name)
        return ask.paged([self._show_container(f"{ask.target.path}/{name}", name) for name in names])

    async def get_container(self, ask: Ask) -> Answer:
        """Describe a container."""
        name = self._container_name(ask)
        if name not in await asyncio.to_thread(self._containers, ask.target.name):
            raise ServiceError(404, "ContainerNotFound", "The specified container does not exist.")
        return json_answer(200, self._show_container(ask.target.path, name))

    async def put_container(self, ask: Ask) -> Answer:
        """Make a container; one that is there stays as it is."""
        name = self._container_name(ask)
        made = await asyncio.to_thread(self._make_container, ask.target.name, name)
        return json_answer(201 if made else 200, self._show_container(ask.target.path, name))

    async def delete_container(self, ask: Ask) -> Answer:
        """Delete a container."""
        name = self._container_name(ask)
        return Answer(200 if await asyncio.to_thread(self._delete_container, ask.target.name, name) else 204)

    def _container_name(self, ask: Ask) -> str:
        self._found(ask)
        name = ask.target.names[-1]
        if not _CONTAINER.fullmatch(name):
            raise ServiceError(400, "ContainerNameInvalid", f"The container name '{name}' is invalid.")
        return name

    def _show_container(self, path: str, name: str) -> dict[str, Any]:
        return {"id": path, "name": name, "type": CONTAINERS, "properties": {"publicAccess": "None"}}

    def _client(self, account: str) -> Any:
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self._azurite.connection_string(account))

    def _containers(self, account: str) -> list[str]:
        with self._client(account) as client:
            return [one.name for one in client.list_containers()]

    def _make_container(self, account: str, name: str) -> bool:
        from azure.core.exceptions import ResourceExistsError

        with self._client(account) as client:
            try:
                client.create_container(name)
            except ResourceExistsError:
                return False
        return True

    def _delete_container(self, account: str, name: str) -> bool:
        from azure.core.exceptions import ResourceNotFoundError

        with self._client(account) as client:
            try:
                client.delete_container(name)
            except ResourceNotFoundError:
                return False
        return True

    def _found(self, ask: Ask) -> Resource:
        path = "/".join(ask.target.path.split("/")[:9])
        found = self._resources.find(path)
        if found is None:
            raise missing(KIND, ask.target.name, ask.target.group)
        return found


def _given(body: dict[str, Any]) -> dict[str, Any]:
    given = dict(body.get("properties") or {})
    for name in ("provisioningState", "primaryEndpoints"):
        given.pop(name, None)
    return given


def _invalid(name: str) -> ServiceError:
    message = (
        f"{name} is not a valid storage account name. Storage account name must be between 3 and 24 characters in length and "
        "use numbers and lower-case letters only."
    )
    return ServiceError(400, "AccountNameInvalid", message)
