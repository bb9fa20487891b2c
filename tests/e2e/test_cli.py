"""The command line as people and scripts have it: the real program, the real local provider, a home of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MODELS = '''
"""Two revisions of a model, and one that cannot be packaged."""

def double(rows):
    print("doubling", len(rows))
    return [[2 * value for value in row] for row in rows]


def triple(rows):
    if rows[0][0] < 0:
        raise ValueError("no negative rows")
    return [[3 * value for value in row] for row in rows]


number = 42
'''


class Shell:
    """Runs `polyserve` in a directory, as a shell would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONWARNINGS": "error"}

    def start(self, *words: str, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "polyserve", *words]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.directory, env=self.environment, text=True, **pipes | options)

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run to the end, and return stdout; nothing but progress may have been on stderr."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=100)

        assert process.returncode == code, f"{words}: {err or out}"
        assert "Traceback" not in err
        return out if code == 0 else err

    def json(self, *words: str) -> object:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Yield a shell in a directory with models; destroy what was deployed."""
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "rows.json").write_text("[[1.0, 2.0], [3.0, 4.0]]")
    shell = Shell(tmp_path)
    yield shell
    for each in json.loads(shell("list", "--json")):
        shell("destroy", each["name"], "--yes")


def on_a_terminal(shell: Shell, *words: str, answer: str = "") -> tuple[int, str]:
    """Run on a pseudo-terminal of 80 columns, and return exit code and all that was seen there."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in shell.environment.items() if k not in {"NO_COLOR", "COLUMNS"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "polyserve", *words],
        cwd=shell.directory, env=environment | {"TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode())
    seen = b""
    deadline = time.monotonic() + 100
    while select.select([ours], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    return process.wait(timeout=10), seen.decode()


# --- the program itself ---


def test_help_imports_click_and_the_table_of_commands_and_nothing_else():
    code = (
        "import sys; before = set(sys.modules)\n"
        "from polyserve.cli import main\n"
        "sys.argv = ['polyserve', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    ours = {name for name in loaded if name.partition(".")[0].startswith("polyserve")}
    heavy = {"rich", "msgspec", "numpy", "httpx", "importlib.metadata", "asyncio", "sklearn", "dataclasses"}

    assert ours == {"polyserve", "polyserve.cli", "polyserve.cli.exit_codes", "polyserve.cli.program"}
    assert heavy & set(loaded) == set()


def test_the_installed_script_and_the_module_are_the_same_program(shell):
    script = Path(sys.executable).with_name("polyserve")
    installed = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout

    assert installed == shell("--help")


def test_a_reader_that_goes_away_is_not_worth_a_word(shell):
    read, write = os.pipe()
    os.close(read)
    with shell.start("--help", stdout=write) as process:
        os.close(write)
        _, err = process.communicate(timeout=60)

    assert err == ""


def test_a_completion_script_is_there_for_every_shell(shell):
    for name in ("bash", "zsh", "fish"):
        shell.environment["_POLYSERVE_COMPLETE"] = f"{name}_source"

        assert "_polyserve_completion" in shell()
    del shell.environment["_POLYSERVE_COMPLETE"]


# --- the demo ---


@pytest.mark.slow
def test_the_demo_runs_twice_and_leaves_a_deployment_that_every_command_knows(shell):
    first, second = shell.json("demo"), shell.json("demo")
    (listed,) = shell.json("list")
    answers = shell.json("invoke", "digits-demo", "--file", second["input_file"])
    metrics = shell.json("metrics", "digits-demo")

    assert first["accuracy_endpoint"] == first["accuracy_in_process"] > 0.9
    assert second["package_digest"] == first["package_digest"]
    assert 0 < second["warm_ms_p50"] <= second["warm_ms_p99"] < second["cold_ms"]
    assert (listed["name"], listed["url"]) == ("digits-demo", second["url"])
    assert len(answers) == 3
    assert metrics["total"]["requests"] > 200
    assert metrics["total"]["errors"] == 0
    assert "digits-demo" in shell("doctor")
    assert shell("destroy", "digits-demo", "--yes") == "digits-demo: destroyed, nothing is left\n"
    assert shell.json("list") == []


def test_the_demo_on_a_terminal_is_one_calm_screen(shell):
    code, seen = on_a_terminal(shell, "demo")

    assert code == 0
    assert "equal, image by image" in seen
    assert "polyserve invoke digits-demo" in seen
    assert "\033[32m✓" in seen


# --- a deployment's life ---


def test_a_model_goes_through_canary_promotion_rollback_and_destruction(shell):
    words = ("--name", "rows", "--sample", "rows.json")
    assert shell.json("plan", "models:double", *words)["changes"] is True
    first = shell.json("deploy", "models:double", *words, "--max", "2", "--env", "GREETING=hello")
    assert (first["revision"], first["changed"], first["weights"]) == (1, True, {"1": 100})
    assert shell.json("deploy", "models:double", *words, "--env", "GREETING=hello")["changed"] is False
    assert shell.json("invoke", "rows", "--data", "[[1.5, 2.0]]") == [[3.0, 4.0]]

    canary = shell.json("deploy", "models:triple", *words, "--canary", "10")
    assert (canary["revision"], canary["weights"]) == (2, {"1": 90, "2": 10})
    assert shell.json("traffic", "rows", "1=50", "2=50")["weights"] == {"1": 50, "2": 50}
    assert shell.json("promote", "rows")["weights"] == {"2": 100}
    assert shell.json("invoke", "rows", "--data", "[[1.5, 2.0]]") == [[4.5, 6.0]]
    assert shell.json("rollback", "rows")["weights"] == {"1": 100}
    assert shell.json("rollback", "rows", "--to", "2")["weights"] == {"2": 100}
    assert shell("rollback", "rows", "--to", "9", code=3) == "error: deployment 'rows' has no revision 9: it has 1, 2\n"
    assert shell.json("scale", "rows", "--min", "1") == {"name": "rows", "min_instances": 1, "max_instances": 2}

    status = shell.json("status", "rows")
    assert [(each["number"], each["state"]) for each in status["revisions"]] == [(1, "verified"), (2, "verified")]
    done = [entry["action"] for entry in shell.json("history", "rows")]
    assert done == ["deploy", "canary", "traffic", "promote", "rollback", "rollback", "scale"]
    logs = shell("logs", "rows")
    assert "doubling 1" in logs
    assert " 200 infer " in logs
    assert shell.json("metrics", "rows")["revisions"].keys() >= {"1", "2"}
    assert shell.json("destroy", "rows", "--yes") == {"name": "rows", "destroyed": True}
    assert "no deployment 'rows'" in shell("status", "rows", code=3)


def test_what_a_model_refuses_is_an_error_with_its_message(shell):
    shell("deploy", "models:triple", "--name", "rows", "--sample", "rows.json")
    error = json.loads(shell("invoke", "rows", "--data", "[[-1.0, 0.0]]", "--json", code=1))["error"]

    assert (error["code"], error["exit_code"]) == ("INTERNAL", 1)
    assert "no negative rows" not in error["message"]
    assert "ValueError: no negative rows" in shell("logs", "rows")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("status", "nothing"), 3, "no deployment 'nothing'"),
        (("deploy", "models:number"), 2, "is not a model that polyserve knows"),
        (("deploy", "nowhere.joblib"), 3, "'nowhere.joblib' does not exist"),
        (("package", "nowhere.joblib"), 3, "'nowhere.joblib' does not exist"),
        (("package", "nowhere:model"), 2, "there is no module 'nowhere'"),
        (("deploy", "models:double", "--sample", "nowhere.json"), 3, "no file 'nowhere.json'"),
        (("deploy", "models:double", "--sample", "rows.json", "--memory", "1"), 2, "memory is 1 MB"),
        (("deploy", "models:double", "--sample", "rows.json", "--canary", "10"), 2, "a canary needs a revision"),
        (("list", "--provider", "nowhere"), 2, "nowhere"),
        (("list", "--profile", "nowhere"), 2, "unknown profile 'nowhere'"),
        (("destroy", "rows"), 2, "repeat it with --yes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_refusal_has_its_exit_code_and_one_clear_error(shell, words, code, reason):
    error = shell(*words, code=code)

    assert error.startswith("error: ")
    assert reason in error


# --- interruptions ---


def test_a_deploy_that_was_interrupted_is_finished_by_the_same_command(shell):
    words = ("deploy", "models:double", "--name", "rows", "--sample", "rows.json")
    with shell.start(*words) as process:
        record = Path(os.environ["POLYSERVE_HOME"])
        deadline = time.monotonic() + 60
        while process.poll() is None and not any(record.rglob("record.json")) and time.monotonic() < deadline:
            select.select([], [], [], 0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert process.returncode in {0, 130}  # 0 where the deploy was quicker than we were
    assert process.returncode == 0 or err.strip() == "interrupted: run the same command again to continue"
    assert shell.json(*words)["weights"] == {"1": 100}
    assert shell.json("invoke", "rows", "--data", "[[1.0, 1.0]]") == [[2.0, 2.0]]


def test_following_logs_shows_what_comes_and_ends_with_ctrl_c_and_exit_code_0(shell):
    shell("deploy", "models:double", "--name", "rows", "--sample", "rows.json")
    with shell.start("logs", "rows", "--follow") as process:
        assert process.stdout is not None
        shell("invoke", "rows", "--data", "[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]")
        line = next(line for line in process.stdout if "doubling 3" in line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert line.endswith("doubling 3\n")
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, 1), ("y\n", 0, 0)], ids=["no", "yes"])
def test_destroy_asks_on_a_terminal(shell, answer, code, left):
    shell("deploy", "models:double", "--name", "rows", "--sample", "rows.json")
    ended, seen = on_a_terminal(shell, "destroy", "rows", answer=answer)

    assert ended == code
    assert "Destroy 'rows' with all its revisions, logs and history?" in seen
    assert len(shell.json("list")) == left


def test_on_a_terminal_nothing_is_wider_than_it(shell):
    shell("deploy", "models:double", "--name", "a-deployment-with-a-rather-long-name", "--sample", "rows.json")
    import re

    for words in (("list",), ("status", "a-deployment-with-a-rather-long-name"), ("providers",)):
        _, seen = on_a_terminal(shell, *words)
        lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in seen.splitlines()]

        assert max(len(line) for line in lines) <= 80
        assert "…" not in seen
