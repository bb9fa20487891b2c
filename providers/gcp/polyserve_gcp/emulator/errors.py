"""What the emulator refuses, in the words of Google's APIs: HTTP and gRPC say the same thing, each its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyserve.emulation.http import Answer, json_answer

ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
HELP = "type.googleapis.com/google.rpc.Help"
STATUSES = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429, "CANCELLED": 499, "INTERNAL": 500,
    "UNKNOWN": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
"""HTTP status of each code of google.rpc.Code ("google/rpc/code.proto", read 2026-11-21)."""


class ServiceError(Exception):
    """A refusal.

    Args:
        code: Name in google.rpc.Code, which is the name in `grpc.StatusCode` too: `NOT_FOUND`.
        message: Google's sentence.
        details: Messages of google.rpc in JSON, each with its `@type`.
        status: HTTP status, where it is not the usual one of the code.
        reason: Reason that the older APIs give (Cloud Storage's), where it is not the usual one of the code.
        headers: Header fields that go with it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Sequence[Mapping[str, Any]] = (),
        status: int = 0,
        reason: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = tuple(details)
        self.status = status or STATUSES[code]
        self.reason = reason
        self.headers = dict(headers or {})


def invalid(message: str) -> ServiceError:
    """Make the refusal of a value."""
    return ServiceError("INVALID_ARGUMENT", message)


def missing(what: str) -> ServiceError:
    """Make the refusal of a name that is nobody's.

    Args:
        what: `Service account projects/p/serviceAccounts/x@p.iam.gserviceaccount.com`.
    """
    return ServiceError("NOT_FOUND", f"{what} does not exist.")


def unauthenticated(message: str = "", reason: str = "CREDENTIALS_MISSING") -> ServiceError:
    """Make the refusal of a call from nobody.

    Args:
        message: What is wrong with its token; that there is none unless given.
        reason: Reason in ErrorInfo: `CREDENTIALS_MISSING`, `ACCESS_TOKEN_EXPIRED`, `ACCOUNT_STATE_INVALID` or another.
    """
    usual = (
        "Request is missing required authentication credential. Expected OAuth 2 access token, login cookie or other valid "
        "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    info = {"@type": ERROR_INFO, "reason": reason, "domain": "googleapis.com"}
    challenge = 'Bearer realm="https://accounts.google.com/"' + (', error="invalid_token"' if message else "")
    return ServiceError(
        "UNAUTHENTICATED", message or usual, details=[info], headers={"www-authenticate": challenge}, reason="authError"
    )


def denied(permission: str, resource: str, message: str = "") -> ServiceError:
    """Make the refusal of a call whose permission the caller lacks.

    Args:
        permission: `cloudfunctions.functions.create`.
        resource: What it is about, `projects/p/locations/l/functions/f`.
        message: Google's sentence, where the service has one of its own.
    """
    usual = f"Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
    metadata = {"permission": permission, "resource": resource}
    info = {
        "@type": ERROR_INFO,
        "reason": "IAM_PERMISSION_DENIED",
        "domain": "iam.googleapis.com",
        "metadata": metadata,
    }
    return ServiceError("PERMISSION_DENIED", message or usual, details=[info], reason="forbidden")


def format_error(error: ServiceError) -> Answer:
    """Write a refusal as Google's REST APIs do."""
    body: dict[str, Any] = {"code": error.status, "message": error.message, "status": error.code}
    if error.details:
        body["details"] = [dict(detail) for detail in error.details]
    answer = json_answer(error.status, {"error": body})
    return Answer(answer.status, {**answer.headers, **error.headers}, answer.body)
