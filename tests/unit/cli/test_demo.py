"""The demo, over a deployment that is the model itself: what it measures, and when it fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from polyserve import api
from polyserve.cli import demo
from polyserve.planner import StepKind
from polyserve.rollout import Event
from tests.unit.cli.conftest import Recorded, record, revision

REQUIRED = {
    "provider", "deployment", "package_digest", "bundle_bytes", "deploy_seconds", "cold_ms", "warm_ms_p50",
    "accuracy_endpoint", "accuracy_in_process", "url",
}  # fmt: skip


@pytest.fixture
def deployed(monkeypatch, deployment):
    """Yield a deployment that answers as the packaged model does, and let the demo find no other before it."""
    made = Recorded(record=replace(record(), name="digits-demo", revisions=(revision(1),), weights={1: 100}))
    made.destroyed = []

    def package(model, **_):
        made.answer = model.predict
        return SimpleNamespace(digest="1a" * 32, size_bytes=7_000)

    def deploy(package, *, on_event, **given):
        made.given = given
        for step, seconds in (
            (StepKind.UPLOAD, 9.0),
            (StepKind.APPLY, 0.1),
            (StepKind.WAIT, 0.7),
            (StepKind.VERIFY, 0.2),
        ):
            on_event(Event(step=step, state="start"))
            on_event(Event(step=step, state="done", seconds=seconds))
        return made

    monkeypatch.setattr(api, "package", package)
    monkeypatch.setattr(api, "deploy", deploy)
    monkeypatch.setattr(api, "destroy", lambda name, **_: made.destroyed.append(name))
    return made


def test_the_demo_as_json_is_one_object_with_equal_accuracies(run, deployed):
    result = run("demo", "--json")
    shown = json.loads(result.stdout)

    assert result.exit_code == 0
    assert shown.keys() >= REQUIRED
    assert shown["accuracy_endpoint"] == shown["accuracy_in_process"] > 0.9
    assert (shown["provider"], shown["deployment"], shown["images"]) == ("local", "digits-demo", 599)


def test_cold_is_the_time_from_apply_to_the_golden_answer(run, deployed):
    assert json.loads(run("demo", "--json").stdout)["cold_ms"] == 1000.0


def test_the_demo_for_people_is_one_screen_with_commands_that_work(run, deployed, monkeypatch):
    monkeypatch.delenv("POLYSERVE_CACHE")
    lines = run("demo").stdout.splitlines()

    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "polyserve invoke digits-demo --file ~/.cache/polyserve/demo.json" in lines[-4]


def test_the_commands_to_try_name_the_provider_that_was_asked_for(run, deployed):
    assert "polyserve metrics digits-demo --provider local\n" in run("demo", "--provider", "local").stdout


def test_the_images_to_try_are_kept_in_the_cache(run, deployed):
    file = json.loads(run("demo", "--json").stdout)["input_file"]

    with open(file) as images:
        assert [len(image) for image in json.load(images)] == [64, 64, 64]


def test_the_demo_fails_where_one_answer_differs(run, deployed, monkeypatch):
    honest = Recorded.invoke
    monkeypatch.setattr(Recorded, "invoke", lambda self, data, **options: (honest(self, data, **options) + 1) % 10)
    result = run("demo")

    assert result.exit_code == 1
    assert "they differ" in result.stdout


def test_a_demo_from_before_is_destroyed_so_that_it_starts_cold(run, deployed, deployment):
    deployment.record = replace(deployment.record, name="digits-demo", revisions=(revision(1, model="digits-demo"),))
    run("demo")

    assert deployed.destroyed == ["digits-demo"]


def test_somebody_else_s_deployment_of_that_name_is_left_alone(run, deployed, deployment):
    deployment.record = replace(deployment.record, name="digits-demo")
    result = run("demo")

    assert (result.exit_code, deployed.destroyed) == (5, [])
    assert "serves the model 'iris', not the demo's" in result.stderr


def test_without_scikit_learn_the_demo_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = run("demo")

    assert result.exit_code == 2
    assert "pip install -e '.[demo]'" in result.stderr


def test_training_gives_the_same_model_on_every_run():
    first, second = demo.train(), demo.train()

    assert first.model[-1].coef_.tobytes() == second.model[-1].coef_.tobytes()
    assert first.images.tobytes() == second.images.tobytes()
