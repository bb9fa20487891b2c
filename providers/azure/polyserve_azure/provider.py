"""Microsoft Azure as a provider of apps: Blob Storage through its SDK, Resource Manager and the publish API through httpx."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar, cast

import httpx
from azure.core.credentials import TokenCredential
from azure.storage.blob import BlobServiceClient

from polyserve.driver import AppPlatform, ErrorCode, Invoker, ObjectStore, ProviderInfo
from polyserve_azure import INFO, errors
from polyserve_azure.blob import AzureStore
from polyserve_azure.callers import Callers
from polyserve_azure.credentials import Credentials
from polyserve_azure.functions import FlexPlatform
from polyserve_azure.invoker import FunctionInvoker
from polyserve_azure.resources import ResourceManager
from polyserve_azure.settings import AzureSettings
from polyserve_azure.storage import Accounts

T = TypeVar("T")


class AzureProvider:
    """The provider `azure`. Implements `polyserve.driver.AppProvider`; nothing is called before it is used.

    Args:
        settings: Which subscription and region, and how apps run there.
    """

    def __init__(self, settings: AzureSettings) -> None:
        self._settings = settings
        self._credentials = Credentials(settings)
        self._manager = ResourceManager(settings, self._credentials)
        self._accounts = Accounts(settings, self._manager, self._credentials)
        callers = Callers(settings, self._manager, self._credentials)
        self._invoker = FunctionInvoker(settings, self._manager, callers)
        self._apps = FlexPlatform(settings, self._manager, self._accounts, callers)

    @property
    def info(self) -> ProviderInfo:
        """Return what it can do."""
        return INFO

    def store(self, bucket: str) -> ObjectStore:
        """Return one container of the storage account, whether it exists or not."""
        return AzureStore(self._accounts, self._settings, bucket)

    def ensure_bucket(self, bucket: str) -> None:
        """Make the container exist, with its account and its group."""
        self._accounts.ensure_container(bucket)

    def remove_bucket(self, bucket: str) -> None:
        """Delete the container if it is empty; the last one takes along the account and the group that were made for it."""
        self._accounts.remove_container(bucket)

    @property
    def apps(self) -> AppPlatform:
        """Return the function apps."""
        return self._apps

    @property
    def invoker(self) -> Invoker:
        """Return how apps are called."""
        return self._invoker

    def classify(self, error: Exception) -> ErrorCode:
        """Sort an error that one of the drivers raised."""
        return errors.classify(error)

    def retry_after(self, error: Exception) -> timedelta | None:
        """Return how long the service asked to wait, if it did."""
        return errors.retry_after(error)

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return the SDK's `BlobServiceClient` of the account, its `TokenCredential`, or the `httpx.Client` that Azure is called with."""
        found: Any = None
        if wanted is BlobServiceClient:
            found = self._accounts.access().client
        elif wanted is cast("Any", TokenCredential):
            found = self._credentials.native
        elif wanted is httpx.Client:
            found = self._manager.client
        return cast("T | None", found)

    def close(self) -> None:
        """Close the connections. Running apps are not touched."""
        self._accounts.close()
        self._manager.close()
        self._credentials.close()
