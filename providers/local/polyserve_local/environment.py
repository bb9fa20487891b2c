"""Which Python runs a revision: one that has every locked requirement already, else a virtual environment made for the lock.

Environments are cached by the Python minor version and the lock. Only built distributions are installed: nothing of a requirement is run
while it is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from polyserve.driver import ErrorCode, FunctionSpec
from polyserve.runtime import archive
from polyserve_local.errors import GatewayError
from polyserve_local.files import FileStore
from polyserve_local.places import Places, remove_tree

INSTALL_TIMEOUT_S = 1800.0
_UNPACKING = threading.Lock()

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
        if told["found"][name] != version
    ]
    return "; ".join(lacking) or None


def provide(places: Places, spec: FunctionSpec, interpreter: str, stopping: threading.Event) -> str:
    """Return a Python that runs a revision; makes a virtual environment where the deployer's interpreter will not do. Blocks.

    Raises:
        GatewayError: There is no such Python, or a requirement cannot be installed.
    """
    if missing(interpreter, spec.python, spec.requirements) is None:
        return interpreter
    lock = "\n".join(sorted(spec.requirements))
    key = hashlib.sha256(f"{spec.python}\n{lock}\n".encode()).hexdigest()[:32]
    home = places.environments / key
    python = home / "bin" / "python"
    # Held while it is made, so that two revisions with one lock make it once. The system drops it should we be killed.
    with (places.environments / f"{key}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            remove_tree(home)
            _make(home, find_python(spec.python, interpreter), spec.requirements, stopping)
            (home / "complete").write_text(lock)
    lacking = missing(str(python), spec.python, spec.requirements)
    if lacking is not None:
        message = f"the environment {home} does not satisfy the lock: {lacking}; remove that directory and deploy again"
        raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)
    return str(python)


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


def _make(home: Path, base: str, requirements: Sequence[str], stopping: threading.Event) -> None:
    # Made in its final place, since scripts in it name their interpreter by path; without the mark `complete` it does not count.
    uv = shutil.which("uv")
    python = str(home / "bin" / "python")
    if uv is not None:
        _run([uv, "venv", "--quiet", "--python", base, str(home)], stopping)
        install = [uv, "pip", "install", "--quiet", "--python", python, "--compile-bytecode", "--only-binary", ":all:"]
    else:
        _run([base, "-m", "venv", str(home)], stopping)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    if requirements:
        _run([*install, *requirements], stopping)


def _run(command: Sequence[str], stopping: threading.Event) -> None:
    """Run a program to its end, or until it is not wanted any more."""
    deadline = time.monotonic() + INSTALL_TIMEOUT_S
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
            while True:
                try:
                    out, complaint = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    if stopping.is_set() or time.monotonic() > deadline:
                        process.kill()
    except OSError as error:
        raise GatewayError(ErrorCode.UNAVAILABLE, f"{' '.join(command[:3])} failed: {error}") from error
    if process.returncode != 0:
        said = (complaint or out).strip()[-1500:] or f"exit status {process.returncode}"
        message = f"the locked requirements cannot be installed ({Path(command[0]).name}): {said}"
        raise GatewayError(ErrorCode.FAILED_PRECONDITION, message)


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
                raise GatewayError(ErrorCode.CONFLICT, f"{spec.name!r} was deleted meanwhile")
            os.rename(fresh / "bundle", home)
        except (archive.ArchiveError, zipfile.BadZipFile) as error:
            message = f"the bundle {artifact.bucket}/{artifact.key} cannot be unpacked: {error}; deploy again"
            raise GatewayError(ErrorCode.FAILED_PRECONDITION, message) from error
        finally:
            remove_tree(fresh)
    return home


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
