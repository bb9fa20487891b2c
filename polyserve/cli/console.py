"""What goes to stdout and to stderr, and how it looks there.

- Stdout has what was asked for, and nothing else: a table or fields for people, or with `--json` one JSON value
  (indented on a terminal, one line in a pipe; `logs --json` writes one object per line). Numbers carry their unit in
  their name: `_bytes`, `_ms`, `_seconds`; times are RFC 3339.
- Stderr has progress, and only where it is a terminal; questions; errors.
- On a terminal rich lays the tables out, with a little colour (not with NO_COLOR or TERM=dumb). In a pipe the same
  columns are plain aligned text and rich is not even imported.

Knows no command and no part of the core.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.console import Console as RichConsole


class Cell(NamedTuple):
    """A text with a style: a word of rich such as `"green"` or `"dim"`."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column of a table. Where the terminal is too narrow, those that `fold` break their lines; nothing is cut off."""

    title: str
    right: bool = False
    fold: bool = False


class Console:
    """The output of one command.

    Args:
        as_json: Whether stdout is for a program: then only `json` and `json_line` write to it.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._rich_console: RichConsole | None = None

    # --- stdout ---

    def json(self, value: object) -> None:
        """Write one JSON value: the whole output of a command."""
        sys.stdout.write(dump(value, indent=2 if sys.stdout.isatty() else None) + "\n")

    def json_line(self, value: object) -> None:
        """Write one JSON value as one line of many, at once."""
        sys.stdout.write(dump(value) + "\n")
        sys.stdout.flush()

    def line(self, *cells: str | Cell, flush: bool = False) -> None:
        """Write a line of text; with `flush` at once, for a reader that waits for it."""
        if self.as_json:
            return
        if fancy(sys.stdout):
            self._rich().print(_text(*cells), soft_wrap=True)
        else:
            sys.stdout.write("".join(cell if isinstance(cell, str) else cell.text for cell in cells).rstrip() + "\n")
        if flush:
            sys.stdout.flush()

    def table(self, columns: Sequence[str | Column], rows: Sequence[Sequence[str | Cell]]) -> None:
        """Write a table; nothing where it has no rows."""
        if self.as_json or not rows:
            return
        heads = [column if isinstance(column, Column) else Column(column) for column in columns]
        if fancy(sys.stdout):
            self._rich().print(_rich_table(heads, rows))
            return
        lines = [[head.title for head in heads], *([_plain(cell) for cell in row] for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        for line in lines:
            cells = [
                text.rjust(width) if head.right else text.ljust(width)
                for text, width, head in zip(line, widths, heads, strict=True)
            ]
            sys.stdout.write("  ".join(cells).rstrip() + "\n")

    def fields(self, pairs: Sequence[tuple[str, str | Cell]]) -> None:
        """Write labelled values below each other."""
        width = max((len(label) for label, _ in pairs), default=0)
        for label, value in pairs:
            text = value if isinstance(value, str) else value.text
            rest = "\n".join(_broken(text, width + 4, sys.stdout))
            self.line(
                Cell(f"  {label.ljust(width)}  ", "dim"), rest if isinstance(value, str) else Cell(rest, value.style)
            )

    def next(self, *commands: str) -> None:
        """Write the commands that people usually want next; on a terminal only, as a pipe has no use for them."""
        if self.as_json or not sys.stdout.isatty():
            return
        for position, command in enumerate(commands):
            self.line(Cell("next: " if position == 0 else "      ", "dim"), Cell(command, "cyan"))

    def _rich(self) -> RichConsole:
        if self._rich_console is None:
            from rich.console import Console as RichConsole

            self._rich_console = RichConsole(file=sys.stdout, highlight=False)
        return self._rich_console

    # --- stderr ---

    def warn(self, message: str) -> None:
        """Write a warning to stderr, whatever it is."""
        prefix = "\033[33mwarning:\033[0m" if fancy(sys.stderr) and not os.environ.get("NO_COLOR") else "warning:"
        indent = len("warning: ")
        lines = _broken(message, indent, sys.stderr)
        sys.stderr.write(f"{prefix} " + "\n".join(lines) + "\n")

    def confirm(self, question: str) -> bool:
        """Ask a question on the terminal; everything but yes is no. Only where `asks()`."""
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def asks(self) -> bool:
        """Return whether there is a person to ask."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], Step]]:
        """Show steps as they are done, on stderr where it is a terminal; yields a function that begins a step and returns it."""
        if not fancy(sys.stderr):
            yield Step
            return
        from rich.console import Console as RichConsole

        console = RichConsole(stderr=True, highlight=False)
        steps: list[_ShownStep] = []

        def begin(title: str) -> Step:
            step = _ShownStep(title, console)
            steps.append(step)
            return step

        try:
            yield begin
        finally:
            # Whatever is still turning was broken off by an error: its line goes, the error follows.
            for step in steps:
                step.drop()


class Step:
    """A step of something long; the silent kind."""

    def __init__(self, title: str) -> None:
        self.title = title

    def note(self, words: str) -> None:
        """Say how far it is."""

    def done(self, note: str = "", *, seconds: float | None = None) -> None:
        """End the step, with what came of it."""

    def drop(self) -> None:
        """End the step without a word."""


class _ShownStep(Step):
    """A step that turns while it is at work and leaves one line behind."""

    def __init__(self, title: str, console: RichConsole) -> None:
        super().__init__(title)
        self._console = console
        self._began = time.perf_counter()
        self._status = console.status(self._line(title), spinner="dots", spinner_style="cyan")
        self._status.start()
        self._turning = True

    def _line(self, words: str) -> Any:
        # One line at most: the place of the spinner and its space are taken off.
        width = self._console.width
        return _text(Cell(words if len(words) < width - 3 else f"{words[: width - 4]}…", "dim"))

    def note(self, words: str) -> None:
        if self._turning:
            self._status.update(self._line(words))

    def done(self, note: str = "", *, seconds: float | None = None) -> None:
        if not self._turning:
            return
        self.drop()
        took = time.perf_counter() - self._began if seconds is None else seconds
        text = _text(Cell("✓ ", "green"), Cell(f"{duration(took):>8}  ", "dim"), note or self.title)
        self._console.print(text, overflow="ellipsis", no_wrap=True)

    def drop(self) -> None:
        """Stop turning and leave nothing behind."""
        if self._turning:
            self._status.stop()
            self._turning = False


def fancy(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can do more than print lines. NO_COLOR is rich's to respect: layout stays, colours go."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def _broken(text: str, indent: int, stream: TextIO) -> list[str]:
    """Return a text in lines that fit a terminal, the later ones indented; broken between words only, so that a path stays whole."""
    width = max(40, shutil.get_terminal_size().columns)
    if not stream.isatty() or len(text) + indent <= width:
        return [text]
    lines = textwrap.wrap(text, width - indent, break_long_words=False, break_on_hyphens=False)
    return [lines[0], *(" " * indent + line for line in lines[1:])]


def _plain(cell: str | Cell) -> str:
    text = cell if isinstance(cell, str) else cell.text
    return text.replace("\n", " ")


def _text(*cells: str | Cell) -> Any:
    from rich.text import Text

    text = Text()
    for cell in cells:
        text.append(cell if isinstance(cell, str) else cell.text, style="" if isinstance(cell, str) else cell.style)
    return text


def _rich_table(heads: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for place, head in enumerate(heads):
        table.add_column(
            head.title,
            justify="right" if head.right else "left",
            no_wrap=not head.fold,
            overflow="fold",
            min_width=None if head.fold else max(len(head.title), *(len(_plain(row[place])) for row in rows)),
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    return table


# --- values as text ---


def size(count: int | None) -> str:
    """Return a number of bytes for people, in powers of 1000: `82.1 kB`."""
    if count is None:
        return "-"
    if count < 1000:
        return f"{count} B"
    # 999.95 would be printed as 1000.0
    power = next((power for power in (1, 2, 3) if count / 1000**power < 999.95), 4)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def duration(seconds: float | None) -> str:
    """Return a duration for people: `0.42 ms`, `12 ms`, `1.3 s`, `2 min 5 s`."""
    if seconds is None:
        return "-"
    if seconds < 0.01:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def milliseconds(amount: float) -> str:
    """Return milliseconds for a column of them: three significant digits, no unit."""
    return f"{amount:.2f}" if amount < 10 else f"{amount:.1f}" if amount < 100 else f"{amount:,.0f}"


_AGES = ((86_400, "day"), (3_600, "hour"), (60, "minute"))


def age(at: float, now: float | None = None) -> str:
    """Return how long ago a Unix time was, for people: `3 minutes ago`; `-` for zero."""
    if not at:
        return "-"
    gone = max(0.0, (time.time() if now is None else now) - at)
    for unit, word in _AGES:
        if gone >= unit:
            count = int(gone // unit)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "just now" if gone < 10 else f"{int(gone)} seconds ago"


def short_age(at: float, now: float | None = None) -> str:
    """Return how long ago a Unix time was, for a column: `3 min`; `-` for zero."""
    if not at:
        return "-"
    gone = max(0.0, (time.time() if now is None else now) - at)
    for unit, word in _AGES:
        if gone >= unit:
            return f"{int(gone // unit)} {word[:3] if unit == 60 else word[0]}"
    return f"{int(gone)} s"


def clock(at: float) -> str:
    """Return a Unix time as local date and time, to the second."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "-"


def stamp(at: float) -> str | None:
    """Return a Unix time in RFC 3339, UTC, for `--json`; `None` for zero."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z") if at else None


def shares(weights: Mapping[int, int]) -> str:
    """Return traffic weights for people: `100 % to 3`, `90 % to 1, 10 % to 2`."""
    return ", ".join(f"{percent} % to {number}" for number, percent in sorted(weights.items()) if percent) or "none"


def compact(weights: Mapping[int, int]) -> str:
    """Return traffic weights for a column, as `polyserve traffic` takes them: `1=90 2=10`."""
    return " ".join(f"{number}={percent}" for number, percent in sorted(weights.items()) if percent) or "-"


def dump(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON. NaN and infinities, which JSON has no word for, become `null`."""
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, indent=indent)


def jsonable(value: object) -> Any:
    """Return a value in the types of JSON.

    numpy and pandas go through their own `tolist` and `to_dict`, times become RFC 3339, durations seconds.

    Raises:
        TypeError: It has no form in JSON.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if hasattr(value, "columns") and hasattr(value, "to_dict"):
        return jsonable(value.to_dict(orient="list"))
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return _scalar(value)


def _scalar(value: object) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return value.decode(errors="replace")
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case timedelta():
            return value.total_seconds()
        case Path():
            return str(value)
        case None | bool() | int() | str():
            return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")
