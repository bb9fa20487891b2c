"""Values as text, tables in a pipe, JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from polyserve.cli.console import (
    Cell,
    Column,
    Console,
    age,
    clock,
    dump,
    duration,
    milliseconds,
    shares,
    short_age,
    size,
    stamp,
)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (82_140, "82.1 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"),
     (262_144_000, "262.1 MB"), (3 * 10**12, "3.0 TB"), (None, "-")],
)  # fmt: skip
def test_sizes_are_in_powers_of_a_thousand(count, expected):
    assert size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.00042, "0.42 ms"),
        (0.0123, "12 ms"),
        (1.26, "1.3 s"),
        (125, "2 min 5 s"),
        (3_660, "1 h 1 min"),
        (3_600, "1 h"),
        (120, "2 min"),
        (30, "30 s"),
        (None, "-"),
    ],
)
def test_durations_keep_the_unit_that_people_think_in(seconds, expected):
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("gone", "expected"),
    [(1, "just now"), (42, "42 seconds ago"), (60, "1 minute ago"), (7_300, "2 hours ago"), (200_000, "2 days ago")],
)
def test_ages_are_in_their_largest_unit(gone, expected):
    assert age(1_000_000.0, now=1_000_000.0 + gone) == expected


@pytest.mark.parametrize(("gone", "expected"), [(42, "42 s"), (60, "1 min"), (7_300, "2 h"), (200_000, "2 d")])
def test_ages_in_a_column_are_short(gone, expected):
    assert short_age(1_000_000.0, now=1_000_000.0 + gone) == expected


def test_a_time_that_never_was_has_no_age_and_no_stamp():
    assert (age(0.0), clock(0.0), stamp(0.0)) == ("-", "-", None)


@pytest.mark.parametrize(("amount", "expected"), [(0.417, "0.42"), (12.34, "12.3"), (1234.5, "1,234")])
def test_milliseconds_have_three_digits(amount, expected):
    assert milliseconds(amount) == expected


def test_shares_name_percent_and_revision_and_leave_out_nothings():
    assert shares({2: 10, 1: 90, 3: 0}) == "90 % to 1, 10 % to 2"
    assert shares({}) == "none"


def test_a_table_in_a_pipe_is_plain_aligned_text_without_trailing_spaces(capsys):
    Console().table(
        ["name", Column("count", right=True), "note"], [(Cell("a", "bold"), "1", ""), ("bcdef", "1000", "x\ny")]
    )

    assert capsys.readouterr().out == "name   count  note\na          1\nbcdef   1000  x y\n"


def test_with_json_nothing_else_gets_to_stdout(capsys):
    out = Console(as_json=True)
    out.line("a line")
    out.fields([("label", "value")])
    out.table(["title"], [("cell",)])
    out.next("polyserve list")
    out.json({"a": 1})

    assert capsys.readouterr().out == '{"a": 1}\n'


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    with Console().progress() as begin:
        begin("working").done("worked")

    assert capsys.readouterr() == ("", "")


def test_json_is_indented_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    Console(as_json=True).json({"a": 1})

    assert capsys.readouterr().out == '{\n  "a": 1\n}\n'


def test_everything_an_answer_may_hold_has_a_form_in_json():
    value = {
        "array": np.array([[1, 2], [3, 4]], dtype=np.int8),
        "numbers": [np.float32(0.5), math.nan, math.inf, True, None],
        "at": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "for": timedelta(seconds=1.5),
        "text": "é",
        "bytes": b"raw",
        1: Path("a/b"),
    }

    assert json.loads(dump(value)) == {
        "array": [[1, 2], [3, 4]],
        "numbers": [0.5, None, None, True, None],
        "at": "2026-01-31T12:00:00Z",
        "for": 1.5,
        "text": "é",
        "bytes": "raw",
        "1": "a/b",
    }


def test_what_has_no_form_in_json_is_named():
    with pytest.raises(TypeError, match="object has no form in JSON"):
        dump(object())


def test_what_is_wider_than_the_terminal_goes_on_below_itself(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    out = Console()

    out.fields([("left out", ", ".join(f"part {n} of 12.3 MB" for n in range(6))), ("url", "http://" + "x" * 80)])
    out.warn("it goes on and on " * 6)

    wide, narrow = (re.sub(r"\033\[[0-9;]*m", "", text) for text in capsys.readouterr())
    *lines, url = [line.rstrip() for line in wide.splitlines()]
    assert len(lines) > 1, wide
    assert max(map(len, (*lines, *narrow.splitlines()))) <= 60
    assert all(line.startswith(" " * 12) for line in lines[1:])
    assert url == "  url       http://" + "x" * 80
