"""This machine as a provider: files, processes and loopback."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

from polyserve.driver import ErrorCode, FunctionPlatform, Invoker, ObjectStore, ProviderInfo
from polyserve_local import INFO, errors
from polyserve_local.settings import LocalSettings

T = TypeVar("T")


class LocalProvider:
    """The provider `local`. Implements `polyserve.driver.Provider`; no file is touched before it is used.

    Args:
        settings: How functions run, and where everything is kept.

    Raises:
        GatewayError: On Windows, where listening sockets cannot be handed from process to process.
    """

    def __init__(self, settings: LocalSettings) -> None:
        if sys.platform == "win32":
            message = "the local provider needs Linux or macOS: on Windows use it within WSL, or deploy to a cloud"
            raise errors.GatewayError(ErrorCode.UNSUPPORTED, message)
        # These import `fcntl`, which Windows has not: the refusal above must come first.
        from polyserve_local.control import Gateway
        from polyserve_local.functions import LocalPlatform
        from polyserve_local.invoker import LocalInvoker
        from polyserve_local.places import Places

        self._places = Places(settings.home_path())
        gateway = Gateway(self._places, linger_s=settings.linger_s)
        self._functions = LocalPlatform(self._places, settings, gateway)
        self._invoker = LocalInvoker(gateway)

    @property
    def info(self) -> ProviderInfo:
        """Return what it can do."""
        return INFO

    def store(self, bucket: str) -> ObjectStore:
        """Return one bucket, whether it exists or not."""
        from polyserve_local.files import FileStore

        return FileStore(self._places.store, bucket)

    def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket exist."""
        from polyserve_local.files import ensure_bucket

        ensure_bucket(self._places.store, bucket)

    def remove_bucket(self, bucket: str) -> None:
        """Delete the bucket if it is empty."""
        from polyserve_local.files import remove_bucket

        remove_bucket(self._places.store, bucket)

    @property
    def functions(self) -> FunctionPlatform:
        """Return the function platform."""
        return self._functions

    @property
    def invoker(self) -> Invoker:
        """Return how functions are called."""
        return self._invoker

    def classify(self, error: Exception) -> ErrorCode:
        """Sort an error that one of the drivers raised."""
        return errors.classify(error)

    def retry_after(self, error: Exception) -> timedelta | None:
        """Return how long the gateway asked to wait, if it did."""
        return errors.retry_after(error)

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return the home directory for `pathlib.Path`; there is no other native client."""
        return cast("T", self._places.home) if issubclass(Path, wanted) and wanted is not object else None

    def close(self) -> None:
        """Do nothing: no connection is kept."""
