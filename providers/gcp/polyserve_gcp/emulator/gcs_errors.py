"""What Cloud Storage refuses: in JSON as its JSON API says it, in XML as its XML API does."""

from __future__ import annotations

import html

from polyserve.emulation.http import Answer, json_answer
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.identities import Principal

_REASONS = {
    400: "invalid",
    401: "required",
    403: "forbidden",
    404: "notFound",
    409: "conflict",
    412: "conditionNotMet",
    501: "notImplemented",
}
_XML_CODES = {
    400: "InvalidArgument", 401: "AccessDenied", 403: "AccessDenied", 404: "NoSuchKey", 409: "Conflict", 411: "MissingContentLength",
    412: "PreconditionFailed", 416: "InvalidRange", 501: "NotImplemented",
}  # fmt: skip
# What the XML API says in general, before it says what it is in particular.
_XML_MESSAGES = {
    "AccessDenied": "Access denied.", "ExpiredToken": "Invalid argument.", "InvalidArgument": "Invalid argument.",
    "InvalidRange": "The requested range cannot be satisfied.", "NoSuchKey": "The specified key does not exist.",
}  # fmt: skip
_NOUNS = {"buckets": "bucket", "objects": "object", "multipartUploads": "object"}


def bad(message: str, reason: str = "invalid") -> ServiceError:
    """Make the refusal of a value."""
    return ServiceError("INVALID_ARGUMENT", message, reason=reason)


def no_bucket() -> ServiceError:
    """Make the refusal of a bucket that is not there."""
    return ServiceError("NOT_FOUND", "The specified bucket does not exist.", reason="NoSuchBucket")


def no_range(asked: str, size: int) -> ServiceError:
    """Make the refusal of a range that an object has not."""
    message = f"The range {asked} is not of an object of {size} bytes."
    return ServiceError(
        "OUT_OF_RANGE", message, status=416, reason="InvalidRange", headers={"content-range": f"bytes */{size}"}
    )


def no_object(bucket: str, name: str) -> ServiceError:
    """Make the refusal of an object that is not there."""
    return ServiceError("NOT_FOUND", f"No such object: {bucket}/{name}")


def unmet() -> ServiceError:
    """Make the refusal of a call whose condition does not hold."""
    message = "At least one of the pre-conditions you specified did not hold."
    return ServiceError("FAILED_PRECONDITION", message, status=412, reason="conditionNotMet")


def absent(what: str) -> ServiceError:
    """Make the refusal of what Cloud Storage has and the emulator has not."""
    return ServiceError("UNIMPLEMENTED", f"The emulator has no {what}: do without, or try it on a real project.")


def forbidden(principal: Principal | None, permission: str) -> ServiceError:
    """Make the refusal of a call whose permission the caller lacks."""
    who = "Anonymous caller" if principal is None else principal.email
    noun = _NOUNS.get(permission.split(".")[1], "project")
    message = (
        f"{who} does not have {permission} access to the Google Cloud Storage {noun}. "
        f"Permission '{permission}' denied on resource (or it may not exist)."
    )
    if principal is None:
        challenge = {"www-authenticate": 'Bearer realm="https://accounts.google.com/"'}
        return ServiceError("UNAUTHENTICATED", message, reason="required", headers=challenge)
    return ServiceError("PERMISSION_DENIED", message, reason="forbidden")


def format_json(error: ServiceError) -> Answer:
    """Write a refusal as the JSON API does."""
    if error.status == 304:
        return Answer(304, error.headers)
    reason = error.reason if error.reason and error.reason[0].islower() else _REASONS.get(error.status, "backendError")
    entry = {"message": error.message, "domain": "global", "reason": reason}
    if error.status == 401:
        entry |= {"locationType": "header", "location": "Authorization"}
    if reason == "conditionNotMet":
        entry |= {"locationType": "header", "location": "If-Match"}
    body = {"code": error.status, "message": error.message, "errors": [entry]}
    if error.details:
        body |= {"status": error.code, "details": [dict(detail) for detail in error.details]}
    answer = json_answer(error.status, {"error": body})
    return Answer(answer.status, {**answer.headers, **error.headers}, answer.body)


def format_media(error: ServiceError) -> Answer:
    """Write a refusal as downloads have it: the sentence alone."""
    return Answer(error.status, {"content-type": "text/html; charset=UTF-8", **error.headers}, error.message.encode())


def format_xml(error: ServiceError, details: str = "") -> Answer:
    """Write a refusal as the XML API does.

    Args:
        error: What is refused.
        details: Elements that go with it, as XML.
    """
    if error.status == 304:
        return Answer(304, error.headers)
    status = 403 if error.status == 401 else error.status
    code = error.reason if error.reason and error.reason[0].isupper() else _XML_CODES.get(status, "InternalError")
    message = _XML_MESSAGES.get(code, error.message)
    told = details or (f"<Details>{html.escape(error.message)}</Details>" if message != error.message else "")
    inner = f"<Code>{code}</Code><Message>{html.escape(message)}</Message>{told}"
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error>{inner}</Error>"
    return Answer(status, {"content-type": "application/xml; charset=UTF-8", **error.headers}, text.encode())
