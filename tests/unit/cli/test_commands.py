"""What each command asks of the API, and what it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from polyserve import api
from polyserve.cli.providers import PLANNED
from polyserve.driver import Scaling
from polyserve.errors import FailedPreconditionError
from polyserve.model.compile.report import Compilation, Served
from polyserve.planner import LimitCheck, Plan, Step, StepKind
from polyserve.records import HistoryEntry
from polyserve.rollout import Event
from tests.unit.cli.conftest import Recorded, record, request_event, revision

DIGEST = "1a" * 32


@pytest.fixture
def package(monkeypatch):
    """Yield a package that `api.package` makes of anything, and the words it was made of."""
    manifest = SimpleNamespace(
        flavor="sklearn", python="3.11", requirements=("joblib==1.5.2",), row_wise=True, safe=False
    )
    spec = SimpleNamespace(name="input", datatype="FP64", shape=(-1, 4))
    signature = SimpleNamespace(inputs=(spec,), outputs=(), to_dict=lambda: {"input_kind": "array"})
    made = SimpleNamespace(
        name="iris", digest=DIGEST, size_bytes=82_140, root="/packages/iris", manifest=manifest, signature=signature,
        golden_request=lambda: object(), save=lambda path: path, asked=[], compilation=None,
    )  # fmt: skip
    monkeypatch.setattr(api, "package", lambda model, **given: made.asked.append((model, given)) or made)
    return made


def plan_of(**fields):
    settings = {
        "name": "iris", "provider": "local", "revision": 2, "package_digest": DIGEST, "bundle_bytes": 123_456,
        "unpacked_bytes": 234_567, "weights": {2: 100}, "steps": (Step(kind=StepKind.APPLY, summary="make revision 2"),),
        "refusals": (), "warnings": (), "limits": (LimitCheck(what="timeout", value=30, limit=3600, unit="s"),),
    }  # fmt: skip
    return Plan(**settings | fields)


# --- package, plan, deploy ---


def test_package_shows_the_digest_and_what_the_model_needs(run, package):
    shown = run("package", "model.joblib", "--name", "iris").stdout

    assert package.asked == [("model.joblib", {"name": "iris", "sample": None, "compile": "auto"})]
    assert DIGEST in shown
    assert "joblib==1.5.2" in shown
    assert "input FP64 [rows x 4]" in shown


def test_package_reads_the_sample_and_saves_where_it_is_told(run, package, tmp_path):
    (tmp_path / "sample.csv").write_text("1,2\n3,4\n")
    result = run(
        "package", "m.joblib", "--sample", str(tmp_path / "sample.csv"), "-o", str(tmp_path / "iris.zip"), "--json"
    )
    shown = json.loads(result.stdout)

    assert package.asked[0][1]["sample"].tolist() == [[1, 2], [3, 4]]
    assert (shown["package_digest"], shown["sample"]) == (DIGEST, True)
    assert shown["saved"] == str(tmp_path / "iris.zip")


def test_package_tells_what_compiling_gained(run, package):
    package.manifest.flavor = "onnx"
    served = [
        Served(digest=DIGEST, size_bytes=size, load_ms=1.0, row_us=took)
        for size, took in ((580_000, 2_000), (70_000, 20))
    ]
    package.compilation = Compilation(
        compiled=True, rows=100, probes=2_000, largest_difference=2e-7, original=served[0], onnx=served[1]
    )

    shown = run("package", "model.joblib", "--compile", "onnx").stdout
    told = json.loads(run("package", "model.joblib", "--json").stdout)["compilation"]

    assert package.asked[0][1]["compile"] == "onnx"
    assert "onnx: 100 rows and 2000 made of them, largest difference 2e-07" in shown
    assert "580.0 kB became 70.0 kB; a row takes 20 us, and took 2,000" in shown
    assert (told["original"]["size_bytes"], told["onnx"]["row_us"]) == (580_000, 20)


def test_package_tells_why_a_model_was_not_compiled(run, package):
    package.compilation = Compilation(compiled=False, reason="skl2onnx knows no Thing")

    assert "no: skl2onnx knows no Thing" in run("package", "model.joblib").stdout
    assert json.loads(run("package", "model.joblib", "--json").stdout)["compilation"] == {
        "compiled": False,
        "reason": "skl2onnx knows no Thing",
    }


def test_plan_shows_steps_and_limits(run, package, monkeypatch):
    asked = []
    monkeypatch.setattr(api, "plan", lambda model, *, on_event, **given: asked.append(given) or plan_of())
    result = run("plan", "model.joblib", "--memory", "256", "--timeout", "2.5", "--env", "A=1=2", "--canary", "10",
                 "--slim", "traced", "--arch", "arm64")  # fmt: skip

    assert result.exit_code == 0
    assert "1. apply   make revision 2" in result.stdout
    assert "timeout   30 s  3,600 s  ok" in result.stdout
    assert asked == [
        {"name": None, "provider": None, "profile": None, "emulate": None, "memory_mb": 256, "min_instances": None,
         "max_instances": None, "canary": 10, "timeout": timedelta(seconds=2.5), "environment": {"A": "1=2"},
         "slim": "traced", "architecture": "arm64", "python": None}
    ]  # fmt: skip


def test_a_plan_that_would_be_refused_is_shown_and_exits_with_2(run, package, monkeypatch):
    refused = plan_of(steps=(), refusals=("timeout is 9,999 s, the limit is 3,600 s: ask for less",))
    monkeypatch.setattr(api, "plan", lambda model, **given: refused)
    plain, as_json = run("plan", "m.joblib"), run("plan", "m.joblib", "--json")

    assert (plain.exit_code, as_json.exit_code) == (2, 2)
    assert "refused  timeout is 9,999 s, the limit is 3,600 s: ask for less" in plain.stdout
    assert json.loads(as_json.stdout) == refused.to_dict()


def test_a_policy_is_printed_alone_and_asks_nobody(run, package, monkeypatch):
    document = {"Version": "2012-10-17", "Statement": []}
    monkeypatch.setattr(api, "policy", lambda model, **given: document if given["provider"] == "local" else None)

    result = run("plan", "m.joblib", "--policy", "--provider", "local")

    assert json.loads(result.stdout) == document


def test_a_plan_without_steps_says_that_there_is_nothing_to_do(run, package, monkeypatch):
    monkeypatch.setattr(api, "plan", lambda model, **given: plan_of(steps=()))

    assert "nothing to do: everything is as asked" in run("plan", "m.joblib").stdout


def test_bundle_saves_the_archive_and_says_what_it_is_made_of(run, package, monkeypatch):
    asked = []
    built = SimpleNamespace(
        sha256="ab" * 32, size=50_000_000, unpacked_size=190_000_000, package_digest=DIGEST, notes=("no byte-code",),
        parts={"package": 1_000_000, "dependencies": 189_000_000}, distributions={"scipy": 90_000_000},
        dropped={"tests": 29_000_000}, path=Path("cached.zip"),
    )  # fmt: skip
    monkeypatch.setattr(api, "bundle", lambda model, path, *, on_event, **given: asked.append((path, given)) or built)
    plain = run("bundle", "m.joblib", "--provider", "local", "--slim", "off", "--arch", "arm64")
    shown = json.loads(run("bundle", "m.joblib", "-o", "out.zip", "--json").stdout)

    assert asked[0] == (
        Path("iris-local.zip"),
        {
            "name": None,
            "provider": "local",
            "profile": None,
            "emulate": None,
            "slim": "off",
            "architecture": "arm64",
            "python": None,
        },
    )
    assert "dependencies 189.0 MB" in plain.stdout
    assert "no byte-code" in plain.stderr
    assert (shown["path"], shown["sha256"], shown["dropped"]) == ("out.zip", "ab" * 32, {"tests": 29_000_000})


def deploying(monkeypatch, deployment, *, changes=True):
    asked = []

    def deploy(model, *, on_event, **given):
        asked.append((model, given))
        if changes:
            for state in ("start", "done"):
                on_event(Event(step=StepKind.APPLY, state=state, detail="make revision 1", seconds=0.5))
        return deployment

    monkeypatch.setattr(api, "deploy", deploy)
    return asked


def test_a_mistyped_provider_is_told_before_anything_is_packaged(run, monkeypatch):
    monkeypatch.setattr(api, "package", lambda *given, **named: pytest.fail("packaged"))

    for verb in ("deploy", "plan"):
        result = run(verb, "m:model", "--provider", "lokal")
        assert (result.exit_code, "unknown provider 'lokal'" in result.stderr) == (2, True)


def test_a_provider_that_is_planned_is_not_called_a_typing_mistake(run, monkeypatch):
    monkeypatch.setitem(PLANNED, "nimbus", "A cloud of tomorrow")

    result = run("list", "--provider", "nimbus")

    assert result.exit_code == 2
    assert "hint: A cloud of tomorrow: not in this version" in result.stderr


def test_deploy_passes_what_was_asked_and_shows_where_it_answers(run, package, monkeypatch, tmp_path):
    (tmp_path / "polyserve.toml").write_text("[profiles.dev]\n")
    monkeypatch.chdir(tmp_path)
    alone = Recorded(record=record(weights={1: 100}))
    asked = deploying(monkeypatch, alone)
    result = run(
        "deploy", "m:model", "--name", "iris", "--provider", "local", "--profile", "dev", "--min", "1", "--max", "4"
    )

    assert asked == [
        (package, {"name": "iris", "provider": "local", "profile": "dev", "emulate": None, "memory_mb": None,
                   "min_instances": 1, "max_instances": 4, "canary": None, "timeout": None, "environment": None,
                   "slim": None, "architecture": None, "python": None})
    ]  # fmt: skip
    assert result.stdout.startswith("iris revision 1 on local\n")
    assert "http://127.0.0.1:4321" in result.stdout
    assert alone.asked == [("close",)]


def test_deploy_as_json_has_the_status_the_revision_and_the_figures(run, package, monkeypatch):
    deploying(monkeypatch, Recorded())
    shown = json.loads(run("deploy", "m.joblib", "--canary", "10", "--json").stdout)

    assert (shown["name"], shown["revision"], shown["changed"]) == ("iris", 2, True)
    assert (shown["bundle_bytes"], shown["weights"]) == (123_456, {"1": 90, "2": 10})
    assert shown["deploy_seconds"] >= 0


def test_a_deploy_that_had_nothing_to_do_says_so(run, package, monkeypatch):
    deploying(monkeypatch, Recorded(), changes=False)

    assert "nothing to do: it is as asked" in run("deploy", "m.joblib").stdout


def test_deploying_without_a_sample_is_warned_of(run, package, monkeypatch):
    package.golden_request = lambda: None
    deploying(monkeypatch, Recorded())

    assert run("deploy", "m.joblib").stderr.startswith("warning: the package has no sample")


@pytest.mark.parametrize("value", ["NAME", "=1"])
def test_an_environment_variable_without_name_or_value_is_refused(run, value):
    result = run("deploy", "m.joblib", "--env", value)

    assert result.exit_code == 2
    assert "is not KEY=VALUE" in result.stderr


def test_a_module_is_found_in_the_current_directory(run, package, monkeypatch, tmp_path):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    run("package", "mine:model")

    assert sys.path[0] == str(tmp_path)


# --- invoke ---


def test_invoke_prints_the_answer_as_json(run, deployment):
    deployment.answer = lambda data: np.array([1, 2])
    result = run("invoke", "iris", "--data", "[[1, 2], [3, 4]]", "--timeout", "3")

    assert result.stdout == "[1, 2]\n"
    assert deployment.asked[1] == ("invoke", [[1, 2], [3, 4]], {"timeout": timedelta(seconds=3)})


def test_invoke_reads_rows_from_stdin(run, deployment):
    assert run("invoke", "iris", "--file", "-", stdin="[[1]]").stdout == "[[1]]\n"


def test_invoke_gives_a_frame_model_rows_by_name(run, deployment, tmp_path):
    deployment.kind = "frame"
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")

    assert run("invoke", "iris", "--file", str(tmp_path / "rows.csv")).stdout == '[{"a": 1, "b": 2}]\n'


@pytest.mark.parametrize("words", [(), ("--data", "[]", "--file", "x.json")], ids=["none", "both"])
def test_invoke_wants_data_or_a_file_but_not_both(run, deployment, words):
    result = run("invoke", "iris", *words)

    assert result.exit_code == 2
    assert "either --data or --file" in result.stderr


def test_input_that_is_not_json_is_refused_with_the_place(run, deployment):
    result = run("invoke", "iris", "--data", "[1,")

    assert result.exit_code == 2
    assert "--data is not JSON" in result.stderr


# --- list, status, history, logs, metrics ---


def test_list_shows_a_line_for_every_deployment(run, deployment):
    head, line = run("list").stdout.splitlines()

    assert head.split() == ["name", "phase", "traffic", "running", "changed", "url"]
    assert line.startswith("iris  ready  1=90 2=10        2")
    assert json.loads(run("list", "--json").stdout)[0]["name"] == "iris"


def test_list_without_deployments_says_so_and_is_an_empty_array_as_json(run, monkeypatch):
    monkeypatch.setattr(api, "list_deployments", lambda **_: [])

    assert run("list").stdout == "no deployments yet\n"
    assert run("list", "--json").stdout == "[]\n"


def test_status_shows_every_revision_and_why_one_failed(run, deployment):
    failed = revision(3, state="failed", reason="the golden answer differs")
    deployment.record = replace(deployment.record, revisions=(*deployment.record.revisions, failed))
    shown = run("status", "iris").stdout

    assert "instances  0 to the platform's limit, 3 running" in shown
    assert "1  verified     90 %  ready" in shown
    assert "revision 3 failed: the golden answer differs" in shown
    as_json = json.loads(run("status", "iris", "--json").stdout)
    assert as_json["revisions"][2]["state"] == "failed"
    assert (as_json["revisions"][0]["created_at"], as_json["updated_at"]) == (
        "2026-11-21T12:00:00Z",
        "2026-11-21T12:01:00Z",
    )


def test_status_says_where_the_platform_does_not_follow_the_record(run, deployment, monkeypatch):
    out_of_step = replace(deployment.status(), record=record(weights={2: 100}))
    monkeypatch.setattr(type(deployment), "status", lambda self: out_of_step)

    assert "not in step" in run("status", "iris").stdout


def test_a_deployment_that_is_not_there_is_not_found(run, deployment):
    result = run("status", "nothing")

    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        "error: no deployment 'nothing' on local: there are iris",
        "hint: polyserve list --provider local shows the deployments there are",
    ]


def test_provider_and_profile_and_the_emulator_reach_the_api(run, deployment):
    run("history", "iris", "--provider", "local", "--profile", "dev", "--emulate")
    run("history", "iris")

    assert deployment.asked[0] == ("connect", "iris", "local", "dev", True)
    assert [call for call in deployment.asked if call[0] == "connect"][1] == ("connect", "iris", None, None, None)


def test_history_is_oldest_first(run, deployment):
    lines = run("history", "iris").stdout.splitlines()
    shown = json.loads(run("history", "iris", "--json").stdout)

    assert [line.split()[2] for line in lines[1:]] == ["deploy", "canary"]
    assert shown[0] == {
        "at": "2026-11-21T12:00:00Z",
        "action": "deploy",
        "revision": 1,
        "weights": {"1": 100},
        "note": "",
    }


def test_a_deed_without_a_revision_has_none_in_the_history(run, deployment):
    deployment.record = replace(deployment.record, history=(HistoryEntry(at=1.0, action="scale"),))

    assert json.loads(run("history", "iris", "--json").stdout)[0]["revision"] is None


def test_logs_show_requests_starts_and_what_the_model_printed(run, deployment):
    start = '{"event": "start", "at": 1, "revision": 1, "digest": "a", "import_ms": 500.0, "load_ms": 12.0, "pid": 1}'
    printed = replace(request_event(), message="hello from the model")
    deployment.events = [
        replace(printed, message=start),
        printed,
        request_event(cold=True),
        request_event(status=400, code="INVALID_ARGUMENT"),
    ]
    lines = [line.split("  ", 1)[1] for line in run("logs", "iris").stdout.splitlines()]

    assert lines == [
        "r1  start  imports 500 ms, model 12.0 ms",
        "r1  hello from the model",
        "r1  200 infer  2.00 ms  3 rows  cold",
        "r1  400 infer  2.00 ms  3 rows  INVALID_ARGUMENT: what was wrong",
    ]


def test_a_start_that_read_the_bucket_says_how_much_and_how_long(run, deployment):
    start = {
        "event": "start",
        "at": 1,
        "import_ms": 5.0,
        "load_ms": 12.0,
        "fetch_ms": 250.0,
        "fetched_bytes": 60_000_000,
    }
    deployment.events = [replace(request_event(), message=json.dumps(start))]

    assert "60.0 MB from the bucket 250 ms, imports 5.00 ms, model 12.0 ms" in run("logs", "iris").stdout


def test_logs_as_json_are_one_object_a_line(run, deployment):
    deployment.events = [request_event(), replace(request_event(), message="text", revision=0, instance="")]
    first, second = map(json.loads, run("logs", "iris", "--json").stdout.splitlines())

    assert (first["at"], first["revision"], first["event"]["status"]) == ("2026-11-21T12:00:00Z", 1, 200)
    assert second == {"at": "2026-11-21T12:00:00Z", "revision": None, "instance": None, "message": "text"}


def test_logs_leave_out_what_the_platform_notes_unless_that_is_asked_for(run, deployment):
    printed = replace(request_event(), message="hello")
    deployment.events = [replace(printed, message="REPORT RequestId: 1", platform=True), printed]

    assert [line.split("  ", 1)[1] for line in run("logs", "iris").stdout.splitlines()] == ["r1  hello"]
    assert len(run("logs", "iris", "--platform").stdout.splitlines()) == 2
    assert len(run("logs", "iris", "--json").stdout.splitlines()) == 1


def test_logs_can_leave_the_requests_out(run, deployment):
    deployment.events = [request_event(), replace(request_event(), message="text")]

    assert len(run("logs", "iris", "--no-requests").stdout.splitlines()) == 1


def test_following_ends_cleanly_with_ctrl_c(run, deployment):
    deployment.events = [request_event()]
    result = run("logs", "iris", "--follow", "--since", "2026-01-31T12:00+00:00")

    assert (result.exit_code, result.stderr) == (0, "")
    assert ("logs", datetime(2026, 1, 31, 12, tzinfo=UTC), True) in deployment.asked
    assert ("close",) in deployment.asked


@pytest.mark.parametrize(("value", "seconds"), [("30s", 30), ("10m", 600), ("1.5h", 5_400), ("7d", 604_800)])
def test_since_takes_durations(run, deployment, value, seconds):
    run("logs", "iris", "--since", value)
    _, since, _ = deployment.asked[1]

    assert (datetime.now(UTC) - since).total_seconds() == pytest.approx(seconds, abs=5)


def test_since_that_is_no_time_is_refused(run, deployment):
    assert "neither a duration such as 10m nor a time" in run("logs", "iris", "--since", "soon").stderr


def test_metrics_show_a_line_for_every_revision_and_their_sum(run, deployment):
    deployment.events = [
        request_event(ms=1.0, cold=True), request_event(ms=3.0), request_event(ms=9.0, revision=2, status=500, code="INTERNAL"),
    ]  # fmt: skip
    lines = run("metrics", "iris").stdout.splitlines()
    table = [line.split() for line in lines[lines.index("") + 1 :]]

    assert table == [
        ["revision", "requests", "errors", "p50", "p95", "p99", "max", "cold", "batch", "rows"],
        ["1", "2", "0", "1.00", "3.00", "3.00", "3.00", "1", "1.0", "6"],
        ["2", "1", "1", "9.00", "9.00", "9.00", "9.00", "0", "1.0", "3"],
        ["all", "3", "1", "3.00", "9.00", "9.00", "9.00", "1", "1.0", "9"],
        ["1", "x", "INTERNAL"],
    ]
    shown = json.loads(run("metrics", "iris", "--json").stdout)
    assert (shown["total"]["requests"], shown["instances"], shown["first_at"]) == (3, 1, "2026-11-21T12:00:00Z")


def test_metrics_of_a_deployment_that_nobody_called_say_so(run, deployment):
    assert "requests  none yet" in run("metrics", "iris").stdout


# --- traffic, promote, rollback, scale, destroy ---


def test_traffic_without_weights_shows_them_and_changes_nothing(run, deployment):
    assert run("traffic", "iris").stdout == "iris: 90 % to 1, 10 % to 2\n"
    assert [what for what, *_ in deployment.asked] == ["connect", "close"]


def test_traffic_with_weights_sets_them(run, deployment):
    assert run("traffic", "iris", "1=50", "2=50%").stdout == "iris: 50 % to 1, 50 % to 2\n"
    assert ("traffic", {1: 50, 2: 50}) in deployment.asked


@pytest.mark.parametrize(("word", "reason"), [("1:50", "is not REVISION=PERCENT"), ("x=1", "is not REVISION=PERCENT")])
def test_a_weight_that_is_none_is_refused(run, deployment, word, reason):
    assert reason in run("traffic", "iris", word).stderr


def test_a_revision_with_two_weights_is_refused(run, deployment):
    assert "revision 1 is there twice" in run("traffic", "iris", "1=50", "1=50").stderr


def test_promote_shows_the_traffic_afterwards(run, deployment):
    assert run("promote", "iris").stdout == "iris: 100 % to 2\n"
    assert json.loads(run("promote", "iris", "--json").stdout) == {"name": "iris", "weights": {"2": 100}}


@pytest.mark.parametrize(("words", "to"), [((), None), (("--to", "2"), 2)])
def test_rollback_goes_back_or_to_a_revision(run, deployment, words, to):
    assert run("rollback", "iris", *words).stdout == f"iris: 100 % to {to or 1}\n"
    assert ("rollback", to) in deployment.asked


def test_scale_passes_the_bounds_that_were_given(run, deployment):
    assert run("scale", "iris", "--max", "4").stdout == "iris: 0 to 4 instances\n"
    assert ("scale", None, 4) in deployment.asked
    assert json.loads(run("scale", "iris", "--min", "1", "--json").stdout) == {
        "name": "iris", "min_instances": 1, "max_instances": Scaling().max_instances,
    }  # fmt: skip


def test_scale_without_bounds_is_refused(run, deployment):
    assert "give --min, --max or both" in run("scale", "iris").stderr


@pytest.fixture
def destroyed(monkeypatch):
    names = []
    monkeypatch.setattr(api, "destroy", lambda name, **_: names.append(name))
    return names


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_destroy_is_refused_where_nobody_can_be_asked(run, destroyed, words):
    result = run("destroy", "iris", *words)

    assert (result.exit_code, destroyed, result.stdout) == (2, [], "")
    assert "repeat it with --yes" in result.stderr


def test_destroy_with_yes_does_not_ask(run, destroyed):
    assert run("destroy", "iris", "--yes").stdout == "iris: destroyed, nothing is left\n"
    assert json.loads(run("destroy", "iris", "-y", "--json").stdout) == {"name": "iris", "destroyed": True}
    assert destroyed == ["iris", "iris"]


@pytest.mark.parametrize(
    ("answer", "code", "expected"), [("y\n", 0, ["iris"]), ("\n", 1, []), ("no\n", 1, []), ("", 1, [])]
)
def test_destroy_asks_on_a_terminal_and_takes_nothing_but_yes_for_yes(
    run, destroyed, monkeypatch, answer, code, expected
):
    from polyserve.cli.console import Console

    monkeypatch.setattr(Console, "asks", lambda self: True)
    result = run("destroy", "iris", stdin=answer)

    assert (result.exit_code, destroyed) == (code, expected)
    assert "Destroy 'iris' with all its revisions, logs and history? [y/N]" in result.stderr


def test_a_refusal_of_the_core_reaches_the_user_as_it_is(run, deployment, monkeypatch):
    def promote(self):
        raise FailedPreconditionError("nothing to promote: deployment 'iris' has no canary")

    monkeypatch.setattr(type(deployment), "promote", promote)
    result = run("promote", "iris")

    assert result.exit_code == 5
    assert result.stderr == "error: nothing to promote: deployment 'iris' has no canary\n"
