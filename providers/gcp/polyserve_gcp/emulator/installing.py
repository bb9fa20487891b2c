"""What the emulator needs and no extra can bring: environments of the Pythons that functions run under, and their packages.

`functions-framework` cannot be installed beside `google-cloud-functions`, as both bring `google/cloud/functions/__init__.py`
(functions-framework-python #184), so it has environments of its own. Each is installed once, into the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from polyserve_gcp.emulator.errors import invalid

FRAMEWORK = (
    "functions-framework==3.10.2",
    "flask==3.1.3",
    "gunicorn==27.0.1",
    "uvicorn==0.54.0",
    "uvicorn-worker==0.4.0",
)
"""What the builder of Google's buildpacks adds to every function, with the releases that it was measured with."""
OWN_RUNTIME = f"python{sys.version_info.major}{sys.version_info.minor}"
"""The runtime that the emulator itself could be: its interpreter is always there."""
RUNTIMES = ("python310", "python311", "python312", "python313", "python314")
"""Python runtimes that are neither deprecated nor decommissioned ("Runtime support", read 2026-11-20)."""
ASK = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
"""What an interpreter is asked: its version, and where it is."""
_FOREIGN = re.compile(r"^\s*(\.|/|-(?!-hash)|file:)|\sfile:|@\s*\.", re.MULTILINE)
"""Lines of requirements that lead to other files, so that their text alone does not tell what is installed."""


def cache_directory() -> Path:
    """Return where what is installed is kept: `$POLYSERVE_EMULATORS`, else `emulators` in the cache."""
    cache = Path(os.environ.get("POLYSERVE_CACHE") or Path.home() / ".cache" / "polyserve")
    return Path(os.environ.get("POLYSERVE_EMULATORS") or cache / "emulators").absolute() / "gcp"


def check_runtime(runtime: str) -> None:
    """Refuse what is no runtime, or one that this machine cannot run.

    Args:
        runtime: `python311`.

    Raises:
        ServiceError: It is refused.
    """
    if runtime not in RUNTIMES:
        raise invalid(
            f"Runtime {runtime} is not supported on GCF Gen2 by the emulator: take one of {', '.join(RUNTIMES)}."
        )
    find_interpreter(runtime)


@lru_cache(maxsize=16)
def find_interpreter(runtime: str) -> str:
    """Return the interpreter of a runtime.

    Args:
        runtime: `python311`.

    Raises:
        ServiceError: There is none on this machine.
    """
    if runtime == OWN_RUNTIME:
        # Not that of a virtual environment, whose packages a function must not see.
        return str(Path(sys.executable).resolve())
    version = f"3.{runtime.removeprefix('python3')}"
    for candidate in (shutil.which(f"python{version}"), _known_to_uv(version)):
        if candidate is None:
            continue
        # A shim of pyenv is on the PATH whether or not it leads anywhere.
        asked = subprocess.run([candidate, "-I", "-S", "-c", ASK], capture_output=True, text=True, check=False)
        found, _, path = asked.stdout.strip().partition(" ")
        if asked.returncode == 0 and found == version:
            return str(Path(path).resolve())
    message = (
        f"The emulator cannot run {runtime}: this machine has no python{version} on its PATH, and the emulator itself "
        f"runs on {OWN_RUNTIME}. Install Python {version}, or deploy for {OWN_RUNTIME}."
    )
    raise invalid(message)


def _known_to_uv(version: str) -> str | None:
    beside = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{beside}")
    if uv is None:
        return None
    command = [uv, "python", "find", "--no-project", "--no-python-downloads", version]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def install_python(runtime: str) -> Path:
    """Return the directory of an environment with a runtime's Python and nothing else, made on first use.

    Raises:
        ServiceError: There is no such Python on this machine.
        OSError: It cannot be made.
    """
    interpreter = find_interpreter(runtime)
    target = cache_directory() / f"{runtime}-{_digest(interpreter)}"
    with _making(target) as making:
        if making is not None:
            # Not in its final place: what is in a virtual environment finds itself by where it is, but for pip's scripts.
            _run(
                [interpreter, "-m", "venv", "--without-pip", str(making)], f"an environment of {runtime} cannot be made"
            )
    return target


def install_framework(runtime: str) -> Path:
    """Return a directory of packages with functions-framework, installed on first use.

    Raises:
        ServiceError: There is no such Python on this machine.
        OSError: pip cannot install it.
    """
    python = install_python(runtime) / "bin" / "python"
    target = cache_directory() / f"framework-{_digest(*FRAMEWORK)}-{runtime}"
    with _making(target) as making:
        if making is not None:
            _run([*_pip(python, making), *FRAMEWORK], "pip cannot install functions-framework")
    return target


def install_requirements(runtime: str, source: Path) -> Path | None:
    """Return a directory of packages with what a source asks for, installed on first use; `None` where it asks for nothing.

    Args:
        runtime: `python311`.
        source: Directory with the source, and `requirements.txt` maybe.

    Raises:
        OSError: pip cannot install it.
    """
    file = source / "requirements.txt"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not [line for line in text.splitlines() if line.partition("#")[0].strip()]:
        return None
    python = install_python(runtime) / "bin" / "python"
    # The source's directory has the name of its content.
    other = source.name if _FOREIGN.search(text) else ""
    target = cache_directory() / "layers" / f"{runtime}-{_digest(text, other)}"
    with _making(target) as making:
        if making is not None:
            _run([*_pip(python, making), "--requirement", str(file)], "pip", cwd=source)
    return target


def _pip(python: Path, target: Path) -> list[str]:
    return [
        sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", "--no-input",
        "--no-warn-script-location", "--target", str(target),
    ]  # fmt: skip


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@contextmanager
def _making(target: Path) -> Iterator[Path | None]:
    """Give a directory to fill, which becomes the target; `None` where it is there already."""
    if target.is_dir():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        making = target.with_name(f".{target.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        yield making
        making.rename(target)


def _run(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if ended.returncode != 0:
        raise OSError(f"{what}: {(ended.stderr.strip() or ended.stdout.strip())[-600:]}")
