"""`polyserve diff`: whether deployments of one name answer alike on several providers."""

from __future__ import annotations

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console
from polyserve.cli.exit_codes import FAILED


@click.command("diff", short_help="Compare a deployment on several providers.")
@options.named
@click.option("--providers", required=True, metavar="A,B,...", help="The providers to compare, two at least.")
@click.option("--profile", metavar="NAME", help="Named settings of polyserve.toml.")
@options.emulate
@options.json_output
@click.pass_context
def command(
    ctx: click.Context, /, *, name: str, providers: str, profile: str | None, emulate: bool | None, as_json: bool
) -> None:
    """Compare the deployments NAME of several providers: package, answer to the golden sample, errors for bad requests.

    An answer is shown as its status and a digest of its bytes. Exits with 1 where one differs.

    Example: polyserve diff iris --providers aws,azure,gcp
    """
    from polyserve import api

    out = Console(as_json=as_json)
    named = [word.strip() for word in providers.split(",") if word.strip()]
    with out.progress() as begin:
        step = begin("asking them all the same")
        found = api.diff(name, providers=named, profile=profile, emulate=emulate)
        step.drop()
    if as_json:
        out.json(found.to_dict())
    else:
        out.table(
            ["", *next(iter(found.checks)).seen, ""],
            [
                (
                    check.what,
                    *check.seen.values(),
                    Cell("equal", "green") if check.equal else Cell("differs", "bold red"),
                )
                for check in found.checks
            ],
        )
    if not found.equal:
        ctx.exit(FAILED)
