"""What a driver knows to be in the way is in the plan, whatever layers are before it; deploy, scale and traffic stop there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from polyserve import deployment
from polyserve.bucket import Bucket
from polyserve.deployment import Deployment
from polyserve.driver import ErrorCode, Scaling
from polyserve.errors import PlanRefused, PolyserveError
from polyserve.layers.fronting import fronted
from polyserve.layers.retrying import retrying
from polyserve.planner import plan
from polyserve.records import leased, load
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
    """Takes one warm instance at most, and no canary; and whatever else a test has against it, or does while it is asked."""

    also = ()
    meanwhile = staticmethod(lambda: None)

    def obstacles(self, spec, *, split=False):
        self.meanwhile()
        return (*self.also, *([WARM] if spec.scaling.min_instances > 1 else []), *([ALONE] if split else []))

    def scale(self, name, scaling):
        if scaling.min_instances > 1:
            raise MemoryFault(ErrorCode.INVALID_ARGUMENT, WARM)
        return super().scale(name, scaling)


class Platform(_AtOdds, MemoryPlatform):
    def apply(self, spec):
        if told := self.obstacles(spec):
            raise MemoryFault(ErrorCode.INVALID_ARGUMENT, "; ".join(told))
        return super().apply(spec)

    def route(self, name, weights):
        if len(weights) > 1:
            raise MemoryFault(ErrorCode.INVALID_ARGUMENT, ALONE)
        return super().route(name, weights)


class Apps(_AtOdds, MemoryApps):
    """The same as apps."""

    def put(self, app):
        if app.forwards:
            raise MemoryFault(ErrorCode.INVALID_ARGUMENT, ALONE)
        return super().put(app)


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


def deployed(target, *factors):
    """Roll packages out, one after the other, and return what they are revisions of."""
    for factor in factors:
        package = times(factor)
        desired, bundle = desire(package, target, name="iris")
        roll_out(target, desired, package, bundle)
    return Deployment(target, load(target.bucket, "iris")[0])


def state(target):
    """Return the record as it lies in its bucket, with its version, and the function as its platform sees it."""
    return load(target.bucket, "iris"), target.provider.functions.describe("iris")


def rewrite(target, **changed):
    """Change the record and nothing else, as somebody who was killed before the platform heard of it."""
    with leased(target.bucket, "iris", "scale") as ledger:
        ledger.save(replace(ledger.record, **changed))


def refused_for(target, change):
    """Return why a change was refused, after seeing that it left everything as it was."""
    before = state(target)
    with pytest.raises(PlanRefused, match="iris' was refused for memory; nothing was changed") as caught:
        change()
    assert state(target) == before
    assert caught.value.exit_code == 2
    assert all(refusal in str(caught.value) for refusal in caught.value.refusals)
    return caught.value.operation, caught.value.refusals


def see_that_bounds_are_refused_before_they_are_written(target):
    iris = deployed(target, 2)

    assert refused_for(target, lambda: iris.scale(min_instances=2)) == ("scale", (WARM,))
    assert iris.scale(min_instances=1, max_instances=3) == Scaling(min_instances=1, max_instances=3)
    assert target.provider.functions.describe("iris").scaling == iris.record.scaling


def see_that_a_split_is_refused_before_it_is_written(target):
    iris = deployed(target, 2, 3)

    assert refused_for(target, lambda: iris.traffic({1: 90, 2: 10})) == ("traffic", (ALONE,))
    iris.traffic({1: 100, 2: 0})
    assert target.provider.functions.describe("iris").weights == {1: 100}
    assert iris.rollback(to=2) == 2


def see_that_bounds_that_somebody_else_sets_meanwhile_are_held_against_it_too(target):
    iris, asked = deployed(target, 2), []

    def somebody_else():
        asked.append(1)
        if len(asked) == 1:
            rewrite(target, scaling=Scaling(min_instances=2))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_AtOdds, "meanwhile", staticmethod(somebody_else))
        with pytest.raises(PlanRefused) as caught:
            iris.scale(max_instances=5)

    assert caught.value.refusals == (WARM,)
    record = load(target.bucket, "iris")[0]
    assert (record.scaling, record.lease) == (Scaling(min_instances=2), None)
    assert target.provider.functions.describe("iris").scaling == Scaling()


CHANGES = {
    "bounds": see_that_bounds_are_refused_before_they_are_written,
    "a split": see_that_a_split_is_refused_before_it_is_written,
    "bounds of two": see_that_bounds_that_somebody_else_sets_meanwhile_are_held_against_it_too,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_cannot_be_is_refused_before_the_record_says_it(target, change):
    CHANGES[change](target)

    destroy(target, "iris")


@pytest.mark.parametrize(
    ("change", "name"), [("bounds", "refuse_bounds"), ("a split", "refuse_split"), ("bounds of two", "refuse_bounds")]
)
def test_that_is_seen_of_a_core_that_asks_nobody(target, change, name, monkeypatch):
    honest, asked = getattr(deployment, name), []

    def asks_once_at_most(*arguments):
        asked.append(arguments)
        if change == "bounds of two" and len(asked) == 1:
            honest(*arguments)

    monkeypatch.setattr(deployment, name, asks_once_at_most)
    with pytest.raises((AssertionError, PolyserveError, MemoryFault, pytest.fail.Exception)):
        CHANGES[change](target)

    assert asked
    monkeypatch.undo()
    destroy(target, "iris")


def test_what_was_in_the_way_before_is_not_held_against_a_change(target, monkeypatch):
    iris = deployed(target, 2, 3)
    monkeypatch.setattr(_AtOdds, "also", ("memory_mb is 512, as of now a revision has 1,024: ask for more",))

    assert iris.scale(max_instances=3).max_instances == 3
    assert refused_for(target, lambda: iris.scale(min_instances=2)) == ("scale", (WARM,))
    assert refused_for(target, lambda: iris.traffic({1: 50, 2: 50})) == ("traffic", (ALONE,))
    assert iris.rollback() == 1
    destroy(target, "iris")


def test_a_record_that_says_what_cannot_be_says_so_until_it_is_mended(target):
    iris = deployed(target, 2)
    rewrite(target, scaling=Scaling(min_instances=2))

    assert refused_for(target, lambda: iris.scale(max_instances=5)) == ("scale", (WARM,))
    assert refused_for(target, lambda: iris.scale(min_instances=2)) == ("scale", (WARM,))
    assert iris.scale(min_instances=0) == Scaling()
    assert target.provider.functions.describe("iris").scaling == Scaling()
    destroy(target, "iris")


def test_whoever_listens_hears_what_is_sent_over_connections_that_were_open_before():
    here, there = socket.socketpair()
    with here, there:
        with overhearing() as sent:
            here.sendall(b"?")
        there.sendall(b"!")
        assert (here.recv(1), there.recv(1)) == (b"!", b"?")

    assert sent == ["sendall"]
