"""Google Cloud as a provider: Cloud Storage through its SDK, all else through httpx. What runs models is a choice of the settings."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import httpx
from google.auth.credentials import Credentials as GoogleCredentials
from google.cloud.storage import Client

from polyserve.driver import (
    AppPlatform,
    AppProvider,
    BundleForm,
    ErrorCode,
    FunctionPlatform,
    Invoker,
    ObjectStore,
    Provider,
    ProviderInfo,
)
from polyserve_gcp import INFO, errors
from polyserve_gcp.bundles import Bundles
from polyserve_gcp.cloud_run import RunPlatform
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.functions import FunctionsPlatform
from polyserve_gcp.gcs import GcsStore
from polyserve_gcp.google_api import FUNCTIONS, GoogleApi
from polyserve_gcp.invoker import ServiceInvoker
from polyserve_gcp.logs import Logs
from polyserve_gcp.reading import ModelReaders
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.storage import Buckets

__all__ = ["FunctionsProvider", "RunProvider", "provider"]

T = TypeVar("T")

RUN_INFO = replace(
    INFO,
    # Largest source that is deployed without a build: cloud.google.com/run/docs/deploying-source-code, read 2026-11-20.
    limits=replace(INFO.limits, bundle_bytes=262_144_000),
    # Instances serve by themselves: there is no framework.
    bundle=BundleForm(entrypoint=INFO.bundle.entrypoint, dependencies=".", glibc=INFO.bundle.glibc, archive="tar.gz"),
)


def provider(settings: GcpSettings) -> Provider | AppProvider:
    """Return the provider `gcp` with what the settings choose to run models on; nothing is called before it is used."""
    return RunProvider(settings) if settings.platform == "run" else FunctionsProvider(settings)


class _Google:
    """What both platforms have. Implements `polyserve.driver.Cloud`, but for its invoker.

    Args:
        settings: Which project and region, and how functions run there.
    """

    def __init__(self, settings: GcpSettings) -> None:
        self._settings = settings
        self._credentials = Credentials(settings)
        self._buckets = Buckets(settings, self._credentials)
        self._api = GoogleApi(settings, self._credentials)
        self._parts = (
            settings,
            self._api,
            Bundles(self.store),
            ModelReaders(settings, self._api),
            Logs(settings, self._credentials, self._api),
        )

    @property
    def info(self) -> ProviderInfo:
        """Return what it can do."""
        return INFO

    def store(self, bucket: str) -> ObjectStore:
        """Return one bucket, whether it exists or not."""
        return GcsStore(self._buckets, self._settings, bucket)

    def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket exist."""
        self._buckets.ensure(bucket)

    def remove_bucket(self, bucket: str) -> None:
        """Delete the bucket if it is empty."""
        self._buckets.remove(bucket)

    def classify(self, error: Exception) -> ErrorCode:
        """Sort an error that one of the drivers raised."""
        return errors.classify(error)

    def retry_after(self, error: Exception) -> timedelta | None:
        """Return how long the service asked to wait, if it did."""
        return errors.retry_after(error)

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return a native client.

        One of `google.cloud.storage.Client`, `google.cloud.functions_v2.FunctionServiceClient` (over REST, new for each call, whoever asks
        closes it), the `google.auth.credentials.Credentials` that they are made with, or the `httpx.Client` that Google's APIs are called
        with.
        """
        found: Any = None
        if wanted is Client:
            found = self._buckets.client
        elif wanted is cast("Any", GoogleCredentials):
            found = self._credentials.native
        elif wanted is httpx.Client:
            found = self._api.client
        elif wanted.__module__.startswith("google.cloud.functions_v2") and wanted.__name__ == "FunctionServiceClient":
            # Named by its name: to import it takes a fifth of a second.
            options = {"api_endpoint": self._settings.address(FUNCTIONS)}
            found = cast("Any", wanted)(credentials=self._credentials.native, transport="rest", client_options=options)
        return cast("T | None", found)

    def close(self) -> None:
        """Close the connections. Running functions are not touched."""
        self._buckets.close()
        self._api.close()
        self._credentials.close()


class FunctionsProvider(_Google):
    """The provider `gcp` with Cloud Run functions. Implements `polyserve.driver.AppProvider`.

    Args:
        settings: Which project and region, and how functions run there.
    """

    def __init__(self, settings: GcpSettings) -> None:
        super().__init__(settings)
        self._apps = FunctionsPlatform(*self._parts)
        self._invoker = ServiceInvoker(self._credentials, self._apps.find)

    @property
    def apps(self) -> AppPlatform:
        """Return the functions."""
        return self._apps

    @property
    def invoker(self) -> Invoker:
        """Return how functions are called."""
        return self._invoker


class RunProvider(_Google):
    """The provider `gcp` with Cloud Run itself. Implements `polyserve.driver.Provider`.

    Args:
        settings: Which project and region, and how services run there.
    """

    def __init__(self, settings: GcpSettings) -> None:
        super().__init__(settings)
        self._functions = RunPlatform(*self._parts)
        self._invoker = ServiceInvoker(self._credentials, self._functions.find)

    @property
    def info(self) -> ProviderInfo:
        """Return what it can do: bundles are smaller, and nothing is built."""
        return RUN_INFO

    @property
    def functions(self) -> FunctionPlatform:
        """Return the function platform."""
        return self._functions

    @property
    def invoker(self) -> Invoker:
        """Return how functions are called."""
        return self._invoker
