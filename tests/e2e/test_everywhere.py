"""One package on every provider there is: one digest, the same bytes, the same refusals, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from polyserve import registry
from polyserve.bucket import Bucket
from polyserve.comparison import compare
from polyserve.deployment import Deployment
from polyserve.errors import InvalidArgumentError, NotFoundError
from polyserve.layers.fronting import fronted
from polyserve.records import load
from polyserve.rollout import Target, desire, roll_out
from polyserve.runtime.messages import Request
from polyserve.teardown import destroy
from polyserve.testing.packages import times

NAME = "everywhere"


@pytest.fixture(scope="module")
def clouds(harness_of: Callable[..., Any]) -> dict[str, Any]:
    """Give the harness of every provider that is registered."""
    # Not within a test: emulators would be of its home, and end with it.
    return {name: harness_of(name) for name in registry.providers()}


@pytest.fixture
def targets(clouds: dict[str, Any]) -> Iterator[list[Target]]:
    """Deploy the package everywhere; destroy it everywhere."""
    model, found = times(2), []
    try:
        for harness in clouds.values():
            provider = fronted(harness.provider())
            target = Target(provider=provider, bucket=Bucket(provider, harness.fresh_bucket()))
            found.append(target)
            desired, bundle = desire(model, target, name=NAME)
            roll_out(target, desired, model, bundle)
        yield found
    finally:
        for target in found:
            with suppress(NotFoundError):
                destroy(target, NAME)
    assert {name: list(harness.inventory()) for name, harness in clouds.items()} == {name: [] for name in clouds}


def deployment(target: Target) -> Deployment:
    """Return the deployment as another process would find it."""
    return Deployment(target, load(target.bucket, NAME)[0])


def test_one_package_is_the_same_on_every_provider(targets):
    found = compare([deployment(target) for target in targets])

    assert found.equal, found.to_dict()
    assert found.checks[0].seen == {target.provider.info.name: times(2).digest[:12] for target in targets}


def test_many_rows_are_answered_with_the_same_bytes_on_every_provider(targets):
    rows = np.random.default_rng(0).uniform(size=(200, 2)).tolist()
    request = Request(path="/invocations", headers={"content-type": "application/json"}, body=json.dumps(rows).encode())
    bodies = set()
    for target in targets:
        with deployment(target).endpoint as endpoint:
            assert endpoint.invoke(rows) == [[2 * value for value in row] for row in rows]
            response = endpoint.send(request)
            bodies.add((response.status, bytes(response.body)))

    assert [status for status, _ in bodies] == [200]


@pytest.mark.parametrize("value", [[[1.0, 2.0, 3.0]], [["a", "b"]]], ids=["a number too many", "text"])
def test_every_provider_refuses_the_same_with_the_same_words(targets, value):
    request = Request(
        path="/invocations", headers={"content-type": "application/json"}, body=json.dumps(value).encode()
    )
    said = set()
    for target in targets:
        with deployment(target).endpoint as endpoint:
            with pytest.raises(InvalidArgumentError):
                endpoint.invoke(value)
            with pytest.raises(InvalidArgumentError) as refused:
                endpoint.send(request)
        said.add(str(refused.value).replace(f" on {target.provider.info.name}:", ":"))

    assert len(said) == 1
