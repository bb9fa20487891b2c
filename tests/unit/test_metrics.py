"""Metrics are computed from log lines alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from polyserve.driver import LogEvent
from polyserve.metrics import compute, latency


def line(**fields: object) -> LogEvent:
    usual = {
        "event": "request",
        "at": 100.0,
        "request_id": "r",
        "route": "infer",
        "status": 200,
        "code": "",
        "ms": 1.0,
        "queue_ms": 0.0,
        "predict_ms": 0.5,
        "rows": 1,
        "batch": 1,
        "cold": False,
        "revision": 1,
        "digest": "d",
        "bytes_in": 1,
        "bytes_out": 1,
        "error": "",
    }
    return LogEvent(at=datetime.now(UTC), message=json.dumps(usual | fields), revision=1)


def test_requests_errors_and_cold_starts_are_counted_for_each_revision_and_in_all():
    seen = compute(
        [
            line(),
            line(cold=True, revision=2),
            line(status=400, code="INVALID_ARGUMENT", revision=2),
            line(route="live"),
            LogEvent(at=datetime.now(UTC), message="a line that the model printed"),
            LogEvent(at=datetime.now(UTC), message='{"not": "ours"}'),
            LogEvent(at=datetime.now(UTC), message='{"event": "start", "at": 1.0}'),
        ],
        instances=2,
    )

    assert (seen.total.requests, seen.total.errors, seen.total.cold) == (3, 1, 1)
    assert seen.revisions[2].errors_by_code == {"INVALID_ARGUMENT": 1}
    assert seen.revisions[1].requests == 1
    assert (seen.starts, seen.instances) == (1, 2)


def test_a_batch_counts_as_one_predict():
    assert compute([line(batch=4)] * 4 + [line(batch=1)] * 4).total.mean_batch == 8 / 5


def test_nothing_seen_is_all_zeros():
    assert compute([]).total.latency_ms.p99 == 0.0


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_percentile_is_a_value_that_at_least_so_many_do_not_exceed(values: list[float]):
    seen = latency(values)

    for percent, value in ((50, seen.p50), (95, seen.p95), (99, seen.p99)):
        rounded = [round(v, 3) for v in values]
        assert value in rounded
        assert sum(v <= value for v in rounded) >= len(values) * percent / 100
