"""Instances: started on demand, scaled by load, held to their limits, and never a hang for their callers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from polyserve.driver import ErrorCode, Phase, Scaling
from polyserve_local.errors import GatewayError


def test_an_idle_function_runs_nothing_and_the_next_caller_waits_for_a_start(make_world: Callable[..., Any]) -> None:
    world = make_world(idle_timeout_s=0.3)
    world.deploy()
    world.until(lambda: not world.instance_pids())

    assert world.status().revision(1).instances == 0
    assert world.call().status_code == 200
    assert len(world.instance_pids()) == 1


def test_a_revision_can_be_called_by_its_number_whatever_its_traffic(world: Any) -> None:
    world.deploy(1)
    world.functions.apply(world.spec(2))
    world.settled(2)

    assert world.call(revision=2).headers["x-polyserve-revision"] == "2"
    assert world.call().headers["x-polyserve-revision"] == "1"


def test_saturation_starts_more_instances_up_to_the_most_and_they_share_the_work(
    make_world: Callable[..., Any],
) -> None:
    world = make_world(idle_timeout_s=1.0)
    world.deploy(scaling=Scaling(max_instances=2))
    address, over = world.provider.invoker.resolve("actor"), threading.Event()
    pids: set[float] = set()

    def ask() -> None:
        while not over.is_set():
            with httpx.Client(timeout=30, trust_env=False) as client:
                world.send(address.url, address.headers, world.SLEEP, 0.1, client=client)
                pids.add(world.send(address.url, address.headers, world.PID, client=client).json()[0][1])

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        try:
            world.until(lambda: len(pids) == 2)
            assert len(world.instance_pids()) == 2
        finally:
            over.set()
        for each in asking:
            each.result()
    world.until(lambda: not world.instance_pids())


def test_instances_that_are_wanted_at_least_are_kept_warm(make_world: Callable[..., Any]) -> None:
    world = make_world(idle_timeout_s=0.2)
    world.deploy(scaling=Scaling(min_instances=1, max_instances=2))
    pid = world.until(world.instance_pids)[0]
    world.kill(pid)
    world.until(lambda: world.instance_pids() and world.instance_pids() != [pid])

    world.functions.scale("actor", Scaling(min_instances=0))
    world.until(lambda: not world.instance_pids())


def test_a_predict_that_does_not_return_is_answered_with_deadline_exceeded_and_ended(world: Any) -> None:
    world.deploy(timeout=0.5)
    before = world.instance_pids()
    reply = world.call(world.LOOP)

    assert (reply.status_code, reply.json()["code"]) == (504, "DEADLINE_EXCEEDED")
    world.until(lambda: world.instance_pids() != before)
    assert world.call().status_code == 200
    assert world.instance_pids() != before


def test_a_predict_that_lets_no_other_thread_run_is_killed_from_outside(world: Any) -> None:
    world.deploy(timeout=0.5)
    with pytest.raises(httpx.TransportError):
        world.call(world.STALL)

    assert world.call().status_code == 200
    assert "timeout: a predict ran for more than 0.5 s" in world.log()


def test_an_instance_over_its_memory_is_killed_with_the_reason_in_its_log(world: Any) -> None:
    world.deploy(memory_mb=100)
    with pytest.raises(httpx.TransportError):
        world.call(world.ALLOCATE, 300)

    assert world.call().status_code == 200
    assert "over limit 100 MB" in world.log()
    assert "out of memory" in world.log()


def test_a_revision_that_never_fits_its_memory_fails_with_one_sentence(make_world: Callable[..., Any]) -> None:
    world = make_world(start_attempts=1)
    world.functions.apply(world.spec(memory_mb=4))

    reason = world.settled().reason

    assert reason.startswith("out of memory: ")
    assert reason.endswith("MB over limit 4 MB: raise it with --memory")


def test_an_instance_that_ends_in_the_middle_costs_its_own_request_only(world: Any) -> None:
    world.deploy()
    with pytest.raises(httpx.TransportError):
        world.call(world.EXIT)

    assert world.call().status_code == 200


def test_every_request_is_answered_or_told_to_retry_while_instances_are_killed(world: Any) -> None:
    world.deploy()
    address, over, answers, broken = world.provider.invoker.resolve("actor"), threading.Event(), [], []

    def ask() -> None:
        while not over.is_set():
            with httpx.Client(timeout=30, trust_env=False) as client:
                try:
                    answers.append(world.send(address.url, address.headers, client=client).status_code)
                except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                    # Not a timeout: that would be a request that hung.
                    broken.append(error)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for _ in range(3):
            seen = len(answers)
            world.until(lambda seen=seen: len(answers) > seen + 30)
            for pid in world.instance_pids():
                world.kill(pid)
        seen = len(answers)
        world.until(lambda: len(answers) > seen + 30)
        over.set()
        for each in asking:
            each.result()

    assert set(answers) == {200}
    # Four callers, three kills: no more than the requests that were under way.
    assert len(broken) <= 12


def test_a_revision_that_crashes_at_its_start_fails_with_the_reason(make_world: Callable[..., Any]) -> None:
    world = make_world(retry_s=30.0)
    world.functions.apply(world.spec(environment={"ACTOR_CRASHES": "1"}))
    failed = world.settled()

    assert failed.phase is Phase.FAILED
    assert "exit status 3" in failed.reason
    world.functions.route("actor", {1: 100})
    reply = world.call(headers={"x-request-id": "mine"})
    assert (reply.status_code, reply.json()["code"]) == (503, "UNAVAILABLE")
    assert reply.json()["request_id"] == "mine"
    assert "exit status 3" in reply.json()["error"]
    assert 1 <= int(reply.headers["retry-after"]) <= 30


def test_the_reason_of_a_failure_is_told_to_callers_with_the_token_only(make_world: Callable[..., Any]) -> None:
    world = make_world(retry_s=30.0)
    world.functions.apply(world.spec(environment={"ACTOR_RAISES": "1"}))
    assert "broken on purpose" in world.settled().reason
    url = world.provider.invoker.resolve("actor", revision=1).url

    reply = world.send(url, {})
    assert reply.status_code == 401
    assert "broken" not in reply.text


def test_a_failed_revision_is_tried_anew_when_it_is_applied_again(make_world: Callable[..., Any]) -> None:
    world = make_world()
    spec = world.spec(requirements=("no-such-distribution-of-anybody==1.0",), python="3.99")
    world.functions.apply(spec)
    assert "Python 3.99" in world.settled().reason

    assert world.functions.apply(spec).revision(1).phase is Phase.PROVISIONING
    assert world.settled().phase is Phase.FAILED


def test_a_bundle_that_is_not_in_the_store_is_refused_before_anything_is_made(world: Any) -> None:
    spec = world.spec()
    world.provider.store("bundles").delete(spec.artifact.key)

    with pytest.raises(GatewayError) as caught:
        world.functions.apply(spec)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert list(world.functions.list(labels={})) == []


def test_a_log_is_rotated_and_read_in_the_order_of_time(make_world: Callable[..., Any]) -> None:
    world = make_world(log_bytes=10_000)
    world.deploy()
    for _ in range(3):
        world.call(world.PRINT, 9_000)
        world.until(lambda: world.call().status_code == 200)
    rotated = list((world.home / "local/logs/actor").glob("*.log.1"))
    world.until(lambda: rotated or list((world.home / "local/logs/actor").glob("*.log.1")))

    events = list(world.functions.logs("actor", since=None))
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert {event.revision for event in events} == {1}
    assert list(world.functions.logs("actor", since=events[-1].at))
