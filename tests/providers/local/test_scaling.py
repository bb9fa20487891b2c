"""How many instances there should be, by a clock of the test's own."""

from __future__ import annotations

from polyserve_local.scaling import Sample, Scaler


def run(scaler: Scaler, until: float, *, instances: int, inflight: int, rate: float, start: float = 0.0) -> int:
    """Feed a steady load in steps of 50 ms and return the last judgement, or the first that asks for another number."""
    steps = int((until - start) / 0.05)
    for step in range(steps + 1):
        now = start + step * 0.05
        quiet = 0.0 if inflight else now - start
        each = Sample(inflight=inflight, completed=int(rate * now), quiet_s=quiet)
        wanted = scaler.wanted(now, [each] * instances, least=0, most=4)
        if wanted != instances:
            return wanted
    return instances


def scaler() -> Scaler:
    return Scaler(concurrency=64, queue_s=0.1, idle_s=2.0)


def test_quick_answers_need_no_second_instance_however_many_callers_there_are() -> None:
    assert run(scaler(), 5.0, instances=1, inflight=32, rate=40_000) == 1


def test_callers_that_wait_long_for_each_other_get_another_instance() -> None:
    assert run(scaler(), 5.0, instances=1, inflight=8, rate=10) == 2


def test_one_slow_request_at_a_time_needs_no_second_instance() -> None:
    assert run(scaler(), 5.0, instances=1, inflight=1, rate=1) == 1


def test_more_requests_than_the_target_get_another_instance() -> None:
    assert run(scaler(), 5.0, instances=1, inflight=64, rate=40_000) == 2


def test_a_burst_that_is_over_soon_starts_nothing() -> None:
    assert run(scaler(), 0.15, instances=1, inflight=500, rate=0) == 1


def test_there_are_never_more_than_the_most() -> None:
    assert run(scaler(), 5.0, instances=4, inflight=500, rate=0) == 4


def test_nothing_to_do_for_the_idle_time_leaves_nothing_running() -> None:
    assert run(scaler(), 1.9, instances=3, inflight=0, rate=0) == 3
    assert run(scaler(), 2.2, instances=1, inflight=0, rate=0) == 0


def test_too_little_work_for_all_ends_one_of_them() -> None:
    judged = scaler()
    samples = [Sample(inflight=1, completed=9, quiet_s=0.0), *[Sample(inflight=0, completed=9, quiet_s=0.5)] * 2]

    assert [judged.wanted(now, samples, least=0, most=4) for now in (0.0, 1.0, 2.0, 2.1)] == [3, 3, 3, 2]
