"""What a driver knows to be in the way is in the plan, whatever layers are before it, and a deploy stops there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from polyserve.bucket import Bucket
from polyserve.driver import ErrorCode, Scaling
from polyserve.errors import PlanRefused
from polyserve.layers.fronting import fronted
from polyserve.layers.retrying import retrying
from polyserve.planner import plan
from polyserve.rollout import Target, desire, observe, roll_out
from polyserve.teardown import destroy
from polyserve.testing.functions import overhearing
from polyserve.testing.memory import MemoryFault, MemoryProvider
from polyserve.testing.memory_apps import MemoryAppProvider, MemoryApps
from polyserve.testing.memory_functions import MemoryPlatform
from polyserve.testing.packages import times

BUCKET = "of-the-obstacles"
WARM = "min_instances is 2, and there is one of each: ask for one"
ALONE = "there is one revision at a time: leave out the canary"


class _AtOdds:
    """Takes one warm instance at most, and no canary."""

    def obstacles(self, spec, *, split=False):
        return (*([WARM] if spec.scaling.min_instances > 1 else []), *([ALONE] if split else []))


class Platform(_AtOdds, MemoryPlatform):
    def apply(self, spec):
        if told := self.obstacles(spec):
            raise MemoryFault(ErrorCode.INVALID_ARGUMENT, "; ".join(told))
        return super().apply(spec)


class Apps(_AtOdds, MemoryApps):
    """The same as apps."""


def of_functions() -> MemoryProvider:
    provider = MemoryProvider()
    provider.functions = Platform(provider)
    return provider


def of_apps() -> MemoryProvider:
    provider = MemoryAppProvider()
    provider.apps = Apps(provider)
    return provider


@pytest.fixture(params=[of_functions, of_apps])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Give a provider behind all layers that the core puts before it."""
    make: Callable[[], MemoryProvider] = request.param
    below = make()
    provider = retrying(fronted(below))
    yield Target(provider=provider, bucket=Bucket(provider, BUCKET))
    provider.close()
    assert below.buckets == {}


def test_a_plan_has_every_obstacle_in_the_drivers_own_words_and_no_step(target):
    desired, _ = desire(times(2), target, name="iris", scaling=Scaling(min_instances=2), canary=10)

    planned = plan(desired, observe(target, desired))

    assert planned.refusals[:2] == (WARM, ALONE)
    assert planned.steps == ()


def test_a_deploy_is_refused_before_anything_is_made_or_uploaded(target):
    package = times(2)
    desired, bundle = desire(package, target, name="iris", scaling=Scaling(min_instances=2))

    with pytest.raises(PlanRefused, match="nothing was changed") as caught:
        roll_out(target, desired, package, bundle)

    assert caught.value.refusals == (WARM,)
    assert target.provider.unwrap(dict) == {}
    assert list(target.provider.functions.list(labels={})) == []


def test_what_stands_in_the_way_of_a_canary_alone_is_none_of_a_deploy(target):
    package = times(2)
    for canary in (None, 100):
        assert desire(package, target, name="iris", canary=canary)[0].obstacles == ()
    desired, bundle = desire(package, target, name="iris")
    roll_out(target, desired, package, bundle)
    other = times(3)
    desired, bundle = desire(other, target, name="iris", canary=10)

    with pytest.raises(PlanRefused) as caught:
        roll_out(target, desired, other, bundle)

    assert caught.value.refusals == (ALONE,)
    assert [r.number for r in target.provider.functions.describe("iris").revisions] == [1]
    destroy(target, "iris")


def test_whoever_listens_hears_what_is_sent_over_connections_that_were_open_before():
    here, there = socket.socketpair()
    with here, there:
        with overhearing() as sent:
            here.sendall(b"?")
        there.sendall(b"!")
        assert (here.recv(1), there.recv(1)) == (b"!", b"?")

    assert sent == ["sendall"]
