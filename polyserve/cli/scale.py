"""`polyserve scale`: how many instances there may be."""

from __future__ import annotations

from dataclasses import asdict

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console


@click.command("scale", short_help="Set how many instances there may be.")
@options.named
@click.option("--min", "min_instances", type=int, metavar="N", help="Instances kept warm; 0 scales to zero.")
@click.option("--max", "max_instances", type=int, metavar="N", help="Most instances.")
@options.where
@options.json_output
def command(
    *,
    name: str,
    min_instances: int | None,
    max_instances: int | None,
    where: options.Where,
    as_json: bool,
) -> None:
    """Set how many instances the deployment NAME may have, in place. A bound that is not given stays."""
    from polyserve import api

    if min_instances is None and max_instances is None:
        raise click.UsageError("give --min, --max or both", click.get_current_context())
    out = Console(as_json=as_json)
    with api.connect(name, **where) as deployment:
        scaling = deployment.scale(min_instances=min_instances, max_instances=max_instances)
    if as_json:
        out.json({"name": name, **asdict(scaling)})
        return
    most = "the platform's limit" if scaling.max_instances is None else str(scaling.max_instances)
    out.line(Cell(name, "bold"), f": {scaling.min_instances} to {most} instances")
