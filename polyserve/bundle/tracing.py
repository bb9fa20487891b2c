"""What of the dependencies the package's sample touches, and the proof that it is answered alike without the rest.

Twice in a clean interpreter that sees nothing but the bundle's files: once with all of them, noting which are opened, imported or loaded,
once with those alone. Only where the function's Python and processor are this machine's: nothing else could run its libraries.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyserve.bundle import replaying
from polyserve.bundle.contents import Contents
from polyserve.bundle.target import Target, machine
from polyserve.errors import PackageError
from polyserve.model.storage import ModelPackage, cache_directory, staging
from polyserve.runtime.messages import Response

__all__ = ["FORMAT", "Traced", "traced"]

FORMAT = 1
"""Version of what is asked while files are noted; part of a trace's key."""

UNTOUCHED = "never touched by the sample"

Report = Callable[[str], None]

_PACKAGE = "package"
_WITHIN_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What is left, and how many bytes went for which reason."""

    files: Contents
    dropped: Mapping[str, int]


def traced(
    package: ModelPackage, own: Contents, files: Contents, prefix: str, target: Target, *, report: Report
) -> Traced:
    """Leave out the dependencies' files that the sample never touches.

    Args:
        package: The model package, with a sample.
        own: The bundle's other files, by path within it.
        files: The dependencies' files.
        prefix: Where these go within the bundle: empty, or a directory with a slash at its end.
        target: Where it is to run; must be like this machine.
        report: Told what is being done.

    Raises:
        PackageError: The package has no sample, the target is another machine or Python, or the sample is answered differently.
    """
    if not target.is_here:
        here = f"Python {sys.version_info.major}.{sys.version_info.minor} on {machine()} ({platform.system()})"
        message = (
            f"slim 'traced' runs the model with the function's own libraries, which are for {target}, and this is {here}: "
            "build it there, or take slim 'standard'"
        )
        raise PackageError(message, operation="build", resource=package.name)
    if package.golden_request() is None:
        message = f"slim 'traced' keeps what the sample touches, and package {package.name!r} has none: package it with a sample"
        raise PackageError(message, operation="build", resource=package.name)
    listed = "".join(f"{path}\0{content.key}\0" for path, content in sorted({**own, **files}.items()))
    key = hashlib.sha256(f"{FORMAT}\0{package.digest}\0{listed}".encode()).hexdigest()[:40]
    path = cache_directory() / "traces" / f"{key}.json"
    try:
        kept = frozenset(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        kept = _trace(package, own, files, prefix, path=path, report=report)
    left = {inside: content for inside, content in files.items() if inside in kept}
    gone = sum(content.size for content in files.values()) - sum(content.size for content in left.values())
    return Traced(files=left, dropped={UNTOUCHED: gone})


def _trace(
    package: ModelPackage, own: Contents, files: Contents, prefix: str, *, path: Path, report: Report
) -> frozenset[str]:
    with staging(path.parent) as fresh:
        report("tracing the sample")
        # Everything of the package is here, also what a bundle would leave to the bucket.
        runtime = {inside: content for inside, content in own.items() if not inside.startswith(f"{_PACKAGE}/")}
        _lay_out(fresh / "all", {**runtime, **{f"{prefix}{inside}": content for inside, content in files.items()}})
        answer = _replay(package, fresh / "all", prefix, trace=True)
        _compare(package, answer, "all of its requirements, at the locked versions")
        touched = {inside.removeprefix(prefix) for inside in answer["touched"] if inside.startswith(prefix)}
        kept = frozenset(inside for inside in files if inside in touched or _is_metadata(inside))
        report("answering the sample with what it touched")
        left = {f"{prefix}{inside}": content for inside, content in files.items() if inside in kept}
        _lay_out(fresh / "left", {**runtime, **left})
        _compare(package, _replay(package, fresh / "left", prefix, trace=False), "what it touched alone")
        (fresh / path.name).write_text(json.dumps(sorted(kept)))
        os.replace(fresh / path.name, path)
    return kept


def _is_metadata(inside: str) -> bool:
    # Versions are checked before the model is loaded, by names of directories.
    return inside.partition("/")[0].endswith(".dist-info")


def _lay_out(root: Path, files: Contents) -> None:
    for inside, content in files.items():
        place = root / inside
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content.source, Path) and not content.stripped:
            try:
                os.link(content.source, place)
            except OSError:
                shutil.copyfile(content.source, place)
        else:
            place.write_bytes(content.read())


def _replay(package: ModelPackage, root: Path, prefix: str, *, trace: bool) -> dict[str, Any]:
    golden = package.golden_request()
    assert golden is not None
    given = {
        "root": str(root),
        "paths": [str(root), *([str(root / prefix)] if prefix else [])],
        "package": str(package.root),
        "method": golden.method,
        "path": golden.path,
        "headers": dict(golden.headers),
        "body": base64.b64encode(golden.body).decode(),
        "trace": trace,
    }
    command = [sys.executable, "-I", "-S", "-B", replaying.__file__]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            env=environment,
            cwd=root,
            timeout=_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(package, f"it did not answer within {_WITHIN_S} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise _refused(package, lines[-1])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _compare(package: ModelPackage, answer: Mapping[str, Any], where: str) -> None:
    response = Response(status=answer["status"], headers=answer["headers"], body=base64.b64decode(answer["body"]))
    difference = package.difference(response)
    if difference is not None:
        raise _refused(package, f"with {where}, {difference}")


def _refused(package: ModelPackage, reason: str) -> PackageError:
    message = f"slim 'traced' was given up for {package.name!r}: {reason}; take slim 'standard'"
    return PackageError(message, operation="build", resource=package.name)
