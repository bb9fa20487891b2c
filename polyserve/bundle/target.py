"""The machine that a bundle is for: Python, processor and C library, and what installers and markers call them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from polyserve.driver import ProviderInfo

__all__ = ["MACHINES", "Target", "machine"]

MACHINES: Mapping[str, str] = {"x86_64": "x86_64", "arm64": "aarch64"}
"""Architectures by the name that Linux and wheels have for them."""

DEFAULT_GLIBC = (2, 28)
"""For platforms that do not tell: the oldest that current wheels are built for (PEP 600; manylinux_2_28 is AlmaLinux 8)."""

# What `uv pip install --python-platform` knows (uv 0.5 and later), as the second number of 2.x.
_UV_GLIBC = (17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)
# PEP 513, 571 and 599: names from before the version of the C library was one.
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A Linux function's Python, processor and C library.

    Attributes:
        provider: Title of the provider, for people.
        python: Python minor version, such as `"3.12"`.
        architecture: `"x86_64"` or `"arm64"`.
        glibc: Version of the C library; wheels for a newer one do not load.
    """

    provider: str
    python: str
    architecture: str
    glibc: tuple[int, int]

    @classmethod
    def of(cls, info: ProviderInfo, *, python: str, architecture: str) -> Target:
        """Return the target of a provider's functions."""
        glibc = info.bundle.glibc.get(python, DEFAULT_GLIBC)
        return cls(provider=info.title, python=python, architecture=architecture, glibc=(glibc[0], glibc[1]))

    def __str__(self) -> str:
        major, minor = self.glibc
        return f"Python {self.python} on {self.architecture} with glibc {major}.{minor} ({self.provider})"

    @property
    def key(self) -> str:
        """Return what tells it from other targets, whoever the provider is."""
        return f"{self.python}-{self.architecture}-glibc{self.glibc[0]}.{self.glibc[1]}"

    @property
    def is_here(self) -> bool:
        """Whether what runs there runs under this very interpreter."""
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        return sys.platform == "linux" and here == self.python and machine() == self.architecture

    @property
    def uv_platform(self) -> str:
        """Return what uv calls the newest platform that the target is as new as."""
        known = max((minor for minor in _UV_GLIBC if minor <= self.glibc[1]), default=_UV_GLIBC[0])
        return f"{MACHINES[self.architecture]}-manylinux_2_{known}"

    @property
    def tags(self) -> tuple[str, ...]:
        """Return every platform tag of a wheel that loads there, newest first: pip wants them one by one."""
        suffix = MACHINES[self.architecture]
        tags = []
        # manylinux1 is glibc 2.5, and there never was an arm64 before 2.17.
        for minor in range(self.glibc[1], (4 if self.architecture == "x86_64" else 16), -1):
            tags.append(f"manylinux_2_{minor}_{suffix}")
            if minor in _OLD_NAMES:
                tags.append(f"{_OLD_NAMES[minor]}_{suffix}")
        return (*tags, f"linux_{suffix}")

    @property
    def markers(self) -> Mapping[str, str]:
        """Return the environment in which the target evaluates the markers of requirements (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": MACHINES[self.architecture],
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": "",
        }


def machine() -> str:
    """Return this machine's architecture, by our name for it."""
    name = os.uname().machine if hasattr(os, "uname") else platform.machine()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(name.lower(), name.lower())
