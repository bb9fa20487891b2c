"""`polyserve partition`: split a model into parts that run on functions of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, milliseconds, size

if TYPE_CHECKING:
    from polyserve.model.partition import Partitioned

EXAMPLES = """\b
Examples:
  polyserve partition forest.joblib --parts 4 --data X.npy -o forest.zip
  polyserve deploy forest.zip --name forest
  polyserve invoke forest --file rows.csv"""


@click.command("partition", short_help="Split a model into parts.", epilog=EXAMPLES)
@options.model
@click.option("--parts", type=int, metavar="N", required=True, help="How many parts, from 2.")
@click.option(
    "--how",
    metavar="HOW",
    default="auto",
    help="parallel (ensembles, boosters) or sequence (ONNX); default: by the model.",
)
@click.option(
    "--data", metavar="FILE", type=click.Path(), help="Rows of input (.npy, .csv, .json) to prove the parts on."
)
@click.option("--name", metavar="NAME", help="The group's name; default: the model's.")
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Save it as an archive, too.")
@options.json_output
def command(
    *, model: str, parts: int, how: str, data: str | None, name: str | None, output: Path | None, as_json: bool
) -> None:
    """Split MODEL into parts: a package, its digest, a file, or module:attribute.

    Every part is a package of its own, and all together answer the sample and --data as the whole model does: labels alike, numbers
    within its tolerance. What is made is deployed like any package, and becomes a group: a deployment for each part, invoked and
    destroyed as one. T is a part's time divided by the whole model's, for the same rows.
    """
    from polyserve import api
    from polyserve.cli import values

    out = Console(as_json=as_json)
    rows = None if data is None else values.read_sample(data)
    with out.progress() as begin:
        step = begin(f"splitting into {parts} parts")
        done = api.partition(model, parts=parts, how=how, data=rows, name=name)
        step.done(f"package {done.package.digest[:12]}, T = {done.time:.2f}")
    saved = None if output is None else done.package.save(output)
    if as_json:
        made = {"name": done.package.name, "package_digest": done.package.digest, "path": str(done.package.root)}
        out.json(made | done.to_dict() | {"saved": saved})
        return
    _show(out, done, saved)


def _show(out: Console, done: Partitioned, saved: Path | None) -> None:
    out.line(
        Cell(done.package.name, "bold"),
        f" in {len(done.parts)} parts, in {done.how}, T = {done.time:.2f} for {done.rows} rows",
    )
    whole = ("whole", Cell(done.original.digest[:12], "dim"), size(done.size_bytes), milliseconds(done.time_ms), "1.00")
    rows = [
        (
            part.package.name,
            Cell(part.package.digest[:12], "dim"),
            size(part.size_bytes),
            milliseconds(part.time_ms),
            f"{ratio:.2f}",
        )
        for part, ratio in zip(done.parts, done.times, strict=True)
    ]
    out.table(
        ["", "package", Column("model", right=True), Column("p50 ms", right=True), Column("T", right=True)],
        [whole, *rows],
    )
    out.fields([("digest", done.package.digest), ("where", str(saved or done.package.root))])
    out.next(f"polyserve deploy {saved or done.package.root}")
