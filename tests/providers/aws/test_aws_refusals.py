"""What Lambda cannot be asked for is refused in the driver's own words: nothing is made, nothing uploaded, nothing written down."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import polyserve
from polyserve.cli.program import polyserve as command
from polyserve.driver import Artifact, Scaling
from polyserve.errors import PlanRefused
from polyserve.testing.packages import times
from polyserve_aws.obstacles import obstacles
from polyserve_aws.settings import AwsSettings

NAME = "refused-by-the-plan"
IMAGE = f"111122223333.dkr.ecr.us-east-1.amazonaws.com/models@sha256:{'0' * 64}"


@pytest.fixture
def harness(aws):
    """Give the harness by the name that it has for all providers."""
    return aws


@pytest.mark.parametrize(
    ("options", "asked", "reasons"),
    [
        ({"snapstart": True}, {"python": "3.11"}, ["SnapStart is there from Python 3.12 on"]),
        ({"snapstart": True}, {"python": "3.11", "min_instances": 1}, ["from Python 3.12 on", "that are kept warm"]),
        ({"snapstart": True, "image_uri": IMAGE}, {}, ["image_uri names an image"]),
        (
            {"snapstart": True, "image_uri": IMAGE, "ephemeral_storage_mb": 1024},
            {},
            ["image_uri names an image", "has 1,024 MB as ephemeral_storage_mb says"],
        ),
        ({}, {"environment": {"AWS_REGION": "x", "MINE": "1"}}, ["'AWS_REGION' is Lambda's own"]),
        ({}, {"environment": {"_MINE": "x"}}, ["'_MINE': on Lambda names"]),
        ({}, {"environment": {"A": "x"}}, ["'A': on Lambda names"]),
    ],
    ids=str,
)
def test_what_cannot_go_together_is_in_the_plan_and_stops_a_deploy(untouched, options, asked, reasons):
    how = {"name": NAME, "provider": "aws", "options": {**untouched.options, **options}, **asked}

    planned = polyserve.plan(times(2), **how)
    with pytest.raises(PlanRefused, match="nothing was changed") as caught:
        polyserve.deploy(times(2), **how)

    assert caught.value.refusals == planned.refusals
    assert planned.steps == ()
    assert len(planned.refusals) == len(reasons)
    for reason, refusal in zip(reasons, planned.refusals, strict=True):
        assert reason in refusal
        assert ": " in refusal


def test_the_command_line_says_so_with_its_exit_code(untouched, monkeypatch):
    for option, value in {**untouched.options, "snapstart": "true", "image_uri": IMAGE}.items():
        monkeypatch.setenv(f"POLYSERVE_AWS_{option.upper()}", str(value))

    told = CliRunner().invoke(
        command, ["plan", str(times(2).root), "--name", NAME, "--provider", "aws", "--min", "1", "--json"]
    )

    assert told.exit_code == 2, told.output
    refusals = json.loads(told.stdout)["refusals"]
    assert [refusal.rpartition(": ")[2] for refusal in refusals] == ["leave out one", "leave out one"]


def test_bounds_that_cannot_be_are_refused_before_the_record_or_the_function_has_them(untouched, monkeypatch):
    for option, value in untouched.options.items():
        monkeypatch.setenv(f"POLYSERVE_AWS_{option.upper()}", str(value))
    with polyserve.deploy(times(2), name=NAME, provider="aws") as deployed:
        before = deployed.status()
        reason = "min_instances is 2, and SnapStart and instances that are kept warm exclude each other: leave out one"
        monkeypatch.setenv("POLYSERVE_AWS_SNAPSTART", "true")

        with polyserve.connect(NAME, provider="aws") as found:
            with pytest.raises(PlanRefused, match="scale 'refused-by-the-plan' was refused for aws; nothing") as caught:
                found.scale(min_instances=2)
            assert found.status() == before
            # Whatever else there is to say of SnapStart was said when it was deployed.
            assert found.scale(max_instances=2) == Scaling(max_instances=2)
        told = CliRunner().invoke(command, ["scale", NAME, "--provider", "aws", "--min", "2"])

        assert caught.value.refusals == (reason,)
        assert told.exit_code == caught.value.exit_code == 2, told.output
        assert reason in " ".join(told.stderr.split())
        deployed.destroy()


def test_files_in_the_bucket_count_into_tmp(functions):
    spec = replace(functions.spec(1), python="3.12")
    small, large = (Artifact(bucket="b", key=f"m/{size}", sha256="1", size=size << 30) for size in (1, 11))
    quick = AwsSettings(snapstart=True)

    assert obstacles(spec, quick) == ()
    assert obstacles(replace(spec, models=(small,)), AwsSettings()) == ()
    (reason,) = obstacles(replace(spec, models=(small,)), quick)
    assert "1,280 MB for the files of its model" in reason
    (reason,) = obstacles(replace(spec, models=(large,)), AwsSettings())
    assert "11,520 MB in /tmp and Lambda has 10,240 at most" in reason
    (reason,) = obstacles(replace(spec, scaling=Scaling(min_instances=1)), quick)
    assert "exclude each other" in reason
