"""The command line: `polyserve`. One command per file, imported when it is run.

Every command is a few lines over `polyserve.api`: it reads its options, calls one portable verb and shows what came
back. Nothing here knows a driver, an SDK or a file format of the core. The rules all commands keep are in
`polyserve.cli.program` (errors, exit codes, Ctrl-C) and `polyserve.cli.console` (what goes to stdout and what to
stderr).
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of this process, and end the process with its exit code."""
    from polyserve.cli.program import polyserve

    polyserve(prog_name="polyserve")
