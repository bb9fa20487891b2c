"""What the operating system knows of a process: who it is, how much memory it holds, and how it is ended.

A pid alone is no identity: it is given to another process after the first one ended. A pid and the time its process started are.
Linux tells through /proc; macOS through `ps`, which costs some milliseconds and rounds the start to a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = sys.platform == "linux"


def started_at(pid: int) -> str | None:
    """Return an opaque stamp of when a process started; `None` where it does not run (a zombie does not)."""
    if _PROC:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The command's name may hold spaces and brackets: count from the last bracket.
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in {b"Z", b"X"} else fields[19].decode()
    state = _ps(pid, "state=")
    return None if not state or state.startswith("Z") else _ps(pid, "lstart=") or None


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds, in bytes; 0 where it does not run."""
    if _PROC:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE
        except (FileNotFoundError, ProcessLookupError, IndexError):
            return 0
    answer = _ps(pid, "rss=")
    return int(answer) * 1024 if answer.isdigit() else 0


def kill(pid: int, started: str | None) -> None:
    """End a process and all of its group at once, if it still is the one that started then."""
    if started is None or started_at(pid) != started:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Instances lead their own group, so that what a model has forked ends with it.
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def _ps(pid: int, column: str) -> str:
    found = subprocess.run(["/bin/ps", "-o", column, "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()
