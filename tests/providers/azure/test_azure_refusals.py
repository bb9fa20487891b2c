"""What Azure cannot be asked for is refused by the plan, in the driver's own words: nothing is made and nothing uploaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

import polyserve
from polyserve.driver import ErrorCode
from polyserve.errors import PlanRefused
from polyserve.testing.packages import times


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("FUNCTIONS_WORKER_RUNTIME", "apps on Flex Consumption cannot have"),
        ("website_run_from_package", "apps on Flex Consumption cannot have"),
        ("AzureWebJobsStorage", "is a setting of the app itself"),
    ],
)
def test_settings_that_are_the_platforms_own_are_refused_by_plan_deploy_and_driver(
    functions, untouched, variable, reason
):
    spec = replace(functions.spec(1), environment={variable: "x", "MINE": "1"})
    how = {
        "name": "refused",
        "provider": "azure",
        "options": dict(untouched.options),
        "environment": dict(spec.environment),
    }

    (refusal,) = polyserve.plan(times(2), **how).refusals
    with pytest.raises(PlanRefused) as caught:
        polyserve.deploy(times(2), **how)

    assert reason in refusal
    assert variable in refusal
    assert caught.value.refusals == (refusal,)
    assert list(functions.platform.obstacles(spec)) == [refusal]
    assert functions.code(lambda: functions.platform.apply(spec)) is ErrorCode.INVALID_ARGUMENT
