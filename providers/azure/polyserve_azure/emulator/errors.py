"""What the emulator refuses, in the words of Azure Resource Manager."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from polyserve.emulation.http import Answer, json_answer


class ServiceError(Exception):
    """A refusal.

    Args:
        status: HTTP status.
        code: Azure's code, `ResourceNotFound`.
        message: Azure's sentence.
        headers: Header fields that go with it, such as `retry-after`.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


def bad_request(message: str) -> ServiceError:
    """Make the refusal of a value."""
    return ServiceError(400, "BadRequest", message)


def conflict(message: str) -> ServiceError:
    """Make the refusal of a call that what is there stands against."""
    return ServiceError(409, "Conflict", message)


def missing(kind: str, name: str, group: str) -> ServiceError:
    """Make the refusal of a name that is nobody's.

    Args:
        kind: Type of the resource, `Microsoft.Web/sites`.
        name: Its name.
        group: The resource group that was looked in.
    """
    message = (
        f"The Resource '{kind}/{name}' under resource group '{group}' was not found. For more details please go to "
        "https://aka.ms/ARMResourceNotFoundFix"
    )
    return ServiceError(404, "ResourceNotFound", message)


def format_error(error: ServiceError) -> Answer:
    """Write a refusal the way Resource Manager does."""
    body = {"error": {"code": error.code, "message": error.message}}
    answer = json_answer(error.status, body)
    fields = {"x-ms-request-id": str(uuid.uuid4()), "x-ms-failure-cause": "gateway", **error.headers}
    return Answer(answer.status, {**answer.headers, **fields}, answer.body)
