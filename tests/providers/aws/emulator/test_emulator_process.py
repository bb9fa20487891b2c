"""The emulator as a program of its own: it says when it is ready, and leaves nothing behind however it ends."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE_S = 20.0


@contextmanager
def program(directory, *arguments):
    """Yield the emulator as a child process, and what it wrote when it was ready."""
    command = [sys.executable, "-m", "polyserve_aws.emulator", str(directory), *arguments]
    process = subprocess.Popen(command)
    try:
        ready = directory / "ready.json"
        deadline = time.monotonic() + PATIENCE_S
        while not ready.exists():
            assert process.poll() is None, "the emulator ended before it was ready"
            assert time.monotonic() < deadline, "the emulator did not get ready"
            select.select([], [], [], 0.01)
        yield process, json.loads(ready.read_text())
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def watched(pid):
    """Yield a function that waits until a process has ended."""
    handle = os.pidfd_open(pid)
    try:
        yield lambda patience: bool(select.select([handle], [], [], patience)[0])
    finally:
        os.close(handle)


@pytest.fixture
def directory(isolation) -> Path:
    """Return the directory of an emulator."""
    return isolation / "emulator"


def account_of(options, signer):
    """Return the operator's clients, found as an SDK finds them."""
    return signer(options["endpoint_url"], options)


def test_the_emulator_says_when_and_how_it_can_be_reached(directory, signer):
    with program(directory) as (process, ready):
        account = account_of(ready["options"], signer)

        assert ready["pid"] == process.pid
        assert ready["url"] == ready["options"]["endpoint_url"]
        assert ready["options"]["region"] == "us-east-1"
        assert (directory / "credentials").stat().st_mode & 0o777 == 0o600
        assert account.client("s3").list_buckets()["Buckets"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_emulator_and_its_functions(directory, signer, number):
    with program(directory) as (process, ready):
        account = account_of(ready["options"], signer)
        pid = account.invoke(account.function(), {}).value["pid"]
        with watched(pid) as gone:
            process.send_signal(number)

            assert process.wait(PATIENCE_S) == 0
            assert gone(PATIENCE_S)
    assert not (directory / "ready.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a process that was killed")
def test_functions_end_with_an_emulator_that_is_killed(directory, signer):
    with program(directory) as (process, ready):
        account = account_of(ready["options"], signer)
        pid = account.invoke(account.function(), {}).value["pid"]
        with watched(pid) as gone:
            process.kill()

            assert gone(PATIENCE_S)


def test_an_idle_environment_is_let_go(directory, signer):
    with program(directory, "--idle", "0.2") as (_, ready):
        account = account_of(ready["options"], signer)
        name = account.function()
        pid = account.invoke(name, {}).value["pid"]
        with watched(pid) as gone:
            assert gone(PATIENCE_S)

        assert account.invoke(name, {}).value["count"] == 1


def test_a_taken_port_is_told(directory, emulator):
    port = emulator.url.rpartition(":")[2]
    command = [sys.executable, "-m", "polyserve_aws.emulator", str(directory), "--port", port]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert ended.returncode == 1
    assert "cannot start" in ended.stderr


def test_there_is_one_emulator_in_a_process(emulator, directory):
    with pytest.raises(RuntimeError, match="one emulator in a process"):
        type(emulator)(directory).start()
