"""Emulators of providers on this machine: find the one that runs, start it, stop it.

An emulator is a program of its own that takes a cloud's wire calls on loopback and really runs what is uploaded. It is named by
`ProviderInfo.emulator` and started as `python -m MODULE DIRECTORY`; what it keeps is below that directory and is gone once it stops. Once
it answers it writes `ready.json` there, with its process, its address and the options with which its provider reaches it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyserve.driver import ProviderInfo
from polyserve.errors import DeadlineExceededError, FailedPreconditionError, NotFoundError, UnsupportedError

START_WITHIN = 180.0
"""Seconds that an emulator may take to answer: on its first start it installs the cloud's runtime into the cache."""

STOP_WITHIN = 10.0
"""Seconds that an emulator has to end what it started, before it is killed."""

LOOK_EVERY = 0.02
"""Seconds between two looks at an emulator that starts or stops."""

LOG_LINES = 12
"""Lines of its log that tell why an emulator did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """An emulator that runs.

    Attributes:
        provider: Name of the provider that it rehearses.
        pid: Its process.
        url: Where it listens.
        options: The provider's options with which it is reached.
        directory: Where it keeps what it has, its log included.
    """

    provider: str
    pid: int
    url: str
    options: Mapping[str, Any]
    directory: Path


def home_directory() -> Path:
    """Return where polyserve keeps what runs on this machine: `$POLYSERVE_HOME`, else `~/.polyserve`."""
    return Path(os.environ.get("POLYSERVE_HOME") or "~/.polyserve").expanduser().absolute()


def running(info: ProviderInfo) -> Emulator | None:
    """Return the emulator of a provider that runs for this user, or `None`."""
    directory = _directory(info)
    try:
        ready = json.loads((directory / "ready.json").read_bytes())
        os.kill(ready["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    if _command_of(ready["pid"]) not in {None, info.emulator}:
        return None  # the number belongs to another process by now
    return Emulator(
        provider=info.name, pid=ready["pid"], url=ready["url"], options=ready["options"], directory=directory
    )


def start(info: ProviderInfo) -> Emulator:
    """Return the emulator of a provider, started in the background where none runs; it stays until `stop`.

    Raises:
        UnsupportedError: The provider has no emulator.
        FailedPreconditionError: It does not start; the message has the end of its log.
        DeadlineExceededError: It does not answer in time.
    """
    if not info.emulator:
        message = f"{info.title} cannot be rehearsed, it has no emulator: leave --emulate (emulate=True) out"
        raise UnsupportedError(message, provider=info.name, operation="emulate", resource=info.name)
    with _alone(info):
        found = running(info)
        if found is not None:
            return found
        directory = _directory(info)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        pid = _spawn(info.emulator, directory)
        try:
            return _answering(info, pid, directory)
        except BaseException:
            _end(pid)
            shutil.rmtree(directory, ignore_errors=True)
            raise


def stop(info: ProviderInfo) -> None:
    """Stop the emulator of a provider; what it kept is deleted.

    Raises:
        NotFoundError: None runs.
    """
    with _alone(info):
        found = running(info)
        if found is None:
            message = f"no emulator of {info.title} runs here (`polyserve emulate {info.name}` starts one)"
            raise NotFoundError(message, provider=info.name, operation="emulate", resource=info.name)
        _end(found.pid)
        shutil.rmtree(found.directory, ignore_errors=True)


def _directory(info: ProviderInfo) -> Path:
    return home_directory() / "emulators" / info.name


@contextmanager
def _alone(info: ProviderInfo) -> Iterator[None]:
    """Let one process at a time start or stop an emulator."""
    path = home_directory() / "emulators" / f"{info.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _spawn(module: str, directory: Path) -> int:
    """Start an emulator in a session of its own, so that it outlives this process and hears no Ctrl-C, and return its process."""
    log = os.open(directory / "emulator.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        # Not subprocess: its object complains where it is dropped before its process, which is the point here.
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", module, str(directory)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)
        os.close(nothing)


def _answering(info: ProviderInfo, pid: int, directory: Path) -> Emulator:
    begun = time.monotonic()
    while True:
        found = running(info)
        if found is not None:
            return found
        if not _lives(pid):
            message = f"the emulator of {info.title} did not start:\n{_tail(directory)}"
            raise FailedPreconditionError(message, provider=info.name, operation="emulate", resource=info.name)
        if time.monotonic() - begun > START_WITHIN:
            message = f"the emulator of {info.title} does not answer after {START_WITHIN:g} s:\n{_tail(directory)}"
            raise DeadlineExceededError(message, provider=info.name, operation="emulate", resource=info.name)
        time.sleep(LOOK_EVERY)


def _tail(directory: Path) -> str:
    lines = (directory / "emulator.log").read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:]) or "  it wrote nothing"


def _end(pid: int) -> None:
    """Ask a process to stop, and kill what is left of its group after a while."""
    begun = time.monotonic()
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() - begun < STOP_WITHIN and _lives(pid):
            time.sleep(LOOK_EVERY)
    except ProcessLookupError:
        pass
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _lives(pid: int) -> bool:
    try:
        # Where it is our own child it stays as a zombie until somebody asks for it.
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _command_of(pid: int) -> str | None:
    """Return the module that a process runs, where the system tells; processes' numbers are used again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    return words[2].decode(errors="replace") if len(words) > 2 else ""
