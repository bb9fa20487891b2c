"""How often is looked whether a platform is done: soon at first, then less, and most of the time nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from polyserve.driver import Phase
from polyserve.rollout import LONGEST_POLL, SHORTEST_POLL, wait_ready, wait_routed
from polyserve.testing.memory import MemoryProvider


class Clock:
    """A clock that goes on by sleeping, and by what a look takes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.sleep", clock.sleep)
    return clock


def slow(clock: Clock, *, look: float, ready: float) -> Any:
    """Return a provider whose function is done after some seconds, each look at which takes some."""
    begun = clock.now

    def describe(name: str) -> Any:
        clock.now += look
        done = clock.now - begun >= ready
        revision = SimpleNamespace(phase=Phase.READY if done else Phase.PROVISIONING, incomplete=False)
        weights = {1: 100} if done else {}
        return SimpleNamespace(revision=lambda number: revision, weights=weights, incomplete=False, phase=Phase.READY)

    return SimpleNamespace(info=MemoryProvider().info, functions=SimpleNamespace(describe=describe))


WAITS = [
    lambda provider: wait_ready(provider, SimpleNamespace(name="iris", revision=1), renew=lambda: None),  # type: ignore[arg-type]
    lambda provider: wait_routed(provider, "iris", {1: 100}, renew=lambda: None),
]


@pytest.mark.parametrize("wait", WAITS)
def test_what_is_done_at_once_is_seen_at_once(clock: Clock, wait: Callable[[Any], object]) -> None:
    wait(slow(clock, look=0.001, ready=0.05))

    assert clock.now - 100.0 <= 0.05 + 2 * SHORTEST_POLL


@pytest.mark.parametrize("wait", WAITS)
def test_the_longer_it_takes_the_less_often_is_looked(clock: Clock, wait: Callable[[Any], object]) -> None:
    wait(slow(clock, look=0.001, ready=60.0))

    assert clock.slept == sorted(clock.slept)
    assert clock.slept[0] == SHORTEST_POLL
    assert clock.slept[-1] == LONGEST_POLL


@pytest.mark.parametrize("wait", WAITS)
def test_a_platform_that_is_slow_to_answer_is_left_alone_most_of_the_time(
    clock: Clock, wait: Callable[[Any], object]
) -> None:
    wait(slow(clock, look=0.2, ready=3.0))

    assert all(pause >= 4 * 0.2 - 1e-9 for pause in clock.slept)
