"""The storage account: made with its resource group when the first bucket is, gone with the last one; and the client of its blobs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from azure.core.exceptions import HttpResponseError, ServiceRequestError
from azure.storage.blob import BlobServiceClient, ContainerClient

from polyserve.driver import ErrorCode
from polyserve_azure.credentials import Credentials
from polyserve_azure.errors import AppError, BucketNotEmptyError, ServiceError, code_of
from polyserve_azure.names import MADE_TAG, account_name
from polyserve_azure.resources import ResourceManager, Types
from polyserve_azure.settings import AzureSettings

__all__ = ["Access", "Accounts"]

T = TypeVar("T")

BLOCK_BYTES = 8 << 20
"""Size from which on a blob goes up in blocks, and of each of them: 50,000 are 390 GB."""
CHUNK_BYTES = 4 << 20
"""How much of a blob is read at a time."""
_KEY_REFUSED = frozenset({"AuthenticationFailed", "AuthorizationFailure"})
"""What a signature with an old key is: the first on Azure, the second on Azurite."""
WHILE_MADE = timedelta(seconds=3)
"""How long to wait before an account that is being made is looked at again."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Access:
    """How the account is reached. Holds a key: never printed, recorded or logged.

    Attributes:
        name: Its name.
        endpoint: Address of its blobs, without a trailing slash.
        key: Its first key; empty where tokens are used instead.
        client: The SDK's client.
    """

    name: str
    endpoint: str
    key: str
    client: BlobServiceClient

    @property
    def connection_string(self) -> str:
        """The connection string that an app is given."""
        protocol = self.endpoint.partition(":")[0]
        return (
            f"DefaultEndpointsProtocol={protocol};AccountName={self.name};AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint}/;"
        )


class Accounts:
    """The one storage account of the settings. Safe to use from many threads.

    Args:
        settings: Its name and where it is.
        manager: Calls Azure.
        credentials: Who calls.
    """

    def __init__(self, settings: AzureSettings, manager: ResourceManager, credentials: Credentials) -> None:
        self._settings = settings
        self._manager = manager
        self._credentials = credentials
        self._access: Access | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The account's name."""
        return account_name(self._settings)

    def access(self) -> Access:
        """Return how the account is reached.

        Raises:
            AppError: There is none, or it is still being made.
        """
        with self._lock:
            if self._access is None:
                self._access = self._open()
            return self._access

    def _open(self) -> Access:
        found = self._manager.find(Types.STORAGE, self.name)
        if found is None:
            raise AppError(ErrorCode.NOT_FOUND, f"there is no storage account {self.name!r}")
        _check_made(found)
        endpoint = str(found["properties"]["primaryEndpoints"]["blob"]).rstrip("/")
        if self._settings.storage_login == "entra":
            if not endpoint.startswith("https:"):
                message = f"Blob Storage takes tokens over TLS alone, and is at {endpoint}: set storage_login to key"
                raise AppError(ErrorCode.UNSUPPORTED, message)
            return Access(
                name=self.name, endpoint=endpoint, key="", client=self._client(endpoint, self._credentials.native)
            )
        key = self._manager.post(Types.STORAGE, self.name, "listKeys")["keys"][0]["value"]
        shared = {"account_name": self.name, "account_key": key}
        return Access(name=self.name, endpoint=endpoint, key=key, client=self._client(endpoint, shared))

    def _client(self, endpoint: str, credential: Any) -> BlobServiceClient:
        return BlobServiceClient(
            endpoint,
            credential,
            # The core repeats what may be repeated; twice would be once too often.
            retry_total=0,
            connection_timeout=10,
            read_timeout=60,
            max_single_put_size=BLOCK_BYTES,
            max_block_size=BLOCK_BYTES,
            max_single_get_size=CHUNK_BYTES,
            max_chunk_get_size=CHUNK_BYTES,
        )

    def using(self, container: str, call: Callable[[ContainerClient], T]) -> T:
        """Call the service with a container's client, with another key where the first was withdrawn meanwhile."""
        access = self.access()
        try:
            return call(access.client.get_container_client(container))
        except (HttpResponseError, ServiceRequestError) as error:
            if not isinstance(error, ServiceRequestError) and code_of(error) not in _KEY_REFUSED:
                raise
            # The key was renewed, or the account is gone, and its name with it.
            self.forget()
            renewed = self.access()
            if renewed.key == access.key:
                raise
        return call(renewed.client.get_container_client(container))

    def forget(self) -> None:
        """Ask for everything anew."""
        with self._lock:
            access, self._access = self._access, None
        if access is not None:
            access.client.close()

    # --- what is made -----------------------------------------------------------------------------------------------------

    def ensure_container(self, container: str) -> None:
        """Make a container exist, with its account and its group; private, as all of them.

        Raises:
            AppError: The account is still being made: to be asked again.
        """
        found = self._manager.find(Types.STORAGE, self.name)
        if found is None:
            self._make_account()
            return self.ensure_container(container)
        _check_made(found)
        scope = self._settings.encryption_scope
        properties = {"defaultEncryptionScope": scope, "denyEncryptionScopeOverride": False} if scope else {}
        self._manager.put(
            Types.STORAGE, self.name, {"properties": properties}, "blobServices", "default", "containers", container
        )
        return None

    def _make_account(self) -> None:
        settings, tags = self._settings, {MADE_TAG: "1"}
        group = self._manager.find(Types.GROUP, "")
        if group is not None and (group.get("properties") or {}).get("provisioningState") == "Deleting":
            message = f"resource group {settings.resource_group!r} is being deleted"
            raise AppError(ErrorCode.UNAVAILABLE, message)
        if group is None:
            self._manager.put(Types.GROUP, "", {"location": settings.location, "tags": tags})
        answer = self._manager.put(
            Types.STORAGE,
            self.name,
            {
                "location": settings.location,
                "kind": "StorageV2",
                "sku": {"name": settings.storage_sku},
                "tags": tags,
                "properties": {
                    "minimumTlsVersion": "TLS1_2",
                    "supportsHttpsTrafficOnly": True,
                    "allowBlobPublicAccess": False,
                    "allowSharedKeyAccess": settings.storage_login == "key",
                },
            },
        )
        if answer.status == 202:
            raise _being_made(self.name, answer.retry_after or None)

    def remove_container(self, container: str) -> None:
        """Delete a container of deployments if it is empty; and the account and the group, if they were made here and have nothing else.

        Raises:
            AppError: There is no account.
            BucketNotEmptyError: It has blobs.
        """
        self.access()
        try:
            blobs = self.using(
                container, lambda client: next(client.list_blobs(results_per_page=1).by_page(), iter(()))
            )
            if next(iter(blobs), None) is not None:
                raise BucketNotEmptyError(f"bucket {container!r} has objects: delete them first")
            self.delete_container(container)
        finally:
            self._remove_what_is_empty()

    def delete_container(self, container: str) -> bool:
        """Delete a container with all that is in it, and return whether it was there."""
        return self._manager.delete(Types.STORAGE, self.name, "blobServices", "default", "containers", container)

    def _remove_what_is_empty(self) -> None:
        manager = self._manager
        account = manager.find(Types.STORAGE, self.name)
        if account is not None:
            if next(manager.list(Types.STORAGE, self.name, "blobServices", "default", "containers"), None) is not None:
                return
            if not _is_ours(account):
                return
            manager.delete(Types.STORAGE, self.name)
            self.forget()
        group = manager.find(Types.GROUP, "")
        if group is not None and _is_ours(group) and next(manager.list(Types.GROUP, "", "resources"), None) is None:
            try:
                manager.call("DELETE", manager.group_path(), Types.GROUP[1])
            except ServiceError as error:
                # It is being deleted, or somebody has just put something into it.
                if error.status not in {404, 409}:
                    raise

    def close(self) -> None:
        """Close the connections."""
        self.forget()


def _is_ours(resource: dict[str, Any]) -> bool:
    return MADE_TAG in (resource.get("tags") or {})


def _check_made(account: dict[str, Any]) -> None:
    if account["properties"].get("provisioningState", "Succeeded") != "Succeeded":
        raise _being_made(str(account["name"]), WHILE_MADE)


def _being_made(name: str, wait: timedelta | None) -> AppError:
    return AppError(ErrorCode.UNAVAILABLE, f"storage account {name!r} is being made", retry_after=wait)
