"""`polyserve promote`: give the canary all the traffic."""

from __future__ import annotations

import click

from polyserve.cli import options
from polyserve.cli.console import Console
from polyserve.cli.traffic import show


@click.command("promote", short_help="Give the canary all the traffic.")
@options.named
@options.where
@options.json_output
def command(*, name: str, where: options.Where, as_json: bool) -> None:
    """Give the canary of the deployment NAME all the traffic."""
    from polyserve import api

    with api.connect(name, **where) as deployment:
        deployment.promote()
        show(Console(as_json=as_json), name, deployment.record.weights)
