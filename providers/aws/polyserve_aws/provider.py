"""Amazon Web Services as a provider: S3, Lambda, IAM and CloudWatch Logs, through boto3."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import boto3

from polyserve.driver import ErrorCode, FunctionPlatform, Invoker, ObjectStore, ProviderInfo
from polyserve_aws import INFO, errors, s3
from polyserve_aws.clients import Clients
from polyserve_aws.http_api import LONGEST_S
from polyserve_aws.invoker import LambdaInvoker
from polyserve_aws.lambda_ import LambdaPlatform
from polyserve_aws.settings import AwsSettings

T = TypeVar("T")


class AwsProvider:
    """The provider `aws`. Implements `polyserve.driver.Provider`; nothing is called before it is used.

    Args:
        settings: Which account and region, and how functions run there.
    """

    def __init__(self, settings: AwsSettings) -> None:
        self._settings = settings
        self._clients = Clients(settings)
        self._functions = LambdaPlatform(self._clients, settings)
        self._invoker = LambdaInvoker(self._clients, settings)

    @property
    def info(self) -> ProviderInfo:
        """Return what it can do as configured."""
        if self._settings.invoke != "http-api":
            return INFO
        return replace(INFO, limits=replace(INFO.limits, timeout=timedelta(seconds=LONGEST_S)))

    def store(self, bucket: str) -> ObjectStore:
        """Return one bucket, whether it exists or not."""
        return s3.S3Store(self._clients, self._settings, bucket)

    def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket exist."""
        s3.ensure_bucket(self._clients, bucket)

    def remove_bucket(self, bucket: str) -> None:
        """Delete the bucket if it is empty."""
        s3.remove_bucket(self._clients, bucket)

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
        """Return how long the service asked to wait, if it did."""
        return errors.retry_after(error)

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return the `boto3.Session` with which everything is done; it makes clients and resources of any service."""
        session: Any = self._clients.session if wanted is boto3.Session else None
        return cast("T | None", session)

    def close(self) -> None:
        """Close the connections. Running functions are not touched."""
        self._clients.close()
