"""Metrics from the runtime's own log lines, the same way on every provider. Pure: takes log events, knows no platform.

The runtime writes one JSON line for each request (`polyserve.runtime.logs`); platforms keep and return
lines. So latency, errors and cold starts need no metrics service and read alike everywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from polyserve.driver import LogEvent

INFERENCE = frozenset({"infer", "invocations"})
"""Routes that count as calls of the model; health checks and metadata do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds by nearest rank; zeros where there were no requests."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionMetrics:
    """What one revision did.

    Attributes:
        requests: Calls of the model.
        errors: Those answered with a status of 400 or more.
        errors_by_code: The same by `ErrorCode`.
        cold: Calls that were their instance's first.
        latency_ms: From arrival at the instance to the answer.
        predict_ms: Inside the model alone.
        rows: Input rows.
        mean_batch: Calls answered by one predict, on average.
    """

    requests: int = 0
    errors: int = 0
    errors_by_code: dict[str, int] = field(default_factory=dict)
    cold: int = 0
    latency_ms: Latency = Latency()
    predict_ms: Latency = Latency()
    rows: int = 0
    mean_batch: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a deployment did.

    Attributes:
        total: All revisions together.
        revisions: By revision number.
        first_at: Unix time of the first call seen, 0 if none.
        last_at: Unix time of the last.
        instances: Instances that run now, where the platform tells.
        starts: Starts of an instance that were seen.
    """

    total: RevisionMetrics
    revisions: dict[int, RevisionMetrics]
    first_at: float
    last_at: float
    instances: int | None = None
    starts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON-able values."""
        return asdict(self) | {"revisions": {str(number): asdict(each) for number, each in self.revisions.items()}}


def request_line(message: str) -> dict[str, Any] | None:
    """Return a log message as the runtime's own JSON line, or `None` where it is something else."""
    if not message.startswith("{"):
        return None
    try:
        line = json.loads(message)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "event" in line else None


def compute(events: Iterable[LogEvent], *, instances: int | None = None) -> Metrics:
    """Return the metrics of these log events. Memory grows with the number of calls: about 100 bytes each."""
    tallies: dict[int, _Tally] = {}
    first, last, starts = 0.0, 0.0, 0
    for event in events:
        line = request_line(event.message)
        if line is None:
            continue
        if line["event"] == "start":
            starts += 1
        if line["event"] != "request" or line.get("route") not in INFERENCE:
            continue
        first, last = first or line["at"], line["at"]
        tallies.setdefault(int(line.get("revision") or event.revision), _Tally()).add(line)
    total = _Tally()
    for tally in tallies.values():
        total.merge(tally)
    return Metrics(
        total=total.metrics(),
        revisions={number: tallies[number].metrics() for number in sorted(tallies)},
        first_at=first,
        last_at=last,
        instances=instances,
        starts=starts,
    )


class _Tally:
    def __init__(self) -> None:
        self.ms: list[float] = []
        self.predict_ms: list[float] = []
        self.codes: Counter[str] = Counter()
        self.errors = self.cold = self.rows = 0
        self.predicts = 0.0

    def add(self, line: dict[str, Any]) -> None:
        self.ms.append(float(line["ms"]))
        self.predict_ms.append(float(line["predict_ms"]))
        self.rows += int(line["rows"])
        self.cold += bool(line["cold"])
        # A request in a batch of n is one n-th of a predict.
        self.predicts += 1 / max(1, int(line["batch"]))
        if int(line["status"]) >= 400:
            self.errors += 1
            self.codes[str(line["code"])] += 1

    def merge(self, other: _Tally) -> None:
        self.ms += other.ms
        self.predict_ms += other.predict_ms
        self.codes += other.codes
        self.errors += other.errors
        self.cold += other.cold
        self.rows += other.rows
        self.predicts += other.predicts

    def metrics(self) -> RevisionMetrics:
        return RevisionMetrics(
            requests=len(self.ms),
            errors=self.errors,
            errors_by_code=dict(sorted(self.codes.items())),
            cold=self.cold,
            latency_ms=latency(self.ms),
            predict_ms=latency(self.predict_ms),
            rows=self.rows,
            mean_batch=round(len(self.ms) / self.predicts, 3) if self.predicts else 0.0,
        )


def latency(milliseconds: Iterable[float]) -> Latency:
    """Return percentiles by nearest rank: the smallest value that at least p percent of the values do not exceed."""
    ordered = sorted(milliseconds)
    if not ordered:
        return Latency()

    def rank(percent: int) -> float:
        return round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 3)

    return Latency(p50=rank(50), p95=rank(95), p99=rank(99), max=round(ordered[-1], 3))
