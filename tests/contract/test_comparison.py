"""Deployments of one name on two providers are compared byte by byte; each difference is found and named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from polyserve.bucket import Bucket
from polyserve.comparison import compare
from polyserve.deployment import Deployment
from polyserve.driver import Provider
from polyserve.errors import NotFoundError
from polyserve.layers.fronting import fronted
from polyserve.model import ModelPackage
from polyserve.records import load
from polyserve.rollout import Target, desire, roll_out
from polyserve.testing.memory import MemoryProvider
from polyserve.testing.memory_apps import MemoryAppProvider
from polyserve.testing.packages import times

BUCKET = "models"


@pytest.fixture
def clouds() -> Iterator[list[Provider]]:
    """Give two providers in memory that are as unlike as can be: one has functions, the other only apps."""
    made = [MemoryProvider(), MemoryAppProvider()]
    for number, provider in enumerate(made):
        provider._info = replace(provider.info, name=f"cloud-{number}")
    yield [fronted(provider) for provider in made]
    for provider in made:
        provider.close()


def deployed(provider: Provider, model: ModelPackage, *, canary: int | None = None) -> Deployment:
    """Deploy a package and return its deployment."""
    target = Target(provider=provider, bucket=Bucket(provider, BUCKET))
    desired, bundle = desire(model, target, name="same", memory_mb=256, canary=canary)
    roll_out(target, desired, model, bundle)
    return Deployment(target, load(target.bucket, "same")[0])


def test_one_package_on_two_providers_is_the_same_to_its_callers(clouds):
    found = compare([deployed(cloud, times(2)) for cloud in clouds])

    assert found.equal, found.to_dict()
    assert [check.what for check in found.checks] == [
        "package",
        "the model's description",
        "the golden sample",
        "a body that is no JSON",
        "a request without inputs",
        "an input of another name",
        "an unknown model",
        "an unknown route",
        "a method that is not allowed",
    ]
    statuses = [next(iter(check.seen.values())).split()[0] for check in found.checks[1:]]
    assert statuses == ["200", "200", "400", "400", "400", "404", "404", "405"]
    assert found.to_dict()["checks"][0]["seen"].keys() == {"cloud-0", "cloud-1"}


def test_another_package_is_told_with_what_differs(clouds):
    found = compare([deployed(clouds[0], times(2)), deployed(clouds[1], times(3))])

    differing = [check.what for check in found.checks if not check.equal]
    assert not found.equal
    assert differing[0] == "package"
    assert "the golden sample" in differing


def test_a_canary_is_not_asked(clouds):
    deployments = [deployed(cloud, times(2)) for cloud in clouds]
    deployments[1] = deployed(clouds[1], times(3), canary=99)

    found = compare(deployments)

    assert found.equal, found.to_dict()


def test_one_that_was_destroyed_is_not_found(clouds):
    deployments = [deployed(cloud, times(2)) for cloud in clouds]
    deployments[1].destroy()

    with pytest.raises(NotFoundError, match="same"):
        compare(deployments)
