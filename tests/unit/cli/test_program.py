"""How commands are found, how they fail, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

import polyserve
from polyserve import errors
from polyserve.cli import program
from polyserve.cli.exit_codes import EXIT_CODES

NAMES = [name for section in program.COMMANDS.values() for name in section]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make every command that lists deployments raise this."""
    from polyserve import api

    def raises(**_: object) -> None:
        raise error

    monkeypatch.setattr(api, "list_deployments", raises)


def test_help_names_every_command_and_every_exit_code(run):
    shown = run("--help").stdout

    assert [name for name in NAMES if f"\n  {name} " not in shown] == []
    assert [code for code, meaning in EXIT_CODES.items() if f"{code} " not in shown or meaning not in shown] == []


def test_every_module_with_a_command_is_in_the_table():
    folder = Path(program.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "\ndef command(" in path.read_text()}

    assert modules == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself_and_its_options(run, name):
    command = program.polyserve.get_command(click.Context(program.polyserve), name)
    options = [each for each in command.params if isinstance(each, click.Option)]

    assert command.name == name
    assert run(name, "--help").exit_code == 0
    assert command.help
    assert [each.name for each in options if not each.help] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_json_output(run, name):
    assert "--json" in run(name, "--help").stdout


def test_the_version_is_the_library_s(run):
    assert run("--version").stdout == f"polyserve {polyserve.__version__}\n"


def test_without_a_command_the_help_is_on_stderr_and_the_exit_code_is_2(run):
    result = run()

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Ship a model" in result.stderr


def test_a_mistyped_command_is_answered_with_the_nearest_one(run):
    result = run("destory", "iris")

    assert result.exit_code == 2
    assert result.stderr == "error: no command 'destory'\nhint: did you mean 'destroy'?\nhint: polyserve --help\n"


def test_a_mistyped_option_is_answered_with_the_nearest_one(run):
    result = run("list", "--provder", "local")

    assert result.exit_code == 2
    assert "no such option '--provder'" in result.stderr
    assert "hint: did you mean '--provider'?\nhint: polyserve list --help\n" in result.stderr


def test_a_missing_argument_is_named(run):
    result = run("status")

    assert result.exit_code == 2
    assert result.stderr.startswith("error: missing argument 'NAME'\n")


def test_a_usage_error_is_json_where_json_was_asked_for(run):
    result = run("list", "--provder", "local", "--json")
    error = json.loads(result.stderr)["error"]

    assert result.stdout == ""
    assert (error["code"], error["exit_code"], error["type"]) == ("INVALID_ARGUMENT", 2, "UsageError")


def test_json_after_a_double_dash_is_no_option(run):
    assert run("status", "iris", "extra", "--", "--json").stderr.startswith("error: ")


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PolyserveError) and kind is not errors.PlanRefused
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_error_has_one_sentence_no_traceback_and_an_exit_code_of_the_table(run, monkeypatch, kind):
    fail_with(monkeypatch, kind("it did not work: do this", provider="local", resource="iris"))
    result = run("list")

    assert result.exit_code == kind.exit_code
    assert result.exit_code in EXIT_CODES
    assert result.stderr.startswith("error: it did not work: do this\n")
    assert "Traceback" not in result.stderr
    assert all(line.startswith("hint: ") for line in result.stderr.splitlines()[1:])


def test_an_error_is_json_where_json_was_asked_for(run, monkeypatch):
    fail_with(monkeypatch, errors.ConflictError("somebody else changes it", resource="iris"))
    result = run("list", "--json")
    error = json.loads(result.stderr)["error"]

    assert (result.exit_code, result.stdout) == (5, "")
    assert (error["message"], error["code"], error["type"]) == ("somebody else changes it", "CONFLICT", "ConflictError")
    assert len(error["hints"]) == 1


def test_a_refused_plan_tells_every_reason_once(run, monkeypatch):
    message = "refused; nothing was changed:\n  - too big\n  - too slow"
    fail_with(monkeypatch, errors.PlanRefused(message, refusals=("too big", "too slow")))

    assert run("list").stderr == f"error: {message}\n"


def test_advice_for_python_is_translated_for_the_command_line(run, monkeypatch):
    fail_with(
        monkeypatch, errors.PackageError("it does not say what its input is: pass a sample, such as sample=X[:8]")
    )

    assert "hint: on the command line: --sample FILE" in run("list").stderr


def test_an_unexpected_exception_is_a_short_message(run, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("division by zero"))
    result = run("list")

    assert result.exit_code == 70
    assert result.stderr.startswith("error: unexpected ZeroDivisionError: division by zero\nhint: POLYSERVE_DEBUG=1")
    assert "Traceback" not in result.stderr


def test_the_traceback_of_an_unexpected_exception_is_shown_on_demand(run, monkeypatch):
    monkeypatch.setenv("POLYSERVE_DEBUG", "1")
    fail_with(monkeypatch, ZeroDivisionError("division by zero"))
    result = run("list")

    assert result.exit_code == 70
    assert "Traceback (most recent call last)" in result.stderr


def test_ctrl_c_exits_with_130_and_says_how_to_continue(run, monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    result = run("list")

    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted: run the same command again to continue"


def test_completion_offers_commands_from_the_table_with_their_help():
    root = program.polyserve
    offered = root.shell_complete(click.Context(root), "pro")

    assert [(item.value, bool(item.help)) for item in offered] == [("promote", True), ("providers", True)]
