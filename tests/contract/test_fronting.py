"""Front and canary over apps: shares are right and sticky, and moving the traffic loses no request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from polyserve.driver import Address, AppSpec, Forward, Phase, Scaling
from polyserve.errors import AlreadyExistsError
from polyserve.layers.fronting import fronted
from polyserve.runtime.forwarding import Share, pick
from polyserve.testing.functions import NAME, Functions
from polyserve.testing.memory_apps import MemoryAppProvider
from polyserve.testing.memory_harness import MemoryHarness


@pytest.fixture
def fronts() -> Iterator[Functions]:
    """Give a platform of apps behind its fronts."""
    harness = MemoryHarness(kind=MemoryAppProvider)
    given = Functions(harness)
    yield given
    given.gone()
    left = harness.inventory()
    harness.close()
    assert left == []


def answered(fronts: Functions, calls: int) -> Counter[int]:
    """Return how many of some calls each revision answered."""
    with fronts.endpoint() as endpoint:
        return Counter(int(endpoint.invoke([[1.0, 1.0]], request_id=f"call-{n}")[0][0]) for n in range(calls))


def test_a_canary_gets_its_share_of_the_requests_and_each_id_stays_where_it_is(fronts):
    fronts.applied(2, 3)
    fronts.route({2: 90, 3: 10})

    first, second = answered(fronts, 1000), answered(fronts, 1000)

    # Ten percent of a thousand, within four standard deviations.
    assert 62 <= first[3] <= 138
    assert first[2] + first[3] == 1000
    assert first == second


def test_the_share_of_a_request_depends_on_nothing_but_its_id():
    shares = [Share(revision=3, percent=30, url="x"), Share(revision=4, percent=20, url="y")]
    drawn = Counter(share.revision if (share := pick(shares, str(n))) else 0 for n in range(10_000))

    assert abs(drawn[3] - 3000) < 200
    assert abs(drawn[4] - 2000) < 200
    # A share that grows keeps whom it had.
    wider = [Share(revision=3, percent=60, url="x")]
    assert all(pick(wider, str(n)) for n in range(10_000) if pick(shares[:1], str(n)))


def test_promotion_and_rollback_lose_no_request(fronts):
    fronts.applied(2, 3)
    fronts.route({2: 100})
    answers, ended = Counter[float](), threading.Event()

    def call() -> None:
        with fronts.endpoint() as endpoint:
            while not ended.is_set():
                answers[endpoint.invoke([[1.0, 1.0]])[0][0]] += 1

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for weights in ({2: 90, 3: 10}, {3: 100}, {2: 100}, {2: 40, 3: 60}, {3: 100}):
        fronts.route(weights)
    ended.set()
    for caller in callers:
        caller.join()

    # Whoever lost a request would have raised in its thread, which pytest turns into a failure.
    assert set(answers) == {2.0, 3.0}


def test_a_canary_that_is_gone_costs_its_callers_nothing(fronts):
    fronts.applied(2, 3)
    fronts.route({2: 50, 3: 50})
    fronts.harness.memory.apps.remove(f"{NAME}-r3")

    assert answered(fronts, 40) == {2: 40}


def test_a_caller_that_names_a_revision_gets_it_whatever_the_weights(fronts):
    fronts.applied(2, 3)
    fronts.route({2: 99, 3: 1})
    tensor = {"name": "input", "datatype": "FP64", "shape": [1, 2], "data": [1.0, 1.0]}

    for revision in (2, 3):
        path = f"/v2/models/contract-times/versions/{revision}/infer"
        response = fronts.send(path, method="POST", body=str({"inputs": [tensor]}).replace("'", '"').encode())

        assert response.headers["x-polyserve-revision"] == str(revision)


def test_the_front_runs_the_heaviest_revision_and_stays_where_two_are_equal(fronts):
    apps = fronts.harness.memory.apps
    fronts.applied(2, 3)
    run = {}
    for weights in ({2: 90, 3: 10}, {2: 50, 3: 50}, {2: 10, 3: 90}, {2: 50, 3: 50}):
        fronts.route(weights)
        run[str(weights)] = apps.get(NAME).app.spec.revision

    assert run == {str({2: 90, 3: 10}): 2, str({2: 50, 3: 50}): 3, str({2: 10, 3: 90}): 3}


def test_what_is_kept_warm_is_the_front_once_there_is_one(fronts):
    apps = fronts.harness.memory.apps
    fronts.applied(2)
    fronts.platform.scale(NAME, Scaling(min_instances=2))
    fronts.route({2: 100})
    fronts.applied(3)

    assert apps.get(NAME).app.scaling.min_instances == 2
    assert [apps.get(f"{NAME}-r{n}").app.scaling.min_instances for n in (2, 3)] == [0, 0]
    assert fronts.platform.describe(NAME).scaling == Scaling(min_instances=2)


def test_an_app_of_another_deployment_is_not_taken_over(fronts):
    fronts.applied(2)
    stranger = fronts.spec(1, f"{NAME}-r2")
    fronts.platform.apply(stranger)
    try:
        fronts.wait(stranger)
        with pytest.raises(AlreadyExistsError, match=f"'{NAME}-r2' belongs to deployment '{NAME}'"):
            fronts.platform.route(f"{NAME}-r2", {1: 100})
    finally:
        fronts.platform.delete(f"{NAME}-r2")


def test_while_the_front_changes_it_has_no_weights_and_the_last_revision_answers(fronts):
    fronts.applied(2, 3)
    fronts.route({2: 100})

    fronts.platform.route(NAME, {3: 100})

    status = fronts.platform.describe(NAME)
    assert (status.weights, status.phase, status.incomplete) == ({}, Phase.PROVISIONING, True)
    assert answered(fronts, 3) == {2: 3}
    fronts.route({3: 100})
    assert answered(fronts, 3) == {3: 3}


def test_an_app_is_described_as_it_was_written_down(fronts):
    spec = fronts.spec(2)
    app = AppSpec(
        app="a", spec=spec, forwards=(Forward(revision=3, percent=10, app="b"),), front=True, scaling=spec.scaling
    )

    again = AppSpec.from_json(app.to_json(), spec.scaling)

    assert again == app
    assert again.spec.digest() == spec.digest()
    with pytest.raises(ValueError, match="not of this version"):
        AppSpec.from_json('{"app": "a"}', spec.scaling)


def test_a_provider_with_functions_needs_no_front():
    provider = MemoryHarness().memory

    assert fronted(provider) is provider


def test_an_address_of_an_app_is_that_of_its_function(fronts):
    fronts.applied(2)

    assert isinstance(fronts.provider.invoker.resolve(NAME, revision=2), Address)
