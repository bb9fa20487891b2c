"""What Google Cloud cannot be asked for is refused in the driver's own words: nothing is made, nothing uploaded, nothing written down."""

from __future__ import annotations

import pytest

import polyserve
from polyserve.bucket import Bucket
from polyserve.deployment import Deployment
from polyserve.errors import PlanRefused
from polyserve.layers.fronting import fronted
from polyserve.layers.retrying import retrying
from polyserve.rollout import Target
from polyserve.testing.packages import times
from polyserve_gcp.provider import provider
from polyserve_gcp.settings import GcpSettings

NAME = "refused-by-the-plan"
INSIDE = {"ingress": "internal"}
CONNECTED = {**INSIDE, "vpc_connector": "c", "egress": "all"}


@pytest.fixture(scope="module")
def harness(harness_of):
    """Give the harness of the contract suites."""
    return harness_of("gcp")


def planned_and_refused(harness, options, **asked):
    """Return the refusals of a plan, once a deploy was refused for the same."""
    how = {"name": NAME, "provider": "gcp", "options": {**harness.options, **options}, **asked}
    planned = polyserve.plan(times(2), **how)
    with pytest.raises(PlanRefused, match="nothing was changed") as caught:
        polyserve.deploy(times(2), **how)
    assert planned.steps == ()
    assert caught.value.refusals == planned.refusals
    return planned.refusals


@pytest.mark.parametrize(
    ("options", "asked", "words"),
    [
        ({"network": "default"}, {}, "network and subnetwork"),
        ({"platform": "run", "worker": "asyncio"}, {}, "worker is for platform"),
        ({"platform": "run", "build_service_account": "b@p.iam.gserviceaccount.com"}, {}, "build_service_account is"),
        ({"platform": "run", "vpc_connector": "c", "network": "default"}, {}, "exclude each other"),
        ({"cpu": 3}, {}, "can be 1, 2, 4, 6 or 8"),
        ({"cpu": 1}, {"memory_mb": 8192}, "memory_mb 8192 takes 2"),
        ({"cpu": 4}, {}, "takes memory_mb 2048"),
        ({"cpu": 0.25}, {"memory_mb": 1024}, "memory_mb 512 at most"),
        ({"cpu": 0.05, "platform": "run"}, {"memory_mb": 256}, "smallest part"),
        ({}, {"environment": {"THREADS": "4"}}, "'THREADS' is set by the platform itself"),
        ({"platform": "run"}, {"environment": {"PORT": "80", "THREADS": "4"}}, "'PORT' is set by the platform itself"),
        ({"sealed": {"KEY": "key"}}, {"environment": {"KEY": "x"}}, "'KEY' has a value, and a secret in sealed"),
        ({"platform": "run", "sealed": {"POLYSERVE_APP": "key"}}, {}, "'POLYSERVE_APP' in sealed"),
    ],
    ids=str,
)
def test_what_cannot_go_together_is_in_the_plan_and_stops_a_deploy(untouched, options, asked, words):
    (refusal,) = planned_and_refused(untouched, options, **asked)

    assert words in refusal
    assert ": " in refusal


def test_every_reason_is_told_at_once(untouched):
    reasons = planned_and_refused(untouched, {"network": "default", "cpu": 4}, environment={"K_SERVICE": "x"})

    assert [reason.split()[0] for reason in reasons] == ["network", "cpu", "environment"]


@pytest.mark.parametrize(
    ("options", "reasons"), [(INSIDE, 1), (CONNECTED, 0), ({**INSIDE, "platform": "run"}, 0), ({}, 0)], ids=str
)
def test_a_canary_is_refused_where_functions_cannot_reach_each_other(untouched, options, reasons):
    refusals = planned_and_refused(untouched, options, canary=10)

    # That there is no revision beside it is another reason.
    assert len([refusal for refusal in refusals if "through the VPC only" in refusal]) == reasons
    assert len(refusals) == reasons + 1


def test_a_deploy_without_a_canary_is_none_of_that(untouched):
    how = {"name": NAME, "provider": "gcp", "options": {**untouched.options, **INSIDE}}

    assert polyserve.plan(times(2), **how).refusals == ()


def test_a_split_between_functions_that_cannot_reach_each_other_is_refused_before_the_record_has_it(
    untouched, monkeypatch
):
    how = {"name": NAME, "provider": "gcp", "options": untouched.options}
    polyserve.deploy(times(2), **how).close()
    with polyserve.deploy(times(3), **how) as deployed:
        before = deployed.status()
        # The same, by somebody whose settings are other ones.
        settings = GcpSettings(**{**untouched.options, **INSIDE})
        cloud = retrying(fronted(provider(settings)))
        inside = Deployment(Target(provider=cloud, bucket=Bucket(cloud, deployed.target.bucket.name)), deployed.record)

        with (
            inside,
            pytest.raises(PlanRefused, match="traffic 'refused-by-the-plan' was refused for gcp; nothing") as caught,
        ):
            inside.traffic({1: 90, 2: 10})

        (reason,) = caught.value.refusals
        assert "ingress is 'internal', and functions reach each other through the VPC only: set vpc_connector" in reason
        assert deployed.status() == before
        deployed.destroy()
