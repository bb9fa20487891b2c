"""When a failed call is made again, and how long is waited before that: the patience of the retrying layer.

The raw error of the driver leaves as it came. `stamina`, which waits, is imported on the first failure.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO, TypeVar, cast

from polyserve.driver import ErrorCode, ObjectMeta, Provider
from polyserve.errors import RETRYABLE, PolyserveError

__all__ = ["PATIENT", "Caller", "ResumingBody", "RetryPolicy"]

T = TypeVar("T")

# After these nobody knows whether the call was carried out; a throttled call was not.
_AMBIGUOUS = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.DEADLINE_EXCEEDED})
_REPEATED = RETRYABLE | _AMBIGUOUS


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long to try.

    Attributes:
        attempts: Calls in all, the first one included.
        timeout: When to give up, counted from the first failure.
        first_wait: Longest wait before the second call; doubles from call to call, with jitter where the call was lost.
        longest_wait: Longest wait between two calls, unless the service asks for more.
        busy: How long a change is asked for again, as often as it takes, while the service is at another and says when to ask again.
            A function is built anew in minutes, where a call that was lost is repeated in seconds.
    """

    attempts: int = 6
    timeout: timedelta = timedelta(seconds=60)
    first_wait: timedelta = timedelta(milliseconds=100)
    longest_wait: timedelta = timedelta(seconds=10)
    busy: timedelta = timedelta(minutes=10)


PATIENT = RetryPolicy()
"""What is done where nobody says otherwise."""


class Caller:
    """Repeats a call while its error may pass."""

    def __init__(self, provider: Provider, policy: RetryPolicy) -> None:
        self._provider = provider
        self._policy = policy

    def code(self, error: Exception) -> ErrorCode:
        """Return what kind of failure an error is, ours or the driver's."""
        return error.code if isinstance(error, PolyserveError) else self._provider.classify(error)

    def call(self, function: Callable[[], T]) -> T:
        """Call until it succeeds, fails for good or the policy gives up; then the last error is raised."""
        try:
            return function()
        except Exception as error:
            if self.code(error) not in _REPEATED:
                raise
            failed: Exception | None = error
        import stamina

        logger = logging.getLogger("stamina")
        if not logger.handlers:
            # A retry that succeeds is nobody's business unless logging is set up: Python would print it on standard error.
            logger.addHandler(logging.NullHandler())
        policy = self._policy
        attempts = stamina.retry_context(
            on=self._verdict,
            attempts=policy.attempts,
            timeout=policy.timeout,
            wait_initial=policy.first_wait,
            wait_max=policy.longest_wait,
            wait_jitter=policy.first_wait,
        )
        for attempt in attempts:
            with attempt:
                if failed is not None:
                    # The call above was the first attempt: have it counted and waited for like the others.
                    first, failed = failed, None
                    raise first
                return function()
        raise AssertionError("the last attempt returns or raises")

    def _verdict(self, error: Exception) -> bool | timedelta:
        if self.code(error) not in _REPEATED:
            return False
        asked = self._asked(error)
        return True if asked is None else asked

    def _asked(self, error: Exception) -> timedelta | None:
        return error.retry_after if isinstance(error, PolyserveError) else self._provider.retry_after(error)

    def waiting(self, function: Callable[[], T]) -> Callable[[], T]:
        """Return a change that waits while the service is at another: it was heard, so that is none of the attempts."""
        policy = self._policy
        until: float | None = None
        growing = policy.first_wait

        def attempt() -> T:
            nonlocal until, growing
            while True:
                try:
                    return function()
                except Exception as error:
                    asked = self._asked(error)
                    if asked is None or self.code(error) is not ErrorCode.UNAVAILABLE:
                        raise
                    # Some changes take moments and some take minutes, and hardly any service says which.
                    now, wait = time.monotonic(), max(asked, growing).total_seconds()
                    growing = min(2 * growing, policy.longest_wait)
                    until = now + policy.busy.total_seconds() if until is None else until
                    if now + wait > until:
                        raise
                time.sleep(wait)

        return attempt

    def settling(self, function: Callable[[], T], settle: Callable[[], T | None], decided: ErrorCode) -> T:
        """Call as `call` does what must not be carried out twice.

        Args:
            function: The call.
            settle: Asked once an answer was lost: what the call would have returned if it was carried out, else `None`.
            decided: The code of the error that the call gives once it was carried out before.
        """
        lost = False

        def attempt() -> T:
            nonlocal lost
            if lost and (answer := settle()) is not None:
                return answer
            try:
                return function()
            except Exception as error:
                code = self.code(error)
                if lost and code is decided and (answer := settle()) is not None:
                    return answer
                lost = lost or code in _AMBIGUOUS
                raise

        return self.call(attempt)

    def removing(self, function: Callable[[], None]) -> None:
        """Call what deletes: once an answer was lost, nothing left to delete is a success."""
        lost = False

        def attempt() -> None:
            nonlocal lost
            try:
                function()
            except Exception as error:
                code = self.code(error)
                if lost and code is ErrorCode.NOT_FOUND:
                    return
                lost = lost or code in _AMBIGUOUS
                raise

        self.call(attempt)


class ResumingBody(io.RawIOBase):
    """The content of an object that is asked for again from where it broke off, as long as it is the same version."""

    def __init__(
        self, caller: Caller, reopen: Callable[[int], tuple[ObjectMeta, BinaryIO]], version: str, body: BinaryIO
    ) -> None:
        self._caller = caller
        self._reopen = reopen
        self._version = version
        self._body: BinaryIO | None = body
        self._done = 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, going on after a break."""
        if size is None or size < 0:
            first = self._step(lambda body: body.read())
            # Whoever broke off gives the rest on the next call; an unbroken body has none.
            pieces = [first]
            while first and (more := self._step(lambda body: body.read())):
                pieces.append(more)
            return first if len(pieces) == 1 else b"".join(pieces)
        return self._step(lambda body: body.read(size))

    def readall(self) -> bytes:
        """Read the rest."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, going on after a break."""
        with memoryview(buffer).cast("B") as view:

            def fill(body: BinaryIO) -> int:
                into = getattr(body, "readinto", None)
                if into is not None:
                    return int(into(view) or 0)
                data = body.read(len(view))
                view[: len(data)] = data
                return len(data)

            return self._step(fill)

    def _step(self, take: Callable[[BinaryIO], T]) -> T:
        def attempt() -> T:
            if self._body is None:
                meta, body = self._reopen(self._done)
                if meta.version != self._version:
                    body.close()
                    raise broken
                self._body = body
            return take(self._body)

        broken: Exception = OSError("the object changed while it was read")

        def guarded() -> T:
            nonlocal broken
            try:
                return attempt()
            except Exception as error:
                if error is not broken and self._caller.code(error) in _REPEATED:
                    broken = error
                    self._drop()
                raise

        taken = self._caller.call(guarded)
        self._done += taken if isinstance(taken, int) else len(cast("bytes", taken))
        return taken

    def _drop(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def close(self) -> None:
        """Close what is open of the object."""
        if not self.closed:
            super().close()
            self._drop()
