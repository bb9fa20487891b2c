"""Interpreters of a target's version, and the processes that compile for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
from functools import cache

from polyserve.bundle import bytecode
from polyserve.bundle.installers import find_uv
from polyserve.errors import PackageError

__all__ = ["FORMAT", "Compiler", "find_python"]

FORMAT = 4
"""Version of how byte-code is made."""

_ASK = "import sys; print('%d.%d' % sys.version_info[:2])"


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


class Compiler:
    """A process that compiles one module after the other. One thread sends them, another takes what comes of them, in the same order."""

    def __init__(self, interpreter: str) -> None:
        self._interpreter = interpreter
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [interpreter, "-I", "-S", "-B", "-X", "no_debug_ranges", bytecode.__file__]
        pipe, buffer = subprocess.PIPE, bytecode.BUFFER
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=buffer, pipesize=buffer, env=environment
        )

    def send(self, path: str, source: bytes) -> None:
        """Give it a module."""
        assert self._process.stdin is not None
        name = path.encode()
        # Where it has ended, `receive` tells why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(struct.pack("<II", len(name), len(source)) + name + source)

    def no_more(self) -> None:
        """Tell it that there is no further module."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def receive(self) -> bytes | None:
        """Return the byte-code of the next module, or `None` where that does not compile.

        Raises:
            PackageError: The interpreter cannot do it.
        """
        assert self._process.stdout is not None
        head = self._process.stdout.read(4)
        length = struct.unpack("<i", head)[0] if len(head) == 4 else 0
        made = self._process.stdout.read(max(length, 0))
        if len(head) < 4 or len(made) < length:
            raise self._failed()
        return None if length < 0 else made

    def kill(self) -> None:
        """End the process, if it has not ended by itself, so that no thread waits for it."""
        self._process.kill()

    def close(self) -> None:
        """End the process and forget it; no other thread may use it any longer."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _failed(self) -> PackageError:
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode(errors="replace").strip()[-500:]
        message = f"{self._interpreter} cannot compile the bundle's modules: {said}"
        return PackageError(message, operation="build", resource=self._interpreter)
