"""What a suite may know of a provider: how to get one, and how to look past its drivers.

A harness brings a provider up on loopback and keeps a *raw oracle*: ways to write and read what its service stores that do not go
through the driver, so that a driver's put and get cannot be wrong together. `polyserve.testing` says how a harness and the suites make a
test module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from polyserve import registry
from polyserve.bucket import Bucket
from polyserve.driver import (
    ErrorCode,
    FunctionSpec,
    ObjectStore,
    Provider,
)
from polyserve.layers.forwarding import ForwardingProvider
from polyserve.layers.fronting import fronted
from polyserve.layers.prefixed import prefixed
from polyserve.layers.retrying import retrying

if TYPE_CHECKING:
    from polyserve.model import ModelPackage

__all__ = ["Elsewhere", "ErrorCase", "Harness", "Layered", "RawObject", "sample_spec"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawObject:
    """An object as its service has it."""

    body: bytes
    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCase:
    """One error that a user can meet, made as the SDK makes it, and what it has to be sorted as.

    Attributes:
        name: Names the case in a failure, such as `"S3 SlowDown"`.
        error: The native error.
        code: What `classify` has to say.
        retry_after: What `retry_after` has to say.
    """

    name: str
    error: Exception
    code: ErrorCode
    retry_after: timedelta | None = None


class Harness(Protocol):
    """One provider, ready to be tested."""

    @property
    def name(self) -> str:
        """Return the name of its entry point."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the options with which another process makes a provider of the same world."""
        ...

    @property
    def key_bytes(self) -> int:
        """Return how long a key may be, in bytes: 1024, unless a layer takes some of it."""
        ...

    def provider(self) -> Provider:
        """Return the provider. The same one on every call is fine."""
        ...

    def fresh_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        ...

    def drop_bucket(self, bucket: str) -> None:
        """Delete a bucket with all that is in it, past the driver; one that is gone already is fine."""
        ...

    def raw_put(self, bucket: str, key: str, value: RawObject) -> None:
        """Write an object past the driver."""
        ...

    def raw_get(self, bucket: str, key: str) -> RawObject:
        """Read an object past the driver. Raises any error where there is none."""
        ...

    def raw_list(self, bucket: str) -> Sequence[str]:
        """Return the keys of all objects of a bucket past the driver, in any order."""
        ...

    def inventory(self) -> Sequence[str]:
        """Return what there is natively, each as a line for people: buckets, objects, functions, processes, files.

        Empty once all is deleted.
        """
        ...

    def error_cases(self) -> Sequence[ErrorCase]:
        """Return every error of the SDK's own error model that a user can meet: at least one of each of `ErrorContract.EXPECTED`."""
        ...

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        """Upload a sample bundle and return the spec of a revision that runs it; `sample_spec` does both."""
        ...

    def close(self) -> None:
        """Stop what was started and delete what was made."""
        ...


def sample_spec(
    provider: Provider,
    bucket: str,
    name: str,
    revision: int,
    *,
    package: ModelPackage | None = None,
    model_in_bucket_mb: int | None = None,
) -> FunctionSpec:
    """Upload the bundle of a small package and return the spec of a revision that runs it; it multiplies by the revision's number.

    Args:
        provider: Where it is to run.
        bucket: An existing bucket.
        name: The function's name.
        revision: The revision's number.
        package: Another package that it is to run.
        model_in_bucket_mb: Size from which on files of the model are left to the bucket; they are uploaded, too.
    """
    # Building packages imports half of the core: only for those who test functions.
    from polyserve.rollout import Target, desire
    from polyserve.testing.packages import times
    from polyserve.uploads import upload_model

    target = Target(provider=provider, bucket=Bucket(provider, bucket))
    package = package or times(revision)
    desired, bundle = desire(package, target, name=name, memory_mb=512, model_in_bucket_mb=model_in_bucket_mb)
    for path, model in desired.models.items():
        if not target.bucket.exists(model.key):
            upload_model(target.bucket, model, package.root / path, lambda done: None)
    # Names are digests: whatever is there already is the same.
    if not target.bucket.exists(desired.artifact.key):
        target.bucket.put(desired.artifact.key, bundle.path, content_type="application/zip")
    return desired.spec(revision)


class Elsewhere:
    """The world of a harness as another process sees it: only the provider.

    Args:
        name: The harness's name.
        options: The harness's options.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        settings = registry.settings_type(registry.info(name))
        self._provider = fronted(registry.load(name, msgspec.convert(dict(options), settings)))
        self.name = name
        self.options = options

    def provider(self) -> Provider:
        """Return the provider."""
        return self._provider


class Layered:
    """A harness whose stores are behind every layer, to run the suites over: layers are drivers and conform like one.

    Args:
        harness: The harness below.
        prefix: What the prefixed layer puts before every key.
    """

    def __init__(self, harness: Harness, prefix: str = "layer/é/") -> None:
        self._harness = harness
        self._prefix = prefix
        self._provider = _Layers(harness.provider(), prefix)

    @property
    def name(self) -> str:
        """Return the name of the harness below."""
        return self._harness.name

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the options of the harness below."""
        return self._harness.options

    @property
    def key_bytes(self) -> int:
        """Return what the prefix leaves."""
        return self._harness.key_bytes - len(self._prefix.encode())

    @property
    def signed_put_headers(self) -> Mapping[str, str]:
        """Return the headers that an upload to a signed URL needs below."""
        return getattr(self._harness, "signed_put_headers", {})

    def provider(self) -> Provider:
        """Return the provider behind its layers."""
        return retrying(self._provider)

    def fresh_bucket(self) -> str:
        """Make an empty bucket that has objects outside of the prefix: nobody may see them."""
        bucket = self._harness.fresh_bucket()
        self._harness.raw_put(bucket, "outside", RawObject(body=b"of the prefix"))
        self._harness.raw_put(bucket, self._prefix[:-1], RawObject(body=b"nearly"))
        return bucket

    def drop_bucket(self, bucket: str) -> None:
        """Delete a bucket."""
        self._harness.drop_bucket(bucket)

    def raw_put(self, bucket: str, key: str, value: RawObject) -> None:
        """Write an object below the prefix."""
        self._harness.raw_put(bucket, self._prefix + key, value)

    def raw_get(self, bucket: str, key: str) -> RawObject:
        """Read an object below the prefix."""
        return self._harness.raw_get(bucket, self._prefix + key)

    def raw_list(self, bucket: str) -> Sequence[str]:
        """Return the keys below the prefix."""
        keys = self._harness.raw_list(bucket)
        return [key.removeprefix(self._prefix) for key in keys if key.startswith(self._prefix)]

    def inventory(self) -> Sequence[str]:
        """Return what there is natively."""
        return self._harness.inventory()

    def error_cases(self) -> Sequence[ErrorCase]:
        """Return the errors of the harness below."""
        return self._harness.error_cases()

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        """Return the spec of the harness below."""
        return self._harness.function_spec(name, revision)

    def close(self) -> None:
        """Do nothing: whoever opened the harness below closes it."""


class _Layers(ForwardingProvider):
    """A provider with prefixed stores."""

    def __init__(self, provider: Provider, prefix: str) -> None:
        super().__init__(provider)
        self._prefix = prefix

    def store(self, bucket: str) -> ObjectStore:
        return prefixed(self._provider.store(bucket), self._prefix)
