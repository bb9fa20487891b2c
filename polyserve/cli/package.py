"""`polyserve package`: make a model package and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Console, size

if TYPE_CHECKING:
    from polyserve.model import ModelPackage


@click.command("package", short_help="Make a model package.")
@options.model
@click.option("--name", metavar="NAME", help="The model's name; default: from MODEL.")
@options.sample
@options.compiled
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Save it as an archive, too.")
@options.json_output
def command(
    *, model: str, name: str | None, sample: str | None, compiling: str, output: Path | None, as_json: bool
) -> None:
    """Make a package of MODEL: a file, a package, or module:attribute.

    The package has the model, the requirements it needs at the versions installed here, its inputs and outputs, and
    the sample with the answer to it. The same input gives the same digest on any machine. It is kept in the cache;
    --output saves it as an archive, to deploy elsewhere.
    """
    out = Console(as_json=as_json)
    made = build(out, model, name=name, sample=sample, compiling=compiling)
    saved = None if output is None else made.save(output)
    out.json(described(made) | {"saved": saved}) if as_json else _show(out, made, saved)


def build(out: Console, model: str, *, name: str | None, sample: str | None, compiling: str = "auto") -> ModelPackage:
    """Make a package of what a command line names, with progress.

    Raises:
        PackageError: It is no model, or cannot become a package.
        NotFoundError: There is no such model or sample file.
    """
    from polyserve import api
    from polyserve.cli import values

    inputs = None if sample is None else values.read_sample(sample)
    with out.progress() as begin:
        step = begin("packaging the model")
        made = api.package(model, name=name, sample=inputs, compile=compiling)
        step.done(f"package {made.digest[:12]}, {size(made.size_bytes)}")
    return made


def described(made: ModelPackage) -> dict[str, Any]:
    """Return a package as JSON-able values."""
    manifest = made.manifest
    return {
        "name": made.name,
        "package_digest": made.digest,
        "path": str(made.root),
        "size_bytes": made.size_bytes,
        "flavor": manifest.flavor,
        "python": manifest.python,
        "requirements": list(manifest.requirements),
        "signature": made.signature.to_dict(),
        "sample": made.golden_request() is not None,
        "row_wise": manifest.row_wise,
        "safe": manifest.safe,
        "compilation": None if made.compilation is None else made.compilation.to_dict(),
    }


def _show(out: Console, made: ModelPackage, saved: Path | None) -> None:
    manifest = made.manifest
    signature = made.signature
    out.line(f"{made.name}, a package of flavor {manifest.flavor}")
    out.fields(
        [
            ("digest", made.digest),
            ("size", size(made.size_bytes)),
            ("python", manifest.python),
            ("needs", ", ".join(manifest.requirements) or "nothing"),
            ("inputs", ", ".join(_tensor(spec) for spec in signature.inputs) or "unknown"),
            ("outputs", ", ".join(_tensor(spec) for spec in signature.outputs) or "unknown"),
            (
                "sample",
                "recorded with its answer" if made.golden_request() is not None else "none: give one with --sample",
            ),
            *compiled(made),
            ("where", str(saved or made.root)),
        ]
    )
    out.next(f"polyserve deploy {saved or made.root}")


def compiled(made: ModelPackage) -> list[tuple[str, str]]:
    """Return what came of compiling, as fields; nothing where that was not to be."""
    report = made.compilation
    if report is None:
        return []
    if not report.compiled or report.original is None or report.onnx is None:
        return [("compiled", f"no: {report.reason}")]
    before, after = report.original, report.onnx
    equal = (
        f"largest difference {report.largest_difference:.2g}" if report.largest_difference else "every answer the same"
    )
    sizes = f"{size(before.size_bytes)} became {size(after.size_bytes)}"
    times = f"a row takes {after.row_us:,.0f} us, and took {before.row_us:,.0f}"
    return [
        ("compiled", f"{made.manifest.flavor}: {report.rows} rows and {report.probes} made of them, {equal}"),
        ("gained", f"{sizes}; {times}"),
    ]


def _tensor(spec: Any) -> str:
    shape = " x ".join("rows" if extent == -1 else str(extent) for extent in spec.shape)
    return f"{spec.name} {spec.datatype} [{shape}]"
