"""`polyserve history`: what was done to a deployment."""

from __future__ import annotations

from dataclasses import asdict

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, clock, compact, stamp


@click.command("history", short_help="Show what was deployed when.")
@options.named
@options.where
@options.json_output
def command(*, name: str, where: options.Where, as_json: bool) -> None:
    """Show what was done to the deployment NAME, oldest first: deploys, canaries, rollbacks, scaling."""
    from polyserve import api

    out = Console(as_json=as_json)
    with api.connect(name, **where) as deployment:
        entries = deployment.history()
    if as_json:
        out.json([asdict(entry) | {"at": stamp(entry.at), "revision": entry.revision or None} for entry in entries])
        return
    out.table(
        ["when", "what", Column("revision", right=True), Column("traffic", fold=True), Column("note", fold=True)],
        [
            (
                Cell(clock(entry.at), "dim"),
                Cell(entry.action, "red" if "failed" in entry.action else ""),
                str(entry.revision or "-"),
                compact(entry.weights),
                entry.note,
            )
            for entry in entries
        ],
    )
