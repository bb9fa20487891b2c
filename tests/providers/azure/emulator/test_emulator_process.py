"""The emulator as a program of its own: it says when it is ready, and leaves nothing behind however it ends."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PATIENCE_S = 60.0


@contextmanager
def program(directory, *arguments):
    """Yield the emulator as a child process, and what it wrote when it was ready."""
    process = subprocess.Popen([sys.executable, "-m", "polyserve_azure.emulator", str(directory), *arguments])
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
def test_nothing_is_left_when_it_ends(isolation, sign_in, package, number):
    directory = isolation / "emulator"
    with program(directory, "--settle", "0") as (process, ready), ExitStack() as watched:
        assert ready["pid"] == process.pid
        assert (directory / "token.json").stat().st_mode & 0o77 == 0
        cloud = watched.enter_context(closing(sign_in(ready["options"])))
        cloud.ensure_group()
        app = cloud.make_app()
        app.publish(package())
        pids = [app.call("/x").json()["pid"], *children_of(process.pid)]
        assert any(b"azurite" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
        handles = [os.pidfd_open(pid) for pid in dict.fromkeys(pids)]
        for handle in handles:
            watched.callback(os.close, handle)

        process.send_signal(number)

        assert process.wait(PATIENCE_S) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], PATIENCE_S)[0], "a process was left behind"
    assert (directory / "ready.json").exists() == (number == signal.SIGKILL)


@contextmanager
def closing(cloud):
    """Close a client at the end."""
    with cloud.http:
        yield cloud


def children_of(pid):
    """Return the processes that a process has started."""
    return [int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()]


def test_a_port_that_is_taken_is_said_so(isolation):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [
            sys.executable,
            "-m",
            "polyserve_azure.emulator",
            str(isolation / "e"),
            "--port",
            str(taken.getsockname()[1]),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "the emulator cannot start" in ended.stderr
    assert "address already in use" in ended.stderr
