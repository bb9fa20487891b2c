"""`polyserve providers`: where a model can be deployed, and what each place can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console, duration, size

if TYPE_CHECKING:
    from polyserve.driver import ProviderInfo

PLANNED = {
    "aws": "Amazon Web Services: Lambda and S3",
    "azure": "Microsoft Azure: Functions and Blob Storage",
    "gcp": "Google Cloud: Cloud Run functions and Cloud Storage",
}
"""Providers that polyserve is made for and this version does not have, unless a distribution brings them."""

NOT_YET = "not in this version"


@click.command("providers", short_help="List the providers.")
@options.json_output
def command(*, as_json: bool) -> None:
    """List the providers: which are installed, what they can do, their limits and prices."""
    from polyserve import registry

    out = Console(as_json=as_json)
    known = registry.providers()
    absent = [name for name in PLANNED if name not in known]
    if as_json:
        gone = [{"name": name, "title": PLANNED[name], "status": NOT_YET} for name in absent]
        out.json([*(_object(info) for info in known.values()), *gone])
        return
    rows: list[tuple[str | Cell, ...]] = [
        (Cell(info.name, "bold"), _what(info), _status(info)) for info in known.values()
    ]
    rows += [(name, Cell(PLANNED[name], "dim"), Cell(NOT_YET, "dim")) for name in absent]
    out.table(["provider", Column("what", fold=True), Column("status", fold=True)], rows)
    out.line()
    out.table(["", *(Column(name, fold=True) for name in known)], _matrix(list(known.values())))


def missing(info: ProviderInfo) -> str:
    """Return why a provider cannot be used here, with the way out; empty where it can."""
    from polyserve import registry
    from polyserve.errors import MissingDependencyError

    try:
        registry.attribute(info, info.factory)
        registry.settings_type(info)
    except MissingDependencyError as error:
        return error.message
    return ""


def _what(info: ProviderInfo) -> str:
    return f"{info.title}: {info.function_service}, {info.store_service}"


def _status(info: ProviderInfo) -> Cell:
    reason = missing(info)
    return Cell(reason, "yellow") if reason else Cell("ready", "green")


def _matrix(infos: list[ProviderInfo]) -> list[tuple[str | Cell, ...]]:
    from polyserve.driver import Capability

    rows: list[tuple[str | Cell, ...]] = [
        (capability.value.replace("-", " "), *(_has(capability in info.capabilities) for info in infos))
        for capability in Capability
    ]
    facts = [_facts(info) for info in infos]
    return rows + [(label, *(each[label] for each in facts)) for label in facts[0]] if facts else rows


def _has(held: bool) -> Cell:
    return Cell("yes", "green") if held else Cell("no", "dim")


def _facts(info: ProviderInfo) -> dict[str, str]:
    limits, price = info.limits, info.price
    low, high = limits.memory_mb
    memory = ", ".join(map(str, limits.memory_choices)) if limits.memory_choices else f"{low:,} to {high:,}"
    cost = f"{price.per_million_requests:g} USD + {price.per_gb_second:g} USD per GB s" if price else "free"
    if price and price.per_second:
        cost += f" + {price.per_second:g} USD per s"
    return {
        "memory, MB": memory,
        "longest request": duration(limits.timeout.total_seconds()),
        "largest request": _limit(limits.request_bytes),
        "largest answer": _limit(limits.response_bytes),
        "largest bundle": _limit(limits.bundle_bytes),
        "most instances": "no limit" if limits.max_instances is None else f"{limits.max_instances:,}",
        "Python": ", ".join(limits.pythons),
        "architectures": ", ".join(limits.architectures),
        "price of a million": cost,
        "names": limits.name_rule,
    }


def _limit(count: int | None) -> str:
    return "no limit" if count is None else size(count)


def _object(info: ProviderInfo) -> dict[str, Any]:
    limits, reason = info.limits, missing(info)
    return {
        "name": info.name,
        "title": info.title,
        "status": "unusable" if reason else "ready",
        "reason": reason or None,
        "store_service": info.store_service,
        "function_service": info.function_service,
        "extra": info.extra or None,
        "capabilities": sorted(capability.value for capability in info.capabilities),
        "limits": {
            "name_rule": limits.name_rule,
            "memory_mb": list(limits.memory_choices or limits.memory_mb),
            "timeout_seconds": limits.timeout.total_seconds(),
            "request_bytes": limits.request_bytes,
            "response_bytes": limits.response_bytes,
            "bundle_bytes": limits.bundle_bytes,
            "bundle_unpacked_bytes": limits.bundle_unpacked_bytes,
            "environment_bytes": limits.environment_bytes,
            "pythons": list(limits.pythons),
            "architectures": list(limits.architectures),
            "max_instances": limits.max_instances,
            "source": limits.source,
        },
        "price": info.price
        and {
            "per_million_requests": info.price.per_million_requests,
            "per_gb_second": info.price.per_gb_second,
            "per_second": info.price.per_second,
            "source": info.price.source,
        },
    }
