"""Emulators as programs on this machine, with a small one: found, started, stopped, and never left behind."""

import os
import select
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from polyserve import emulation, registry
from polyserve.emulation import control
from polyserve.errors import FailedPreconditionError, NotFoundError, UnsupportedError

EMULATOR = """
import json, os, signal, subprocess, sys, threading
directory = sys.argv[1]
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
print("starting", flush=True)
{body}
with open(directory + "/ready.new", "w") as file:
    json.dump({{"pid": os.getpid(), "url": "http://127.0.0.1:1", "options": {{"region": "here"}}}}, file)
os.replace(directory + "/ready.new", directory + "/ready.json")
ended.wait()
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what writes an emulator and gives the info of its provider; whatever runs in the end is stopped."""
    monkeypatch.setenv("POLYSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = []

    def make(body: str = "", name: str = "cloud"):
        (tmp_path / f"emulator_of_{name}.py").write_text(EMULATOR.format(body=body))
        made.append(replace(registry.info("local"), name=name, title="Cloud", emulator=f"emulator_of_{name}"))
        return made[-1]

    yield make
    for info in made:
        if emulation.running(info):
            emulation.stop(info)


def test_an_emulator_is_started_once_and_found_again(make):
    info = make()
    assert emulation.running(info) is None

    started = emulation.start(info)

    assert (started.provider, started.url, started.options) == ("cloud", "http://127.0.0.1:1", {"region": "here"})
    assert emulation.start(info) == emulation.running(info) == started


def test_of_many_that_start_one_at_once_all_get_the_same(make):
    info = make()
    found = []
    threads = [threading.Thread(target=lambda: found.append(emulation.start(info).pid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert len(set(found)) == 1


def test_one_that_was_stopped_is_gone_with_all_it_kept(make):
    info = make()
    started = emulation.start(info)

    emulation.stop(info)

    assert emulation.running(info) is None
    assert not started.directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)
    with pytest.raises(NotFoundError, match="no emulator of Cloud runs here"):
        emulation.stop(info)


def test_one_that_was_killed_is_started_anew(make):
    info = make()
    first = emulation.start(info)
    os.kill(first.pid, signal.SIGKILL)
    os.waitpid(first.pid, 0)

    second = emulation.start(info)

    assert second.pid != first.pid


def test_a_process_that_only_has_its_number_is_not_taken_for_it(make):
    info = make()
    directory = emulation.home_directory() / "emulators" / info.name
    directory.mkdir(parents=True)
    ready = f'{{"pid": {os.getpid()}, "url": "http://127.0.0.1:1", "options": {{}}}}'
    (directory / "ready.json").write_text(ready)

    if sys.platform == "linux":
        assert emulation.running(info) is None
    assert emulation.start(info).pid != os.getpid()


def test_one_that_ignores_the_request_to_stop_is_killed_with_its_children(make, monkeypatch):
    monkeypatch.setattr(control, "STOP_WITHIN", 0.2)
    info = make(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "open(directory + '/child', 'w').write(str(child.pid))"
    )
    started = emulation.start(info)
    child = int((started.directory / "child").read_text())
    watched = os.pidfd_open(child)

    emulation.stop(info)

    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)
    assert select.select([watched], [], [], 10)[0]
    os.close(watched)


def test_one_that_cannot_start_says_why_and_leaves_nothing(make):
    info = make("raise SystemExit('no port is free')")

    with pytest.raises(FailedPreconditionError, match="did not start:\n  starting\n  no port is free"):
        emulation.start(info)

    assert not (emulation.home_directory() / "emulators" / info.name).exists()


def test_a_provider_without_one_is_refused(make):
    info = replace(make(), emulator="")

    with pytest.raises(UnsupportedError, match="Cloud cannot be rehearsed, it has no emulator"):
        emulation.start(info)
