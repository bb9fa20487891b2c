"""Tokens in memory: each is asked for ahead of its end, in the background, by one thread at a time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from google.auth.exceptions import GoogleAuthError

from polyserve_gcp.errors import ServiceError, TokenError

__all__ = ["KeptToken", "Token", "token_until"]

EARLY_S = 225.0
"""How long before its end a token is asked for anew: the metadata server gives out the old one until four minutes before."""
LATE_S = 15.0
"""How long before its end a token is used no more."""
PAUSE_S = 10.0
"""How long after an attempt in the background the next one may follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token. Holds a credential: never printed, recorded or logged.

    Attributes:
        value: The token.
        ends_at: When it ends, in seconds since 1970.
    """

    value: str = field(repr=False)
    ends_at: float


class KeptToken:
    """One token, asked for anew ahead of its end.

    Args:
        ask: Asks for it.
    """

    def __init__(self, ask: Callable[[], Token]) -> None:
        self._ask = ask
        self._token: Token | None = None
        self._tried_at = -math.inf
        self._asking = threading.Lock()

    def get(self) -> Token:
        """Return the token; waits only where there is none that is good."""
        found = self.newest()
        if found is not None:
            return found
        with self._asking:
            found = self._good()
            if found is None:
                found = self._token = self._ask()
            return found

    def newest(self) -> Token | None:
        """Return the token if it is good, and see to the next one."""
        found = self._good()
        if found is not None and time.time() > found.ends_at - EARLY_S:
            self._renew()
        return found

    def _good(self) -> Token | None:
        found = self._token
        return found if found is not None and time.time() < found.ends_at - LATE_S else None

    def _renew(self) -> None:
        """Ask in the background, unless somebody does or has just done."""
        if time.monotonic() < self._tried_at + PAUSE_S or not self._asking.acquire(blocking=False):
            return
        self._tried_at = time.monotonic()
        try:
            threading.Thread(target=self._renewed, name="polyserve-token", daemon=True).start()
        except RuntimeError:
            # The interpreter ends.
            self._asking.release()

    def _renewed(self) -> None:
        try:
            self._token = self._ask()
        except (GoogleAuthError, ServiceError, TokenError, ValueError, KeyError):
            # The old one is good for a while; whoever asks after its end is told why there is none.
            pass
        finally:
            self._asking.release()

    def after_fork(self) -> None:
        """Replace the lock: a thread of the parent may ask at this moment."""
        self._asking = threading.Lock()

    def forget(self, token: str | None = None) -> None:
        """Ask anew, if it is this one."""
        found = self._token
        if found is not None and token in {None, found.value}:
            self._token = None


def token_until(value: str, ends: datetime | None) -> Token:
    """Return a token of google-auth's, which ends at a time without a zone or never."""
    # The libraries' times have no zone and are UTC.
    after = ends.replace(tzinfo=UTC) if ends is not None else datetime.now(UTC) + timedelta(hours=1)
    return Token(value=value, ends_at=after.timestamp())
