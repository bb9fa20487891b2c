"""The guards of `tests/conftest.py` bite: each forbidden touch, made on purpose in a suite of its own, fails it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

SUITE = {
    "unit/test_unit.py": """
        import asyncio, os, socket, subprocess, sys

        def test_connects():
            try:
                socket.create_connection(("127.0.0.1", 9))
            except Exception:
                pass

        def test_listens():
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))

        def test_starts_a_process():
            subprocess.run([sys.executable, "-c", ""])

        def test_runs_an_event_loop():
            asyncio.run(asyncio.sleep(0))
    """,
    "contract/test_contract.py": """
        import os, pathlib, socket, subprocess, sys, tempfile

        def test_uses_loopback():
            with socket.create_server(("127.0.0.1", 0)) as s, socket.create_connection(s.getsockname()):
                pass

        def test_leaves_loopback():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.sendto(b"x", ("192.0.2.1", 9))

        def test_binds_every_interface():
            with socket.socket() as s:
                s.bind(("0.0.0.0", 0))

        def test_looks_up_a_name():
            socket.getaddrinfo("polyserve.invalid", 80)

        def test_leaves_a_daemon():
            code = "import os, time; os.fork() and os._exit(0); os.setsid(); print('up', flush=True); time.sleep(600)"
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            child.stdout.readline()
            child.stdout.close()
            child.wait()

        def test_leaves_a_temporary_file():
            os.close(tempfile.mkstemp()[0])

        def test_has_a_home_of_its_own(tmp_path):
            for name in ("HOME", "POLYSERVE_HOME", "POLYSERVE_CACHE"):
                assert os.environ[name].startswith("/tmp/ps-")
            assert len(os.environ["POLYSERVE_HOME"]) < 40
            assert "POLYSERVE_PROVIDER" not in os.environ
    """,
}
PASSING = {"test_runs_an_event_loop", "test_uses_loopback", "test_has_a_home_of_its_own"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the suite above under a copy of the real conftest; the last word on each test, by name."""
    root = tmp_path_factory.mktemp("suite") / "tests"
    for name, source in SUITE.items():
        path = root / name
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(line[8:] for line in source.splitlines()))
    # Nobody needs to wait for a daemon that is meant to stay.
    (root / "conftest.py").write_text(CONFTEST.read_text().replace("PATIENCE_S = 10.0", "PATIENCE_S = 0.2"))
    (root / "pytest.ini").write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rA",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "--tb=no",
        "-q",
        str(root),
    ]
    environment = {**os.environ, "POLYSERVE_PROVIDER": "elsewhere", "COLUMNS": "400"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=root)
    found: dict[str, str] = {}
    for line in ran.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word in {"PASSED", "FAILED", "ERROR"} and "::" in rest:
            found[rest.partition("::")[2].split(" ")[0]] = line
    assert len(found) == sum(source.count("def test_") for source in SUITE.values()), ran.stdout + ran.stderr
    return found


@pytest.mark.parametrize("name", ["test_connects", "test_listens", "test_starts_a_process"])
def test_a_unit_test_that_touches_the_network_or_starts_a_process_fails(outcomes: dict[str, str], name: str) -> None:
    assert not outcomes[name].startswith("PASSED")
    assert "tests/unit" in outcomes[name]


@pytest.mark.parametrize("name", ["test_leaves_loopback", "test_binds_every_interface", "test_looks_up_a_name"])
def test_a_test_that_leaves_loopback_fails(outcomes: dict[str, str], name: str) -> None:
    assert not outcomes[name].startswith("PASSED")
    assert "tests never leave loopback" in outcomes[name]


def test_a_test_that_leaves_a_daemon_behind_fails(outcomes: dict[str, str]) -> None:
    assert outcomes["test_leaves_a_daemon"].startswith("ERROR")
    assert "left these processes behind" in outcomes["test_leaves_a_daemon"]


def test_a_test_that_leaves_a_temporary_file_behind_fails(outcomes: dict[str, str]) -> None:
    assert outcomes["test_leaves_a_temporary_file"].startswith("ERROR")


@pytest.mark.parametrize("name", sorted(PASSING))
def test_what_a_tier_allows_passes(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name].startswith("PASSED"), outcomes[name]
