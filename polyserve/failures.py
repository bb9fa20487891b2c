"""How a call fails: what an answer of status 400 or more says, which failures may pass, and how long to wait for that.

Pure but for the clock. Knows no provider and no connection.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

from polyserve.driver import ErrorCode, Response
from polyserve.errors import DeadlineExceededError, PolyserveError
from polyserve.runtime import protocol
from polyserve.runtime.messages import HTTP_STATUS, RequestError

if TYPE_CHECKING:
    from stamina._core import _RetryContextIterator as Attempts

__all__ = ["attempts", "is_stale", "reason_of", "remembering", "retry_after_of"]

_ATTEMPTS = 12
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 5.0
_CODE_OF_STATUS = {status: code for code, status in HTTP_STATUS.items()} | {
    408: ErrorCode.DEADLINE_EXCEEDED,
    409: ErrorCode.CONFLICT,
    500: ErrorCode.INTERNAL,
    502: ErrorCode.UNAVAILABLE,
}


def is_stale(error: PolyserveError) -> bool:
    """Whether it may be the address that was wrong: nobody listens there any more, or the credential was replaced."""
    return error.code is ErrorCode.UNAUTHENTICATED or (
        error.code is ErrorCode.UNAVAILABLE and isinstance(error.__cause__, ConnectionError)
    )


def attempts(deadline: float) -> Attempts:
    """Return stamina's attempts, synchronous and asynchronous alike, with our pauses between them."""
    import logging

    import stamina

    logger = logging.getLogger("stamina")
    if not logger.handlers:
        # A retry that succeeds is nobody's business unless logging is set up: Python would print it on standard error.
        logger.addHandler(logging.NullHandler())
    return stamina.retry_context(on=_pauses(deadline), attempts=_ATTEMPTS, timeout=None)


@contextmanager
def remembering(failed: list[PolyserveError], deadline: float) -> Iterator[None]:
    """Note why a try failed. Where the time ran out in the middle of one, the failure before it is raised: it says more."""
    try:
        yield
    except DeadlineExceededError:
        if time.monotonic() < deadline:
            raise
        raise failed[-1] from None
    except PolyserveError as error:
        failed.append(error)
        raise


def _pauses(deadline: float) -> Callable[[Exception], float | bool]:
    """Return a hook that says how long to wait after an error, or that it is of no use."""
    failures = count()

    def pause(error: Exception) -> float | bool:
        if not isinstance(error, PolyserveError) or not error.retryable:
            return False
        # Full jitter: callers that failed together do not come back together.
        wait = random.uniform(0.0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** next(failures)))  # noqa: S311 - not a secret
        if error.retry_after is not None:
            wait = max(wait, error.retry_after.total_seconds())
        return wait if time.monotonic() + wait < deadline else False

    return pause


def retry_after_of(headers: Mapping[str, str]) -> timedelta | None:
    """Read a Retry-After header: seconds, or a date."""
    text = headers.get("retry-after")
    if not text:
        return None
    try:
        return timedelta(seconds=max(0.0, float(text)))
    except (ValueError, OverflowError):
        pass
    from email.utils import parsedate_to_datetime

    try:
        at = parsedate_to_datetime(text)
        return max(timedelta(0), (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC))
    except (TypeError, ValueError):
        return None


def reason_of(response: Response) -> tuple[ErrorCode, str]:
    """Return what kind of failure a response of status 400 or more is, and why."""
    code = _CODE_OF_STATUS.get(response.status)
    if code is None:
        code = ErrorCode.INVALID_ARGUMENT if response.status < 500 else ErrorCode.UNAVAILABLE
    try:
        body = protocol.decode_json(response.body)
        reason = body["error"]
        if isinstance(reason, str):
            told = body.get("code")
            return ErrorCode(told) if told in ErrorCode.__members__ else code, reason
    except (RequestError, KeyError, TypeError):
        pass
    # Not ours: a load balancer, a proxy, an error page. Its first line of text is what there is to go by.
    text = re.sub(
        r"<(script|style)\b.*?</\1>|<[^>]*>", "\n", response.body[:4096].decode("utf-8", "replace"), flags=re.S | re.I
    )
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return code, f"HTTP {response.status}: {line[:200]}"
