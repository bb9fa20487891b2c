"""A provider that passes everything on to another: what every layer around a whole provider begins with."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from polyserve.driver import Cloud, ErrorCode, FunctionPlatform, Invoker, ObjectStore, Provider, ProviderInfo

__all__ = ["ForwardingCloud", "ForwardingProvider"]

T = TypeVar("T")


class ForwardingCloud:
    """Implements `polyserve.driver.Cloud` by asking another one: all but what runs models. A layer overrides what it changes.

    Args:
        provider: The provider below.
    """

    def __init__(self, provider: Cloud) -> None:
        self._provider = provider

    @property
    def info(self) -> ProviderInfo:
        """Return what the provider can do."""
        return self._provider.info

    def store(self, bucket: str) -> ObjectStore:
        """Return one bucket."""
        return self._provider.store(bucket)

    def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket exist."""
        self._provider.ensure_bucket(bucket)

    def remove_bucket(self, bucket: str) -> None:
        """Delete the bucket if it is empty."""
        self._provider.remove_bucket(bucket)

    @property
    def invoker(self) -> Invoker:
        """Return how functions are called."""
        return self._provider.invoker

    def classify(self, error: Exception) -> ErrorCode:
        """Sort an error that one of the drivers raised."""
        return self._provider.classify(error)

    def retry_after(self, error: Exception) -> timedelta | None:
        """Return how long the service asked to wait before a retry."""
        return self._provider.retry_after(error)

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return the native client of that type, or `None`."""
        return self._provider.unwrap(wanted)

    def close(self) -> None:
        """Give back connections."""
        self._provider.close()


class ForwardingProvider(ForwardingCloud):
    """Implements `polyserve.driver.Provider` by asking another one.

    Args:
        provider: The provider below.
    """

    _provider: Provider

    def __init__(self, provider: Provider) -> None:
        super().__init__(provider)

    @property
    def functions(self) -> FunctionPlatform:
        """Return the function platform."""
        return self._provider.functions
