"""Serve Google Cloud on loopback until SIGTERM or SIGINT: `python -m polyserve_gcp.emulator DIRECTORY`."""

from __future__ import annotations

import argparse
import sys

from polyserve.emulation.process import arguments, serve
from polyserve_gcp.emulator.limits import Limits
from polyserve_gcp.emulator.server import SETTLE_S, Emulator

ABOUT = "Serve Google Cloud on loopback until SIGTERM or SIGINT."
DEFAULTS = Limits()


def main() -> int:
    """Run the emulator in the foreground; returns the exit code."""
    parser = arguments("polyserve_gcp.emulator", ABOUT)
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
        help="most instances of a revision on this machine",
    )
    return serve(parser, _make, lambda emulator: {"grpc": emulator.grpc_address})


def _make(given: argparse.Namespace) -> Emulator:
    limits = Limits(idle_s=given.idle, instances=given.instances)
    return Emulator(given.directory, port=given.port, settle_s=given.settle, limits=limits)


if __name__ == "__main__":
    sys.exit(main())
