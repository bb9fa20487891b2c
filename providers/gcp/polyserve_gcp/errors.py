"""What Google Cloud's services and SDKs can raise, and which `ErrorCode` each of it is.

The control plane is called over plain HTTP: what it refuses is a `ServiceError` with Google's own status. Cloud Storage's client raises
errors of google-api-core, and Google's gRPC clients, which `unwrap` gives away, raise those or gRPC's. Pure: looks at the error and at
nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from polyserve.driver import ErrorCode

__all__ = [
    "AppError",
    "BucketNotEmptyError",
    "InvalidKeyError",
    "InvocationError",
    "PreconditionError",
    "ServiceError",
    "TokenError",
    "UnsupportedSettingError",
    "classify",
    "refusal",
    "retry_after",
    "seconds_of",
]

BUSY_WAIT = timedelta(seconds=0.2)
"""When to ask again at the earliest where a resource is at another change, which Google's answer does not say."""


class ServiceError(Exception):
    """A refusal of a Google API.

    Args:
        status: HTTP status.
        name: The status in Google's words, such as `PERMISSION_DENIED`; empty where it gave none.
        message: The service's sentence.
        reason: The reason in Google's `ErrorInfo`, such as `SERVICE_DISABLED`; empty where it gave none.
        retry_after: How long it asks to wait.
    """

    def __init__(
        self, status: int, name: str, message: str, *, reason: str = "", retry_after: timedelta | None = None
    ) -> None:
        super().__init__(f"{name}: {message}" if name else message)
        self.status = status
        self.name = name
        self.reason = reason
        self.retry_after = retry_after


class AppError(Exception):
    """A function that is not there, is somebody else's, or cannot be what it is asked to be.

    Args:
        code: What kind of failure it is.
        message: One sentence for people.
        retry_after: How long to wait before it is asked for again.
    """

    def __init__(self, code: ErrorCode, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class InvocationError(AppError):
    """An answer of the platform in front of a function, not of the function."""


class UnsupportedSettingError(AppError):
    """Settings that cannot go together, or that the chosen platform has not got.

    Args:
        message: One sentence for people.
    """

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVALID_ARGUMENT, message)


class TokenError(Exception):
    """Credentials that are not there, are over, or cannot do what is asked of them."""


class InvalidKeyError(ValueError):
    """A key that has no name in Cloud Storage."""


class BucketNotEmptyError(Exception):
    """A bucket that has objects."""


class PreconditionError(Exception):
    """An `if_match` that does not hold."""


_BY_NAME: Mapping[str, ErrorCode] = {
    # google/rpc/code.proto, and grpc.StatusCode by the same names.
    "CANCELLED": ErrorCode.UNAVAILABLE,
    "UNKNOWN": ErrorCode.UNAVAILABLE,
    "INVALID_ARGUMENT": ErrorCode.INVALID_ARGUMENT,
    "OUT_OF_RANGE": ErrorCode.INVALID_ARGUMENT,
    "DEADLINE_EXCEEDED": ErrorCode.DEADLINE_EXCEEDED,
    "NOT_FOUND": ErrorCode.NOT_FOUND,
    "ALREADY_EXISTS": ErrorCode.ALREADY_EXISTS,
    "PERMISSION_DENIED": ErrorCode.PERMISSION_DENIED,
    "UNAUTHENTICATED": ErrorCode.UNAUTHENTICATED,
    "RESOURCE_EXHAUSTED": ErrorCode.RESOURCE_EXHAUSTED,
    "FAILED_PRECONDITION": ErrorCode.FAILED_PRECONDITION,
    # "Unable to queue the operation": another change of the same resource is under way.
    "ABORTED": ErrorCode.UNAVAILABLE,
    "UNIMPLEMENTED": ErrorCode.UNSUPPORTED,
    "INTERNAL": ErrorCode.UNAVAILABLE,
    "UNAVAILABLE": ErrorCode.UNAVAILABLE,
    "DATA_LOSS": ErrorCode.INTERNAL,
}

_BY_STATUS: Mapping[int, ErrorCode] = {
    304: ErrorCode.FAILED_PRECONDITION,
    308: ErrorCode.UNAVAILABLE,
    400: ErrorCode.INVALID_ARGUMENT,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.UNSUPPORTED,
    408: ErrorCode.UNAVAILABLE,
    409: ErrorCode.CONFLICT,
    410: ErrorCode.UNAVAILABLE,
    411: ErrorCode.INVALID_ARGUMENT,
    412: ErrorCode.FAILED_PRECONDITION,
    413: ErrorCode.INVALID_ARGUMENT,
    416: ErrorCode.INVALID_ARGUMENT,
    429: ErrorCode.RESOURCE_EXHAUSTED,
    499: ErrorCode.UNAVAILABLE,
    500: ErrorCode.UNAVAILABLE,
    501: ErrorCode.UNSUPPORTED,
    502: ErrorCode.UNAVAILABLE,
    503: ErrorCode.UNAVAILABLE,
    504: ErrorCode.DEADLINE_EXCEEDED,
}

# One status stands for several failures: Google's reason, or else its sentence, decides.
_BY_REASON: Mapping[str, ErrorCode] = {
    "SERVICE_DISABLED": ErrorCode.FAILED_PRECONDITION,
    "BILLING_DISABLED": ErrorCode.FAILED_PRECONDITION,
    "CONSUMER_INVALID": ErrorCode.FAILED_PRECONDITION,
    "RATE_LIMIT_EXCEEDED": ErrorCode.RESOURCE_EXHAUSTED,
    "RESOURCE_QUOTA_EXCEEDED": ErrorCode.FAILED_PRECONDITION,
}
_BY_MESSAGE: tuple[tuple[int, re.Pattern[str], ErrorCode], ...] = (
    (403, re.compile(r"has not been used in project|it is disabled|API .* (not |dis)enabled", re.I), ErrorCode.FAILED_PRECONDITION),
    (403, re.compile(r"billing", re.I), ErrorCode.FAILED_PRECONDITION),
    (403, re.compile(r"rate ?limit|quota exceeded", re.I), ErrorCode.RESOURCE_EXHAUSTED),
    (409, re.compile(r"not empty", re.I), ErrorCode.FAILED_PRECONDITION),
    (409, re.compile(r"already (exists|own)|name is not available|is already used", re.I), ErrorCode.ALREADY_EXISTS),
    (409, re.compile(r"in progress|queue the operation|being|try again", re.I), ErrorCode.UNAVAILABLE),
)  # fmt: skip

_BY_OWN_TYPE: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (InvalidKeyError, ErrorCode.INVALID_ARGUMENT),
    (PreconditionError, ErrorCode.FAILED_PRECONDITION),
    (BucketNotEmptyError, ErrorCode.FAILED_PRECONDITION),
    (TokenError, ErrorCode.UNAUTHENTICATED),
)

# By name, so that this module can be read without the SDKs; subclasses are found before what they derive from.
_BY_SDK_TYPE: Mapping[str, ErrorCode] = {
    "google.auth.DefaultCredentialsError": ErrorCode.UNAUTHENTICATED,
    "google.auth.RefreshError": ErrorCode.UNAUTHENTICATED,
    "google.auth.TransportError": ErrorCode.UNAVAILABLE,
    "google.auth.TimeoutError": ErrorCode.UNAVAILABLE,
    "google.auth.ResponseError": ErrorCode.UNAVAILABLE,
    "google.auth.GoogleAuthError": ErrorCode.UNAUTHENTICATED,
    "google.cloud.DataCorruption": ErrorCode.UNAVAILABLE,
    "google.resumable_media.DataCorruption": ErrorCode.UNAVAILABLE,
    "google.api_core.RetryError": ErrorCode.UNAVAILABLE,
    "requests.ConnectTimeout": ErrorCode.UNAVAILABLE,
    "requests.ReadTimeout": ErrorCode.DEADLINE_EXCEEDED,
    "requests.ChunkedEncodingError": ErrorCode.UNAVAILABLE,
    "requests.ContentDecodingError": ErrorCode.UNAVAILABLE,
    "requests.ConnectionError": ErrorCode.UNAVAILABLE,
    "requests.InvalidURL": ErrorCode.INVALID_ARGUMENT,
    "requests.InvalidSchema": ErrorCode.INVALID_ARGUMENT,
    "urllib3.HTTPError": ErrorCode.UNAVAILABLE,
    "httpx.ConnectTimeout": ErrorCode.UNAVAILABLE,
    "httpx.PoolTimeout": ErrorCode.UNAVAILABLE,
    "httpx.TimeoutException": ErrorCode.DEADLINE_EXCEEDED,
    "httpx.UnsupportedProtocol": ErrorCode.INVALID_ARGUMENT,
    "httpx.TransportError": ErrorCode.UNAVAILABLE,
    "httpx.InvalidURL": ErrorCode.INVALID_ARGUMENT,
}


def classify(error: Exception) -> ErrorCode:
    """Sort an error of these drivers or of the SDKs; UNKNOWN for what nobody has heard of."""
    if isinstance(error, AppError):
        return error.code
    if isinstance(error, ServiceError):
        return _of_answer(error.status, error.name, error.reason, str(error))
    status, name = _told(error)
    if status or name:
        return _of_answer(status, name, str(getattr(error, "reason", "") or ""), str(error))
    return _of_type(error)


def _of_type(error: Exception) -> ErrorCode:
    for kind, code in _BY_OWN_TYPE:
        if isinstance(error, kind):
            return code
    if _library(type(error)) == "google.auth" and getattr(error, "retryable", False):
        return ErrorCode.UNAVAILABLE
    known = (_BY_SDK_TYPE.get(f"{_library(each)}.{each.__name__}") for each in type(error).__mro__)
    return next((code for code in known if code is not None), ErrorCode.UNKNOWN)


def _of_answer(status: int, name: str, reason: str, message: str) -> ErrorCode:
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    for wanted, pattern, code in _BY_MESSAGE:
        if status == wanted and pattern.search(message):
            return code
    found = _BY_NAME.get(name) or _BY_STATUS.get(status)
    return found or (ErrorCode.UNAVAILABLE if status >= 500 else ErrorCode.UNKNOWN)


def _library(kind: type) -> str:
    """Return what a class is of, such as `google.auth`: Google's libraries share their first name."""
    first, *rest = kind.__module__.split(".")
    return f"{first}.{rest[0]}" if first == "google" and rest else first


def _told(error: Exception) -> tuple[int, str]:
    """Return HTTP status and name of an SDK's error that an answer was made into; 0 and "" for any other."""
    library = _library(type(error))
    if library == "google.api_core":
        code = getattr(error, "code", None)
        grpc = getattr(error, "grpc_status_code", None)
        # Google's client of Cloud Storage speaks HTTP: its errors have a status of HTTP, and a name only by their class.
        spoken = str(getattr(grpc, "name", "")) if getattr(error, "response", None) is None else ""
        return int(code) if isinstance(code, int) else 0, spoken
    if library == "google.resumable_media" and getattr(error, "response", None) is not None:
        return int(getattr(error.response, "status_code", 0) or 0), ""  # type: ignore[attr-defined]
    if any(_library(each) == "grpc" for each in type(error).__mro__):
        ask = getattr(error, "code", None)
        found: Any = ask() if callable(ask) else None
        return 0, str(getattr(found, "name", ""))
    return 0, ""


def retry_after(error: Exception) -> timedelta | None:
    """Return how long the service asks to wait, if it does."""
    if isinstance(error, ServiceError | AppError):
        busy = isinstance(error, ServiceError) and error.status == 409 and classify(error) is ErrorCode.UNAVAILABLE
        return BUSY_WAIT if busy and error.retry_after is None else error.retry_after
    if not _library(type(error)).startswith("google."):
        return None
    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is not None:
        return seconds_of(headers.get("retry-after") or headers.get("Retry-After") or "")
    for detail in getattr(error, "details", None) or ():
        delay = getattr(detail, "retry_delay", None)
        if delay is not None and hasattr(delay, "seconds"):
            return timedelta(seconds=delay.seconds, microseconds=getattr(delay, "nanos", 0) // 1000)
    return None


def seconds_of(text: str) -> timedelta | None:
    """Return the time that a number of seconds is, with or without an `s` behind it; `None` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)s?", text)
    return timedelta(seconds=float(found[1])) if found else None


def refusal(status: int, body: Mapping[str, Any], *, retry: str = "") -> ServiceError:
    """Return the error that an answer of a Google API is.

    Args:
        status: HTTP status.
        body: The answer's object; empty where it had none.
        retry: The header `Retry-After`, or an empty string.
    """
    told = body.get("error")
    error: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    message = str(error.get("message") or (told if isinstance(told, str) else "") or f"HTTP {status}")
    name = str(error.get("status") or "")
    details = [each for each in error.get("details") or () if isinstance(each, Mapping)]
    info = next((each for each in details if str(each.get("@type", "")).endswith("ErrorInfo")), {})
    facts: Mapping[str, Any] = info.get("metadata") or {}
    wait = seconds_of(retry)
    for each in details:
        if str(each.get("@type", "")).endswith("RetryInfo"):
            wait = seconds_of(str(each.get("retryDelay") or "")) or wait
    return ServiceError(
        status,
        name,
        _with_way_out(status, message, str(info.get("reason") or ""), facts),
        reason=str(info.get("reason") or ""),
        retry_after=wait if status in {429, 503} else None,
    )


_SERVICE = re.compile(r"[a-z]+\.googleapis\.com")


def _with_way_out(status: int, message: str, reason: str, facts: Mapping[str, Any]) -> str:
    """Return a sentence that names what is missing and how to get it, where Google's own leaves that to its details."""
    disabled = reason == "SERVICE_DISABLED" or "it is disabled" in message
    if status == 403 and disabled:
        found = _SERVICE.search(message)
        service = str(facts.get("service") or (found[0] if found else ""))
        consumer = str(facts.get("consumer") or "").removeprefix("projects/")
        where = f" --project {consumer}" if consumer else ""
        return f"the API {service} is not enabled in the project: run `gcloud services enable {service}{where}`, and try again in a minute"
    permission = str(facts.get("permission") or "")
    if status == 403 and permission and permission not in message:
        on = f" on {facts['resource']}" if facts.get("resource") else ""
        return f"{message} (the caller lacks the permission {permission}{on})"
    return message
