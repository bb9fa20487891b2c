"""Connections that callers keep: whoever is to answer them goes on with them, and nothing that was sent is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest

from polyserve.driver import Phase, Scaling
from polyserve_local.pulse import read_pulse


@pytest.fixture
def two(world: Any) -> Any:
    """A world with revision 1 and 2 ready, and the traffic on 1."""
    world.functions.apply(world.spec(2))
    world.deploy(1)
    world.settled(2)
    return world


class Kept:
    """A caller who keeps one connection, and counts how often it had to make another."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.address = world.provider.invoker.resolve("actor")
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60)
        self.client = httpx.Client(trust_env=False, timeout=30, limits=limits)

    def revision(self) -> str:
        reply = self.world.send(self.address.url, self.address.headers, client=self.client)
        assert reply.status_code == 200
        return str(reply.headers["x-polyserve-revision"])

    def local_port(self) -> int:
        with self.client.stream("GET", f"{self.address.url}/v2/health/live", headers=self.address.headers) as reply:
            port = reply.extensions["network_stream"].get_extra_info("client_addr")[1]
            reply.read()
        return int(port)


@contextmanager
def callers(world: Any, count: int) -> Iterator[Counter[str]]:
    """Callers with kept connections that ask all the time."""
    over, seen = threading.Event(), Counter[str]()

    def ask() -> None:
        kept = Kept(world)
        with kept.client:
            while not over.is_set():
                seen[kept.revision()] += 1

    with ThreadPoolExecutor(count) as pool:
        asking = [pool.submit(ask) for _ in range(count)]
        try:
            yield seen
        finally:
            over.set()
        for each in asking:
            each.result()


def test_after_traffic_was_moved_a_kept_connection_meets_the_new_revision_only(two: Any) -> None:
    kept = Kept(two)
    with kept.client:
        for number in (2, 1) * 10:
            two.functions.route("actor", {number: 100})
            assert {kept.revision() for _ in range(3)} == {str(number)}


def test_a_kept_connection_is_the_same_after_traffic_was_moved(two: Any) -> None:
    kept = Kept(two)
    with kept.client:
        port = kept.local_port()
        two.functions.route("actor", {2: 100})
        assert (kept.revision(), kept.local_port()) == ("2", port)


def test_kept_connections_follow_the_traffic_through_splits_and_sleeping_revisions(
    make_world: Callable[..., Any],
) -> None:
    world = make_world(idle_timeout_s=0.5)
    world.functions.apply(world.spec(2))
    world.deploy(1)
    world.settled(2)
    kept = Kept(world)
    with kept.client:
        assert kept.revision() == "1"
        world.until(lambda: not world.instance_pids())
        world.functions.route("actor", {2: 100})
        assert kept.revision() == "2"
        world.functions.route("actor", {1: 50, 2: 50})
        assert {kept.revision() for _ in range(40)} == {"1", "2"}
        world.functions.route("actor", {1: 100})
        assert {kept.revision() for _ in range(3)} == {"1"}


def test_fifty_moves_under_load_lose_no_request_and_are_exact(two: Any) -> None:
    with callers(two, 8) as seen:
        own = Kept(two)
        with own.client:
            for number in (2, 1) * 25:
                two.functions.route("actor", {number: 100})
                assert own.revision() == str(number)
                before = sum(seen.values())
                two.until(lambda before=before: sum(seen.values()) > before + 8)

    assert set(seen) == {"1", "2"}


def test_a_split_that_its_gateway_is_killed_in_breaks_and_never_hangs_and_comes_back(two: Any) -> None:
    two.functions.route("actor", {1: 50, 2: 50})
    address, broken = two.provider.invoker.resolve("actor"), threading.Event()

    def wait_long() -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                two.send(address.url, address.headers, two.SLEEP, 5.0, client=client)
        broken.set()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_long)
        two.until(lambda: _under_way(two) >= 1)
        two.kill_gateway()
        assert broken.wait(4)
        waiting.result()
    # Nobody shares the traffic out now: whoever has some answers.
    with httpx.Client(trust_env=False, timeout=30) as fresh:
        assert two.send(address.url, address.headers, client=fresh).status_code == 200
    assert two.status().weights == {1: 50, 2: 50}

    def both() -> bool:
        with httpx.Client(trust_env=False, timeout=30) as client:
            replies = [two.send(address.url, address.headers, client=client) for _ in range(20)]
        return {reply.headers["x-polyserve-revision"] for reply in replies} == {"1", "2"}

    two.until(both)


def _under_way(world: Any) -> int:
    from polyserve.runtime.watchdog import PULSE

    pages = [path.read_bytes() for path in (world.home / "local/run").glob("*.pulse")]
    return sum(PULSE.unpack_from(page, 0)[2] for page in pages)


def test_others_are_answered_during_and_after_a_predict_that_is_stuck(make_world: Callable[..., Any]) -> None:
    world = make_world(queue_ms=10)
    world.deploy(timeout=2.0, scaling=Scaling(max_instances=2))
    address, answers = world.provider.invoker.resolve("actor"), Counter[int]()
    idle = Kept(world)
    for _ in range(20):
        # Quick by now: predicts run on the event loop, where a stuck one stops everything.
        idle.revision()
    stuck = threading.Event()

    def be_stuck() -> int:
        with httpx.Client(trust_env=False, timeout=30) as client:
            reply = world.send(address.url, address.headers, world.LOOP, client=client)
            stuck.set()
            return reply.status_code

    with ThreadPoolExecutor(1) as pool, closing(idle.client):
        first = pool.submit(be_stuck)
        world.until(lambda: _under_way(world) >= 1)
        while not stuck.is_set():
            with httpx.Client(trust_env=False, timeout=30) as client:
                answers[world.send(address.url, address.headers, client=client).status_code] += 1
        # Its connection was at the stuck instance all the while.
        assert idle.revision() == "1"
        for _ in range(20):
            with httpx.Client(trust_env=False, timeout=30) as client:
                answers[world.send(address.url, address.headers, client=client).status_code] += 1
        assert first.result() == 504

    # 503 says that it can be sent again: it waited behind the one that was stuck.
    assert set(answers) <= {200, 503}
    assert answers[503] <= 1
    assert answers[200] >= 20


def test_whoever_got_the_504_is_told_to_use_another_connection(world: Any) -> None:
    world.deploy(timeout=0.5)
    reply = world.call(world.LOOP)
    assert (reply.status_code, reply.headers["connection"]) == (504, "close")
    assert world.call().status_code == 200


def test_a_new_instance_takes_its_share_of_the_kept_connections(make_world: Callable[..., Any]) -> None:
    world = make_world()
    world.deploy(scaling=Scaling(min_instances=1, max_instances=2))
    keeping = [Kept(world) for _ in range(8)]
    ports = [kept.local_port() for kept in keeping]
    world.functions.scale("actor", Scaling(min_instances=2, max_instances=2))

    def held() -> list[int]:
        """Return how many connections each instance has. Nobody asks meanwhile: what is under way is answered and closed, not moved."""
        found = [path.read_bytes() for path in (world.home / "local/run").glob("*.pulse")]
        return [read_pulse(page).connections for page in found if page]  # empty until the instance writes it

    world.until(lambda: len(found := held()) == 2 and min(found) >= 2)
    address = keeping[0].address
    shares = Counter(
        world.send(address.url, address.headers, world.PID, client=kept.client).json()[0][1] for kept in keeping
    )
    assert len(shares) == 2
    assert min(shares.values()) >= 2
    assert [kept.local_port() for kept in keeping] == ports
    for kept in keeping:
        kept.client.close()
    assert world.settled(1).phase is Phase.READY
