"""How many threads a model may answer with, said in one place for every framework.

One, unless `OMP_NUM_THREADS` says otherwise: a function has a core or less, more instances are what answers more callers, and waking
another thread takes longer than a row. It is the variable that numpy's libraries read already, so one setting reaches all of them.
"""

from __future__ import annotations

import os

__all__ = ["VARIABLE", "threads"]

VARIABLE = "OMP_NUM_THREADS"
"""The environment variable that allows more; a list, for nested teams of threads, counts by its first number."""


def threads() -> int:
    """Return how many threads a model may use.

    Raises:
        ValueError: The variable does not begin with a number of at least 1.
    """
    told = os.environ.get(VARIABLE, "").strip() or "1"
    first = told.partition(",")[0].strip()
    if not first.isascii() or not first.isdecimal() or int(first) < 1:
        raise ValueError(f"{VARIABLE}={told!r} is no number of threads: set it to 1 or more, or leave it out for 1")
    return int(first)
