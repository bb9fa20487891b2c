"""How a deployment stands: what its record says should be beside what its platform says is. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyserve.driver import FunctionStatus
from polyserve.errors import NotFoundError
from polyserve.records import DeploymentRecord, load
from polyserve.rollout import Target, describe

__all__ = ["DeploymentStatus", "status_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStatus:
    """A deployment as its record and its platform see it now.

    Attributes:
        record: What should be.
        function: What is; `None` where the platform has nothing of that name. A group has none, its parts have.
        parts: The parts of a group that are there, in order.
    """

    record: DeploymentRecord
    function: FunctionStatus | None
    parts: tuple[DeploymentStatus, ...] = ()

    @property
    def url(self) -> str | None:
        """Where it is invoked, without credentials."""
        return self.function.url if self.function else None

    @property
    def in_step(self) -> bool:
        """Whether the platform routes as the record says; where not, repeating the last command mends it."""
        if self.record.parts:
            return self.record.next_group is None and self._fits and all(part.in_step for part in self.parts)
        return self.function is not None and dict(self.function.weights) == self.record.weights

    @property
    def phase(self) -> str:
        """Where it is in its life: a phase of the platform's, `missing` or `deleting`; of a group that of its worst part."""
        if self.record.phase == "deleting":
            return "deleting"
        if not self.record.parts:
            return self.function.phase.value if self.function else "missing"
        if self.record.group is None:
            return "provisioning"
        phases = [part.phase for part in self.parts]
        if len(self.parts) < len(self.record.parts):
            phases.append("missing")
        if not self._fits:
            phases.append("failed" if self.record.next_group is None else "provisioning")
        return next((phase for phase in ("missing", "failed", "deleting", "provisioning") if phase in phases), "ready")

    @property
    def _fits(self) -> bool:
        """Whether every part of a group serves the package that the group's record names."""
        serving = {part.record.name: part.record.stable for part in self.parts}
        return self.record.group is not None and all(
            (revision := serving.get(part.name)) is not None and revision.package_digest == part.package_digest
            for part in self.record.group.parts
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON-able values: the same shape on every provider."""
        record, function = self.record, self.function
        native = {r.number: r for r in function.revisions} if function else {}
        revisions = []
        for revision in record.revisions:
            seen = native.get(revision.number)
            revisions.append(
                {
                    "number": revision.number,
                    "state": revision.state,
                    "reason": revision.reason or (seen.reason if seen else None),
                    "phase": seen.phase.value if seen else None,
                    "instances": seen.instances if seen else None,
                    "weight": record.weights.get(revision.number, 0),
                    "package_digest": revision.package_digest,
                    "memory_mb": revision.memory_mb,
                    "timeout_s": revision.timeout_s,
                    "python": revision.python,
                    "created_at": revision.created_at,
                }
            )
        return {
            "name": record.name,
            "provider": record.provider,
            "phase": self.phase,
            "url": self.url,
            "weights": {str(number): percent for number, percent in record.weights.items()},
            "in_step": self.in_step,
            "min_instances": record.scaling.min_instances,
            "max_instances": record.scaling.max_instances,
            "revisions": revisions,
            "parts": [{"name": part.record.name, "phase": part.phase, "in_step": part.in_step} for part in self.parts],
            "lease": None if record.lease is None else {"operation": record.lease.operation, "host": record.lease.host},
            "updated_at": record.updated_at,
        }


def status_of(target: Target, record: DeploymentRecord) -> DeploymentStatus:
    """Return how a deployment stands whose record was read just now; of a group, how each part does too."""
    if not record.parts:
        return DeploymentStatus(record=record, function=describe(target.provider, record.name))
    parts = []
    for name in record.parts:
        try:
            parts.append(status_of(target, load(target.bucket, name)[0]))
        except NotFoundError:
            continue  # not made yet, or destroyed by itself: the group says that it is missing
    return DeploymentStatus(record=record, function=None, parts=tuple(parts))
