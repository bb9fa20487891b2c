"""`polyserve list`: the deployments of a provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, compact, short_age, stamp

if TYPE_CHECKING:
    from polyserve.deployment import DeploymentStatus

PHASES = {"ready": "green", "provisioning": "yellow", "deleting": "yellow", "failed": "red", "missing": "red"}
"""Colour of a deployment's or revision's phase."""


@click.command("list", short_help="List the deployments.")
@options.where
@options.json_output
def command(*, where: options.Where, as_json: bool) -> None:
    """List the deployments of a provider: --provider, or the one of the settings."""
    from polyserve import api

    out = Console(as_json=as_json)
    found = api.list_deployments(**where)
    if as_json:
        out.json([described(status) for status in found])
        return
    if not found:
        out.line("no deployments yet")
        out.next(f"polyserve demo{options.spelt(where)}", f"polyserve deploy MODEL{options.spelt(where)}")
        return
    out.table(
        [
            Column("name", fold=True),
            "phase",
            Column("traffic", fold=True),
            Column("running", right=True),
            Column("changed", right=True),
            Column("url", fold=True),
        ],
        [_row(s) for s in found],
    )


def described(status: DeploymentStatus) -> dict[str, Any]:
    """Return a status as JSON-able values, with times as all commands write them."""
    shown = status.to_dict()
    revisions = [each | {"created_at": stamp(each["created_at"])} for each in shown["revisions"]]
    return shown | {"revisions": revisions, "updated_at": stamp(shown["updated_at"])}


def running(status: DeploymentStatus) -> int | None:
    """Return how many instances run now, or `None` where the platform does not tell."""
    counts = [r.instances for r in status.function.revisions if r.instances is not None] if status.function else []
    counts += [count for part in status.parts if (count := running(part)) is not None]
    return sum(counts) if counts else None


def phase(status: DeploymentStatus) -> Cell:
    """Return where a deployment is in its life, in colour."""
    return Cell(status.phase, PHASES.get(status.phase, ""))


def parts_table(out: Console, status: DeploymentStatus) -> None:
    """Write a table of the parts of a group."""
    out.table(
        ["part", "phase", "package", Column("running", right=True), Column("url", fold=True)],
        [
            (
                part.record.name,
                phase(part),
                Cell(part.record.stable.package_digest[:12] if part.record.stable else "-", "dim"),
                "-" if (count := running(part)) is None else str(count),
                part.url or "-",
            )
            for part in status.parts
        ],
    )


def _row(status: DeploymentStatus) -> tuple[str | Cell, ...]:
    record, count = status.record, running(status)
    return (
        Cell(record.name, "bold"),
        phase(status),
        f"{len(record.parts)} parts" if record.parts else compact(record.weights),
        "-" if count is None else str(count),
        Cell(short_age(record.updated_at), "dim"),
        status.url or "-",
    )
