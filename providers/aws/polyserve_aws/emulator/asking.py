"""One call of Lambda's API, taken apart, and what its operations share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyserve.emulation.http import Call
from polyserve_aws.emulator.access import Access
from polyserve_aws.emulator.actions import Need
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.functions import Function, Functions, Reference, Version
from polyserve_aws.emulator.identities import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call.

    Attributes:
        operation: `CreateFunction`.
        labels: What the path holds, by the model's names: `FunctionName`.
        call: The request.
        region: Region that it was signed for.
        principal: Who signed it.
        access: Decides what the principal may do besides.
    """

    operation: str
    labels: Mapping[str, str]
    call: Call
    region: str
    principal: Principal
    access: Access

    @property
    def body(self) -> dict[str, Any]:
        """The parameters in the body."""
        return self.call.json

    def reference(self, functions: Functions) -> Reference:
        """Return what the call names."""
        name = self.labels.get("FunctionName") or str(self.body.get("FunctionName", ""))
        return functions.read(name, self.region, self.call.query.get("Qualifier", ""))

    def function(self, functions: Functions) -> Function:
        """Return the function that the call names."""
        return functions.find(self.reference(functions))

    def check_revision(self, revision_id: str) -> None:
        """Refuse a change that was meant for another state of the thing it changes.

        Args:
            revision_id: The state as it is.
        """
        given = self.body.get("RevisionId") or self.call.query.get("RevisionId")
        if given and given != revision_id:
            message = (
                "The Revision Id provided does not match the latest Revision Id. "
                "Call the GetFunction/GetAlias API to retrieve the latest Revision Id"
            )
            raise ServiceError(412, "PreconditionFailedException", message)

    def permit(self, action: str, resource: str, context: Mapping[str, str] | None = None) -> None:
        """Make sure that the caller may do something besides the operation itself."""
        self.access.permit(self.principal, Need(action, (resource,)), service="lambda", context=context)


def check_settled(function: Function, version: Version) -> None:
    """Refuse a change while another one is under way."""
    if version.pending:
        message = (
            "The operation cannot be performed at this time. The function is currently in the following state: Pending"
        )
        raise ServiceError(409, "ResourceConflictException", message)
    if version.changing:
        message = (
            f"The operation cannot be performed at this time. An update is in progress for resource: {function.arn()}"
        )
        raise ServiceError(409, "ResourceConflictException", message)


def page(items: list[Any], query: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return one page of a list, with the marker of the next.

    Args:
        items: The whole list.
        query: Parameters of the call: `Marker` and `MaxItems`.
        name: What the list is called in the answer.
    """
    start = int(query.get("Marker") or 0)
    end = start + min(int(query.get("MaxItems") or 50), 50)
    found: dict[str, Any] = {name: items[start:end]}
    if end < len(items):
        found["NextMarker"] = str(end)
    return found
