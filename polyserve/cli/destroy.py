"""`polyserve destroy`: delete a deployment and all that belongs to it."""

from __future__ import annotations

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console
from polyserve.cli.exit_codes import FAILED


@click.command("destroy", short_help="Delete a deployment.")
@options.named
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.where
@options.json_output
@click.pass_context
def command(ctx: click.Context, /, *, name: str, yes: bool, where: options.Where, as_json: bool) -> None:
    """Delete the deployment NAME: function, instances, bundles, logs and record. Nothing is left, and nothing can bring it back.

    Asks first on a terminal. Where nobody can be asked (a pipe, a script, --json) it is refused without --yes.
    """
    from polyserve import api
    from polyserve.errors import InvalidArgumentError

    out = Console(as_json=as_json)
    if not yes:
        if as_json or not out.asks():
            message = f"destroy {name!r} cannot be undone, and there is no terminal to ask on: repeat it with --yes"
            raise InvalidArgumentError(message, operation="destroy", resource=name)
        if not out.confirm(f"Destroy {name!r} with all its revisions, logs and history?"):
            out.line("nothing was changed")
            ctx.exit(FAILED)
    with out.progress() as begin:
        step = begin(f"destroying {name}")
        api.destroy(name, **where)
        step.drop()
    if as_json:
        out.json({"name": name, "destroyed": True})
        return
    out.line(Cell(name, "bold"), ": destroyed, nothing is left")
