"""`polyserve invoke`: send input, print the answer."""

from __future__ import annotations

import click

from polyserve.cli import options
from polyserve.cli.console import Console

EXAMPLES = """\b
Examples:
  polyserve invoke iris --data '[[5.1, 3.5, 1.4, 0.2]]'
  polyserve invoke iris --file rows.csv
  echo '[[5.1, 3.5, 1.4, 0.2]]' | polyserve invoke iris --file -"""


@click.command("invoke", short_help="Send input to a deployment.", epilog=EXAMPLES)
@options.named
@click.option("--data", metavar="JSON", help="The input as JSON: rows, or an object by input name.")
@click.option("--file", metavar="FILE", help="The input from a .json, .npy or .csv file; - reads JSON from stdin.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long to wait for the answer.")
@options.where
@options.json_output
def command(
    *,
    name: str,
    data: str | None,
    file: str | None,
    timeout: float | None,
    where: options.Where,
    as_json: bool,
) -> None:
    """Send input to the deployment NAME and print its answer as JSON.

    A CSV file may have a header line. NaN and infinities, which JSON has no word for, are printed as null.
    """
    from datetime import timedelta

    from polyserve import api
    from polyserve.cli import values

    if (data is None) == (file is None):
        raise click.UsageError("give the input with either --data or --file", click.get_current_context())
    out = Console(as_json=as_json)
    with api.connect(name, **where) as deployment:
        kind = deployment.endpoint.signature.input_kind
        value = values.from_json(data, "--data") if data is not None else values.read(file or "", kind=kind)
        wait = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
        out.json(deployment.invoke(value, **wait))
