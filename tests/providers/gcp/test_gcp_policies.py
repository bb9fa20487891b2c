"""What who deploys must be allowed to do: the printed role is enough for all of it, and a refusal names what is missing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from polyserve.bucket import Bucket
from polyserve.deployment import Deployment
from polyserve.driver import Provider
from polyserve.errors import PermissionDeniedError, translating
from polyserve.layers.fronting import fronted
from polyserve.layers.retrying import retrying
from polyserve.records import load
from polyserve.rollout import Target, desire, roll_out
from polyserve.teardown import destroy
from polyserve.testing.packages import times
from polyserve_gcp.permissions import custom_role, permissions
from polyserve_gcp.provider import provider
from polyserve_gcp.settings import GcpSettings

NAME = "policies"
PLATFORMS = ["functions", "run"]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def harness(harness_of: Callable[..., Any]) -> Any:
    """Give the harness of the contract suites."""
    return harness_of("gcp")


def needed(harness: Any, platform: str) -> list[str]:
    """Return the permissions that the provider names."""
    settings = GcpSettings(**{**harness.options, "platform": platform})
    return list(permissions(harness.function_spec(NAME, 1), settings))


@pytest.fixture
def target_of(harness: Any) -> Iterator[Callable[[str, Sequence[str]], Target]]:
    """Return where somebody deploys who has these permissions and no others."""
    given: list[Provider] = []

    def target_of(platform: str, allowed: Sequence[str]) -> Target:
        file = harness.account(f"deployer-{next(_numbers)}", permissions=allowed).credentials_file
        settings = GcpSettings(**{**harness.options, "platform": platform, "credentials_file": file})
        given.append(retrying(fronted(provider(settings))))
        return Target(provider=given[-1], bucket=Bucket(given[-1], f"polyserve-policies-{next(_numbers)}"))

    yield target_of
    for each in given:
        each.close()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_permissions_are_enough_to_deploy_call_watch_and_destroy(harness, target_of, platform):
    target = target_of(platform, needed(harness, platform))
    target.provider.ensure_bucket(target.bucket.name)
    for number, canary in ((2, None), (3, 50)):
        model = times(number)
        desired, bundle = desire(model, target, name=NAME, canary=canary)
        roll_out(target, desired, model, bundle)
    deployment = Deployment(target, load(target.bucket, NAME)[0])

    with deployment.endpoint as endpoint:
        assert {endpoint.invoke([[1.0, 1.0]])[0][0] for _ in range(40)} == {2.0, 3.0}
    deployment.scale(max_instances=3)
    assert list(deployment.logs())
    destroy(target, NAME)

    assert list(harness.inventory()) == []


@pytest.mark.parametrize(
    ("platform", "missing"),
    [
        ("functions", "cloudfunctions.functions.create"),
        ("functions", "storage.objects.create"),
        ("run", "run.services.create"),
        ("run", "storage.buckets.create"),
    ],
)
def test_a_refusal_names_the_permission_that_is_missing(harness, target_of, platform, missing):
    target = target_of(platform, [each for each in needed(harness, platform) if each != missing])
    model = times(2)
    try:
        with pytest.raises(PermissionDeniedError, match=missing):
            with translating(target.provider, "make", target.bucket.name):
                target.provider.ensure_bucket(target.bucket.name)
            desired, bundle = desire(model, target, name=NAME)
            roll_out(target, desired, model, bundle)
    finally:
        harness.drop_bucket(target.bucket.name)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_policy_is_the_definition_of_a_custom_role(harness, platform):
    settings = GcpSettings(**{**harness.options, "platform": platform})
    role = custom_role(harness.function_spec(NAME, 1), settings)

    assert role["includedPermissions"] == needed(harness, platform)
    assert (role["stage"], NAME in role["title"]) == ("GA", True)


def test_nobody_has_to_be_allowed_what_he_does_not_use(harness):
    spec, run = harness.function_spec(NAME, 1), {"platform": "run"}
    plain = permissions(spec, GcpSettings(**run))

    assert not any(each.startswith("cloudfunctions") or "setIamPolicy" in each for each in plain)
    assert "storage.buckets.setIamPolicy" in permissions(
        spec.__class__(**{**{name: getattr(spec, name) for name in spec.__slots__}, "models": (spec.artifact,)}),
        GcpSettings(**run),
    )
    assert "iam.serviceAccounts.getOpenIdToken" in permissions(
        spec, GcpSettings(**run, impersonate="a@b.iam.gserviceaccount.com")
    )
    assert "vpcaccess.connectors.use" in permissions(spec, GcpSettings(vpc_connector="c"))
