"""Logs of instances that have ended: the newest are kept, within a number and a size."""

from __future__ import annotations

import os
from pathlib import Path

from polyserve_local.lines import KEPT, prune


def write(directory: Path, count: int, size: int) -> None:
    for number in range(count):
        path = directory / f"1-{number:04d}.log"
        path.write_bytes(b"x" * size)
        os.utime(path, (number, number))


def test_a_month_of_starts_keeps_the_newest_logs_only(tmp_path: Path) -> None:
    write(tmp_path, KEPT + 30, 10)
    prune(tmp_path, set(), 10_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1-{n:04d}.log" for n in range(30, KEPT + 30)]


def test_large_logs_are_removed_before_there_are_many(tmp_path: Path) -> None:
    write(tmp_path, 20, 1000)
    prune(tmp_path, set(), 1000)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_log_that_is_still_written_stays_however_old_it_is(tmp_path: Path) -> None:
    write(tmp_path, KEPT + 5, 10)
    oldest = tmp_path / "1-0000.log"
    prune(tmp_path, {str(oldest)}, 10_000)
    assert oldest.exists()
