"""Azure Resource Manager: tokens, versions, roles and faults, then the operation that a call names."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable

from polyserve.emulation.http import Answer, Call
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError, format_error
from polyserve_azure.emulator.faults import Faults
from polyserve_azure.emulator.operations import Operations
from polyserve_azure.emulator.principals import Principals
from polyserve_azure.emulator.resources import Resources
from polyserve_azure.emulator.roles import Roles
from polyserve_azure.emulator.targets import Target, parse_target

_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")


class ResourceManager:
    """Answers every call to Resource Manager.

    Args:
        subscription: The one subscription that there is.
        principals: Who may call.
        roles: Who may do what.
        resources: What there is.
        faults: Failures that are wanted.
        operations: What is under way.
        tables: What can be called.
        url: Returns the emulator's address.
    """

    def __init__(
        self,
        subscription: str,
        *,
        principals: Principals,
        roles: Roles,
        resources: Resources,
        faults: Faults,
        operations: Operations,
        tables: Iterable[Table],
        url: Callable[[], str],
    ) -> None:
        self._subscription, self._principals, self._roles = subscription, principals, roles
        self._resources, self._faults, self._running, self._url = resources, faults, operations, url
        self._table: dict[tuple[str, str, bool], Operation] = {}
        for table in tables:
            self._table.update(table)

    async def answer(self, call: Call) -> Answer:
        """Answer one call."""
        try:
            answer = await self._answer(call)
        except ServiceError as error:
            answer = format_error(error)
        common = {"x-ms-request-id": str(uuid.uuid4()), "x-ms-correlation-request-id": str(uuid.uuid4())}
        return Answer(answer.status, {**common, **answer.headers}, answer.body)

    async def _answer(self, call: Call) -> Answer:
        principal = self._principals.read(call.headers.get("Authorization", ""))
        version = call.query.get("api-version", "")
        if not version:
            message = "The api-version query parameter (?api-version=) is required for all requests."
            raise ServiceError(400, "MissingApiVersionParameter", message)
        if not _VERSION.fullmatch(version):
            message = f"The api-version '{version}' is invalid. The supported versions are of the form '2024-04-01'."
            raise ServiceError(400, "InvalidApiVersionParameter", message)
        fault = self._faults.take(call.method, call.path)
        if fault is not None and not fault.late:
            raise fault.error()
        target = parse_target(call.path)
        if target.subscription and target.subscription.lower() != self._subscription:
            message = f"The subscription '{target.subscription}' could not be found."
            raise ServiceError(404, "SubscriptionNotFound", message)
        if target.kind in {"microsoft.web/locations/operations", "microsoft.web/locations/operationresults"}:
            ask_after = self._running.status if target.kind.endswith("/operations") else self._running.result
            return ask_after(target.names[-1])
        operation = self._find(call.method, target)
        self._roles.demand(principal, operation.action, target.path)
        self._check_group(target)
        ask = Ask(call=call, target=target, principal=principal, roles=self._roles, url=self._url())
        answer = await operation.handler(ask)
        if fault is not None:
            raise fault.error()
        return answer

    def _find(self, method: str, target: Target) -> Operation:
        found = self._table.get((method, target.kind, target.single))
        if found is not None:
            return found
        if any(kind == target.kind and single == target.single for _, kind, single in self._table):
            raise ServiceError(405, "MethodNotAllowed", f"The method '{method}' is not allowed on '{target.path}'.")
        message = f"The emulator has no operation '{method} {target.kind}'; what it has is in its documentation."
        raise ServiceError(404, "InvalidResourceType", message)

    def _check_group(self, target: Target) -> None:
        if not target.group or target.kind == "microsoft.resources/subscriptions/resourcegroups":
            return
        if self._resources.find(f"/subscriptions/{self._subscription}/resourceGroups/{target.group}") is None:
            raise ServiceError(404, "ResourceGroupNotFound", f"Resource group '{target.group}' could not be found.")
