"""The Python that a function runs under, and the directory that stands for `/var/runtime`.

A function sees the standard library, what was uploaded and Lambda's own runtime directory: nothing of the
environment that the emulator itself is installed in. The runtime directory is made of links to the real
`awslambdaric` and to boto3, which every Python runtime of Lambda brings along.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from polyserve_aws.emulator.errors import invalid

RUNTIME_CLIENT = ("awslambdaric", "snapshot-restore-py", "simplejson")
"""The runtime interface client, and what it needs itself."""
SDK = ("boto3", "botocore", "s3transfer", "jmespath", "python-dateutil", "six", "urllib3")
"""What else `/var/runtime` holds on AWS."""

OWN_RUNTIME = f"python{sys.version_info.major}.{sys.version_info.minor}"
"""The runtime that the emulator itself could be: its interpreter is always there."""

ASK = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
"""What an interpreter is asked: its version, and where it is."""

BOOT = """\
import sys, os
task = os.environ["LAMBDA_TASK_ROOT"]
sys.path[:] = [task, os.environ["LAMBDA_RUNTIME_DIR"], *[path for path in sys.path if path]]
del task
from awslambdaric.__main__ import main
main(["bootstrap", os.environ["_HANDLER"]])
"""
"""Puts the search path in Lambda's order, then hands over to the real runtime client."""


def find_interpreter(runtime: str) -> str:
    """Return the interpreter of a runtime such as `python3.11`.

    Raises:
        ServiceError: There is none on this machine.
    """
    if runtime == OWN_RUNTIME:
        # Not that of a virtual environment, whose packages a function must not see.
        return str(Path(sys.executable).resolve())
    found = _executable(shutil.which(runtime), runtime) or _executable(_known_to_uv(runtime), runtime)
    if found is None:
        message = (
            f"The emulator cannot run {runtime}: this machine has no interpreter of that name on its PATH, and the "
            f"emulator itself runs on {OWN_RUNTIME}. Install {runtime}, or deploy for {OWN_RUNTIME}."
        )
        raise invalid(message)
    return str(Path(found).resolve())


def _executable(candidate: str | None, runtime: str) -> str | None:
    """Return the interpreter behind a command, as it names itself; `None` where it is not one of this runtime."""
    if candidate is None:
        return None
    # A shim of pyenv is on the PATH whether or not it leads anywhere.
    asked = subprocess.run([candidate, "-I", "-S", "-c", ASK], capture_output=True, text=True, check=False)
    version, _, path = asked.stdout.strip().partition(" ")
    return path if asked.returncode == 0 and f"python{version}" == runtime else None


def _known_to_uv(runtime: str) -> str | None:
    beside = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{beside}")
    if uv is None:
        return None
    command = [uv, "python", "find", "--no-project", "--no-python-downloads", runtime.removeprefix("python")]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def make_runtime_directory(runtime: str, interpreter: str, below: Path) -> Path:
    """Return the directory that stands for `/var/runtime`, made on first use.

    Args:
        runtime: `python3.11`.
        interpreter: Its interpreter.
        below: Directory that holds one for each runtime.

    Raises:
        ServiceError: The runtime client cannot be had for this interpreter.
    """
    target = below / runtime
    if target.is_dir():
        return target
    below.mkdir(parents=True, exist_ok=True)
    making = below / f".{runtime}"
    shutil.rmtree(making, ignore_errors=True)
    if interpreter == str(Path(sys.executable).resolve()):
        making.mkdir()
        for name in (*RUNTIME_CLIENT, *SDK):
            for source in _top_level(name):
                (making / source.name).symlink_to(source)
    else:
        # Its extension module is built for one version of Python: another interpreter has to install its own.
        version = distribution("awslambdaric").version
        command = [
            interpreter,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            str(making),
            f"awslambdaric=={version}",
            "boto3",
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise invalid(
                f"The emulator cannot install Lambda's runtime client for {runtime}: {_last_line(ended.stderr)}"
            )
    making.rename(target)
    return target


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "pip says nothing"


def _top_level(name: str) -> list[Path]:
    """Return the packages and modules that a distribution has at the top of its directory."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        if name == "awslambdaric":
            raise invalid("The emulator needs awslambdaric: install polyserve-sdk[emulators].") from None
        return []
    tops = {file.parts[0] for file in found.files or () if file.parts[0] not in {"..", "__pycache__"}}
    paths = (Path(str(found.locate_file(top))) for top in sorted(tops))
    return [path for path in paths if path.exists() and not path.name.endswith(".dist-info")]
