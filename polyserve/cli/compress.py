"""`polyserve compress`: make a smaller package, and refuse it where it answers worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, milliseconds, size

if TYPE_CHECKING:
    from polyserve.model.compress import Compressed, Measured

EXAMPLES = """\b
Examples:
  polyserve compress model.onnx --method int8 --data X.npy --labels y.npy
  polyserve compress model.onnx --method fp16 --data X.npy --labels y.npy --max-drop 0 -o small.zip
  polyserve compress forest.joblib --method lossless --data X.npy"""


@click.command("compress", short_help="Make a smaller package of a model.", epilog=EXAMPLES)
@options.model
@click.option(
    "--method",
    metavar="METHOD",
    required=True,
    help="fp16, int8, int8-static (ONNX), fp16 (PyTorch), lossless (scikit-learn).",
)
@click.option("--data", metavar="FILE", type=click.Path(), help="Rows of input (.npy, .csv, .json).")
@click.option("--labels", metavar="FILE", type=click.Path(), help="The right answer to each row of --data.")
@click.option(
    "--max-drop", type=float, metavar="SHARE", default=0.005, help="How much the score may drop; default: 0.005."
)
@click.option("--metric", metavar="NAME", default="auto", help="accuracy, r2 or rmse; default: by labels and answers.")
@click.option("--score", "scored", metavar="OUTPUT", help="The output that is scored; default: the first.")
@click.option("--name", metavar="NAME", help="The new package's name; default: the original's.")
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Save it as an archive, too.")
@options.json_output
def command(
    *,
    model: str,
    method: str,
    data: str | None,
    labels: str | None,
    max_drop: float,
    metric: str,
    scored: str | None,
    name: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Make a smaller package of MODEL: a package, its digest, a file, or module:attribute.

    Both models answer the labelled rows, and take turns at single ones: size, score and latency are shown side by side. Where the score
    drops by more than --max-drop, the command fails and nothing is kept. The new package has a digest and a sample of its
    own, and says which package it was made of.
    """
    from polyserve import api
    from polyserve.cli import values

    out = Console(as_json=as_json)
    rows = None if data is None else values.read_sample(data)
    wanted = None if labels is None else values.read(labels)
    with out.progress() as begin:
        step = begin(f"compressing with {method}")
        done = api.compress(
            model, method=method, data=rows, labels=wanted, metric=metric, output=scored, name=name, max_drop=max_drop
        )
        step.done(f"package {done.package.digest[:12]}, {done.ratio:.2f} of the size")
    saved = None if output is None else done.package.save(output)
    if as_json:
        made = {"name": done.package.name, "package_digest": done.package.digest, "path": str(done.package.root)}
        out.json(made | done.to_dict() | {"saved": saved})
        return
    _show(out, done, saved)


def _show(out: Console, done: Compressed, saved: Path | None) -> None:
    out.line(Cell(done.package.name, "bold"), f" compressed with {done.method}, C = {done.ratio:.3f}")
    out.table(
        [
            "",
            "package",
            Column("model", right=True),
            Column(done.metric or "score", right=True),
            Column("p50 ms", right=True),
            Column("p95 ms", right=True),
        ],
        [
            _row("before", done.original.digest, done.before),
            _row("after", done.package.digest, done.after),
        ],
    )
    out.fields(
        [
            (
                "drop",
                "-" if done.drop is None else f"{done.drop:.4f} on {done.rows} rows, {done.max_drop:g} is allowed",
            ),
            ("digest", done.package.digest),
            ("where", str(saved or done.package.root)),
        ]
    )
    out.next(f"polyserve deploy {saved or done.package.root}")


def _row(side: str, digest: str, measured: Measured) -> tuple[str | Cell, ...]:
    return (
        side,
        Cell(digest[:12], "dim"),
        size(measured.size_bytes),
        "-" if measured.score is None else f"{measured.score:.4f}",
        milliseconds(measured.latency_ms),
        milliseconds(measured.latency_p95_ms),
    )
