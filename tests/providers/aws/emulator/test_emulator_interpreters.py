"""Which interpreter a runtime is given: one that answers, under the name that it gives itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.interpreters import OWN_RUNTIME, find_interpreter


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_the_emulators_own_runtime_needs_no_path(monkeypatch):
    monkeypatch.setenv("PATH", "")

    assert find_interpreter(OWN_RUNTIME) == str(Path(sys.executable).resolve())


@pytest.mark.parametrize("answer", ["echo 'command not found' >&2; exit 127", "echo 3.9 /usr/bin/python3.9", "exit 0"])
def test_a_command_of_that_name_that_is_no_such_python_is_refused(tmp_path: Path, monkeypatch, answer):
    program(tmp_path / "shims", "python3.99", f"#!/bin/sh\n{answer}\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}{os.pathsep}{os.defpath}")

    with pytest.raises(ServiceError, match=r"cannot run python3\.99: .* Install python3\.99, or deploy for"):
        find_interpreter("python3.99")


def test_a_shim_leads_to_the_interpreter_behind_it(tmp_path: Path, monkeypatch):
    program(tmp_path / "shims", "python3.99", "#!/bin/sh\necho 3.99 /opt/python/bin/python3.99\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}{os.pathsep}{os.defpath}")

    assert find_interpreter("python3.99") == "/opt/python/bin/python3.99"
