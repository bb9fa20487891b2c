"""`polyserve plan`: what a deploy would do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, shares, size
from polyserve.cli.deploy import listener
from polyserve.cli.exit_codes import REFUSED
from polyserve.cli.package import build

if TYPE_CHECKING:
    from polyserve.planner import Plan

READ = 4
"""Permissions that are written out; a cloud asks for dozens."""


@click.command("plan", short_help="Show what a deploy would do.")
@options.model
@options.shape
@options.where
@options.json_output
@click.option(
    "--policy",
    "only_policy",
    is_flag=True,
    help="Print only what has to be allowed, as the provider's own policy document in JSON. Calls nobody.",
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    model: str,
    name: str | None,
    where: options.Where,
    as_json: bool,
    only_policy: bool,
    **given: Any,
) -> None:
    """Show what `polyserve deploy` with the same options would do. Nothing is changed.

    Steps, sizes beside the provider's limits, the permissions it takes and an estimate of the price. Exits with 2
    where the deploy would be refused.
    """
    from polyserve import api
    from polyserve.settings import resolve

    out = Console(as_json=as_json)
    # A mistyped provider or profile is told before the work of packaging, not after it.
    resolve(**where)
    package = build(out, model, name=name, sample=given["sample"], compiling=given["compiling"])
    if only_policy:
        told = api.policy(
            package, name=name, provider=where["provider"], profile=where["profile"], **options.shaped(given)
        )
        click.echo(json.dumps(told, indent=2))
        return
    with out.progress() as begin:
        planned = api.plan(package, name=name, **where, on_event=listener(begin, []), **options.shaped(given))
    out.json(planned.to_dict()) if as_json else _show(out, planned)
    if planned.refusals:
        ctx.exit(REFUSED)


def _show(out: Console, planned: Plan) -> None:
    out.line(Cell(planned.name, "bold"), f" on {planned.provider}, revision {planned.revision}")
    price, made = planned.price_per_million, planned.footprint
    remote = ", ".join(f"{path} ({size(count)})" for path, count in planned.in_bucket.items())
    in_bucket = [("in bucket", f"{remote}, read when an instance starts")] if remote else []
    allowed = [("permissions", _named(planned.permissions))] if planned.permissions else []
    out.fields(
        [
            ("package", planned.package_digest[:12]),
            ("bundle", f"{size(planned.bundle_bytes)}, unpacked {size(planned.unpacked_bytes)}"),
            *made_of(made.parts, made.distributions, made.dropped),
            *in_bucket,
            ("traffic", f"{shares(planned.weights)} afterwards"),
            ("price", "free" if price is None else f"{price:.2f} USD for a million calls of 0.1 s"),
            *allowed,
        ]
    )
    out.line()
    for position, step in enumerate(planned.steps, 1):
        out.line(Cell(f"  {position}. {step.kind.value.ljust(8)}", "cyan"), step.summary)
    if not planned.steps and not planned.refusals:
        out.line(Cell("  nothing to do: everything is as asked", "green"))
    for reason in planned.refusals:
        out.line(Cell("  refused  ", "red"), reason)
    out.line()
    limits = [check for check in planned.limits if check.limit is not None]
    out.table(
        ["limit", Column("asked", right=True), Column("allowed", right=True), ""],
        [
            (check.what, _amount(check.value, check.unit), _amount(check.limit, check.unit), _verdict(check.held))
            for check in limits
        ],
    )
    if planned.fits:
        out.line()
        columns = [Column("upload left", right=True), Column("unpacked left", right=True)]
        out.table(
            ["this bundle on", *columns, ""],
            [(fit.title, _left(fit.bundle_left), _left(fit.unpacked_left), _verdict(fit.held)) for fit in planned.fits],
        )
    for warning in planned.warnings:
        out.warn(warning)


def made_of(
    parts: Mapping[str, int], distributions: Mapping[str, int], dropped: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Return what a bundle is made of as fields, the largest first; nothing where its dependencies do not travel in it."""
    if not distributions:
        return []
    fields = [("made of", _sizes(parts)), ("largest", _sizes(distributions, most=5))]
    return [*fields, ("left out", _sizes(dropped))] if dropped else fields


def _sizes(counts: Mapping[str, int], *, most: int | None = None) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {size(count)}" for name, count in ordered[:most])
    return f"{shown}, and {len(ordered) - most} more" if most is not None and len(ordered) > most else shown


def _left(count: int | None) -> str:
    if count is None:
        return "no limit"
    return size(count) if count >= 0 else f"{size(-count)} over"


def _named(permissions: Sequence[str]) -> str:
    """Return permissions, in number where they are too many to be read."""
    if len(permissions) <= READ:
        return ", ".join(permissions)
    return f"{len(permissions)} actions, such as {permissions[0]} (--policy prints them as a policy)"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return size(int(value)) if unit == "bytes" else f"{value:,g} {unit}" if unit not in {"instances"} else f"{value:,g}"


def _verdict(held: bool) -> Cell:
    return Cell("ok", "green") if held else Cell("too much", "red")
