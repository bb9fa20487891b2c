"""Serve Azure on loopback until SIGTERM or SIGINT: `python -m polyserve_azure.emulator DIRECTORY`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from polyserve_azure.emulator.limits import Limits
from polyserve_azure.emulator.server import SETTLE_S, Emulator

DEFAULTS = Limits()


def main() -> int:
    """Run the emulator in the foreground; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m polyserve_azure.emulator", description=__doc__)
    parser.add_argument("directory", type=Path, help="where everything is kept")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one unless given")
    parser.add_argument(
        "--settle", type=float, default=SETTLE_S, metavar="SECONDS", help="how long a long-running operation takes"
    )
    parser.add_argument(
        "--idle", type=float, default=DEFAULTS.idle_s, metavar="SECONDS", help="how long an idle instance is kept"
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=DEFAULTS.instances,
        metavar="N",
        help="most instances of an app on this machine",
    )
    parser.add_argument(
        "--broken-publish-succeeds", action="store_true", help="a deployment of an app that does not start is a success"
    )
    given = parser.parse_args()
    # Large objects overflow into temporary files; they too belong below the directory.
    temporary = given.directory.absolute() / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    limits = Limits(instances=given.instances, idle_s=given.idle, broken_publish_succeeds=given.broken_publish_succeeds)
    emulator = Emulator(given.directory, port=given.port, settle_s=given.settle, limits=limits)
    try:
        emulator.start()
    except OSError as error:
        sys.stderr.write(f"the emulator cannot start: {error}\n")
        return 1
    ready = given.directory / "ready.json"
    try:
        making = given.directory / f".ready.{os.getpid()}"
        making.write_text(
            json.dumps({"pid": os.getpid(), "url": emulator.url, "options": emulator.options}), encoding="utf-8"
        )
        making.replace(ready)
        ended.wait()
    finally:
        ready.unlink(missing_ok=True)
        emulator.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
