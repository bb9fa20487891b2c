"""Which version answers, and how many events at once: aliases with weights, reserved and provisioned concurrency."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_aws.emulator.asking import Ask, page
from polyserve_aws.emulator.control import find_version
from polyserve_aws.emulator.describing import alias_configuration
from polyserve_aws.emulator.errors import ServiceError, conflict, invalid, missing
from polyserve_aws.emulator.fleet import ACCOUNT_CONCURRENCY, Fleet
from polyserve_aws.emulator.functions import LATEST, Alias, Function, Functions
from polyserve_aws.emulator.releases import Release

UNRESERVED_MINIMUM = 100
"""What functions without a reservation must be left with (Lambda's developer guide, "Reserved concurrency")."""


class Traffic:
    """The operations on aliases and concurrency.

    Args:
        functions: All functions.
        fleet: Their execution environments.
    """

    def __init__(self, functions: Functions, fleet: Fleet) -> None:
        self._functions, self._fleet = functions, fleet

    def operations(self) -> Mapping[str, Callable[[Ask], Awaitable[Answer]]]:
        """Return the operations by name."""
        return {
            "CreateAlias": self.create_alias,
            "GetAlias": self.get_alias,
            "UpdateAlias": self.update_alias,
            "DeleteAlias": self.delete_alias,
            "ListAliases": self.list_aliases,
            "PutFunctionConcurrency": self.put_concurrency,
            "GetFunctionConcurrency": self.get_concurrency,
            "DeleteFunctionConcurrency": self.delete_concurrency,
            "PutProvisionedConcurrencyConfig": self.put_provisioned,
            "GetProvisionedConcurrencyConfig": self.get_provisioned,
            "DeleteProvisionedConcurrencyConfig": self.delete_provisioned,
            "ListProvisionedConcurrencyConfigs": self.list_provisioned,
        }

    async def create_alias(self, ask: Ask) -> Answer:
        """Make an alias."""
        function, body = ask.function(self._functions), ask.body
        name = str(body["Name"])
        if name.isdigit() or name == LATEST:
            raise invalid(f"{name} is no name for an alias: it would look like a version.")
        if name in function.aliases:
            raise conflict(f"Alias already exists: {function.arn(name)}")
        version = str(body["FunctionVersion"])
        find_version(function, version)
        weights = _weights(function, version, body.get("RoutingConfig"))
        alias = Alias(name=name, version=version, description=str(body.get("Description") or ""), weights=weights)
        function.aliases[name] = alias
        return json_answer(201, alias_configuration(function, alias))

    async def get_alias(self, ask: Ask) -> Answer:
        """Describe an alias."""
        function = ask.function(self._functions)
        return json_answer(200, alias_configuration(function, _alias(function, ask)))

    async def update_alias(self, ask: Ask) -> Answer:
        """Lead an alias elsewhere; traffic follows at once."""
        function, body = ask.function(self._functions), ask.body
        alias = _alias(function, ask)
        ask.check_revision(alias.revision_id)
        version = str(body.get("FunctionVersion") or alias.version)
        find_version(function, version)
        if "RoutingConfig" in body:
            weights = _weights(function, version, body["RoutingConfig"])
        else:
            weights = {number: weight for number, weight in alias.weights.items() if number != version}
        moved = version != alias.version
        before = function.version(alias.version).release
        alias.version, alias.weights, alias.revision_id = version, weights, str(uuid.uuid4())
        alias.description = str(body.get("Description", alias.description))
        if moved and alias.name in function.provisioned:
            # Provisioned environments of an alias move with it.
            self._fleet.spawn(self._provision(function, alias.name, before))
        return json_answer(200, alias_configuration(function, alias))

    async def delete_alias(self, ask: Ask) -> Answer:
        """Remove an alias; where there is none, that is all right."""
        function = ask.function(self._functions)
        alias = function.aliases.get(ask.labels["Name"])
        if alias is not None:
            if alias.name in function.provisioned:
                del function.provisioned[alias.name]
                await self._fleet.provision(function.version(alias.version).release, 0)
            del function.aliases[alias.name]
            function.rules.pop(alias.name, None)
        return Answer(204)

    async def list_aliases(self, ask: Ask) -> Answer:
        """List the aliases of a function."""
        function = ask.function(self._functions)
        wanted = ask.call.query.get("FunctionVersion")
        shown = [
            alias_configuration(function, alias)
            for _, alias in sorted(function.aliases.items())
            if wanted in (None, alias.version)
        ]
        return json_answer(200, page(shown, ask.call.query, "Aliases"))

    async def put_concurrency(self, ask: Ask) -> Answer:
        """Reserve concurrency: a guarantee, and a ceiling."""
        function = ask.function(self._functions)
        wanted = int(ask.body["ReservedConcurrentExecutions"])
        others = sum(other.reserved or 0 for other in self._functions.of(function.region) if other is not function)
        if ACCOUNT_CONCURRENCY - others - wanted < UNRESERVED_MINIMUM:
            raise invalid(
                "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
                f"below its minimum value of [{UNRESERVED_MINIMUM}]."
            )
        provisioned = sum(one["wanted"] for one in function.provisioned.values())
        if wanted < provisioned:
            raise invalid(
                "ReservedConcurrentExecutions should not be lower than function's total provisioned concurrency"
            )
        function.reserved = wanted
        return json_answer(200, {"ReservedConcurrentExecutions": wanted})

    async def get_concurrency(self, ask: Ask) -> Answer:
        """Tell the reserved concurrency."""
        function = ask.function(self._functions)
        return json_answer(
            200, {} if function.reserved is None else {"ReservedConcurrentExecutions": function.reserved}
        )

    async def delete_concurrency(self, ask: Ask) -> Answer:
        """Give the reserved concurrency up."""
        ask.function(self._functions).reserved = None
        return Answer(204)

    async def put_provisioned(self, ask: Ask) -> Answer:
        """Have environments started before there is work for them."""
        function, qualifier = self._provisionable(ask)
        wanted = int(ask.body["ProvisionedConcurrentExecutions"])
        if wanted < 1:
            raise ServiceError(400, "ValidationException", "ProvisionedConcurrentExecutions must be at least 1")
        if function.reserved is not None and wanted > function.reserved:
            raise invalid(
                "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for function"
            )
        version = function.version(self._number(function, qualifier))
        if version.release.settings.snap_start != "None":
            raise invalid("Provisioned Concurrency is not supported for functions enabled with SnapStart")
        if version.pending:
            raise conflict("Provisioned Concurrency cannot be set for a version that is Pending.")
        function.provisioned[qualifier] = {"wanted": wanted, "status": "IN_PROGRESS", "reason": "", "modified": _now()}
        self._fleet.spawn(self._provision(function, qualifier, None))
        return json_answer(202, self._describe(function, qualifier))

    async def get_provisioned(self, ask: Ask) -> Answer:
        """Tell how far provisioning is."""
        function, qualifier = self._provisionable(ask)
        if qualifier not in function.provisioned:
            message = "No Provisioned Concurrency Config found for this function"
            raise ServiceError(404, "ProvisionedConcurrencyConfigNotFoundException", message)
        return json_answer(200, self._describe(function, qualifier))

    async def delete_provisioned(self, ask: Ask) -> Answer:
        """Let provisioned environments go."""
        function, qualifier = self._provisionable(ask)
        if function.provisioned.pop(qualifier, None) is not None:
            await self._fleet.provision(function.version(self._number(function, qualifier)).release, 0)
        return Answer(204)

    async def list_provisioned(self, ask: Ask) -> Answer:
        """List what is provisioned for a function."""
        function = ask.function(self._functions)
        shown = [
            {"FunctionArn": function.arn(name), **self._describe(function, name)}
            for name in sorted(function.provisioned)
        ]
        return json_answer(200, page(shown, ask.call.query, "ProvisionedConcurrencyConfigs"))

    async def _provision(self, function: Function, qualifier: str, before: Release | None) -> None:
        config = function.provisioned[qualifier]
        config |= {"status": "IN_PROGRESS", "reason": ""}
        if before is not None:
            await self._fleet.provision(before, 0)
        release = function.version(self._number(function, qualifier)).release
        why = await self._fleet.provision(release, int(config["wanted"]))
        config |= {"status": "FAILED" if why else "READY", "reason": why}

    def _provisionable(self, ask: Ask) -> tuple[Function, str]:
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        if not reference.qualifier or reference.qualifier == LATEST:
            raise invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
        function.resolve(reference.qualifier)
        return function, reference.qualifier

    def _number(self, function: Function, qualifier: str) -> str:
        alias = function.aliases.get(qualifier)
        return alias.version if alias else qualifier

    def _describe(self, function: Function, qualifier: str) -> dict[str, Any]:
        config = function.provisioned[qualifier]
        ready = self._fleet.ready_of(function.version(self._number(function, qualifier)).release)
        settled = config["status"] != "IN_PROGRESS"
        found = {
            "RequestedProvisionedConcurrentExecutions": config["wanted"],
            "AllocatedProvisionedConcurrentExecutions": ready if settled else 0,
            "AvailableProvisionedConcurrentExecutions": ready if settled else 0,
            "Status": config["status"],
            "LastModified": config["modified"],
        }
        return found | ({"StatusReason": config["reason"]} if config["reason"] else {})


def _alias(function: Function, ask: Ask) -> Alias:
    found = function.aliases.get(ask.labels["Name"])
    if found is None:
        raise missing(f"Cannot find alias arn: {function.arn(ask.labels['Name'])}")
    return found


def _weights(function: Function, version: str, routing: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the weights of an alias, if Lambda takes them."""
    given = dict((routing or {}).get("AdditionalVersionWeights") or {})
    if not given:
        return {}
    if len(given) > 1:
        raise invalid("Number of items in AdditionalVersionWeights cannot be greater than 1")
    if version == LATEST or LATEST in given:
        raise invalid("$LATEST is not supported for an alias pointing to more than 1 version")
    for number, weight in given.items():
        other = find_version(function, number)
        if number == version:
            raise invalid(
                f"Invalid function version {number}. Function version {number} is already included in routing configuration."
            )
        if not 0.0 <= float(weight) <= 1.0:
            raise ServiceError(
                400, "ValidationException", f"Weight {weight} of version {number} must be between 0.0 and 1.0"
            )
        if other.release.settings.role != function.version(version).release.settings.role:
            raise invalid("The execution role must be the same for all versions of an alias.")
    return {number: float(weight) for number, weight in given.items()}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
