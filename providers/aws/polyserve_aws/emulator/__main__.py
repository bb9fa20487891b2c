"""Serve AWS on loopback until SIGTERM or SIGINT: `python -m polyserve_aws.emulator DIRECTORY`."""

from __future__ import annotations

import argparse
import sys

from polyserve.emulation.process import arguments, serve
from polyserve_aws.emulator.server import IDLE_S, SETTLE_S, Emulator


def make(given: argparse.Namespace) -> Emulator:
    """Return the emulator that was asked for."""
    return Emulator(given.directory, port=given.port, settle_s=given.settle, idle_s=given.idle)


def main() -> int:
    """Run the emulator in the foreground; returns the exit code."""
    parser = arguments("polyserve_aws.emulator", "Serve AWS on loopback until SIGTERM or SIGINT.")
    parser.add_argument(
        "--settle", type=float, default=SETTLE_S, metavar="SECONDS", help="how long a function is Pending"
    )
    parser.add_argument(
        "--idle", type=float, default=IDLE_S, metavar="SECONDS", help="how long an idle environment is kept"
    )
    return serve(parser, make)


if __name__ == "__main__":
    sys.exit(main())
