"""`polyserve traffic`: show or split the traffic between revisions."""

from __future__ import annotations

import re

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console, shares


@click.command("traffic", short_help="Show or split the traffic.", epilog="Example: polyserve traffic iris 1=90 2=10")
@options.named
@click.argument("shares", nargs=-1, metavar="[REVISION=PERCENT]...")
@options.where
@options.json_output
def command(*, name: str, shares: tuple[str, ...], where: options.Where, as_json: bool) -> None:
    """Split the traffic of the deployment NAME between revisions; the percents sum to 100. Without any, show it."""
    from polyserve import api

    out = Console(as_json=as_json)
    weights = _weights(shares)
    with api.connect(name, **where) as deployment:
        if weights:
            deployment.traffic(weights)
        show(out, name, deployment.record.weights)


def show(out: Console, name: str, weights: dict[int, int]) -> None:
    """Write how the traffic of a deployment is split."""
    if out.as_json:
        out.json({"name": name, "weights": weights})
        return
    out.line(Cell(name, "bold"), f": {shares(weights)}")


def _weights(given: tuple[str, ...]) -> dict[int, int]:
    weights: dict[int, int] = {}
    for word in given:
        match = re.fullmatch(r"(\d+)=(\d+)%?", word)
        if match is None:
            raise click.BadParameter(f"{word!r} is not REVISION=PERCENT, such as 2=10", param_hint="REVISION=PERCENT")
        if int(match[1]) in weights:
            raise click.BadParameter(f"revision {match[1]} is there twice", param_hint="REVISION=PERCENT")
        weights[int(match[1])] = int(match[2])
    return weights
