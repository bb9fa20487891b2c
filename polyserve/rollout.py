"""How a package becomes a revision with traffic: upload -> apply -> wait -> golden sample -> record -> route.

Every step looks before it acts and can be repeated, so a rollout that was killed after any of them is
finished by the same command. The revision is written to the record before the platform hears of it
(nothing can exist that no record names), and the weights before they are routed (the record is what should
be). A revision whose golden answer differs is recorded as failed and never gets traffic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from polyserve.bundle import Bundle
from polyserve.desired import Event, Listener, Target, desire
from polyserve.driver import (
    Artifact,
    FunctionSpec,
    FunctionStatus,
    Phase,
    Provider,
    Request,
    RevisionStatus,
)
from polyserve.endpoint import Endpoint
from polyserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    PolyserveError,
    VerificationError,
    translating,
)
from polyserve.model import ModelPackage
from polyserve.obstacles import refused
from polyserve.planner import Desired, Observed, Plan, StepKind, failed, matching_revision, missing_models, plan
from polyserve.records import DeploymentRecord, Ledger, Revision, leased, load
from polyserve.runtime.signature import Signature
from polyserve.uploads import upload_bundle, upload_model

__all__ = [
    "Event",
    "Listener",
    "Target",
    "describe",
    "desire",
    "observe",
    "refuse",
    "roll_out",
    "verify",
    "wait_ready",
    "wait_routed",
]

READY_WITHIN = timedelta(minutes=15)
"""How long a revision may take to be ready: building an environment or an image is the slow part."""

COLD_WITHIN = timedelta(minutes=2)
"""How long the first answer of a new revision may take beyond the time that one request may take."""

SHORTEST_POLL, LONGEST_POLL = 0.01, 2.0
"""Seconds between two looks at a revision that is not ready: a tenth of the time so far or four times what a look takes, within these."""


def observe(target: Target, desired: Desired) -> Observed:
    """Look at what is there: the record, the function, the bundle in the bucket.

    Raises:
        PolyserveError: The provider does not answer, or may not be asked.
    """
    try:
        record: DeploymentRecord | None = load(target.bucket, desired.name)[0]
    except NotFoundError:
        record = None
    return Observed(
        record=record,
        function=describe(target.provider, desired.name),
        artifact_present=record is not None and target.bucket.exists(desired.artifact.key),
        models_present=frozenset(
            model.key for model in desired.models.values() if record is not None and target.bucket.exists(model.key)
        ),
    )


def describe(provider: Provider, name: str) -> FunctionStatus | None:
    """Return a function as its platform sees it, or `None` where there is none."""
    try:
        with translating(provider, "describe", name):
            return provider.functions.describe(name)
    except NotFoundError:
        return None


def refuse(planned: Plan) -> None:
    """Raise if the plan may not be carried out.

    Raises:
        PlanRefused: With every reason.
    """
    if planned.refusals:
        raise refused("deploy", planned.name, planned.provider, planned.refusals)


def roll_out(
    target: Target, desired: Desired, package: ModelPackage, bundle: Bundle, *, listener: Listener | None = None
) -> Plan:
    """Make a deployment be what is desired, and return what had to be done.

    Raises:
        PlanRefused: It cannot be; nothing was changed.
        ConflictError: Somebody else is changing it.
        VerificationError: The revision answers differently from the package; it got no traffic.
        PolyserveError: A step failed; the same call goes on from there.
    """
    observed = observe(target, desired)
    planned = plan(desired, observed, permissions=target.provider.functions.permissions(desired.spec(1)))
    refuse(planned)
    # A lease or a note that a deploy left when it was cut short after its last step is tidied away, too.
    left_over = observed.record is not None and (observed.record.lease or observed.record.unfinished)
    if not planned.changes and not left_over:
        return planned
    with translating(target.provider, "make bucket", desired.artifact.bucket):
        target.provider.ensure_bucket(desired.artifact.bucket)
    new = DeploymentRecord(name=desired.name, provider=desired.info.name, scaling=desired.scaling)
    with leased(target.bucket, desired.name, "deploy", new=new) as ledger:
        # Somebody may have changed it between the first look and the lease: what counts is what is seen under the lease.
        observed = observe(target, desired)
        planned = plan(desired, observed, permissions=planned.permissions)
        refuse(planned)
        _Rollout(
            target=target,
            desired=desired,
            package=package,
            bundle=bundle,
            ledger=ledger,
            tell=listener or (lambda event: None),
        ).run(planned, observed)
    return planned


@dataclass(slots=True, kw_only=True)
class _Rollout:
    """One rollout under its lease."""

    target: Target
    desired: Desired
    package: ModelPackage
    bundle: Bundle
    ledger: Ledger
    tell: Listener

    def run(self, planned: Plan, observed: Observed) -> None:
        """Carry out the steps of the plan."""
        if not planned.changes:
            return
        kinds = {step.kind: step.summary for step in planned.steps}
        number, desired = planned.revision, self.desired
        if StepKind.APPLY in kinds or StepKind.VERIFY in kinds:
            self._announce(number, observed)
        if StepKind.UPLOAD in kinds:
            with self._step(StepKind.UPLOAD, kinds[StepKind.UPLOAD]):
                upload_bundle(self.target.bucket, desired.artifact, self.bundle)
        if StepKind.MODELS in kinds:
            with self._step(StepKind.MODELS, kinds[StepKind.MODELS]):
                self._upload_models(missing_models(desired, observed, number))
        if StepKind.APPLY in kinds:
            with (
                self._step(StepKind.APPLY, kinds[StepKind.APPLY]),
                translating(self.target.provider, "apply", desired.name),
            ):
                self.target.provider.functions.apply(desired.spec(number))
        if StepKind.WAIT in kinds:
            with self._step(StepKind.WAIT, kinds[StepKind.WAIT]), self._recording_failure(number):
                wait_ready(self.target.provider, desired.spec(number), renew=self.ledger.renew)
        if StepKind.VERIFY in kinds:
            with self._step(StepKind.VERIFY, kinds[StepKind.VERIFY]), self._recording_failure(number):
                verify(self.target.provider, desired, number, self.package)
        if StepKind.SCALE in kinds:
            with (
                self._step(StepKind.SCALE, kinds[StepKind.SCALE]),
                translating(self.target.provider, "scale", desired.name),
            ):
                self.target.provider.functions.scale(desired.name, desired.scaling)
        self._record(planned)
        if StepKind.ROUTE in kinds:
            with (
                self._step(StepKind.ROUTE, kinds[StepKind.ROUTE]),
                translating(self.target.provider, "route", desired.name),
            ):
                self.target.provider.functions.route(desired.name, planned.weights)
                wait_routed(self.target.provider, desired.name, planned.weights, renew=self.ledger.renew)

    def _announce(self, number: int, observed: Observed) -> None:
        """Write the revision to the record before the platform hears of it, and let go of one that was begun and given up."""
        desired, record = self.desired, self.ledger.record
        known = matching_revision(desired, observed)
        revision = Revision(
            number=number,
            package_digest=desired.package_digest,
            spec_digest=desired.spec(number).digest(),
            artifact=desired.artifact,
            model=desired.model,
            signature=dict(desired.signature),
            python=desired.python,
            memory_mb=desired.memory_mb,
            timeout_s=desired.timeout.total_seconds(),
            environment=tuple(sorted(desired.environment)),
            state="pending",
            created_at=known.created_at if known else time.time(),
        )
        for left in (r for r in record.revisions if r.state == "pending" and r.number != number):
            record = record.with_revision(failed(left, "given up: another deploy came before it was verified"))
        self.ledger.save(record.with_revision(revision))

    def _upload_models(self, models: Mapping[str, Artifact]) -> None:
        for path, model in models.items():

            def told(done: int, path: str = path, size: int = model.size) -> None:
                self.ledger.renew()
                self.tell(Event(step=StepKind.MODELS, state="progress", detail=f"{path}: {done:,} of {size:,} bytes"))

            upload_model(self.target.bucket, model, self.package.root / path, told)

    @contextmanager
    def _recording_failure(self, number: int) -> Iterator[None]:
        """Write down why a revision failed. What may pass (a lost connection) is not held against it."""
        try:
            yield
        except (VerificationError, FailedPreconditionError) as error:
            record = self.ledger.record
            revision = record.revision(number)
            if revision is not None:
                noted = record.with_revision(failed(revision, error.message)).noted(
                    "deploy failed", revision=number, note=error.message
                )
                self.ledger.save(noted)
            raise

    def _record(self, planned: Plan) -> None:
        record = replace(self.ledger.record, scaling=self.desired.scaling)
        revision = record.revision(planned.revision)
        if revision is not None:
            record = record.with_revision(replace(revision, state="verified", reason=""))
        action = "deploy" if len(planned.weights) == 1 else "canary"
        self.ledger.save(record.routed(planned.weights, action=action, revision=planned.revision))

    @contextmanager
    def _step(self, kind: StepKind, detail: str) -> Iterator[None]:
        self.tell(Event(step=kind, state="start", detail=detail))
        begun = time.perf_counter()
        yield
        self.tell(Event(step=kind, state="done", detail=detail, seconds=time.perf_counter() - begun))


def wait_ready(
    provider: Provider, spec: FunctionSpec, *, renew: Callable[[], None], within: timedelta | None = None
) -> RevisionStatus:
    """Wait until a revision is ready, looking at it ever less often, and applying it again where its platform asks for that.

    Args:
        provider: The provider.
        spec: The revision, as it was applied.
        renew: Called between two looks, to keep a lease.
        within: How long to wait at most; `READY_WITHIN` unless given.

    Raises:
        FailedPreconditionError: It failed; the message has the platform's reason.
        DeadlineExceededError: It is not ready in time.
    """
    begun, name, number, within = time.monotonic(), spec.name, spec.revision, within or READY_WITHIN
    while True:
        looked = time.monotonic()
        with translating(provider, "describe", name):
            status = provider.functions.describe(name).revision(number)
        took = time.monotonic() - looked
        if status is not None and status.incomplete:
            with translating(provider, "apply", name):
                status = provider.functions.apply(spec).revision(number)
        if status is not None and status.phase is Phase.READY:
            return status
        if status is not None and status.phase is Phase.FAILED:
            message = (
                f"revision {number} of {name!r} failed on {provider.info.name}: {status.reason or 'no reason given'}"
            )
            raise FailedPreconditionError(message, provider=provider.info.name, operation="wait", resource=name)
        waited = time.monotonic() - begun
        if waited >= within.total_seconds():
            message = (
                f"revision {number} of {name!r} is not ready on {provider.info.name} after {within.total_seconds():g} s: "
                "look at `polyserve logs`, then repeat the command to go on waiting"
            )
            raise DeadlineExceededError(message, provider=provider.info.name, operation="wait", resource=name)
        renew()
        _pause(waited, took)


def wait_routed(
    provider: Provider,
    name: str,
    weights: Mapping[int, int],
    *,
    renew: Callable[[], None],
    within: timedelta | None = None,
) -> None:
    """Wait until traffic goes where it was routed, and route it again where its platform asks for that.

    Where a revision gets the traffic by being published behind an address, that takes a while.

    Args:
        provider: The provider.
        name: The function.
        weights: What was routed.
        renew: Called between two looks, to keep a lease.
        within: How long to wait at most; `READY_WITHIN` unless given.

    Raises:
        FailedPreconditionError: The platform could not do it; the message has its reason.
        DeadlineExceededError: It is not done in time.
    """
    begun, within = time.monotonic(), within or READY_WITHIN
    while True:
        looked = time.monotonic()
        with translating(provider, "describe", name):
            function = provider.functions.describe(name)
        took = time.monotonic() - looked
        if dict(function.weights) == dict(weights):
            return
        if function.incomplete:
            with translating(provider, "route", name):
                provider.functions.route(name, weights)
        where: dict[str, Any] = {"provider": provider.info.name, "operation": "route", "resource": name}
        if function.phase is Phase.FAILED:
            message = f"the traffic of {name!r} could not be routed on {provider.info.name}: {function.reason or 'no reason given'}"
            raise FailedPreconditionError(message, **where)
        waited = time.monotonic() - begun
        if waited >= within.total_seconds():
            message = (
                f"the traffic of {name!r} does not go where it was routed on {provider.info.name} after "
                f"{within.total_seconds():g} s: repeat the command to go on waiting"
            )
            raise DeadlineExceededError(message, **where)
        renew()
        _pause(waited, took)


def _pause(waited: float, took: float) -> None:
    """Sleep until the next look: what takes long is looked at ever less often, and most of the time nobody looks.

    Args:
        waited: Seconds since the first look.
        took: Seconds that the last look took.
    """
    time.sleep(min(max(SHORTEST_POLL, waited / 10, 4 * took), LONGEST_POLL))


def verify(provider: Provider, desired: Desired, number: int, package: ModelPackage) -> None:
    """Replay the package's golden sample on one revision, whatever its traffic.

    Raises:
        VerificationError: It cannot answer, or answers differently from the package.
        UnavailableError: Nothing answers; the revision may be sound, so it is not held against it.
    """
    name, where = desired.name, f"revision {number} of {desired.name!r} on {provider.info.name}"
    signature = Signature.from_dict(desired.signature)
    golden = package.golden_request()
    request = golden or Request(method="GET", path=f"/v2/models/{desired.model}/ready")
    rest = f"It got no traffic. Its log: `polyserve logs {name}`"
    patience = desired.timeout + COLD_WITHIN
    with Endpoint(
        provider, name, model=desired.model, signature=signature, revision=number, timeout=patience
    ) as endpoint:
        try:
            response = endpoint.send(request)
        except PolyserveError as error:
            if error.retryable:
                raise
            message = f"{where} cannot answer its golden sample: {error.message}. {rest}"
            raise VerificationError(message, provider=provider.info.name, operation="verify", resource=name) from error
    difference = package.difference(response) if golden else None
    if difference is not None:
        message = f"{where} answers differently from its package: {difference}. {rest}"
        raise VerificationError(message, provider=provider.info.name, operation="verify", resource=name)
