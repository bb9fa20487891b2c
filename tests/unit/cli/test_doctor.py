"""What the doctor finds, and what `providers` shows."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import msgspec
import pytest

from polyserve import api, registry
from polyserve.cli import doctor
from polyserve.driver import ProviderInfo
from polyserve.errors import UnavailableError
from polyserve.records import Lease
from tests.unit.cli.conftest import Recorded, status_of


@pytest.fixture
def healthy(monkeypatch):
    """Let every provider's SDK be there and every port answer."""
    monkeypatch.setattr(registry, "attribute", lambda info, path: _Options)
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: socket.socket())


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a provider that has none."""


def verdicts(result) -> dict[str, str]:
    return {each["check"]: each["verdict"] for each in json.loads(result.stdout)["checks"]}


def test_where_all_is_well_the_doctor_exits_with_0(run, healthy, deployment):
    result = run("doctor", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["healthy"] is True
    assert set(verdicts(result).values()) == {"ok"}
    assert run("doctor").stdout.endswith("all is well\n")


def test_the_doctor_names_the_source_of_every_setting(run, healthy, deployment, monkeypatch, tmp_path):
    (tmp_path / "polyserve.toml").write_text("memory_mb = 300\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYSERVE_BUCKET", "mine")
    settings = json.loads(run("doctor", "--json", "--provider", "local").stdout)["settings"]

    assert settings["memory_mb"] == "polyserve.toml: memory_mb"
    assert settings["bucket"] == "environment: POLYSERVE_BUCKET"
    assert (settings["provider"], settings["timeout_s"]) == ("argument", "default")
    assert "read from polyserve.toml" in run("doctor").stdout


def test_a_setting_that_does_not_validate_is_a_problem(run, healthy, monkeypatch, tmp_path):
    (tmp_path / "polyserve.toml").write_text('memory_mb = "much"\n')
    monkeypatch.chdir(tmp_path)
    result = run("doctor")

    assert result.exit_code == 1
    assert "polyserve.toml: memory_mb: expected int" in result.stdout
    assert result.stdout.endswith("1 problem\n")


def test_a_home_that_cannot_be_written_is_a_problem_with_a_way_out(run, healthy, deployment, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYSERVE_HOME", str(tmp_path / "file" / "home"))
    result = run("doctor")

    assert result.exit_code == 1
    assert "home: make it writable, or set POLYSERVE_HOME to a directory that is" in result.stdout


def test_a_provider_that_does_not_answer_is_a_problem(run, healthy, monkeypatch):
    def unreachable(**_):
        raise UnavailableError("list failed on local: nothing answers", provider="local")

    monkeypatch.setattr(api, "list_deployments", unreachable)

    assert verdicts(run("doctor", "--json"))["deployments"] == "problem"


def test_a_deployment_that_nobody_listens_for_is_a_problem(run, healthy, deployment, monkeypatch):
    def refused(address, timeout):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refused)
    result = run("doctor")

    assert result.exit_code == 1
    assert "nothing listens at http://127.0.0.1:4321: Connection refused" in result.stdout


def test_a_deployment_whose_platform_does_not_follow_its_record_is_a_problem(run, healthy, deployment, monkeypatch):
    out_of_step = status_of(deployment.record, weights={2: 100})
    monkeypatch.setattr(Recorded, "status", lambda self: out_of_step)

    assert verdicts(run("doctor", "--json"))["deployment iris"] == "problem"


def test_a_lease_that_was_left_behind_is_worth_a_note(run, healthy, deployment):
    lease = Lease(
        holder="x", operation="deploy", host="elsewhere", pid=1, process_started="", began_at=0.0, expires_at=0.0
    )
    deployment.record = replace(deployment.record, lease=lease)
    result = run("doctor")

    assert result.exit_code == 0
    assert "deploy was broken off and left its lease behind" in result.stdout


def test_a_missing_sdk_is_a_note_with_the_command_that_installs_it(run, healthy, deployment, monkeypatch):
    from polyserve.errors import MissingDependencyError

    aws = replace(registry.info("local"), name="aws", extra="aws")
    local = registry.info("local")
    monkeypatch.setattr(registry, "providers", lambda: {"local": local, "aws": aws})

    def attribute(info: ProviderInfo, path: str) -> type:
        if info.name == "aws":
            raise MissingDependencyError(
                "provider 'aws' needs 'boto3', which is not installed: pip install 'polyserve-sdk[aws]'"
            )
        return _Options

    monkeypatch.setattr(registry, "attribute", attribute)
    found = {finding.check: finding for finding in doctor._providers()}

    assert found["provider aws"].way_out == "pip install 'polyserve-sdk[aws]'"
    assert found["provider local"].verdict == "ok"


def test_providers_show_what_is_installed_and_what_is_not_in_this_version(run, healthy):
    shown = run("providers").stdout
    listed = {each["name"]: each["status"] for each in json.loads(run("providers", "--json").stdout)}

    assert listed["local"] == "ready"
    assert {name for name, status in listed.items() if status == "not in this version"} <= {"aws", "azure", "gcp"}
    assert "traffic split" in shown
    assert "largest request" in shown
