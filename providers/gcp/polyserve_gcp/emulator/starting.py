"""How a function's instance is made of a placeholder, which has what functions-framework imports, and when it is not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyserve.emulation.placeholders import Placeholders, Process, command_of

PROGRAM = Path(__file__).with_name("placeholder.py")
LOCALE = "C.UTF-8"
ARGUMENTS = 65_536
"""Size of all variables, in characters, from which on only the system can say whether a process starts with them."""
_READ_AT_START = ("PYTHON", "LD_", "LC_", "GLIBC_", "MALLOC", "OPENSSL", "GCONV_PATH", "LOCPATH")
"""What variables begin with that Python, or the libraries that it stands on, read when it starts."""
_OWN = frozenset({"PYTHONPATH"})
"""Those of them that a placeholder starts with, too."""


async def copy(
    placeholders: Placeholders, command: Sequence[str], root: Path, variables: Mapping[str, str], outputs: Sequence[int]
) -> Process | None:
    """Make an instance of a placeholder; returns `None` where it has to be started from nothing.

    Args:
        placeholders: All there are.
        command: The interpreter, functions-framework's script, and its arguments.
        root: Where the instance runs.
        variables: All environment variables of the process.
        outputs: Descriptors of where it prints; stay open here.
    """
    if sys.platform != "linux" or not _same_start(variables):
        return None
    python, script, *_ = command
    # Without a home, Python asks for one with a module that an instance has no need of.
    needed = {"HOME": "/", **{name: variables[name] for name in ("LANG", *_OWN)}}
    plan = _written({"command": list(command), "root": str(root), "variables": dict(variables)})
    try:
        return await placeholders.take(command_of([python], PROGRAM, script), needed, [plan, *outputs])
    except OSError:
        return None
    finally:
        os.close(plan)


def _written(plan: Mapping[str, object]) -> int:
    """Return a descriptor from which a plan is read: nobody has to wait until it is."""
    made = os.memfd_create("plan")
    with open(made, "w", encoding="utf-8", closefd=False) as file:
        json.dump(plan, file)
    os.lseek(made, 0, os.SEEK_SET)
    return made


def _same_start(variables: Mapping[str, str]) -> bool:
    """Whether Python starts with these variables as a placeholder has."""
    if variables.get("LANG") != LOCALE or sum(map(len, (*variables, *variables.values()))) > ARGUMENTS:
        return False
    return not any(name.startswith(_READ_AT_START) and name not in _OWN for name in variables)
