"""What instances wrote, merged by time as it is read: nothing but the current line of each file is in memory."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path

from polyserve.driver import LogEvent

KEPT = 50
"""Most logs of ended instances that are kept for a function."""


def merged(directory: Path, since: datetime | None) -> Iterator[LogEvent]:
    """Yield the lines of all logs in a directory, oldest first.

    A line that is JSON has its own time, `at`; any other has that of the line before it.
    """
    earliest = 0.0 if since is None else since.timestamp()
    # A file that was last written before then has nothing to tell.
    logs = [path for path in sorted(directory.glob("*.log")) if _newest(path) >= earliest]
    for at, _, line, revision, instance in heapq.merge(*(_lines(path) for path in logs)):
        if at >= earliest:
            moment = datetime.fromtimestamp(at, UTC)
            yield LogEvent(at=moment, message=line, revision=revision, instance=instance)


def prune(directory: Path, running: AbstractSet[str], log_bytes: int) -> None:
    """Remove the oldest logs of ended instances: more than `KEPT` of them, or more than five full logs together.

    Args:
        directory: Logs of one function.
        running: Logs that are still written.
        log_bytes: Size of one full log.
    """
    ended = [path for path in directory.glob("*.log") if str(path) not in running]
    size = 0
    for count, path in enumerate(sorted(ended, key=_newest, reverse=True)):
        parts = (path, path.with_name(f"{path.name}.1"))
        size += sum(part.stat().st_size for part in parts if part.exists())
        if count and (count >= KEPT or size > 5 * log_bytes):
            for part in parts:
                part.unlink(missing_ok=True)


def _newest(path: Path) -> float:
    try:
        return path.stat().st_mtime + 1.0
    except FileNotFoundError:
        return 0.0


def _lines(path: Path) -> Iterator[tuple[float, str, str, int, str]]:
    number, _, instance = path.stem.partition("-")
    at = 0.0
    for part in (path.with_name(f"{path.name}.1"), path):
        try:
            with part.open("rb") as file:
                if not at:
                    at = file_start(part)
                for raw in file:
                    line = raw.decode(errors="replace").rstrip("\n")
                    if line:
                        # Never back: a log stays in the order it was written in.
                        at = max(at, _stamp(line) or at)
                        yield at, path.name, line, int(number), instance
        except FileNotFoundError:
            continue


def file_start(path: Path) -> float:
    """Return the first time that a log tells: what stands before it was written just before; its last change where it tells none."""
    with path.open("rb") as file:
        for _, raw in zip(range(200), file, strict=False):
            at = _stamp(raw.decode(errors="replace"))
            if at is not None:
                return at
    return path.stat().st_mtime


def _stamp(line: str) -> float | None:
    if not line.startswith("{"):
        return None
    try:
        at = json.loads(line).get("at")
    except ValueError:
        return None
    return float(at) if isinstance(at, int | float) else None
