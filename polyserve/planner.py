"""What a deploy would do: desired x observed -> Plan. Pure: no I/O, no clock, no import of a provider.

A plan is the difference between what is asked and what is there, so the same command always converges,
however the one before it ended. What the provider cannot do, or what is over one of its limits, is refused
here, before the first remote call that changes anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from polyserve.driver import LABEL, Artifact, Capability, FunctionSpec, FunctionStatus, Phase, ProviderInfo, Scaling
from polyserve.footprint import Fit, Footprint, fits, way_out
from polyserve.records import DeploymentRecord, Revision

ASSUMED_SECONDS = 0.1
"""Duration of one call that the price estimate assumes; said beside the estimate."""


class StepKind(StrEnum):
    """What a step of a plan does."""

    BUNDLE = "bundle"
    PREPARE = "prepare"
    UPLOAD = "upload"
    APPLY = "apply"
    WAIT = "wait"
    VERIFY = "verify"
    SCALE = "scale"
    ROUTE = "route"
    MODELS = "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a plan, with a sentence for people."""

    kind: StepKind
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCheck:
    """One limit of the provider beside the value that was asked for; `limit=None` where the provider has none."""

    what: str
    value: float
    limit: float | None
    unit: str

    @property
    def held(self) -> bool:
        """Whether the value is within the limit."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What is asked for.

    Attributes:
        name: The deployment.
        info: The provider as configured.
        package_digest: Tree digest of the model package.
        model: Name of the model.
        signature: Its inputs and outputs, as a dictionary.
        requirements: Locked requirements.
        python: Python minor version.
        architecture: Processor architecture.
        artifact: The bundle.
        unpacked_bytes: Its size once unpacked.
        memory_mb: Memory of one instance, in MiB.
        timeout: Longest time one request may take.
        environment: Environment variables.
        request_bytes: Largest request body.
        scaling: Bounds of the number of instances.
        canary: Percent of the traffic for this revision beside the stable one; `None` for all of it.
        warnings: What packaging wants people to know.
        models: Files of the package that the bundle leaves to the bucket, by path; two of one content are one object.
        footprint: What the bundle is made of.
        providers: Platforms whose limits the bundle is held against, beside this one's.
        obstacles: What else is in the way, whatever the limits; each names the way out.
        options: Options of the provider that are part of the revision.
    """

    name: str
    info: ProviderInfo
    package_digest: str
    model: str
    signature: Mapping[str, Any]
    requirements: tuple[str, ...]
    python: str
    architecture: str
    artifact: Artifact
    unpacked_bytes: int
    memory_mb: int
    timeout: timedelta
    environment: Mapping[str, str]
    request_bytes: int
    scaling: Scaling
    canary: int | None = None
    warnings: tuple[str, ...] = ()
    models: Mapping[str, Artifact] = field(default_factory=dict)
    footprint: Footprint = Footprint()  # noqa: RUF009 - frozen
    providers: tuple[ProviderInfo, ...] = ()
    obstacles: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, number: int) -> FunctionSpec:
        """Return the specification of this as revision `number`."""
        return FunctionSpec(
            name=self.name,
            revision=number,
            artifact=self.artifact,
            package_digest=self.package_digest,
            entrypoint="polyserve_entrypoint",
            python=self.python,
            architecture=self.architecture,
            requirements=self.requirements,
            memory_mb=self.memory_mb,
            timeout=self.timeout,
            environment=dict(self.environment),
            request_bytes=self.request_bytes,
            scaling=self.scaling,
            labels={LABEL: self.name},
            models=tuple(sorted(set(self.models.values()), key=lambda model: model.key)),
            options=dict(self.options),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is there. `record` and `function` are `None` where there is none; `models_present` are keys."""

    record: DeploymentRecord | None = None
    function: FunctionStatus | None = None
    artifact_present: bool = False
    models_present: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a deploy would do, and whether it may.

    Attributes:
        name: The deployment.
        provider: The provider's name.
        revision: Number of the revision that the package will be, or already is.
        package_digest: Tree digest of the model package.
        bundle_bytes: Size of the bundle as uploaded.
        unpacked_bytes: Its size once unpacked.
        weights: Percent of the traffic by revision afterwards.
        steps: What would be done, in order; empty where everything is as asked.
        refusals: Why it may not be done; each names the value, the limit and the way out.
        warnings: What people should know.
        limits: The provider's limits beside the values.
        permissions: What the caller must be allowed to do.
        price_per_million: US dollars for a million calls of `ASSUMED_SECONDS` each; `None` where it is free.
        in_bucket: Size in bytes of each file of the model that stays in the bucket, by path; instances read them when they start.
        footprint: What the bundle is made of.
        fits: The bundle beside the limits of every installed provider; empty where its dependencies do not travel in it.
    """

    name: str
    provider: str
    revision: int
    package_digest: str
    bundle_bytes: int
    unpacked_bytes: int
    weights: Mapping[int, int]
    steps: tuple[Step, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    limits: tuple[LimitCheck, ...]
    permissions: tuple[str, ...] = ()
    price_per_million: float | None = None
    in_bucket: Mapping[str, int] = field(default_factory=dict)
    footprint: Footprint = Footprint()  # noqa: RUF009 - frozen
    fits: tuple[Fit, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether anything would be done."""
        return bool(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able values: the same shape on every provider."""
        return {
            "name": self.name,
            "provider": self.provider,
            "revision": self.revision,
            "package_digest": self.package_digest,
            "bundle_bytes": self.bundle_bytes,
            "unpacked_bytes": self.unpacked_bytes,
            "in_bucket": dict(self.in_bucket),
            "bundle": self.footprint.to_dict(),
            "fits": [fit.to_dict() for fit in self.fits],
            "weights": {str(number): percent for number, percent in self.weights.items()},
            "changes": self.changes,
            "steps": [{"kind": step.kind.value, "summary": step.summary} for step in self.steps],
            "refusals": list(self.refusals),
            "warnings": list(self.warnings),
            "limits": [
                {"what": check.what, "value": check.value, "limit": check.limit, "unit": check.unit, "held": check.held}
                for check in self.limits
            ],
            "permissions": list(self.permissions),
            "price_per_million": self.price_per_million,
            "price_assumes_seconds": ASSUMED_SECONDS,
        }


@dataclass(frozen=True, slots=True)
class _Findings:
    refusals: list[str] = field(default_factory=list)
    limits: list[LimitCheck] = field(default_factory=list)

    def within(self, what: str, value: float, limit: float | None, unit: str, way_out: str) -> None:
        """Note a limit, and refuse what is over it."""
        check = LimitCheck(what=what, value=value, limit=limit, unit=unit)
        self.limits.append(check)
        if not check.held:
            self.refusals.append(f"{what} is {_number(value)} {unit}, the limit is {_number(limit)} {unit}: {way_out}")


def _number(value: float | None) -> str:
    # In full: 50,000,001 over a limit of 50,000,000 must not read "5e+07 over 5e+07".
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6f}".rstrip("0").rstrip(".")


def plan(desired: Desired, observed: Observed, *, permissions: Sequence[str] = ()) -> Plan:
    """Return what must be done to come from `observed` to `desired`, and every reason why it may not be done."""
    match = matching_revision(desired, observed)
    number = match.number if match else next_number(observed)
    weights = target_weights(desired, observed.record, number)
    findings = _check(desired, observed, number)
    steps = () if findings.refusals else tuple(_steps(desired, observed, number, match, weights))
    price = desired.info.price
    per_call = None
    if price is not None:
        gb_seconds = 1e6 * ASSUMED_SECONDS * desired.memory_mb / 1024
        processors = 1e6 * ASSUMED_SECONDS * price.per_second
        per_call = price.per_million_requests + gb_seconds * price.per_gb_second + processors
    return Plan(
        name=desired.name,
        provider=desired.info.name,
        revision=number,
        package_digest=desired.package_digest,
        bundle_bytes=desired.artifact.size,
        unpacked_bytes=desired.unpacked_bytes,
        weights=weights,
        steps=steps,
        refusals=tuple(findings.refusals),
        warnings=desired.warnings,
        limits=tuple(findings.limits),
        permissions=tuple(permissions),
        price_per_million=per_call,
        in_bucket={path: model.size for path, model in sorted(desired.models.items())},
        footprint=desired.footprint,
        fits=fits(desired.footprint, desired.providers, size=desired.artifact.size, unpacked=desired.unpacked_bytes),
    )


def matching_revision(desired: Desired, observed: Observed) -> Revision | None:
    """Return the newest recorded revision that is this very (package, settings) pair, or `None`."""
    revisions = observed.record.revisions if observed.record else ()
    return next((r for r in reversed(revisions) if desired.spec(r.number).digest() == r.spec_digest), None)


def next_number(observed: Observed) -> int:
    """Return a number that neither the record nor the platform has used."""
    recorded = observed.record.next_number if observed.record else 1
    native = max((r.number for r in observed.function.revisions), default=0) + 1 if observed.function else 1
    return max(recorded, native)


def target_weights(desired: Desired, record: DeploymentRecord | None, number: int) -> dict[int, int]:
    """Return the weights that a deploy should end with."""
    stable = record.stable if record else None
    if desired.canary is None or desired.canary == 100 or stable is None or stable.number == number:
        return {number: 100}
    return {n: percent for n, percent in ((stable.number, 100 - desired.canary), (number, desired.canary)) if percent}


def _check(desired: Desired, observed: Observed, number: int) -> _Findings:
    info, limits, found = desired.info, desired.info.limits, _Findings()
    title = info.title
    _check_settings(desired, found)
    found.refusals.extend(desired.obstacles)
    found.within(
        "timeout", desired.timeout.total_seconds(), limits.timeout.total_seconds(), "s", "ask for a shorter --timeout"
    )
    smaller = way_out(desired.footprint, title)
    found.within("bundle", desired.artifact.size, limits.bundle_bytes, "bytes", smaller)
    found.within("bundle unpacked", desired.unpacked_bytes, limits.bundle_unpacked_bytes, "bytes", smaller)
    found.within(
        "request body", desired.request_bytes, limits.request_bytes, "bytes", "set request_bytes lower in the profile"
    )
    environment = sum(len(k.encode()) + len(v.encode()) for k, v in desired.environment.items())
    found.within("environment", environment, limits.environment_bytes, "bytes", "set fewer or shorter --env values")
    most = desired.scaling.max_instances or desired.scaling.min_instances
    found.within("instances", most, limits.max_instances, "instances", "ask for a lower --max")
    _check_capabilities(desired, observed, number, found)
    if observed.record is not None and observed.record.parts:
        parts = len(observed.record.parts)
        found.refusals.append(
            f"{desired.name!r} is a group of {parts} parts: destroy it first, or give the deployment another name with --name"
        )
    return found


def _check_settings(desired: Desired, found: _Findings) -> None:
    limits, title, scaling = desired.info.limits, desired.info.title, desired.scaling
    refuse = found.refusals.append
    if not re.fullmatch(limits.name_pattern, desired.name):
        refuse(f"name {desired.name!r} is not one that {title} takes ({limits.name_rule}): give another with --name")
    low, high = limits.memory_mb
    if limits.memory_choices and desired.memory_mb not in limits.memory_choices:
        choices = ", ".join(map(str, limits.memory_choices))
        refuse(f"memory is {desired.memory_mb} MB, {title} offers {choices}: choose one of them with --memory")
    elif not low <= desired.memory_mb <= high:
        refuse(f"memory is {desired.memory_mb} MB, {title} takes {low} to {high} MB: choose within with --memory")
    if desired.timeout <= timedelta(0):
        refuse(f"timeout is {desired.timeout.total_seconds():g} s, which is no time: give a positive --timeout")
    if desired.python not in limits.pythons:
        refuse(
            f"the package is for Python {desired.python}, {title} runs {', '.join(limits.pythons)}: package it under one of those"
        )
    if desired.architecture not in limits.architectures:
        refuse(f"architecture is {desired.architecture}, {title} runs {', '.join(limits.architectures)}")
    for key in desired.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) or key.startswith("POLYSERVE_"):
            refuse(
                f"environment variable {key!r}: names are letters, digits and underscores, and POLYSERVE_* are polyserve's own: rename it"
            )
    if scaling.min_instances < 0 or (
        scaling.max_instances is not None and scaling.max_instances < max(1, scaling.min_instances)
    ):
        refuse(
            f"instances from {scaling.min_instances} to {scaling.max_instances}: min must be at least 0, max at least 1 and not below min"
        )


def _check_capabilities(desired: Desired, observed: Observed, number: int, found: _Findings) -> None:
    info, record = desired.info, observed.record
    refuse = found.refusals.append
    if Capability.CONDITIONAL_PUT not in info.capabilities:
        refuse(
            f"{info.title} cannot write conditionally, and deployment records depend on it: choose another object store"
        )
    if desired.scaling.min_instances > 0 and Capability.MIN_INSTANCES not in info.capabilities:
        refuse(f"{info.title} cannot keep {desired.scaling.min_instances} instances warm: leave out --min")
    if desired.scaling.max_instances is not None and Capability.MAX_INSTANCES not in info.capabilities:
        refuse(f"{info.title} cannot cap the instances at {desired.scaling.max_instances}: leave out --max")
    if desired.canary is not None:
        if not 1 <= desired.canary <= 100:
            refuse(f"canary is {desired.canary} %: give a percentage from 1 to 100")
        elif Capability.TRAFFIC_SPLIT not in info.capabilities and desired.canary < 100:
            refuse(f"{info.title} cannot split traffic: deploy without --canary")
        elif record is None or record.stable is None:
            refuse("a canary needs a revision that has the traffic now: deploy once without --canary first")
        elif record.stable.number == number and desired.canary < 100:
            refuse(
                f"revision {number} with this package and these settings has the traffic already: change something, or leave out --canary"
            )
    if record is not None and record.phase == "deleting":
        refuse(
            f"deployment {desired.name!r} is being destroyed: finish it with `polyserve destroy {desired.name}` first"
        )


def _steps(
    desired: Desired, observed: Observed, number: int, match: Revision | None, weights: Mapping[int, int]
) -> list[Step]:
    steps: list[Step] = []

    def add(kind: StepKind, summary: str) -> None:
        steps.append(Step(kind=kind, summary=summary))

    function = observed.function
    native = function.revision(number) if function else None
    verified = match is not None and match.state == "verified"
    present = (
        native is not None and native.phase is not Phase.FAILED and native.spec_digest == desired.spec(number).digest()
    )
    if observed.record is None:
        add(StepKind.PREPARE, f"make bucket {desired.artifact.bucket!r} and the deployment's record")
    if not present and not observed.artifact_present:
        add(StepKind.UPLOAD, f"upload the bundle, {desired.artifact.size:,} bytes, to {desired.info.store_service}")
    models = set(missing_models(desired, observed, number).values())
    if not present and models:
        count = "1 model file" if len(models) == 1 else f"{len(models)} model files"
        total = sum(model.size for model in models)
        add(
            StepKind.MODELS,
            f"upload {count}, {total:,} bytes, to {desired.info.store_service}: read when an instance starts",
        )
    if not present:
        with_options = f", {', '.join(sorted(desired.options))} as set" if desired.options else ""
        add(
            StepKind.APPLY,
            f"make revision {number} on {desired.info.function_service}: {desired.memory_mb} MB, "
            f"{desired.timeout.total_seconds():g} s{with_options}",
        )
    if not (present and verified) or (native and native.phase is not Phase.READY):
        add(StepKind.WAIT, f"wait until revision {number} is ready")
    if not (present and verified):
        add(StepKind.VERIFY, f"replay the golden sample on revision {number}")
    if function is not None and function.scaling != desired.scaling:
        add(StepKind.SCALE, f"scale to {_bounds(desired.scaling)}")
    routed = observed.record is not None and function is not None and dict(function.weights) == dict(weights)
    if not routed or (observed.record and observed.record.weights != weights):
        add(
            StepKind.ROUTE,
            "route " + ", ".join(f"{percent} % to revision {n}" for n, percent in sorted(weights.items())),
        )
    return steps


def missing_models(desired: Desired, observed: Observed, number: int) -> dict[str, Artifact]:
    """Return the files of the model that have to be uploaded for a revision, by path: all of them for one that failed."""
    native = observed.function.revision(number) if observed.function else None
    # It may have failed because an object is damaged, which nobody sees who does not read it.
    there = frozenset() if native is not None and native.phase is Phase.FAILED else observed.models_present
    return {path: model for path, model in sorted(desired.models.items()) if model.key not in there}


def _bounds(scaling: Scaling) -> str:
    most = "as many as the platform allows" if scaling.max_instances is None else str(scaling.max_instances)
    return f"{scaling.min_instances} to {most} instances"


def failed(revision: Revision, reason: str) -> Revision:
    """Return the revision as one that failed."""
    return replace(revision, state="failed", reason=reason)
