"""`polyserve rollback`: give an earlier revision all the traffic."""

from __future__ import annotations

import click

from polyserve.cli import options
from polyserve.cli.console import Console
from polyserve.cli.traffic import show


@click.command("rollback", short_help="Give an earlier revision all the traffic.")
@options.named
@click.option("--to", type=click.IntRange(min=1), metavar="REVISION", help="This revision, however old.")
@options.where
@options.json_output
def command(*, name: str, to: int | None, where: options.Where, as_json: bool) -> None:
    """Take the traffic of the deployment NAME back.

    While a canary runs, its share goes back to the stable revision; else all the traffic goes to the revision that
    had it before.
    """
    from polyserve import api

    with api.connect(name, **where) as deployment:
        deployment.rollback(to=to)
        show(Console(as_json=as_json), name, deployment.record.weights)
