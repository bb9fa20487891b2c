"""Serve Azure on loopback until SIGTERM or SIGINT: `python -m polyserve_azure.emulator DIRECTORY`."""

from __future__ import annotations

import argparse
import sys

from polyserve.emulation.process import arguments, serve
from polyserve_azure.emulator.limits import Limits
from polyserve_azure.emulator.server import SETTLE_S, Emulator

DEFAULTS = Limits()


def make(given: argparse.Namespace) -> Emulator:
    """Return the emulator that was asked for."""
    limits = Limits(instances=given.instances, idle_s=given.idle, broken_publish_succeeds=given.broken_publish_succeeds)
    return Emulator(given.directory, port=given.port, settle_s=given.settle, limits=limits)


def main() -> int:
    """Run the emulator in the foreground; returns the exit code."""
    parser = arguments("polyserve_azure.emulator", "Serve Azure on loopback until SIGTERM or SIGINT.")
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
    return serve(parser, make)


if __name__ == "__main__":
    sys.exit(main())
