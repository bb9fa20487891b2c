"""A named model service on a provider, and everything that is done to it once it is there.

`Deployment` is the portable type that users hold; `rollout` brings new revisions, this module moves
traffic between them, scales, reads logs and destroys. Every verb that changes something holds the record's
lease, writes what should be, then makes the platform follow; so each can be killed anywhere and repeated.
What the provider's driver knows to be in the way is refused before the first write. Knows no provider.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from polyserve import metrics as metrics_
from polyserve.driver import Capability, LogEvent, Scaling
from polyserve.endpoint import Endpoint
from polyserve.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    translating,
)
from polyserve.group import GroupEndpoint
from polyserve.obstacles import refuse_bounds, refuse_split
from polyserve.records import DeploymentRecord, HistoryEntry, Ledger, Revision, leased, load
from polyserve.rollout import Target, describe, wait_routed
from polyserve.runtime.signature import Signature
from polyserve.standing import DeploymentStatus, status_of
from polyserve.teardown import destroy

if TYPE_CHECKING:
    from polyserve.metrics import Metrics

__all__ = ["Deployment", "DeploymentStatus"]

FOLLOW_EVERY = 0.5
"""Seconds between two looks at the logs while they are followed."""


class Deployment:
    """A named model service. Made by `polyserve.deploy` and `polyserve.connect`; holds no state that the record does not have.

    Args:
        target: The provider and the bucket of the record.
        record: The record as last read.
    """

    def __init__(self, target: Target, record: DeploymentRecord) -> None:
        self._target = target
        self._record = record
        self._endpoint: Endpoint | None = None

    def __repr__(self) -> str:
        return f"<Deployment {self.name!r} on {self.provider} at {self.url or 'no url'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back connections. The deployment itself is not touched."""
        if self._endpoint is not None:
            self._endpoint.close()
        self._target.provider.close()

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self._record.name

    @property
    def target(self) -> Target:
        """Where it lives: its provider and the bucket of its record and bundles."""
        return self._target

    @property
    def provider(self) -> str:
        """The name of the provider it is on."""
        return self._record.provider

    @property
    def record(self) -> DeploymentRecord:
        """The record as last read or written by this object; `status()` reads it anew."""
        return self._record

    @property
    def url(self) -> str | None:
        """Where it is invoked, without credentials; `None` while there is nothing there."""
        function = describe(self._target.provider, self.name)
        return function.url if function else None

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint, for its settings; `invoke`, `ainvoke` and `map` go through it.

        Raises:
            FailedPreconditionError: No revision has traffic yet.
        """
        if self._endpoint is None and self._record.group is not None:
            self._endpoint = GroupEndpoint(self._target, self.name, self._record.group)
        if self._endpoint is None:
            revision = self._record.stable or self._record.canary
            if revision is None:
                message = f"deployment {self.name!r} has no revision with traffic: deploy a package to it first"
                raise FailedPreconditionError(message, provider=self.provider, operation="invoke", resource=self.name)
            self._endpoint = Endpoint(
                self._target.provider,
                self.name,
                model=revision.model,
                signature=Signature.from_dict(revision.signature),
                timeout=timedelta(seconds=revision.timeout_s),
            )
        return self._endpoint

    # --- calling it ---------------------------------------------------------------------------------------------------------------------

    def invoke(self, data: object, **options: Any) -> Any:
        """Send inputs to the model and return its answer: numpy in, numpy out; lists in, lists out. Options as `Endpoint.invoke`."""
        return self.endpoint.invoke(data, **options)

    async def ainvoke(self, data: object, **options: Any) -> Any:
        """Do what `invoke` does, natively asynchronous."""
        return await self.endpoint.ainvoke(data, **options)

    def map(self, batches: Iterable[object], *, concurrency: int = 32, **options: Any) -> Iterator[Any]:
        """Yield the answers to many inputs, in order, in bounded memory, with retries. Options as `Endpoint.map`."""
        return self.endpoint.map(batches, concurrency=concurrency, **options)

    # --- looking at it ------------------------------------------------------------------------------------------------------------------

    def status(self) -> DeploymentStatus:
        """Return what should be and what is.

        Raises:
            NotFoundError: It was destroyed.
        """
        self._record = load(self._target.bucket, self.name)[0]
        return status_of(self._target, self._record)

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return what was done to it, oldest first."""
        return self.status().record.history

    def logs(self, *, since: datetime | None = None, follow: bool = False) -> Iterator[LogEvent]:
        """Yield what it wrote, oldest first.

        Args:
            since: From when on; `None` for everything there is.
            follow: Go on with what it writes from now on, until the caller stops.

        Raises:
            NotFoundError: The platform has nothing of that name.
        """
        seen: set[LogEvent] = set()
        while True:
            latest = since
            for event in self._logs(since):
                if follow and event in seen:
                    continue
                if follow:
                    seen.add(event)
                latest = event.at
                yield event
            if not follow:
                return
            # Events of one instant may come in two looks: look again from that instant, and leave out what was seen.
            seen = {event for event in seen if latest is not None and event.at >= latest}
            since = latest
            time.sleep(FOLLOW_EVERY)

    def _logs(self, since: datetime | None) -> Iterator[LogEvent]:
        self._refuse_group("read logs of")
        with translating(self._target.provider, "read logs of", self.name):
            yield from self._target.provider.functions.logs(self.name, since=since)

    def metrics(self, *, since: datetime | None = None) -> Metrics:
        """Return latency, errors, cold starts and instances, of all revisions and of each, from the log lines.

        Raises:
            NotFoundError: The platform has nothing of that name.
        """
        function = describe(self._target.provider, self.name)
        counts = [r.instances for r in function.revisions if r.instances is not None] if function else []
        return metrics_.compute(self.logs(since=since), instances=sum(counts) if counts else None)

    # --- changing it --------------------------------------------------------------------------------------------------------------------

    def traffic(self, weights: Mapping[int, int]) -> None:
        """Split the traffic between revisions.

        Args:
            weights: Percent by revision number; sums to 100.

        Raises:
            InvalidArgumentError: The weights do not sum to 100.
            NotFoundError: There is no such revision.
            FailedPreconditionError: A revision did not answer as its package does.
            UnsupportedError: The provider cannot split traffic.
            PlanRefused: It can, and something is in the way of it for these revisions; nothing was changed.
            ConflictError: Somebody else is changing the deployment.
        """
        sharing = {number for number, percent in weights.items() if percent}
        if len(sharing) > 1:
            # Revisions never change: nothing gets in their way between this and the lease.
            refuse_split(self._target.provider, load(self._target.bucket, self.name)[0], sharing)
        with self._changing("traffic") as ledger:
            self._route(ledger, weights, action="traffic", revision=max(weights, default=0))

    def promote(self) -> int:
        """Give the canary all the traffic, and return its number.

        Raises:
            FailedPreconditionError: There is no canary.
            ConflictError: Somebody else is changing the deployment.
        """
        with self._changing("promote") as ledger:
            record = ledger.record
            last = record.history[-1] if record.history else None
            if record.canary is None and last is not None and last.action == "promote":
                # Repeated, perhaps because the first time was cut short: the platform is made to follow.
                self._route(ledger, record.weights, action="promote", revision=last.revision)
                return last.revision
            if record.canary is None:
                message = f"nothing to promote: deployment {self.name!r} has no canary (deploy one with canary=PERCENT)"
                raise FailedPreconditionError(message, provider=self.provider, operation="promote", resource=self.name)
            self._route(ledger, {record.canary.number: 100}, action="promote", revision=record.canary.number)
            return record.canary.number

    def rollback(self, *, to: int | None = None) -> int:
        """Give all the traffic back to an earlier revision, and return its number.

        Args:
            to: The revision; by default the stable one while a canary runs, else the one that had all the traffic before.

        Raises:
            NotFoundError: There is no such revision.
            FailedPreconditionError: There is nothing to go back to, or that revision did not answer as its package does.
            ConflictError: Somebody else is changing the deployment.
        """
        with self._changing("rollback") as ledger:
            record = ledger.record
            if to is None and ledger.decided is not None:
                to = ledger.decided.revision
            elif to is None:
                back = 1 if record.canary else 2
                if len(record.lineage) < back:
                    live = f"revision {record.lineage[-1]}" if record.lineage else "no revision"
                    message = f"nothing to roll back to: {live} of {self.name!r} has no revision before it"
                    raise FailedPreconditionError(
                        message, provider=self.provider, operation="rollback", resource=self.name
                    )
                to = record.lineage[-back]
            self._route(ledger, {to: 100}, action="rollback", revision=to)
            return to

    def scale(self, *, min_instances: int | None = None, max_instances: int | None = None) -> Scaling:
        """Change the bounds of the number of instances in place; what is left out stays. Return the bounds.

        Raises:
            InvalidArgumentError: min is below 0, or max below 1 or below min.
            UnsupportedError: The provider cannot keep instances warm, or cannot cap them.
            PlanRefused: It can, and something is in the way of it for what is deployed; nothing was changed.
            ConflictError: Somebody else is changing the deployment.
        """
        capabilities = self._target.provider.info.capabilities
        for asked, capability, what in (
            (min_instances, Capability.MIN_INSTANCES, "keep instances warm"),
            (max_instances, Capability.MAX_INSTANCES, "cap its instances"),
        ):
            if asked and capability not in capabilities:
                message = f"{self._target.provider.info.title} cannot {what}: leave that bound out"
                raise UnsupportedError(message, provider=self.provider, operation="scale", resource=self.name)
        self._bounds(load(self._target.bucket, self.name)[0], min_instances, max_instances)
        with self._changing("scale") as ledger:
            # The bound that is left out is what somebody else may have made it meanwhile.
            scaling = self._bounds(ledger.record, min_instances, max_instances)
            ledger.save(replace(ledger.record, scaling=scaling).noted("scale"))
            with translating(self._target.provider, "scale", self.name):
                self._target.provider.functions.scale(self.name, scaling)
            return scaling

    def _bounds(self, record: DeploymentRecord, min_instances: int | None, max_instances: int | None) -> Scaling:
        """Return the bounds that a deployment is to have; refuse what it cannot have."""
        info, now = self._target.provider.info, record.scaling
        where: dict[str, Any] = {"provider": self.provider, "operation": "scale", "resource": self.name}
        least = now.min_instances if min_instances is None else min_instances
        most = now.max_instances if max_instances is None else max_instances
        if least < 0 or (most is not None and most < max(1, least)):
            message = f"instances from {least} to {most}: min must be at least 0, max at least 1 and not below min"
            raise InvalidArgumentError(message, **where)
        limit, asked = info.limits.max_instances, max(most or 0, least)
        if limit is not None and asked > limit:
            raise InvalidArgumentError(f"{asked} instances: {info.title} takes at most {limit}", **where)
        scaling = Scaling(min_instances=least, max_instances=most)
        refuse_bounds(self._target.provider, record, scaling)
        return scaling

    def destroy(self) -> None:
        """Delete the deployment and all that was made for it: function, instances, bundles, logs, credentials, record.

        Raises:
            NotFoundError: There is nothing of that name.
            ConflictError: Somebody else is changing it.
        """
        destroy(self._target, self.name)

    def _changing(self, operation: str) -> _Changing:
        self._refuse_group(operation)
        return _Changing(self, operation)

    def _refuse_group(self, operation: str) -> None:
        parts = self._record.parts
        if parts:
            message = (
                f"{self.name!r} is a group of {len(parts)} parts, and {operation} is about one deployment: name a part, from "
                f"{parts[0]!r} to {parts[-1]!r}; a deploy of the group changes all of them"
            )
            raise UnsupportedError(message, provider=self.provider, operation=operation, resource=self.name)

    def _route(self, ledger: Ledger, weights: Mapping[int, int], *, action: str, revision: int) -> None:
        self._check_weights(ledger.record, weights, action)
        wanted = {number: percent for number, percent in weights.items() if percent}
        if ledger.record.weights != wanted:
            ledger.save(ledger.record.routed(wanted, action=action, revision=revision))
        with translating(self._target.provider, action, self.name):
            self._target.provider.functions.route(self.name, wanted)
            wait_routed(self._target.provider, self.name, wanted, renew=ledger.renew)

    def _check_weights(self, record: DeploymentRecord, weights: Mapping[int, int], action: str) -> None:
        where: dict[str, Any] = {"provider": self.provider, "operation": action, "resource": self.name}
        if any(percent < 0 for percent in weights.values()) or sum(weights.values()) != 100:
            shown = " ".join(f"{number}={percent}" for number, percent in weights.items()) or "none"
            raise InvalidArgumentError(
                f"weights {shown} sum to {sum(weights.values())}: they are percents and must sum to 100", **where
            )
        for number in weights:
            known: Revision | None = record.revision(number)
            if known is None:
                numbers = ", ".join(str(r.number) for r in record.revisions) or "none"
                raise NotFoundError(f"deployment {self.name!r} has no revision {number}: it has {numbers}", **where)
            if known.state != "verified" and weights[number]:
                reason = known.reason or "its golden sample was not answered yet"
                raise FailedPreconditionError(
                    f"revision {number} of {self.name!r} may not have traffic: {reason}", **where
                )
        info, count = self._target.provider.info, sum(1 for percent in weights.values() if percent)
        if count > 1 and Capability.TRAFFIC_SPLIT not in info.capabilities:
            raise UnsupportedError(f"{info.title} cannot split traffic: give one revision 100", **where)
        most = info.limits.traffic_revisions
        if most is not None and count > most:
            message = (
                f"{info.title} splits traffic between {most} revisions at most, not {count}: give the others nothing"
            )
            raise UnsupportedError(message, **where)


class _Changing:
    """Holds the lease for one verb of a deployment, and keeps the deployment's record in step with what was written."""

    def __init__(self, deployment: Deployment, operation: str) -> None:
        self._deployment = deployment
        self._lease = leased(deployment._target.bucket, deployment.name, operation)
        self._ledger: Ledger | None = None

    def __enter__(self) -> Ledger:
        self._ledger = self._lease.__enter__()
        self._deployment._record = self._ledger.record
        return self._ledger

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self._lease.__exit__(kind, error, trace)
        finally:
            if self._ledger is not None:
                self._deployment._record = self._ledger.record
