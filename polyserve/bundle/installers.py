"""uv and pip: how built distributions for another machine are resolved and fetched, and what it means when they cannot be.

Nothing is ever built here: a source distribution runs code of its own, for this machine and not for the target. Indexes, mirrors, proxies
and caches are the user's own: the tools read their variables and files as they always do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.utils import canonicalize_name

from polyserve.bundle.target import Target
from polyserve.errors import MissingDependencyError, PackageError, UnavailableError

__all__ = ["find_uv", "install", "resolve", "sources"]

Report = Callable[[str], None]

_NEWEST_GLIBC = (2, 40)
_SAID = 1200
# Where to install and into what is ours to say, and so is that nothing is built.
_OURS = frozenset(
    {
        *("UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_PROJECT", "UV_WORKING_DIRECTORY", "UV_PROJECT_ENVIRONMENT"),
        *("UV_BREAK_SYSTEM_PACKAGES", "UV_REQUIRE_HASHES", "UV_COMPILE_BYTECODE", "UV_NO_BINARY", "UV_EXCLUDE"),
        *("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_DRY_RUN", "PIP_REQUIREMENT"),
        *("PIP_EDITABLE", "PIP_REQUIRE_HASHES", "PIP_REQUIRE_VIRTUALENV", "PIP_REPORT", "PIP_LOG", "PIP_NO_BINARY"),
        *("PIP_PLATFORM", "PIP_PYTHON_VERSION", "PIP_QUIET", "PIP_VERBOSE", "PYTHONPATH"),
    }
)
# What decides from where something is fetched, and so what it is: part of the key of what was fetched.
_SOURCES = re.compile(r"(UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|TORCH_BACKEND|INDEX_STRATEGY)"
                      r"|PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX))")  # fmt: skip
_UNREACHABLE = re.compile(
    r"failed to fetch|error sending request|connection (refused|reset|error)|timed? ?out|max retries exceeded"
    r"|name resolution|dns error|network is unreachable|network connectivity is disabled",
    re.IGNORECASE,
)
# uv: "Because numpy==2.4.6 has no usable wheels", "Because there is no version of numpy==99"; pip: "... the requirement numpy==99".
_LACKING = (
    re.compile(r"Because ([A-Za-z0-9._-]+)==(\S+) has no (?:usable )?wheels"),
    re.compile(r"no version of ([A-Za-z0-9._-]+)==([^\s,]+)"),
    re.compile(r"Because ([A-Za-z0-9._-]+) was not found in the (?:package registry|provided package locations)()"),
    re.compile(r"satisfies the requirement ([A-Za-z0-9._-]+)==(\S+)"),
)


def find_uv() -> str | None:
    """Return uv: on the PATH, or installed beside this interpreter; `None` where there is none."""
    beside = f"{Path(sys.executable).parent}"
    return shutil.which("uv", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{beside}")


def sources() -> str:
    """Return what of the environment decides from where distributions come: another index may have other files of one version."""
    return "\n".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if _SOURCES.fullmatch(name))


def resolve(requirements: Sequence[str], lock: Sequence[str], target: Target, *, report: Report) -> tuple[str, ...]:
    """Return the lock with whatever some more requirements need beside it.

    Args:
        requirements: What is wanted, such as `"azure-functions==1.26.0"`.
        lock: `name==version` of what is there anyway; its versions stand.
        target: Where it is to run.
        report: Told what is being done.

    Raises:
        PackageError: They do not go together, or one has no wheel for the target.
        UnavailableError: The package index cannot be reached.
        MissingDependencyError: There is neither uv nor pip.
    """
    report(f"resolving {', '.join(requirements)}")
    uv = find_uv()
    with tempfile.TemporaryDirectory(prefix="polyserve-") as folder:
        # The lock bounds the versions; what only the lock needs was decided where the model was packaged.
        bounds = Path(folder, "constraints.txt")
        bounds.write_text("".join(f"{line}\n" for line in lock))
        if uv is not None:
            command = [uv, "pip", "compile", "--no-header", "--no-annotate", "--quiet", *_uv_target(target)]
            given = "".join(f"{line}\n" for line in requirements)
            said = _run([*command, "--constraints", str(bounds), "-"], target, lock, given=given)
            return tuple(line.strip() for line in said.splitlines() if "==" in line and not line.startswith("#"))
        command = [*_pip(), "install", *_pip_target(target), "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--target", folder, "--report", "-", "--constraint", str(bounds)]
        found = json.loads(_run([*command, *requirements], target, lock))["install"]
        return tuple(f"{canonicalize_name(item['metadata']['name'])}=={item['metadata']['version']}" for item in found)


def install(lock: Sequence[str], into: Path, target: Target, *, report: Report) -> None:
    """Fetch and unpack exactly the distributions of a lock, for a target, into an empty directory.

    Raises:
        PackageError: One has no wheel for the target; names it, the target and the way out.
        UnavailableError: The package index cannot be reached.
        MissingDependencyError: There is neither uv nor pip.
    """
    uv = find_uv()
    report(f"fetching {len(lock)} distributions for {target.key}")
    if uv is not None:
        # Links into its cache cost no time and no space; nothing in the tree is ever edited in place.
        command = [uv, "pip", "install", "--no-deps", "--link-mode", "hardlink", *_uv_target(target)]
        _run([*command, "--target", str(into), "-r", "-"], target, lock, given="\n".join(lock) + "\n", report=report)
    else:
        command = [*_pip(), "install", "--no-deps", "--no-compile", "--progress-bar", "off", *_pip_target(target)]
        _run([*command, "--target", str(into), *lock], target, lock, report=report)


def _uv_target(target: Target) -> list[str]:
    where = ["--python-platform", target.uv_platform, "--python-version", target.python, "--python", sys.executable]
    return [*where, "--only-binary", ":all:"]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        message = "wheels are fetched by uv or pip, and neither is installed: pip install uv"
        raise MissingDependencyError(message, operation="build", resource="uv")
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _pip_target(target: Target) -> list[str]:
    tags = [word for tag in target.tags for word in ("--platform", tag)]
    return [*tags, "--python-version", target.python, "--implementation", "cp", "--only-binary", ":all:"]


def _run(
    command: Sequence[str], target: Target, lock: Sequence[str], *, given: str = "", report: Report | None = None
) -> str:
    """Run an installer to its end and return what it wrote; it is ended when we are interrupted."""
    status, out, said = _output(command, given, report)
    if status == 0:
        return out
    said = said.strip() or out.strip() or f"exit status {status}"
    tool = Path(command[0]).stem if "-m" not in command[:2] else "pip"
    if _UNREACHABLE.search(said) and not any(pattern.search(said) for pattern in _LACKING):
        message = f"the package index cannot be reached ({tool}): {_short(said)}"
        raise UnavailableError(message, operation="build", resource=tool)
    for pattern in _LACKING:
        found = pattern.search(" ".join(said.split()))
        if found:
            raise _lacking(found[1], found[2].rstrip(",."), target, lock)
    message = f"the requirements cannot be brought together for {target} ({tool}): {_short(said)}"
    raise PackageError(message, operation="build", resource=tool)


def _output(command: Sequence[str], given: str, report: Report | None) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    pipe, said = subprocess.PIPE, list[str]()
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    except OSError as error:
        message = f"{command[0]} cannot be started: {error.strerror or error}"
        raise MissingDependencyError(message, operation="build", resource=command[0]) from error
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None

        def listen() -> None:
            for line in process.stderr or ():
                said.append(line)
                # "Downloading scipy (33.6MiB)": the only sign of life there is while it takes long.
                if report is not None and line.strip().startswith("Downloading "):
                    report(line.strip().replace("Downloading", "fetching", 1))

        listener = threading.Thread(target=listen, name="polyserve-installer", daemon=True)
        listener.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(given)
                process.stdin.close()
            out = process.stdout.read()
            status = process.wait()
            listener.join()
        except BaseException:
            # What was fetched so far stays in the tool's own cache: the next call goes on from there.
            process.terminate()
            raise
    return status, out, "".join(said)


def _lacking(name: str, version: str, target: Target, lock: Sequence[str]) -> PackageError:
    version = version or next((line.partition("==")[2] for line in lock if line.startswith(f"{name}==")), "")
    what = f"{name} {version}".strip()
    message = (
        f"{what} has no wheel for {target}, and nothing is ever built from source: take another version of {name}, another Python "
        "(package the model under it) or another --arch, or compile the model (--compile onnx) so that it is not needed"
    )
    if target.glibc < _NEWEST_GLIBC and _exists_for_newer(name, version, target):
        message = (
            f"the wheels of {what} need a newer C library than {target} has: package the model under a Python whose functions have one, "
            f"or with an older {name}, or compile it (--compile onnx)"
        )
    return PackageError(message, operation="build", resource=what)


def _exists_for_newer(name: str, version: str, target: Target) -> bool:
    if not version:
        return False
    newest, uv, wanted = replace(target, glibc=_NEWEST_GLIBC), find_uv(), f"{name}=={version}"
    if uv is not None:
        command = [uv, "pip", "compile", "--no-deps", "--quiet", *_uv_target(newest), "-"]
    else:
        command = [*_pip(), "install", "--no-deps", "--dry-run", "--quiet", *_pip_target(newest)]
        command += ["--target", tempfile.gettempdir(), wanted]
    return _output(command, wanted, None)[0] == 0


def _short(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "; ".join(lines)[-_SAID:]
