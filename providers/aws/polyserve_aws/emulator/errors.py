"""Refusals as AWS gives them: one exception, and the four shapes in which the services write it down.

Each service answers errors in the shape of its protocol, and SDKs read the code and the message from there: S3 in XML
of its own, IAM and STS in the XML of the query protocol, ECR and CloudWatch Logs as JSON with `__type`, Lambda and API
Gateway as JSON with the code in the header `x-amzn-errortype`.
"""

from __future__ import annotations

import json
import uuid
from xml.sax.saxutils import escape

from polyserve.emulation.http import Answer

QUERY_SERVICES = frozenset({"iam", "sts", "monitoring"})
JSON_SERVICES = frozenset({"ecr", "kms", "logs"})


class ServiceError(Exception):
    """A service refuses a call.

    Args:
        status: HTTP status of the answer.
        code: Name of the error as SDKs know it, `ResourceNotFoundException`.
        message: The sentence for people.
        fault: Who is to blame, `User` or `Service`.
    """

    def __init__(self, status: int, code: str, message: str, *, fault: str = "User") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.fault = fault


def invalid(message: str) -> ServiceError:
    """Make Lambda's refusal of a value."""
    return ServiceError(400, "InvalidParameterValueException", message)


def missing(message: str) -> ServiceError:
    """Make Lambda's refusal of a name that is nobody's."""
    return ServiceError(404, "ResourceNotFoundException", message)


def conflict(message: str) -> ServiceError:
    """Make Lambda's refusal of a call that comes at the wrong time, or a second time."""
    return ServiceError(409, "ResourceConflictException", message)


def format_error(service: str, error: ServiceError, *, resource: str = "", head: bool = False) -> Answer:
    """Write an error the way a service does.

    Args:
        service: Signing name of the service, `s3`.
        error: What it refuses.
        resource: Path that was asked for; S3 names it.
        head: Whether the request was a HEAD, whose answer has no body.
    """
    request_id = str(uuid.uuid4())
    if service == "s3":
        text = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{escape(error.code)}</Code>'
            f"<Message>{escape(error.message)}</Message><Resource>{escape(resource)}</Resource>"
            f"<RequestId>{request_id}</RequestId></Error>"
        )
        return Answer(error.status, {"content-type": "application/xml"}, b"" if head else text.encode())
    if service in QUERY_SERVICES:
        text = (
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{escape(error.code)}</Code>"
            f"<Message>{escape(error.message)}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
        )
        return Answer(error.status, {"content-type": "text/xml"}, text.encode())
    if service in JSON_SERVICES:
        body = json.dumps({"__type": error.code, "message": error.message}).encode()
        return Answer(error.status, {"content-type": "application/x-amz-json-1.1"}, body)
    body = json.dumps({"Type": error.fault, "message": error.message, "Message": error.message}).encode()
    headers = {"content-type": "application/json", "x-amzn-errortype": error.code, "x-amzn-requestid": request_id}
    return Answer(error.status, headers, body)
