"""What is in the way of a change to a deployment that is there, asked of its provider's driver before anything is written or sent.

Records are written before the platform hears of a change, so that a process that is killed in between can be repeated. What the
platform would refuse must not get that far: the record would say what does not hold. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta

from polyserve.driver import LABEL, FunctionSpec, Provider, Scaling
from polyserve.errors import PlanRefused
from polyserve.records import DeploymentRecord, Revision

__all__ = ["refuse_bounds", "refuse_split", "refused"]


def refused(operation: str, name: str, provider: str, refusals: Sequence[str]) -> PlanRefused:
    """Return the error that has every reason why something may not be done to the deployment of that name."""
    lines = "".join(f"\n  - {reason}" for reason in refusals)
    message = f"{operation} {name!r} was refused for {provider}; nothing was changed:{lines}"
    return PlanRefused(message, refusals=refusals, provider=provider, resource=name, operation=operation)


def refuse_bounds(provider: Provider, record: DeploymentRecord, scaling: Scaling) -> None:
    """Refuse bounds that what serves now cannot have.

    Args:
        provider: The provider.
        record: The deployment as it is.
        scaling: The bounds that it is to have.

    Raises:
        PlanRefused: It cannot have them; the error has every reason.
    """
    serving = [revision for revision in record.revisions if revision.number in record.weights]
    told: dict[str, None] = {}
    for revision in serving or record.revisions[-1:]:
        free = _spec(provider, record, revision)
        already = provider.functions.obstacles(free)
        told |= _new(provider.functions.obstacles(replace(free, scaling=scaling)), already)
    if told:
        raise refused("scale", record.name, provider.info.name, tuple(told))


def refuse_split(provider: Provider, record: DeploymentRecord, numbers: Collection[int]) -> None:
    """Refuse to let revisions share the traffic that cannot; one by itself shares it with nobody.

    Args:
        provider: The provider.
        record: The deployment as it is.
        numbers: The revisions that are to have traffic.

    Raises:
        PlanRefused: They cannot; the error has every reason.
    """
    told: dict[str, None] = {}
    for revision in record.revisions:
        if revision.number in numbers and len(numbers) > 1:
            spec = replace(_spec(provider, record, revision), scaling=record.scaling)
            told |= _new(provider.functions.obstacles(spec, split=True), provider.functions.obstacles(spec))
    if told:
        raise refused("traffic", record.name, provider.info.name, tuple(told))


def _new(told: Collection[str], already: Collection[str]) -> dict[str, None]:
    """Return what is told of a change and of nothing else: what is there was accepted once, perhaps under other settings."""
    return dict.fromkeys(reason for reason in told if reason not in already)


def _spec(provider: Provider, record: DeploymentRecord, revision: Revision) -> FunctionSpec:
    """Return a revision without bounds, as far as its record tells it; what it does not tell is the same before a change and after it."""
    limits = provider.info.limits
    return FunctionSpec(
        name=record.name,
        revision=revision.number,
        artifact=revision.artifact,
        package_digest=revision.package_digest,
        entrypoint="polyserve_entrypoint",
        python=revision.python,
        architecture=limits.architectures[0],
        requirements=(),
        memory_mb=revision.memory_mb,
        timeout=timedelta(seconds=revision.timeout_s),
        environment=dict.fromkeys(revision.environment, ""),
        request_bytes=limits.request_bytes or 0,
        scaling=Scaling(),
        labels={LABEL: record.name},
    )
