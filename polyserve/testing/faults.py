"""A provider that fails, or dies, at its n-th control call: proof that every operation can be cut short anywhere and repeated.

    provider = Faults(at=3, mode="after").around(real)     # the third control call is made, and its answer is lost
    provider = Faults(at=3, mode="kill").around(real)      # the process is killed right after the third control call

A control call is one that the core makes of the object store, the function platform or the provider itself; `only_writes` counts those that
change something. `Faults.seen` lists them, so a test knows when `at` was past the last one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

from polyserve.driver import ErrorCode, Provider

WRITES = frozenset(
    {"ensure_bucket", "remove_bucket", "put", "copy", "delete", "apply", "route", "scale", "remove_revision"}
)
READS = frozenset({"get", "head", "list_page", "describe", "list", "logs", "resolve"})


class InjectedFault(Exception):
    """The failure that `Faults` injects; of code INTERNAL, so that nothing retries it."""


@dataclass(slots=True, kw_only=True)
class Faults:
    """Where to fail and how.

    Attributes:
        at: Which control call, from 1; 0 for none.
        mode: `before` the call is made, `after` it was made (its answer is lost), or `kill`: the process dies right after it was made.
        only_writes: Count the calls that change something, not those that only look.
        seen: The calls counted so far, as `operation resource`.
    """

    at: int = 0
    mode: Literal["before", "after", "kill"] = "after"
    only_writes: bool = False
    seen: list[str] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """Whether the fault was injected."""
        return 0 < self.at <= len(self.seen)

    def around(self, provider: Provider) -> Provider:
        """Return the provider with these faults."""
        return cast("Provider", _FaultyProvider(provider, self))

    def call(self, name: str, method: Callable[..., Any], *arguments: object, **options: object) -> Any:
        """Make one control call, or not."""
        if name not in (WRITES if self.only_writes else WRITES | READS):
            return method(*arguments, **options)
        self.seen.append(f"{name} {arguments[0] if arguments else ''}".strip())
        if len(self.seen) != self.at:
            return method(*arguments, **options)
        if self.mode == "before":
            raise InjectedFault(f"injected before call {self.at}: {self.seen[-1]}")
        answer = method(*arguments, **options)
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        del answer
        raise InjectedFault(f"injected after call {self.at}: {self.seen[-1]}")


class _Faulty:
    """Passes every method of a driver through `Faults.call`."""

    def __init__(self, driver: object, faults: Faults) -> None:
        self._driver, self._faults = driver, faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if name not in WRITES | READS:
            return found
        return lambda *arguments, **options: self._faults.call(name, found, *arguments, **options)


class _FaultyProvider(_Faulty):
    def __init__(self, provider: Provider, faults: Faults) -> None:
        super().__init__(provider, faults)
        self._provider = provider

    def store(self, bucket: str) -> _Faulty:
        return _Faulty(self._provider.store(bucket), self._faults)

    @property
    def functions(self) -> _Faulty:
        return _Faulty(self._provider.functions, self._faults)

    @property
    def invoker(self) -> _Faulty:
        return _Faulty(self._provider.invoker, self._faults)

    def classify(self, error: Exception) -> ErrorCode:
        return ErrorCode.INTERNAL if isinstance(error, InjectedFault) else self._provider.classify(error)

    def retry_after(self, error: Exception) -> timedelta | None:
        return None if isinstance(error, InjectedFault) else self._provider.retry_after(error)
