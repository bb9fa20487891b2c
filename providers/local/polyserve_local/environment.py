"""Which Python runs a revision: one that has every locked requirement already, else a virtual environment made for the lock.

Environments are shared by Python minor version and lock, within one home, and removed with the last revision that could use them. Only
built distributions are installed: nothing of a requirement is run while it is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyserve.driver import ErrorCode, FunctionSpec
from polyserve.runtime import archive
from polyserve.runtime.environment import without_build
from polyserve_local import processes
from polyserve_local.errors import GatewayError
from polyserve_local.files import FileStore
from polyserve_local.installing import Installer, unwanted
from polyserve_local.places import Places, remove_tree

COMPLETE = "complete"
"""File in an environment that says that everything was installed."""
QUIET_PIP = ("--disable-pip-version-check", "--no-input")
_UNPACKING = threading.Lock()
_GUARD = threading.Lock()
_TURNS: dict[str, threading.Lock] = {}

# Asked of the interpreter itself, isolated as its instances are: what it would import is what counts, not what we see.
_QUESTION = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in json.load(sys.stdin):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = ""
json.dump({"python": "%d.%d" % sys.version_info[:2], "found": found}, sys.stdout)
"""


def missing(python: str, minor: str, requirements: Sequence[str]) -> str | None:
    """Return what an interpreter lacks to satisfy a lock, in words; `None` where it has everything."""
    wanted = dict(requirement.split("==", 1) for requirement in requirements)
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _QUESTION],
            input=json.dumps(list(wanted)),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        told = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"{python} cannot be asked: {error}"
    if told["python"] != minor:
        return f"it is Python {told['python']}"
    lacking = [
        f"{name} is {told['found'][name] or 'not installed'}, locked is {version}"
        for name, version in wanted.items()
        # Whether it was built for this processor or that is not the lock's to say.
        if without_build(told["found"][name]) != version
    ]
    return "; ".join(lacking) or None


def key_of(spec: FunctionSpec) -> str:
    """Return the name of the environment that a revision would use: revisions with one lock share one."""
    lock = "\n".join(sorted(spec.requirements))
    return hashlib.sha256(f"{spec.python}\n{lock}\n".encode()).hexdigest()[:32]


def provide(
    places: Places, spec: FunctionSpec, interpreter: str, installer: Mapping[str, str], stopping: threading.Event
) -> str:
    """Return a Python that runs a revision; makes a virtual environment where the deployer's interpreter will not do. Blocks.

    Args:
        places: The home's files.
        spec: The revision.
        interpreter: Python of the process that deployed it.
        installer: Environment variables of that process that concern uv and pip.
        stopping: Set when the revision is not wanted any more.

    Raises:
        GatewayError: There is no such Python, or a requirement cannot be installed.
    """
    reason = missing(interpreter, spec.python, spec.requirements)
    if reason is None:
        return interpreter
    key = key_of(spec)
    home = places.environments / key
    python = home / "bin" / "python"
    # There is one gateway for a home, so threads are all that could meet here: the second one finds it made.
    with _made_by_one(key, stopping):
        if not (home / COMPLETE).exists():
            remove_tree(home)
            try:
                _make(home, find_python(spec.python, interpreter), spec, Installer(interpreter, installer, stopping))
            except GatewayError as error:
                remove_tree(home)
                first, *others = reason.split("; ")
                more = f" and {len(others)} more" if others else ""
                message = f"the Python that deployed will not do ({first}{more}), and {error.message}"
                raise GatewayError(error.code, message) from error
            except BaseException:
                remove_tree(home)
                raise
            (home / COMPLETE).touch()
    lacking = missing(str(python), spec.python, spec.requirements)
    if lacking is not None:
        message = f"the environment {home} does not satisfy the lock: {lacking}; remove that directory and deploy again"
        raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)
    return str(python)


@contextlib.contextmanager
def _made_by_one(key: str, stopping: threading.Event) -> Iterator[None]:
    with _GUARD:
        turn = _TURNS.setdefault(key, threading.Lock())
    while not turn.acquire(timeout=0.1):
        if stopping.is_set():
            raise unwanted()
    try:
        yield
    finally:
        turn.release()


def sweep(places: Places) -> None:
    """Remove environments that a gateway before this one did not finish; an installer that it left running is ended first."""
    for path in places.environments.glob("*.making"):
        with contextlib.suppress(ValueError, KeyError):
            record = json.loads(path.read_bytes())
            processes.kill(record["pid"], record["started"])
        path.unlink()
    for path in places.environments.iterdir():
        if not (path / COMPLETE).exists():
            remove_tree(path)


def find_python(minor: str, interpreter: str) -> str:
    """Return an interpreter of a Python minor version: the deployer's own, else one on the PATH.

    Raises:
        GatewayError: There is none.
    """
    candidates = [interpreter, *filter(None, [shutil.which(f"python{minor}"), shutil.which("python3")])]
    for candidate in candidates:
        if missing(candidate, minor, ()) is None:
            return candidate
    message = (
        f"the package needs Python {minor}, and neither {interpreter} nor a python{minor} on the PATH is one: "
        f"install Python {minor}, or package the model again under the Python that you have"
    )
    raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)


def _make(home: Path, base: str, spec: FunctionSpec, installer: Installer) -> None:
    # Made in its final place, since scripts in it name their interpreter by path; without the mark it does not count.
    uv = installer.find_uv()
    python = str(home / "bin" / "python")
    # The lock is complete: what it does not name, the model did without where it was packaged.
    exactly = ["--no-deps", "--only-binary", ":all:", "--quiet"]
    if uv is not None:
        installer.run(home, [uv, "venv", "--quiet", "--no-project", "--python", base, str(home)])
        install = [uv, "pip", "install", *exactly, "--python", python, "--compile-bytecode"]
    elif _has_pip(base):
        # The one that is there installs: a copy of it in each environment would take seconds and megabytes.
        installer.run(home, [base, "-m", "venv", "--without-pip", str(home)])
        install = [base, "-m", "pip", "--python", python, "install", *exactly, *QUIET_PIP]
    else:
        installer.run(home, [base, "-m", "venv", str(home)])
        install = [python, "-m", "pip", "install", *exactly, *QUIET_PIP]
    if spec.requirements:
        installer.run(home, [*install, *spec.requirements])


def _has_pip(python: str) -> bool:
    question = "import pip; raise SystemExit(tuple(map(int, pip.__version__.split('.')[:2])) < (22, 3))"
    asked = subprocess.run([python, "-c", question], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return asked.returncode == 0


def unpack(places: Places, spec: FunctionSpec, stopping: threading.Event) -> Path:
    """Return the directory of a revision's bundle, unpacked from the store and verified on the way. Blocks.

    Raises:
        GatewayError: The object is not there, or is not the one that was deployed.
    """
    artifact = spec.artifact
    home = places.bundle(artifact.sha256)
    # There is one gateway for a home, so threads are all that could meet here.
    with _UNPACKING:
        if home.is_dir():
            return home
        fresh = places.bundles / f".{secrets.token_hex(6)}"
        fresh.mkdir(mode=0o700)
        try:
            packed = fresh / "bundle.zip"
            _fetch(places, spec, packed)
            archive.extract(packed, fresh / "bundle")
            packed.unlink()
            if stopping.is_set():
                raise unwanted()
            os.rename(fresh / "bundle", home)
        except (archive.ArchiveError, zipfile.BadZipFile) as error:
            message = f"the bundle {artifact.bucket}/{artifact.key} cannot be unpacked: {error}; deploy again"
            raise GatewayError(ErrorCode.FAILED_PRECONDITION, message) from error
        finally:
            remove_tree(fresh)
    return home


def models_of(places: Places, spec: FunctionSpec) -> dict[str, Any] | None:
    """Return what an instance has to be told of the files that its bundle left to the bucket: where each is, and where they go."""
    if not spec.models:
        return None
    objects = {
        model.sha256: (FileStore(places.store, model.bucket).path_of(model.key), model.size) for model in spec.models
    }
    return {"into": str(places.models / spec.artifact.sha256), "objects": objects}


def compile_runtime(python: str, bundle: Path) -> None:
    """Write byte-code of the runtime in a bundle, for the interpreter that will run it: a third of a small model's start. Blocks.

    The package beside it is left alone: its files are verified, and an extra one would be refused.
    """
    marker = bundle / f".compiled-{hashlib.sha256(python.encode()).hexdigest()[:12]}"
    if not marker.exists():
        command = [
            python,
            "-I",
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            str(bundle / "polyserve"),
        ]
        # Without byte-code it only starts slower.
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        marker.touch()


def _fetch(places: Places, spec: FunctionSpec, target: Path) -> None:
    artifact = spec.artifact
    hasher = hashlib.sha256()
    try:
        _, body = FileStore(places.store, artifact.bucket).get(artifact.key)
    except FileNotFoundError as error:
        message = f"the bundle {artifact.bucket}/{artifact.key} is not in the store: deploy again"
        raise GatewayError(ErrorCode.NOT_FOUND, message) from error
    with body, target.open("wb") as out:
        while chunk := body.read(1 << 20):
            hasher.update(chunk)
            out.write(chunk)
    if hasher.hexdigest() != artifact.sha256:
        message = (
            f"the bundle {artifact.bucket}/{artifact.key} has sha256 {hasher.hexdigest()}, "
            f"deployed was {artifact.sha256}: upload it again"
        )
        raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)
