"""`polyserve partition` shows the whole and its parts, and groups are shown as what they are."""

import json
from dataclasses import replace

import joblib
import numpy as np

import polyserve
from polyserve import api
from polyserve.deployment import DeploymentStatus
from polyserve.records import DeploymentRecord, GroupPart, GroupSpec
from tests.unit.cli.conftest import AT, record, status_of


def group(**fields) -> DeploymentStatus:
    """Return the status of a group of two parts that are ready."""
    parts = [
        status_of(replace(record(weights={1: 100}, lineage=(1,)), name=f"trees-part-{number}")) for number in (1, 2)
    ]
    spec = GroupSpec(
        package_digest="f" * 64,
        model="trees",
        signature={},
        combining={"how": "parallel"},
        parts=tuple(
            GroupPart(name=part.record.name, package_digest=part.record.stable.package_digest) for part in parts
        ),
        timeout_s=30.0,
    )
    settings = {"name": "trees", "provider": "local", "group": spec, "updated_at": AT.timestamp()}
    return DeploymentStatus(record=DeploymentRecord(**settings | fields), function=None, parts=tuple(parts))


def test_partition_measures_the_parts_and_saves_the_package(run, forest, iris, tmp_path):
    joblib.dump(forest, tmp_path / "flowers.joblib")
    np.save(tmp_path / "X.npy", iris[0])
    words = ["partition", str(tmp_path / "flowers.joblib"), "--parts", "2", "--data", str(tmp_path / "X.npy")]

    shown = json.loads(run(*words, "-o", str(tmp_path / "parts.zip"), "--json").stdout)
    lines = run(*words).stdout.splitlines()

    made = polyserve.ModelPackage.open(tmp_path / "parts.zip")
    assert (shown["name"], shown["how"], shown["package_digest"]) == ("flowers", "parallel", made.digest)
    assert [part["name"] for part in shown["parts"]] == ["flowers-part-1", "flowers-part-2"]
    assert shown["time_ratio"] == max(part["time_ratio"] for part in shown["parts"])
    assert lines[0].startswith("flowers in 2 parts, in parallel, T = ")
    assert [line.split()[0] for line in lines[2:5]] == ["whole", "flowers-part-1", "flowers-part-2"]


def test_a_group_is_listed_with_its_phase_and_the_number_of_its_parts(run, monkeypatch):
    monkeypatch.setattr(api, "list_deployments", lambda **_: [group()])

    (listed,) = json.loads(run("list", "--json").stdout)
    row = run("list").stdout.splitlines()[1].split()

    assert (listed["phase"], listed["in_step"], listed["revisions"]) == ("ready", True, [])
    assert [part["name"] for part in listed["parts"]] == ["trees-part-1", "trees-part-2"]
    assert row[:4] == ["trees", "ready", "2", "parts"]


def test_the_status_of_a_group_shows_its_parts_and_says_when_they_are_not_in_step(run, deployment, monkeypatch):
    whole = group()
    shown = whole
    monkeypatch.setattr(type(deployment), "status", lambda self: shown)

    lines = run("status", "iris").stdout.splitlines()

    assert lines[0] == "trees on local, a group of 2 parts, ready"
    assert [line.split()[0] for line in lines[-2:]] == ["trees-part-1", "trees-part-2"]
    shown = replace(whole, parts=whole.parts[:1])
    assert "a part is missing or serves another version" in run("status", "iris").stdout
    assert (shown.phase, shown.in_step) == ("missing", False)
    shown = replace(whole, record=replace(whole.record, group=None, next_group=whole.record.group))
    assert "none that is ready: repeat the deploy" in run("status", "iris").stdout
    assert shown.phase == "provisioning"
