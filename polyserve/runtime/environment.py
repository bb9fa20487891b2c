"""Whether this interpreter is what a package was locked to: Python minor version and installed distributions.

A model unpickled under other versions may load, and answer differently: skew is refused, never warned about.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

__all__ = ["mismatches", "without_build"]

# Anything else after the plus, such as a revision of git, may be any code.
_BUILD = r"\+(?:cpu|cu\d+|cuda[\d.]+|rocm[\d.]+|xpu)(?:\.(?:cxx11\.abi|cudnn\d+))?"


def without_build(version: str) -> str:
    """Return a version without the label that tells builds of one release apart, such as PyTorch's 2.13.0+cpu and 2.13.0+cu130.

    They are one version to a lock: an index has the release, and each machine takes the build for its hardware.
    """
    if "+" not in version:
        return version
    import re

    return re.sub(_BUILD + "$", "", version)


def mismatches(python: str | None, requirements: Sequence[str]) -> Iterator[str]:
    """Yield one sentence for each way in which this interpreter is not what was locked.

    Args:
        python: Python minor version, such as `"3.11"`; `None` where any will do.
        requirements: Locked distributions, `name==version`.
    """
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python is not None and running != python:
        yield f"the package is locked to Python {python}, and this is Python {running}"
    seen = _directories() if requirements else {}
    for requirement in requirements:
        name, _, locked = requirement.partition("==")
        name = name.partition("[")[0].strip()
        locked = locked.partition(";")[0].strip()
        if locked in seen.get(_normal(name), ()):
            continue
        installed = _installed(name)
        if installed is None:
            yield f"{name} is locked to {locked}, and is not installed"
        elif installed != locked:
            yield f"{name} is locked to {locked}, and {installed} is installed"


def _installed(name: str) -> str | None:
    # Imported late: it costs 15 ms that no start should pay while the directories' names already agree.
    from importlib import metadata

    try:
        return without_build(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def _directories() -> dict[str, tuple[str]]:
    """Return the version of each distribution on the path, by the name of its directory; ambiguous ones are left out."""
    seen: dict[str, tuple[str]] = {}
    for path in sys.path:
        here: dict[str, list[str]] = {}
        try:
            names = os.listdir(path or ".")
        except OSError:
            continue
        for entry in names:
            if entry.endswith(".dist-info"):
                name, _, version = entry.removesuffix(".dist-info").partition("-")
                here.setdefault(_normal(name), []).append(without_build(version))
        for name, versions in here.items():
            if len(versions) == 1:
                seen.setdefault(name, (versions[0],))
            else:
                # What a half-finished upgrade leaves behind: let the standard library decide.
                seen.setdefault(name, ("",))
    return seen


def _normal(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")
