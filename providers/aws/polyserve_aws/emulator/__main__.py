"""Serve AWS on loopback until SIGTERM or SIGINT: `python -m polyserve_aws.emulator DIRECTORY`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from polyserve_aws.emulator.server import IDLE_S, SETTLE_S, Emulator


def main() -> int:
    """Run the emulator in the foreground; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m polyserve_aws.emulator", description=__doc__)
    parser.add_argument("directory", type=Path, help="where everything is kept")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one unless given")
    parser.add_argument(
        "--settle", type=float, default=SETTLE_S, metavar="SECONDS", help="how long a function is Pending"
    )
    parser.add_argument(
        "--idle", type=float, default=IDLE_S, metavar="SECONDS", help="how long an idle environment is kept"
    )
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
    emulator = Emulator(given.directory, port=given.port, settle_s=given.settle, idle_s=given.idle)
    try:
        emulator.start()
    except OSError as error:
        sys.stderr.write(f"the emulator cannot start: {error}\n")
        return 1
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
