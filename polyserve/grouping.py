"""How a partitioned model becomes a group: every part a deployment of its own, and one record that says what belongs together.

    announce   the group's record names every part before the first is made, so that a destroy finds them whatever happens
    deploy     each part, as any model: plan, upload, apply, wait, golden sample, route
    verify     the group, not yet live, answers the whole model's golden sample through the parts' endpoints
    switch     the record says that this is what the group serves; parts that no version needs any more are destroyed

Every step looks before it acts: the same command finishes what was cut short. Until the switch, callers' answers are those of the version
before, or they wait: no answer is ever put together of parts of two versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

from polyserve.errors import FailedPreconditionError, NotFoundError, UnsupportedError, VerificationError, translating
from polyserve.group import GroupEndpoint
from polyserve.model import ModelPackage
from polyserve.model.partition import parts_of
from polyserve.records import DeploymentRecord, GroupPart, GroupSpec, leased, load
from polyserve.rollout import Event, Target
from polyserve.runtime.combining import SEQUENCE
from polyserve.teardown import destroy

__all__ = ["deploying", "roll_out_group"]

DeployPart = Callable[[ModelPackage, str, Callable[[], None]], None]
"""Deploys one part under a name, and calls the function now and then, so that the group's lease is kept."""


def deploying(
    deploy: Callable[..., AbstractContextManager[object]],
    asked: Mapping[str, Any],
    on_event: Callable[[Event], None] | None,
) -> DeployPart:
    """Return what deploys a part as the whole was asked to be deployed.

    Args:
        deploy: The verb, which gives what is to be closed.
        asked: What it is asked with.
        on_event: Told of every step, too.
    """

    def deploy_part(part: ModelPackage, name: str, renew: Callable[[], None]) -> None:
        def told(event: Event) -> None:
            renew()
            if on_event is not None:
                on_event(event)

        with deploy(part, name=name, **asked, on_event=told):
            pass

    return deploy_part


def roll_out_group(
    target: Target,
    package: ModelPackage,
    *,
    name: str,
    timeout_s: float,
    deploy_part: DeployPart,
    canary: int | None = None,
) -> DeploymentRecord:
    """Make a group serve a partitioned package, and return its record.

    Args:
        target: The provider, and the bucket of the records.
        package: The partitioned package.
        name: The group's name; the parts are `<name>-part-1` and so on.
        timeout_s: Longest time one request to a part may take, in seconds; parts in sequence have it each.
        deploy_part: Deploys one part.
        canary: Percent of the traffic, which a group cannot give: refused.

    Raises:
        UnsupportedError: A canary was asked for.
        FailedPreconditionError: There is a deployment of that name, or of a part's, that belongs to no such group.
        ConflictError: Somebody else is changing the group.
        VerificationError: The parts together answer differently from the package.
        PolyserveError: A part cannot be deployed; the same command goes on from there.
    """
    if canary is not None:
        message = "a group has no canary, as no answer may be put together of two versions: deploy it under another name to try it"
        raise UnsupportedError(message, provider=target.provider.info.name, operation="deploy", resource=name)
    parts = parts_of(package)
    in_sequence = package.manifest.loader["how"] == SEQUENCE
    spec = GroupSpec(
        package_digest=package.digest,
        model=package.name,
        signature=package.signature.to_dict(),
        combining={key: value for key, value in package.manifest.loader.items() if key != "parts"},
        parts=tuple(
            GroupPart(name=f"{name}-part-{number}", package_digest=part.digest) for number, part in enumerate(parts, 1)
        ),
        timeout_s=timeout_s * (len(parts) if in_sequence else 1),
    )
    _check(target, name, spec)
    with translating(target.provider, "make bucket", target.bucket.name):
        target.provider.ensure_bucket(target.bucket.name)
    new = DeploymentRecord(name=name, provider=target.provider.info.name)
    with leased(target.bucket, name, "deploy", new=new) as ledger:
        if ledger.record.next_group != spec:
            # What a version that was never finished has left is this one's to tidy away.
            left = ledger.record.next_group
            ledger.save(replace(ledger.record, next_group=spec if left is None else _with_parts_of(spec, left)))
        for part, member in zip(parts, spec.parts, strict=True):
            deploy_part(part, member.name, ledger.renew)
            ledger.renew()
        _verify(target, name, spec, package)
        needless = [part for part in ledger.record.parts if part not in {member.name for member in spec.parts}]
        changed = ledger.record.group != spec
        record = replace(ledger.record, group=spec, next_group=_with_names(spec, needless) if needless else None)
        ledger.save(record.noted("deploy", note=f"{len(parts)} parts of {package.digest[:12]}") if changed else record)
        for former in needless:
            # It may have been destroyed by a deploy that was cut short after it.
            with suppress(NotFoundError):
                destroy(target, former)
            ledger.renew()
        if needless:
            ledger.save(replace(ledger.record, next_group=None))
    return load(target.bucket, name)[0]


def _check(target: Target, name: str, spec: GroupSpec) -> None:
    try:
        record, _ = load(target.bucket, name)
    except NotFoundError:
        record = None
    if record is not None and record.revisions:
        message = f"{name!r} is a deployment and no group: destroy it first, or give the group another name"
        raise FailedPreconditionError(message, provider=target.provider.info.name, operation="deploy", resource=name)
    if record is not None and record.phase == "deleting":
        message = f"{name!r} is being destroyed: repeat `polyserve destroy {name}`, then deploy"
        raise FailedPreconditionError(message, provider=target.provider.info.name, operation="deploy", resource=name)
    ours = set(record.parts) if record is not None else set()
    for part in spec.parts:
        if part.name in ours:
            continue
        try:
            load(target.bucket, part.name)
        except NotFoundError:
            continue
        message = (
            f"{part.name!r} is a deployment that belongs to no group: destroy it first, or give the group another name"
        )
        raise FailedPreconditionError(
            message, provider=target.provider.info.name, operation="deploy", resource=part.name
        )


def _verify(target: Target, name: str, spec: GroupSpec, package: ModelPackage) -> None:
    request = package.golden_request()
    assert request is not None, "a partitioned package always has a sample"
    endpoint = GroupEndpoint(target, name, spec, fixed=True)
    try:
        difference = package.difference(endpoint.send(request))
    finally:
        endpoint.close()
    if difference is not None:
        message = (
            f"the parts of {name!r} together answer the sample differently from the whole model: {difference}; the group was not "
            "switched to them, deploy another version"
        )
        raise VerificationError(message, provider=target.provider.info.name, operation="deploy", resource=name)


def _with_parts_of(spec: GroupSpec, left: GroupSpec) -> GroupSpec:
    return _with_names(
        spec, [part.name for part in left.parts if part.name not in {member.name for member in spec.parts}]
    )


def _with_names(spec: GroupSpec, names: Sequence[str]) -> GroupSpec:
    """Return a version that names further parts too: a destroy must find them, and nobody asks them."""
    return replace(spec, parts=(*spec.parts, *(GroupPart(name=name, package_digest="") for name in names)))
