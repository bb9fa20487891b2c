"""A deployment that is made of values only, and a way to run a command over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from polyserve.deployment import DeploymentStatus
from polyserve.driver import Artifact, FunctionStatus, LogEvent, Phase, RevisionStatus, Scaling
from polyserve.metrics import Metrics, compute
from polyserve.records import DeploymentRecord, HistoryEntry, Revision

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def revision(number: int, **fields: Any) -> Revision:
    """Return a verified revision of the model `iris`."""
    settings: dict[str, Any] = {
        "number": number,
        "package_digest": f"{number}a" * 32,
        "spec_digest": f"{number}b" * 32,
        "artifact": Artifact(bucket="polyserve", key="bundle.zip", sha256="c" * 64, size=123_456),
        "model": "iris",
        "signature": {},
        "python": "3.11",
        "memory_mb": 512,
        "timeout_s": 30.0,
        "environment": (),
        "state": "verified",
        "created_at": AT.timestamp(),
    }
    return Revision(**settings | fields)


def record(**fields: Any) -> DeploymentRecord:
    """Return the record of a deployment with a stable revision and a canary."""
    settings: dict[str, Any] = {
        "name": "iris",
        "provider": "local",
        "revisions": (revision(1), revision(2)),
        "weights": {1: 90, 2: 10},
        "lineage": (1,),
        "history": (
            HistoryEntry(at=AT.timestamp(), action="deploy", revision=1, weights={1: 100}),
            HistoryEntry(at=AT.timestamp() + 60, action="canary", revision=2, weights={1: 90, 2: 10}),
        ),
        "updated_at": AT.timestamp() + 60,
    }
    return DeploymentRecord(**settings | fields)


def status_of(wanted: DeploymentRecord, **fields: Any) -> DeploymentStatus:
    """Return the status of a deployment whose platform follows its record."""
    settings: dict[str, Any] = {
        "name": wanted.name,
        "phase": Phase.READY,
        "url": "http://127.0.0.1:4321",
        "revisions": tuple(
            RevisionStatus(number=r.number, spec_digest=r.spec_digest, phase=Phase.READY, instances=1)
            for r in wanted.revisions
        ),
        "weights": dict(wanted.weights),
        "scaling": wanted.scaling,
        "labels": {},
        "native_id": wanted.name,
    }
    return DeploymentStatus(record=wanted, function=FunctionStatus(**settings | fields))


def request_event(
    *, ms: float = 2.0, status: int = 200, cold: bool = False, revision: int = 1, code: str = ""
) -> LogEvent:
    """Return the runtime's log line of a request."""
    line = {
        "event": "request", "at": AT.timestamp(), "request_id": "r", "route": "infer", "status": status, "code": code,
        "ms": ms, "queue_ms": 0.1, "predict_ms": 1.0, "rows": 3, "batch": 1, "cold": cold, "revision": revision,
        "digest": "abc", "bytes_in": 10, "bytes_out": 10, "error": "what was wrong" if code else "",
    }  # fmt: skip
    return LogEvent(at=AT, message=json.dumps(line), revision=revision, instance="i-1")


@dataclass
class Recorded:
    """Stands where a `Deployment` stands, and remembers what was asked of it."""

    record: DeploymentRecord = field(default_factory=record)
    events: list[LogEvent] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    answer: Callable[[Any], Any] = lambda data: data
    kind: str = "list"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.asked.append(("close",))

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def provider(self) -> str:
        return self.record.provider

    @property
    def url(self) -> str:
        return "http://127.0.0.1:4321"

    @property
    def endpoint(self) -> Any:
        return SimpleNamespace(signature=SimpleNamespace(input_kind=self.kind))

    def invoke(self, data: Any, **options: Any) -> Any:
        self.asked.append(("invoke", data, options))
        return self.answer(data)

    def status(self) -> DeploymentStatus:
        return status_of(self.record)

    def history(self) -> tuple[HistoryEntry, ...]:
        return self.record.history

    def logs(self, *, since: datetime | None = None, follow: bool = False) -> Iterator[LogEvent]:
        self.asked.append(("logs", since, follow))
        yield from self.events
        if follow:
            raise KeyboardInterrupt

    def metrics(self, *, since: datetime | None = None) -> Metrics:
        return compute(self.events, instances=1)

    def traffic(self, weights: Mapping[int, int]) -> None:
        self.asked.append(("traffic", dict(weights)))
        self.record = replace(self.record, weights=dict(weights))

    def promote(self) -> int:
        self.record = replace(self.record, weights={2: 100})
        return 2

    def rollback(self, *, to: int | None = None) -> int:
        self.asked.append(("rollback", to))
        self.record = replace(self.record, weights={to or 1: 100})
        return to or 1

    def scale(self, *, min_instances: int | None = None, max_instances: int | None = None) -> Scaling:
        self.asked.append(("scale", min_instances, max_instances))
        return Scaling(min_instances=min_instances or 0, max_instances=max_instances)


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Yield a deployment `iris` that `connect` and `list_deployments` find."""
    from polyserve import api
    from polyserve.errors import NotFoundError

    made = Recorded()

    def connect(
        name: str, *, provider: str | None = None, profile: str | None = None, emulate: bool | None = None
    ) -> Recorded:
        made.asked.append(("connect", name, provider, profile, emulate))
        if name != made.name:
            raise NotFoundError(f"no deployment {name!r} on local: there are iris", provider="local", resource=name)
        return made

    monkeypatch.setattr(api, "connect", connect)
    monkeypatch.setattr(api, "list_deployments", lambda **_: [made.status()])
    return made


@pytest.fixture
def run() -> Callable[..., Result]:
    """Yield a function that runs `polyserve` with these words, away from any terminal."""
    from polyserve.cli.program import polyserve

    def run(*words: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(polyserve, list(words), prog_name="polyserve", input=stdin)

    return run
