"""`polyserve status`: a deployment as its record and its platform see it now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, age, shares, short_age
from polyserve.cli.list import PHASES, described, parts_table, phase, running

if TYPE_CHECKING:
    from polyserve.deployment import DeploymentStatus
    from polyserve.records import Revision

STATES = {"verified": "green", "pending": "yellow", "failed": "red"}


@click.command("status", short_help="Show a deployment.")
@options.named
@options.where
@options.json_output
def command(*, name: str, where: options.Where, as_json: bool) -> None:
    """Show the deployment NAME: where it is, its traffic, its revisions and what runs."""
    from polyserve import api

    out = Console(as_json=as_json)
    with api.connect(name, **where) as deployment:
        status = deployment.status()
    if as_json:
        out.json(described(status))
        return
    record, count = status.record, running(status)
    if record.parts:
        _show_group(out, status)
        return
    most = "the platform's limit" if record.scaling.max_instances is None else str(record.scaling.max_instances)
    now = "" if count is None else f", {count} running"
    out.line(Cell(record.name, "bold"), f" on {record.provider}, ", phase(status))
    out.fields(
        [
            ("url", status.url or "-"),
            ("traffic", shares(record.weights)),
            ("instances", f"{record.scaling.min_instances} to {most}{now}"),
            ("changed", age(record.updated_at)),
        ]
    )
    out.line()
    out.table(
        [
            Column("revision", right=True),
            "state",
            Column("traffic", right=True),
            "phase",
            Column("running", right=True),
            "package",
            Column("memory", right=True),
            Column("age", right=True),
        ],
        [_row(status, revision) for revision in record.revisions],
    )
    for revision in record.revisions:
        if revision.state == "failed" and revision.reason:
            out.line(Cell(f"revision {revision.number} failed: ", "red"), revision.reason)
    if record.lease is not None and record.lease.held():
        out.line(Cell("being changed: ", "yellow"), f"{record.lease.operation} by process {record.lease.pid}")
    elif not status.in_step:
        out.line(
            Cell("not in step: ", "yellow"),
            "the platform does not route as recorded; repeat the last command to mend it",
        )


def _show_group(out: Console, status: DeploymentStatus) -> None:
    record, count = status.record, running(status)
    out.line(Cell(record.name, "bold"), f" on {record.provider}, a group of {len(record.parts)} parts, ", phase(status))
    group = record.group
    out.fields(
        [
            ("package", group.package_digest[:12] if group else "none that is ready: repeat the deploy"),
            ("runs", f"in {group.combining['how']}" if group else "-"),
            ("instances", "-" if count is None else f"{count} running"),
            ("changed", age(record.updated_at)),
        ]
    )
    out.line()
    parts_table(out, status)
    if not status.in_step:
        out.line(
            Cell("not in step: ", "yellow"), "a part is missing or serves another version; repeat the deploy to mend it"
        )


def _row(status: DeploymentStatus, revision: Revision) -> tuple[str | Cell, ...]:
    native = status.function.revision(revision.number) if status.function else None
    share = status.record.weights.get(revision.number, 0)
    seen = native.phase.value if native else "-"
    return (
        str(revision.number),
        Cell(revision.state, STATES.get(revision.state, "")),
        f"{share} %" if share else "-",
        Cell(seen, PHASES.get(seen, "")),
        "-" if native is None or native.instances is None else str(native.instances),
        Cell(revision.package_digest[:12], "dim"),
        f"{revision.memory_mb} MB",
        Cell(short_age(revision.created_at), "dim"),
    )
