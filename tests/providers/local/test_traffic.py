"""Traffic: moved without losing a request, and shared by weight."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from polyserve.driver import ErrorCode
from polyserve_local.errors import GatewayError


@pytest.fixture
def two(world: Any) -> Any:
    """A world with revision 1 and 2 ready, and the traffic on 1."""
    world.functions.apply(world.spec(2))
    world.deploy(1)
    world.settled(2)
    return world


def test_moving_traffic_loses_no_request_of_callers_that_connect_anew(two: Any) -> None:
    address, over, seen = two.provider.invoker.resolve("actor"), threading.Event(), Counter[str]()

    def ask() -> None:
        while not over.is_set():
            with httpx.Client(timeout=30, trust_env=False) as client:
                reply = two.send(address.url, address.headers, client=client)
                assert reply.status_code == 200
                seen[reply.headers["x-polyserve-revision"]] += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for weights in ({2: 100}, {1: 100}, {1: 50, 2: 50}, {2: 100}, {1: 100}):
                before = sum(seen.values())
                two.until(lambda before=before: sum(seen.values()) > before + 20)
                two.functions.route("actor", weights)
        finally:
            over.set()
        for each in asking:
            each.result()

    assert set(seen) == {"1", "2"}


def test_moving_traffic_loses_no_request_of_callers_that_keep_their_connection(two: Any) -> None:
    address, over, seen = two.provider.invoker.resolve("actor"), threading.Event(), Counter[str]()

    def ask() -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not over.is_set():
                reply = two.send(address.url, address.headers, client=client)
                assert reply.status_code == 200
                seen[reply.headers["x-polyserve-revision"]] += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for weights in ({2: 100}, {1: 100}, {1: 50, 2: 50}, {2: 100}, {1: 100}):
                before = sum(seen.values())
                two.until(lambda before=before: sum(seen.values()) > before + 20)
                two.functions.route("actor", weights)
        finally:
            over.set()
        for each in asking:
            each.result()

    assert set(seen) == {"1", "2"}


def test_once_traffic_is_moved_new_connections_meet_the_new_revision_only(two: Any) -> None:
    address = two.provider.invoker.resolve("actor")
    for number in (2, 1, 2):
        two.functions.route("actor", {number: 100})
        for _ in range(10):
            with httpx.Client(trust_env=False) as client:
                reply = two.send(address.url, address.headers, client=client)
                assert reply.headers["x-polyserve-revision"] == str(number)


def test_a_split_shares_requests_by_weight(two: Any) -> None:
    two.functions.route("actor", {1: 70, 2: 30})
    address = two.provider.invoker.resolve("actor")
    seen = Counter(two.send(address.url, address.headers).headers["x-polyserve-revision"] for _ in range(400))

    # Six standard deviations of 400 throws: one false alarm in five hundred million runs.
    assert 225 <= seen["1"] <= 335


def test_a_split_sends_a_request_id_to_the_same_revision_every_time(two: Any) -> None:
    two.functions.route("actor", {1: 50, 2: 50})
    address = two.provider.invoker.resolve("actor")

    def revision(request_id: str) -> str:
        headers = {**address.headers, "x-request-id": request_id}
        return two.send(address.url, headers).headers["x-polyserve-revision"]

    first = [revision(f"request-{number}") for number in range(40)]
    assert set(first) == {"1", "2"}
    assert [revision(f"request-{number}") for number in range(40)] == first


def test_a_split_answers_unavailable_where_the_instance_ends_in_the_middle(two: Any) -> None:
    two.functions.route("actor", {1: 50, 2: 50})
    reply = two.call(two.EXIT)

    assert (reply.status_code, reply.json()["code"]) == (503, "UNAVAILABLE")
    assert two.call().status_code == 200


def test_a_split_passes_large_and_chunked_bodies_on(two: Any) -> None:
    two.functions.route("actor", {1: 50, 2: 50})
    address = two.provider.invoker.resolve("actor")
    rows = [[0.0, float(number)] for number in range(200_000)]

    reply = two.client.post(f"{address.url}/invocations", json=rows, headers=address.headers)
    assert reply.json() == rows
    chunks = iter([b"[[0.0, 1.0],", b" [0.0, 2.0]]"])
    reply = two.client.post(f"{address.url}/invocations", content=chunks, headers=address.headers)
    assert reply.json() == [[0.0, 1.0], [0.0, 2.0]]


def test_a_split_needs_the_token(two: Any) -> None:
    two.functions.route("actor", {1: 50, 2: 50})

    assert two.send(two.provider.invoker.resolve("actor").url, {}).status_code == 401


def test_weights_that_do_not_add_up_are_refused(two: Any) -> None:
    with pytest.raises(GatewayError, match="add up to 100") as caught:
        two.functions.route("actor", {1: 70, 2: 20})
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_function_without_traffic_says_so(world: Any) -> None:
    world.functions.apply(world.spec())
    world.settled()
    reply = world.call()

    assert (reply.status_code, reply.json()["code"]) == (503, "UNAVAILABLE")
    assert "no traffic" in reply.json()["error"]
