"""The desired state of a function: what its file says, and nothing about what runs.

The file is written before anything is done, so that a gateway that was killed at any point converges when it is started again. It holds
the function's token and its environment variables, and is readable by its owner only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from polyserve.driver import Artifact, FunctionSpec, FunctionStatus, Phase, RevisionStatus, Scaling
from polyserve_local.places import Places, write_atomic


@dataclass(slots=True, kw_only=True)
class RevisionState:
    """One revision: what is wanted, and how far making it has come.

    Attributes:
        spec: The revision as it was asked for.
        digest: `spec.digest()`.
        interpreter: Python of the process that deployed it: the first candidate to run it.
        port: Loopback port of its own listener; 0 before it is bound.
        phase: PROVISIONING until an instance of it has been ready once.
        reason: Why it failed, if it did.
        python: Python that runs it; empty until its dependencies are there.
        installer: What of that process's environment concerns uv and pip, as long as something may have to be installed; may hold
            the password of a package index.
    """

    spec: FunctionSpec
    digest: str
    interpreter: str
    port: int = 0
    phase: Phase = Phase.PROVISIONING
    reason: str | None = None
    python: str = ""
    installer: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def number(self) -> int:
        """Return the revision's number."""
        return self.spec.revision


@dataclass(slots=True, kw_only=True)
class FunctionState:
    """One function: what is wanted of it.

    Attributes:
        name: Its name.
        token: The credential of its callers.
        options: The provider's options that it was last applied with.
        port: Loopback port of its public listener; 0 before it is bound.
        scaling: Bounds of the instances of each revision with traffic.
        labels: Its labels.
        weights: Percent of the traffic by revision; empty before the first `route`.
        revisions: Its revisions by number.
        deleting: Whether it is being deleted.
    """

    name: str
    token: str = field(repr=False)
    options: Mapping[str, Any]
    port: int = 0
    scaling: Scaling
    labels: Mapping[str, str]
    weights: dict[int, int] = field(default_factory=dict)
    revisions: dict[int, RevisionState] = field(default_factory=dict)
    deleting: bool = False

    def save(self, places: Places) -> None:
        """Write the state to its file."""
        fields = {
            "name": self.name,
            "token": self.token,
            "options": dict(self.options),
            "port": self.port,
            "scaling": asdict(self.scaling),
            "labels": dict(self.labels),
            "weights": {str(number): weight for number, weight in self.weights.items()},
            "revisions": [
                {
                    "spec": spec_to_dict(revision.spec),
                    "digest": revision.digest,
                    "interpreter": revision.interpreter,
                    "port": revision.port,
                    "phase": revision.phase.value,
                    "reason": revision.reason,
                    "python": revision.python,
                    "installer": dict(revision.installer),
                }
                for revision in self.revisions.values()
            ],
            "deleting": self.deleting,
        }
        write_atomic(places.state(self.name), json.dumps(fields, indent=1, sort_keys=True).encode())

    @classmethod
    def load(cls, body: bytes) -> FunctionState:
        """Read a state from the content of its file."""
        fields = json.loads(body)
        revisions = [
            RevisionState(
                spec=spec_from_dict(each["spec"]),
                digest=each["digest"],
                interpreter=each["interpreter"],
                port=each["port"],
                phase=Phase(each["phase"]),
                reason=each["reason"],
                python=each["python"],
                installer=each.get("installer", {}),
            )
            for each in fields["revisions"]
        ]
        return cls(
            name=fields["name"],
            token=fields["token"],
            options=fields["options"],
            port=fields["port"],
            scaling=Scaling(**fields["scaling"]),
            labels=fields["labels"],
            weights={int(number): weight for number, weight in fields["weights"].items()},
            revisions={revision.number: revision for revision in sorted(revisions, key=lambda each: each.number)},
            deleting=fields["deleting"],
        )


def load_all(places: Places) -> Iterator[FunctionState]:
    """Yield every function's state, by name."""
    for path in sorted(places.functions.glob("*.json")):
        # mkstemp's unfinished files start with a dot; a function's name cannot.
        if not path.name.startswith("."):
            yield FunctionState.load(path.read_bytes())


def spec_to_dict(spec: FunctionSpec) -> dict[str, Any]:
    """Return a spec as JSON values."""
    fields = asdict(spec)
    fields["timeout"] = spec.timeout.total_seconds()
    return fields


def spec_from_dict(fields: Mapping[str, Any]) -> FunctionSpec:
    """Return the spec of JSON values."""
    return FunctionSpec(
        **{
            **fields,
            "artifact": Artifact(**fields["artifact"]),
            "requirements": tuple(fields["requirements"]),
            "timeout": timedelta(seconds=fields["timeout"]),
            "scaling": Scaling(**fields["scaling"]),
            # What an older version wrote has none.
            "models": tuple(Artifact(**each) for each in fields.get("models", ())),
        }
    )


def status_to_dict(status: FunctionStatus) -> dict[str, Any]:
    """Return a status as JSON values."""
    fields = asdict(status)
    fields["weights"] = {str(number): weight for number, weight in status.weights.items()}
    return fields


def status_from_dict(fields: Mapping[str, Any]) -> FunctionStatus:
    """Return the status of JSON values."""
    return FunctionStatus(
        **{
            **fields,
            "phase": Phase(fields["phase"]),
            "revisions": tuple(
                RevisionStatus(**{**each, "phase": Phase(each["phase"])}) for each in fields["revisions"]
            ),
            "weights": {int(number): weight for number, weight in fields["weights"].items()},
            "scaling": Scaling(**fields["scaling"]),
        }
    )
