"""Where a function's traffic goes: the alias with its weights, its function URL or HTTP API, and the instances that are kept for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from polyserve.driver import ErrorCode, Scaling
from polyserve_aws.clients import Clients
from polyserve_aws.errors import RevisionError, UnsupportedOperationError
from polyserve_aws.http_api import HttpApi
from polyserve_aws.names import ALIAS, MAX_TAG, MIN_TAG, function_name
from polyserve_aws.observing import Observed
from polyserve_aws.settings import AwsSettings

__all__ = ["Traffic"]

_PUBLIC: Mapping[str, Mapping[str, Any]] = {
    # Since October 2025 a public function URL takes both: "Security and auth model", Lambda's developer guide, 2026-11.
    "polyserve-public-url": {"Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"},
    "polyserve-public-invoke": {"Action": "lambda:InvokeFunction", "InvokedViaFunctionUrl": True},
}


class Traffic:
    """Aliases, function URLs and concurrency.

    Args:
        clients: The SDK's clients.
        settings: How functions are called, and by whom.
    """

    def __init__(self, clients: Clients, settings: AwsSettings) -> None:
        self._clients = clients
        self._settings = settings
        self._api = HttpApi(clients, settings)

    @property
    def _lambda(self) -> Any:
        return self._clients.get("lambda")

    def route(self, found: Observed, weights: Mapping[int, int]) -> None:
        """Lead the alias where it is to lead, and make what is missing of the way to it."""
        shares = {number: weight for number, weight in weights.items() if weight}
        _check(found, weights, shares)
        # The larger share is the alias's own; the other one's is written in it.
        first, *others = sorted(shares, key=lambda number: (-shares[number], number))
        routing = {found.versions[number].name: shares[number] / 100 for number in others}
        wanted = {
            "FunctionName": function_name(found.name),
            "Name": ALIAS,
            "FunctionVersion": found.versions[first].name,
            "RoutingConfig": {"AdditionalVersionWeights": routing},
        }
        if found.alias is None:
            self._lambda.create_alias(**wanted)
        elif found.weights() != shares:
            self._lambda.update_alias(**wanted)
        if self._settings.invoke == "url":
            self._open_url(found.name)
        elif found.alias is not None:
            self._close_url(found.name)
        if self._settings.invoke == "http-api":
            self._api.open(found)
        else:
            self._api.close(found)
        if found.alias is None and found.wanted_warm:
            self._keep_warm(found.name, found.wanted_warm)

    def _open_url(self, name: str) -> None:
        where = {"FunctionName": function_name(name), "Qualifier": ALIAS}
        wanted = "NONE" if self._settings.public else "AWS_IAM"
        try:
            present = self._lambda.get_function_url_config(**where)["AuthType"]
        except self._lambda.exceptions.ResourceNotFoundException:
            present = None
            self._lambda.create_function_url_config(**where, AuthType=wanted)
        if present == wanted:
            return
        if present is not None:
            self._lambda.update_function_url_config(**where, AuthType=wanted)
        for statement, rule in _PUBLIC.items():
            if self._settings.public:
                try:
                    self._lambda.add_permission(**where, StatementId=statement, Principal="*", **rule)
                except self._lambda.exceptions.ResourceConflictException:
                    # It was there before.
                    continue
            elif present is not None:
                self._lambda.remove_permission(**where, StatementId=statement)

    def _close_url(self, name: str) -> None:
        """Take a function URL away that was there while the settings wanted one: nobody may call what nobody looks after."""
        where = {"FunctionName": function_name(name), "Qualifier": ALIAS}
        try:
            public = self._lambda.get_function_url_config(**where)["AuthType"] == "NONE"
        except self._lambda.exceptions.ResourceNotFoundException:
            return
        if public:
            for statement in _PUBLIC:
                with suppress(self._lambda.exceptions.ResourceNotFoundException):
                    self._lambda.remove_permission(**where, StatementId=statement)
        self._lambda.delete_function_url_config(**where)

    def scale(self, found: Observed, scaling: Scaling) -> None:
        """Set the bounds of the number of instances."""
        function, arn = {"FunctionName": function_name(found.name)}, found.config["FunctionArn"]
        if scaling.min_instances < found.provisioned:
            # Fewer are kept before fewer are allowed: Lambda refuses a cap below what is kept.
            self._keep_warm(found.name, scaling.min_instances)
        if scaling.max_instances is None:
            if found.reserved is not None:
                self._lambda.delete_function_concurrency(**function)
        elif scaling.max_instances != found.reserved:
            self._lambda.put_function_concurrency(**function, ReservedConcurrentExecutions=scaling.max_instances)
        if found.alias is not None and scaling.min_instances > found.provisioned:
            self._keep_warm(found.name, scaling.min_instances)
        if MAX_TAG in found.tags:
            self._lambda.untag_resource(Resource=arn, TagKeys=[MAX_TAG])
        if scaling.min_instances != found.wanted_warm:
            self._lambda.tag_resource(Resource=arn, Tags={MIN_TAG: str(scaling.min_instances)})

    def _keep_warm(self, name: str, count: int) -> None:
        where = {"FunctionName": function_name(name), "Qualifier": ALIAS}
        if count:
            self._lambda.put_provisioned_concurrency_config(**where, ProvisionedConcurrentExecutions=count)
        else:
            self._lambda.delete_provisioned_concurrency_config(**where)


def _check(found: Observed, weights: Mapping[int, int], shares: Mapping[int, int]) -> None:
    if sum(weights.values()) != 100 or min(weights.values()) < 0:
        raise RevisionError(
            ErrorCode.INVALID_ARGUMENT, f"weights must be 0 to 100 and add up to 100, not {dict(weights)}"
        )
    for number in weights:
        if number not in found.versions:
            raise RevisionError(ErrorCode.FAILED_PRECONDITION, f"{found.name!r} has no revision {number}")
    if len(shares) > 2:
        given = ", ".join(map(str, sorted(shares)))
        raise UnsupportedOperationError(
            f"an alias of Lambda splits traffic between two versions at most, not revisions {given}: give one of them nothing"
        )
