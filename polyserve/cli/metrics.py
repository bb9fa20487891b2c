"""`polyserve metrics`: requests, errors, latency and cold starts, from the deployment's own log lines."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, age, clock, milliseconds, stamp

if TYPE_CHECKING:
    from polyserve.metrics import RevisionMetrics


@click.command("metrics", short_help="Show requests, errors and latency.")
@options.named
@options.since
@options.where
@options.json_output
def command(*, name: str, since: datetime | None, where: options.Where, as_json: bool) -> None:
    """Show what the deployment NAME did, per revision: requests, errors, latency, cold starts, instances.

    Latency is in milliseconds, from a request's arrival at the instance to its answer; the way there and back is not
    in it. "cold" counts the requests that were their instance's first, "batch" how many requests one predict answered
    on average.
    """
    from polyserve import api

    out = Console(as_json=as_json)
    with api.connect(name, **where) as deployment:
        found, provider = deployment.metrics(since=since), deployment.provider
    if as_json:
        times = {"first_at": stamp(found.first_at), "last_at": stamp(found.last_at)}
        out.json({"name": name, "provider": provider, **found.to_dict(), **times})
        return
    out.line(Cell(name, "bold"), f" on {provider}")
    out.fields(
        [
            ("running", "-" if found.instances is None else str(found.instances)),
            ("started", f"{found.starts} instance{'' if found.starts == 1 else 's'}"),
            ("requests", f"{clock(found.first_at)} to {clock(found.last_at)}" if found.first_at else "none yet"),
            ("last", age(found.last_at)),
        ]
    )
    if not found.total.requests:
        return
    rows = [_row(str(number), each) for number, each in found.revisions.items()]
    if len(rows) > 1:
        rows.append(_row("all", found.total))
    titles = ("revision", "requests", "errors", "p50", "p95", "p99", "max", "cold", "batch", "rows")
    out.line()
    out.table([Column(title, right=True) for title in titles], rows)
    for code, count in found.total.errors_by_code.items():
        out.line(Cell(f"{count} x {code or 'without code'}", "red"))


def _row(label: str, each: RevisionMetrics) -> tuple[str | Cell, ...]:
    ms = each.latency_ms
    return (
        label,
        f"{each.requests:,}",
        Cell(f"{each.errors:,}", "red" if each.errors else ""),
        *(milliseconds(value) for value in (ms.p50, ms.p95, ms.p99, ms.max)),
        f"{each.cold:,}",
        f"{each.mean_batch:.1f}",
        f"{each.rows:,}",
    )
