"""The address of a deployment as it is known now: found once, kept until it expires or turns out to be wrong."""

from __future__ import annotations

import math
import threading
import time

from polyserve.driver import Address, Provider
from polyserve.errors import FailedPreconditionError, translating

__all__ = ["CurrentAddress"]

_SLACK_S = 60.0


class CurrentAddress:
    """Where one deployment, or one revision of it, is called. Many threads may ask; one of them asks the provider.

    Args:
        provider: The provider it runs on.
        name: The deployment.
        revision: One revision, or `None` for whatever the traffic decides.
    """

    def __init__(self, provider: Provider, name: str, revision: int | None) -> None:
        self._provider = provider
        self._name = name
        self._revision = revision
        self._address: Address | None = None
        # `time.time()` until which the address is good.
        self._good_until = 0.0
        self._closed = False
        self._lock = threading.Lock()

    def known(self) -> Address | None:
        """Return the address if it is known and still good. Never waits."""
        return self._address if time.time() < self._good_until else None

    def find(self) -> Address:
        """Return the address, asking the provider where none is known that is still good.

        Raises:
            PolyserveError: What the provider raised, translated; NotFoundError where there is no such deployment.
            FailedPreconditionError: It was closed.
        """
        with self._lock:
            if self._closed:
                message = (
                    f"the endpoint of {self._name!r} was closed: make a new one with polyserve.connect({self._name!r})"
                )
                raise FailedPreconditionError(message, operation="invoke", resource=self._name)
            known = self.known()
            if known is not None:
                return known
            with translating(self._provider, "invoke", self._name):
                address = self._provider.invoker.resolve(self._name, revision=self._revision)
            self._address, self._good_until = address, _good_until(address)
            return address

    def drop(self, address: Address) -> None:
        """Have the address found anew, unless that was done already since this one was handed out."""
        if self._address is address:
            self._good_until = 0.0

    def close(self) -> None:
        """Forget the credential and refuse to find it again."""
        with self._lock:
            self._closed = True
            self._address, self._good_until = None, 0.0

    def after_fork(self) -> None:
        """Replace the lock: a thread of the parent may have held it."""
        self._lock = threading.Lock()


def _good_until(address: Address) -> float:
    """Return the `time.time()` until which an address is used: until a minute, or half its life, before it expires."""
    if address.expires_at is None:
        return math.inf
    now, end = time.time(), address.expires_at.timestamp()
    # At least for the call that asked for it, however short it lives.
    return max(end - min(_SLACK_S, (end - now) / 2), now + 1.0)
