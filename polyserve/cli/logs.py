"""`polyserve logs`: what a deployment wrote."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console, clock, jsonable, milliseconds, size

if TYPE_CHECKING:
    from polyserve.driver import LogEvent


@click.command("logs", short_help="Show what a deployment wrote.")
@options.named
@click.option(
    "--follow", "-f", is_flag=True, help="Go on with what it writes from now on; Ctrl-C ends it, with exit code 0."
)
@options.since
@click.option("--requests/--no-requests", default=True, show_default=True, help="The line of every request, too.")
@click.option(
    "--platform/--no-platform",
    default=False,
    show_default=True,
    help="What the platform notes of its own accounts, too.",
)
@options.where
@options.json_output
def command(
    *,
    name: str,
    follow: bool,
    since: datetime | None,
    requests: bool,
    platform: bool,
    where: options.Where,
    as_json: bool,
) -> None:
    """Show what the deployment NAME wrote, oldest first: a line for every request and start, and whatever the model printed.

    With --json every line is one object: at, revision, instance, and either message or, for the runtime's own lines,
    event.
    """
    from polyserve import api
    from polyserve.metrics import request_line

    out = Console(as_json=as_json)
    with api.connect(name, **where) as deployment:
        try:
            for event in deployment.logs(since=since, follow=follow):
                if event.platform and not platform:
                    continue
                line = request_line(event.message)
                if not requests and line is not None and line["event"] == "request":
                    continue
                if as_json:
                    out.json_line(_object(event, line))
                else:
                    out.line(*_cells(event, line), flush=follow)
        except KeyboardInterrupt:
            # The way to end following, not an interruption of anything.
            if not follow:
                raise


def _object(event: LogEvent, line: dict[str, Any] | None) -> dict[str, Any]:
    said: dict[str, Any] = {"message": event.message} if line is None else {"event": line}
    return {"at": jsonable(event.at), "revision": event.revision or None, "instance": event.instance or None, **said}


def _cells(event: LogEvent, line: dict[str, Any] | None) -> list[str | Cell]:
    at = clock(event.at.timestamp())
    cells: list[str | Cell] = [Cell(f"{at}  ", "dim")]
    number = event.revision or (int(line.get("revision") or 0) if line else 0)
    if number:
        cells.append(Cell(f"r{number}  ", "cyan"))
    if line is None:
        return [*cells, event.message]
    match line["event"]:
        case "request":
            return [*cells, *_request(line)]
        case "start":
            return [*cells, Cell("start  ", "green"), _start(line)]
        case "traceback":
            text = str(line.get("traceback") or line.get("message") or event.message).rstrip()
            return [*cells, Cell("traceback of request ", "red"), str(line.get("request_id", "")), f"\n{text}"]
        case _:
            return [*cells, event.message]


def _start(line: dict[str, Any]) -> str:
    """Say what a start took, and where."""
    imports, model, fetch = (milliseconds(float(line.get(f"{what}_ms") or 0)) for what in ("import", "load", "fetch"))
    read = f"{size(int(line.get('fetched_bytes') or 0))} from the bucket {fetch} ms, " if line.get("fetch_ms") else ""
    return f"{read}imports {imports} ms, model {model} ms"


def _request(line: dict[str, Any]) -> list[str | Cell]:
    status = int(line.get("status") or 0)
    cells: list[str | Cell] = [
        Cell(f"{status} ", "green" if status < 400 else "red"),
        f"{line.get('route', '')}  {milliseconds(float(line.get('ms') or 0))} ms",
    ]
    rows, batch = int(line.get("rows") or 0), int(line.get("batch") or 0)
    if rows:
        cells.append(f"  {rows} row{'' if rows == 1 else 's'}")
    if batch > 1:
        cells.append(Cell(f"  in a batch of {batch}", "dim"))
    if line.get("cold"):
        cells.append(Cell("  cold", "yellow"))
    if line.get("code"):
        cells.append(Cell(f"  {line['code']}: {line.get('error', '')}".rstrip(": "), "red"))
    return cells
