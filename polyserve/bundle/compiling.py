"""The byte-code of many files at once, by an interpreter of the target's version, kept beside what it was made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from polyserve.bundle import bytecode
from polyserve.bundle.contents import Content, Contents
from polyserve.bundle.installers import find_uv
from polyserve.bundle.zipping import processors
from polyserve.errors import PackageError
from polyserve.model.storage import cache_directory, staging
from polyserve.runtime.manifest import file_digest

__all__ = ["FORMAT", "byte_code", "find_python"]

FORMAT = 3
"""Version of how byte-code is made."""

Report = Callable[[str], None]

_ASK = "import sys; print('%d.%d' % sys.version_info[:2])"


def byte_code(files: Contents, python: str, *, report: Report = lambda text: None) -> Contents | None:
    """Return the byte-code of the Python files among some files; `None` where no interpreter of that version is here.

    Args:
        files: Sources and whatever lies beside them.
        python: Python minor version.
        report: Told that it is being done, the first time.

    Raises:
        PackageError: The interpreter cannot do it, or the cache cannot be written.
    """
    sources = {path: content for path, content in files.items() if path.endswith(".py")}
    listed = "".join(f"{path}\0{content.key}\0" for path, content in sorted(sources.items()))
    key = hashlib.sha256(f"{FORMAT}\0{python}\0{listed}".encode()).hexdigest()[:40]
    root = cache_directory() / "bytecode" / key
    entries = _read(root)
    if entries is None:
        interpreter = find_python(python)
        if interpreter is None:
            return None
        report(f"compiling {len(sources)} modules for Python {python}")
        entries = _make(root, sources, python, interpreter)
    return {
        path: Content(source=root / path, sha256=sha256, size=size, shared=True, owner=owner)
        for path, (sha256, size, owner) in entries.items()
    }


@cache
def find_python(python: str) -> str | None:
    """Return an interpreter of a Python minor version: this one, one on the PATH, or one that uv knows; `None` where there is none."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == python:
        return sys.executable
    found, uv = shutil.which(f"python{python}"), find_uv()
    if found is not None and _answers(found) == python:
        return found
    if uv is None:
        return None
    # Asked for what is installed: an interpreter is never downloaded behind the user's back.
    command = [uv, "python", "find", "--no-project", "--no-python-downloads", python]
    asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = asked.stdout.strip()
    return found if asked.returncode == 0 and _answers(found) == python else None


def _answers(interpreter: str) -> str:
    # A shim of pyenv is on the PATH whether or not it leads anywhere.
    command = [interpreter, "-I", "-S", "-c", _ASK]
    try:
        asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return asked.stdout.strip()


def _make(root: Path, sources: Contents, python: str, interpreter: str) -> Mapping[str, Sequence[Any]]:
    with staging(root.parent) as fresh:
        work = []
        for path, content in sorted(sources.items()):
            assert isinstance(content.source, Path)
            content.check()
            work.append((str(content.source), path, str(fresh / bytecode.path_of(path, python))))
        _compile(work, interpreter)
        entries = {}
        for path, content in sources.items():
            place = bytecode.path_of(path, python)
            if (fresh / place).is_file():
                entries[place] = [file_digest(fresh / place), (fresh / place).stat().st_size, content.owner]
        (fresh / "files.json").write_text(json.dumps(entries, separators=(",", ":"), sort_keys=True))
        fresh.chmod(0o755)
        try:
            fresh.rename(root)
        except OSError:
            # Somebody else was quicker, or what is there is broken and makes room.
            if _read(root) is None:
                shutil.rmtree(root, ignore_errors=True)
                fresh.rename(root)
    return entries


def _compile(work: Sequence[tuple[str, str, str]], interpreter: str) -> None:
    """Share the work among as many processes as there are processors."""
    count = min(processors(), max(1, len(work) // 20))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [interpreter, "-I", "-S", "-B", "-X", "no_debug_ranges", bytecode.__file__]
    pipe, processes = subprocess.PIPE, list[subprocess.Popen[str]]()
    try:
        for share in range(count):
            process = subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True, env=environment)
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(work[share::count]))
            process.stdin.close()
            process.stdin = None
        for process in processes:
            _, said = process.communicate()
            if process.returncode != 0:
                message = f"{interpreter} cannot compile the bundle's modules: {said.strip()[-500:]}"
                raise PackageError(message, operation="build", resource=interpreter)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _read(root: Path) -> Mapping[str, Sequence[Any]] | None:
    try:
        entries: Mapping[str, Sequence[Any]] = json.loads((root / "files.json").read_bytes())
    except (OSError, ValueError):
        return None
    return entries
