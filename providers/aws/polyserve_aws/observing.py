"""A function as Lambda has it: its settings, its versions, its alias; and what that is in the core's words.

A revision is a published version. Its description says which one (`names.Mark`), and so does the description of the unpublished `$LATEST`
while a revision is on its way: nothing else has to be kept anywhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyserve.driver import FunctionStatus, Phase, RevisionStatus, Scaling
from polyserve_aws.clients import Clients
from polyserve_aws.names import ALIAS, API_TAG, MAX_TAG, MIN_TAG, OWN_TAGS, REMOVED_TAG, Mark, function_name
from polyserve_aws.settings import AwsSettings

__all__ = ["Observed", "Version", "api_url", "http_api_url", "observe", "versions_of"]

_PENDING = frozenset({"Pending", "Activating", "Deactivating"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A published version that is a revision."""

    mark: Mark
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Lambda's own number of it."""
        return str(self.config["Version"])

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return Phase.FAILED if self.reason else _phase(self.config)

    @property
    def reason(self) -> str | None:
        """Why it failed, if it did."""
        if self.config.get("PackageType") != "Image":
            found = base64.b64decode(self.config["CodeSha256"]).hex()
            if found != self.mark.bundle:
                return f"the bundle in S3 has sha256 {found[:12]}, and the revision's is {self.mark.bundle[:12]}: deploy again"
        if self.config.get("State") == "Failed":
            return str(self.config.get("StateReason") or self.config.get("StateReasonCode") or "Lambda gave no reason")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One function.

    Attributes:
        name: The deployment.
        config: Settings and state of `$LATEST`.
        tags: Labels, and our own.
        reserved: Reserved concurrency.
        versions: Revisions that are published, by number.
        alias: The alias that has the traffic.
        url: Where it is called.
        provisioned: Instances that are kept warm for the alias.
    """

    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    reserved: int | None
    versions: Mapping[int, Version]
    alias: Mapping[str, Any] | None
    url: str | None
    provisioned: int

    @property
    def pending(self) -> Mark | None:
        """The revision that was begun and is not published yet."""
        mark = Mark.read(self.config.get("Description", ""))
        if mark is None or mark.number in self.versions or self.tags.get(REMOVED_TAG) == str(mark.number):
            return None
        return mark

    @property
    def settled(self) -> bool:
        """Whether Lambda takes another change."""
        return self.config.get("State") not in _PENDING and self.config.get("LastUpdateStatus") != "InProgress"

    @property
    def unbounded(self) -> int | None:
        """The most instances that were asked for when it was made, where that is still to be done."""
        wanted = self.tags.get(MAX_TAG)
        return int(wanted) if wanted and self.reserved is None else None

    @property
    def wanted_warm(self) -> int:
        """Instances that are to be kept warm, once there is an alias."""
        return int(self.tags.get(MIN_TAG, "0"))

    @property
    def labels(self) -> dict[str, str]:
        """The tags that are not our own."""
        return {key: value for key, value in self.tags.items() if not key.startswith(OWN_TAGS)}

    def weights(self) -> dict[int, int]:
        """Return the percent of the traffic by revision; empty while anything of the way to the function is missing."""
        if self.alias is None or self.url is None:
            return {}
        numbers = {version.name: number for number, version in self.versions.items()}
        others = (self.alias.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}
        shares = {name: round(weight * 100) for name, weight in others.items()}
        shares[self.alias["FunctionVersion"]] = 100 - sum(shares.values())
        found = {numbers[name]: share for name, share in shares.items() if share and name in numbers}
        return dict(sorted(found.items()))

    def status(self) -> FunctionStatus:
        """Return all of it in the core's words."""
        phase = _phase(self.config)
        return FunctionStatus(
            name=self.name,
            phase=phase,
            url=self.url,
            revisions=self._revisions(),
            weights=self.weights(),
            scaling=Scaling(
                min_instances=self.provisioned if self.alias else self.wanted_warm, max_instances=self.reserved
            ),
            labels=self.labels,
            native_id=self.config["FunctionArn"],
            reason=self.config.get("StateReason") if phase is Phase.FAILED else None,
        )

    def _revisions(self) -> tuple[RevisionStatus, ...]:
        found = {number: self._published(version) for number, version in self.versions.items()}
        pending = self.pending
        if pending is not None:
            found[pending.number] = self._begun(pending)
        return tuple(found[number] for number in sorted(found))

    def _published(self, version: Version) -> RevisionStatus:
        phase, mark = version.phase, version.mark
        newest = Mark.read(self.config.get("Description", "")) == mark
        if phase is Phase.READY and newest and not self.settled:
            # Lambda takes no other change yet, and the next revision would be refused.
            phase = Phase.PROVISIONING
        return RevisionStatus(
            number=mark.number,
            spec_digest=mark.spec,
            phase=phase,
            reason=version.reason,
            incomplete=phase is Phase.READY and newest and self.unbounded is not None,
        )

    def _begun(self, mark: Mark) -> RevisionStatus:
        failed = self.config.get("LastUpdateStatus") == "Failed" or self.config.get("State") == "Failed"
        reason = self.config.get("LastUpdateStatusReason") or self.config.get("StateReason") or "Lambda gave no reason"
        return RevisionStatus(
            number=mark.number,
            spec_digest=mark.spec,
            phase=Phase.FAILED if failed else Phase.PROVISIONING,
            reason=str(reason) if failed else None,
            incomplete=self.settled and not failed,
        )


def observe(clients: Clients, settings: AwsSettings, name: str) -> Observed:
    """Look at a function. The SDK's error of code NOT_FOUND where there is none."""
    lambda_, function = clients.get("lambda"), function_name(name)
    found = lambda_.get_function(FunctionName=function)
    config = found["Configuration"]
    alias = _or_none(lambda_.get_alias, lambda_, FunctionName=function, Name=ALIAS)
    url, provisioned = None, 0
    if alias is not None:
        where = {"FunctionName": function, "Qualifier": ALIAS}
        if settings.invoke == "url":
            at = _or_none(lambda_.get_function_url_config, lambda_, **where)
            url = at["FunctionUrl"].rstrip("/") if at else None
        elif settings.invoke == "http-api":
            url = http_api_url(clients, found.get("Tags", {}))
        else:
            url = api_url(lambda_, function)
        kept = _or_none(lambda_.get_provisioned_concurrency_config, lambda_, **where)
        provisioned = kept["RequestedProvisionedConcurrentExecutions"] if kept else 0
    return Observed(
        name=name,
        config=config,
        tags=found.get("Tags", {}),
        reserved=found.get("Concurrency", {}).get("ReservedConcurrentExecutions"),
        versions=versions_of(lambda_, function),
        alias=alias,
        url=url,
        provisioned=provisioned,
    )


def versions_of(lambda_: Any, function: str) -> dict[int, Version]:
    """Return the published revisions of a function by number."""
    pages = lambda_.get_paginator("list_versions_by_function").paginate(FunctionName=function)
    configs: Sequence[Mapping[str, Any]] = [
        each for page in pages for each in page["Versions"] if each["Version"] != "$LATEST"
    ]
    found = {}
    for at, config in enumerate(configs):
        mark = Mark.read(config.get("Description", ""))
        if mark is None:
            continue
        if "State" not in config and at == len(configs) - 1:
            # A listing may leave the state out (ListFunctions in Lambda's API reference); only the newest may have any to tell.
            config = lambda_.get_function_configuration(FunctionName=function, Qualifier=config["Version"])  # noqa: PLW2901
        found[mark.number] = Version(mark=mark, config=config)
    return found


def api_url(lambda_: Any, function: str) -> str:
    """Return where a function is called by Lambda's Invoke API, but for the last piece of the path."""
    return f"{lambda_.meta.endpoint_url.rstrip('/')}/2015-03-31/functions/{function}"


def http_api_url(clients: Clients, tags: Mapping[str, str]) -> str | None:
    """Return where the HTTP API of a function with these tags answers; `None` while it is not complete."""
    gateway, api_id = clients.get("apigatewayv2"), tags.get(API_TAG)
    if api_id is None:
        return None
    try:
        gateway.get_stage(ApiId=api_id, StageName="$default")
        return str(gateway.get_api(ApiId=api_id)["ApiEndpoint"]).rstrip("/")
    except gateway.exceptions.NotFoundException:
        return None


def _or_none(call: Any, lambda_: Any, **where: str) -> Any:
    try:
        return call(**where)
    except (
        lambda_.exceptions.ResourceNotFoundException,
        lambda_.exceptions.ProvisionedConcurrencyConfigNotFoundException,
    ):
        return None


def _phase(config: Mapping[str, Any]) -> Phase:
    state = config.get("State", "Active")
    if state == "Failed":
        return Phase.FAILED
    if state == "Deleting":
        return Phase.DELETING
    # What was idle for weeks is `Inactive`, and wakes up when it is called.
    return Phase.PROVISIONING if state in _PENDING else Phase.READY
