"""The process that an emulator is: `python -m MODULE DIRECTORY`, which tells in `ready.json` where it listens, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar


class Served(Protocol):
    """An emulator, as the process around it sees it."""

    @property
    def url(self) -> str:
        """Return where it listens."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the options with which its provider reaches it."""
        ...

    def start(self) -> None:
        """Start listening; an `OSError` says why it cannot."""
        ...

    def close(self) -> None:
        """Stop listening, and end whatever it started."""
        ...


AnyServed = TypeVar("AnyServed", bound=Served)


def arguments(module: str, about: str) -> argparse.ArgumentParser:
    """Return what every emulator's command line takes: a directory, and a port.

    Args:
        module: What is run, such as `polyserve_aws.emulator`.
        about: One sentence that the help begins with.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("directory", type=Path, help="where everything is kept")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one unless given")
    return parser


def serve(
    parser: argparse.ArgumentParser,
    make: Callable[[argparse.Namespace], AnyServed],
    tell: Callable[[AnyServed], Mapping[str, Any]] = lambda emulator: {},
) -> int:
    """Run an emulator in the foreground until a signal ends it; returns the exit code.

    Args:
        parser: What `arguments` returned, with what this emulator takes beside it.
        make: Makes the emulator, not yet started, out of what was given.
        tell: Returns what else is in `ready.json`, once it is started.
    """
    given = parser.parse_args()
    # Large objects overflow into temporary files; they too belong below the directory.
    temporary = given.directory.absolute() / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ready = given.directory / "ready.json"
    ready.unlink(missing_ok=True)  # of one that was killed
    emulator = make(given)
    try:
        emulator.start()
    except OSError as error:
        sys.stderr.write(f"the emulator cannot start: {error}\n")
        return 1
    try:
        making = given.directory / f".ready.{os.getpid()}"
        found = {"pid": os.getpid(), "url": emulator.url, "options": dict(emulator.options)} | dict(tell(emulator))
        making.write_text(json.dumps(found), encoding="utf-8")
        making.replace(ready)
        ended.wait()
    finally:
        ready.unlink(missing_ok=True)
        emulator.close()
    return 0
