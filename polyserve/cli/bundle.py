"""`polyserve bundle`: build what a deploy would upload, and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from polyserve.cli import options
from polyserve.cli.console import Console, size
from polyserve.cli.deploy import listener
from polyserve.cli.package import build
from polyserve.cli.plan import made_of


@click.command("bundle", short_help="Build what a deploy would upload.")
@options.model
@click.option("--name", metavar="NAME", help="The deployment; default: the package's own name.")
@options.sample
@options.compiled
@options.contents
@options.where
@click.option(
    "--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="The archive; default: NAME-PROVIDER.zip."
)
@options.json_output
def command(
    *,
    model: str,
    name: str | None,
    sample: str | None,
    compiling: str,
    where: options.Where,
    output: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Build the archive that `polyserve deploy` with the same options would upload, and save it.

    The package, the runtime and, where the platform does not install them, the dependencies for its Python, processor
    and C library. The same input gives the same bytes on any machine. The provider is not asked anything.
    """
    from polyserve import api
    from polyserve.settings import resolve

    out = Console(as_json=as_json)
    settings = resolve(**where)
    package = build(out, model, name=name, sample=sample, compiling=compiling)
    saved = output or Path(f"{name or package.name}-{settings.provider}.zip")
    with out.progress() as begin:
        built = api.bundle(package, saved, name=name, **where, on_event=listener(begin, []), **given)
    if output is None and built.path.name.endswith(".tar.gz"):
        # Not every platform takes a zip; which one it is, is known only now.
        saved = saved.rename(saved.with_suffix(".tar.gz"))
    if as_json:
        facts = {"path": str(saved), "sha256": built.sha256, "bundle_bytes": built.size}
        counts = {"parts": built.parts, "distributions": built.distributions, "dropped": built.dropped}
        rest = {"package_digest": built.package_digest, "notes": list(built.notes)}
        out.json({**facts, "unpacked_bytes": built.unpacked_size, **counts, **rest})
        return
    out.line(f"{saved}, a bundle for {settings.provider}")
    out.fields(
        [
            ("sha256", built.sha256),
            ("size", f"{size(built.size)}, unpacked {size(built.unpacked_size)}"),
            *made_of(built.parts, built.distributions, built.dropped),
        ]
    )
    for note in built.notes:
        out.warn(note)
