"""The harness of the provider in memory: the reference for harnesses, and what the suites' own teeth are tried on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from polyserve.driver import Capability, ErrorCode, FunctionSpec, ObjectMeta, Provider
from polyserve.layers.fronting import fronted
from polyserve.testing.harness import ErrorCase, RawObject, sample_spec
from polyserve.testing.memory import INFO, MemoryFault, MemoryProvider, MemoryStore

__all__ = ["MemoryHarness"]


class MemoryHarness:
    """A provider in memory, `memory`, and its dictionary as the raw oracle.

    Args:
        capabilities: What the provider declares.
        store: Makes a bucket's store, such as one that lies.
        kind: The provider's class.
    """

    name = INFO.name
    options: Mapping[str, Any] = {}
    key_bytes = 1024
    every_call = True
    """Whether operations are cut short at every call in every way: nothing is slow here."""

    def __init__(
        self,
        capabilities: frozenset[Capability] = INFO.capabilities,
        store: Callable[[MemoryProvider, str], MemoryStore] = MemoryStore,
        kind: type[MemoryProvider] = MemoryProvider,
    ) -> None:
        self.memory = kind(capabilities=capabilities, store=store)
        self._numbers = itertools.count(1)

    def provider(self) -> Provider:
        """Return the provider; one that has only apps behind its fronts."""
        return fronted(self.memory)

    def fresh_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"contract-{next(self._numbers)}"
        self.memory.ensure_bucket(name)
        return name

    def drop_bucket(self, bucket: str) -> None:
        """Delete a bucket with all that is in it."""
        self.memory.buckets.pop(bucket, None)

    def raw_put(self, bucket: str, key: str, value: RawObject) -> None:
        """Write an object."""
        meta = ObjectMeta(
            key=key,
            size=len(value.body),
            modified_at=datetime.now(UTC),
            content_type=value.content_type,
            metadata=dict(value.metadata),
            version=self.memory.next_version(),
        )
        self.memory.buckets[bucket].objects[key] = (meta, value.body)

    def raw_get(self, bucket: str, key: str) -> RawObject:
        """Read an object."""
        meta, body = self.memory.buckets[bucket].objects[key]
        return RawObject(body=body, content_type=meta.content_type, metadata=meta.metadata)

    def raw_list(self, bucket: str) -> Sequence[str]:
        """Return the keys of all objects."""
        return list(self.memory.buckets[bucket].objects)

    def inventory(self) -> Sequence[str]:
        """Return the buckets and the functions."""
        functions = [f"function {status.name}" for status in self.provider().functions.list(labels={})]
        return [*(f"bucket {name}" for name in self.memory.buckets), *functions]

    def error_cases(self) -> Sequence[ErrorCase]:
        """Return one error of every code, and one that asks to wait."""
        wait = timedelta(seconds=2)
        throttled = MemoryFault(ErrorCode.RESOURCE_EXHAUSTED, "slow down", retry_after=wait)
        return [
            *(
                ErrorCase(name=code.value, error=MemoryFault(code, "no"), code=code)
                for code in ErrorCode
                if code is not ErrorCode.UNKNOWN
            ),
            ErrorCase(name="throttled", error=throttled, code=ErrorCode.RESOURCE_EXHAUSTED, retry_after=wait),
        ]

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        """Upload a sample bundle and return the spec of a revision that runs it."""
        self.memory.ensure_bucket("contract-bundles")
        return sample_spec(self.provider(), "contract-bundles", name, revision)

    def close(self) -> None:
        """Stop the provider."""
        self.memory.close()
