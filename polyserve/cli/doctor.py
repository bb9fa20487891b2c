"""`polyserve doctor`: whether this machine and its configuration are fit to deploy, and the way out where they are not."""

from __future__ import annotations

import platform
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Column, Console
from polyserve.cli.exit_codes import FAILED

if TYPE_CHECKING:
    from polyserve.deployment import DeploymentStatus
    from polyserve.settings import Settings

OLDEST_PYTHON = (3, 11)
CONNECT_SECONDS = 3.0


class Verdict(StrEnum):
    """What came of a check."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


_LOOKS = {
    Verdict.OK: Cell("ok", "green"),
    Verdict.NOTE: Cell("note", "yellow"),
    Verdict.PROBLEM: Cell("problem", "bold red"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: what was looked at, what was seen, and what to do about it."""

    check: str
    verdict: Verdict
    seen: str
    way_out: str = ""


@click.command("doctor", short_help="Check this machine and the configuration.")
@options.where
@options.json_output
@click.pass_context
def command(ctx: click.Context, /, *, where: options.Where, as_json: bool) -> None:
    """Check Python, the directories, the settings and where each was read, the providers and their SDKs, and every deployment.

    Changes nothing. Exits with 1 if there is a problem; each comes with the way out.
    """
    out = Console(as_json=as_json)
    with out.progress() as begin:
        step = begin("looking")
        found, settings = examine(where)
        step.drop()
    problems = [finding for finding in found if finding.verdict is Verdict.PROBLEM]
    if as_json:
        sources = {} if settings is None else dict(settings.sources)
        out.json({"healthy": not problems, "checks": [asdict(finding) for finding in found], "settings": sources})
    else:
        _show(out, found, settings, len(problems))
    if problems:
        ctx.exit(FAILED)


def examine(where: options.Where) -> tuple[list[Finding], Settings | None]:
    """Make all checks; the settings are `None` where they do not validate."""
    from polyserve import settings as settings_
    from polyserve.errors import PolyserveError

    found = [_python(), *_directories(), *_providers()]
    try:
        settings = settings_.resolve(**where)
    except PolyserveError as error:
        way_out = "mend it where it was written; `polyserve doctor` again shows whether it is"
        found.append(Finding(check="settings", verdict=Verdict.PROBLEM, seen=error.message, way_out=way_out))
        return found, None
    files = sorted({source.partition(":")[0] for source in settings.sources.values() if ".toml" in source})
    origin = f"read from {', '.join(files)}" if files else "no polyserve.toml in use, defaults and environment only"
    seen = f"profile {settings.profile}, provider {settings.provider}, bucket {settings.bucket}; {origin}"
    found.append(Finding(check="settings", verdict=Verdict.OK, seen=seen))
    found += _deployments(where)
    return found, settings


def _python() -> Finding:
    seen = f"Python {platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding(check="python", verdict=Verdict.OK, seen=seen)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding(check="python", verdict=Verdict.PROBLEM, seen=seen, way_out=f"use Python {oldest} or newer")


def _directories() -> Iterator[Finding]:
    from polyserve.emulation import home_directory
    from polyserve.model.storage import cache_directory

    home = home_directory()
    for check, variable, path in (("home", "POLYSERVE_HOME", home), ("cache", "POLYSERVE_CACHE", cache_directory())):
        trouble = _not_writable(path)
        way_out = f"make it writable, or set {variable} to a directory that is" if trouble else ""
        verdict = Verdict.PROBLEM if trouble else Verdict.OK
        yield Finding(check=check, verdict=verdict, seen=f"{path}{trouble or ', writable'}", way_out=way_out)


def _not_writable(path: Path) -> str:
    """Return why nothing can be written below a path, or nothing where it can; what is not there yet is judged by its parent."""
    while not path.exists():
        path = path.parent
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"?")
    except OSError as error:
        return f": {error.strerror or error}"
    return ""


def _providers() -> Iterator[Finding]:
    from polyserve import registry
    from polyserve.cli.providers import missing

    for name, info in registry.providers().items():
        reason = missing(info)
        if reason:
            sentence, _, way_out = reason.partition(": ")
            yield Finding(check=f"provider {name}", verdict=Verdict.NOTE, seen=sentence, way_out=way_out)
        else:
            yield Finding(check=f"provider {name}", verdict=Verdict.OK, seen=f"{info.title}, ready")


def _deployments(where: options.Where) -> Iterator[Finding]:
    from polyserve import api
    from polyserve.errors import PolyserveError

    try:
        found = api.list_deployments(**where)
    except PolyserveError as error:
        way_out = "see that the provider can be reached and that you are signed in there"
        yield Finding(check="deployments", verdict=Verdict.PROBLEM, seen=error.message, way_out=way_out)
        return
    yield Finding(check="deployments", verdict=Verdict.OK, seen=", ".join(s.record.name for s in found) or "none yet")
    for status in found:
        yield from _deployment(status)


def _deployment(status: DeploymentStatus) -> Iterator[Finding]:
    """Look at a deployment: who holds it, whether its platform follows its record, whether somebody listens."""
    record, check = status.record, f"deployment {status.record.name}"
    again = f"repeat the last command, or `polyserve destroy {record.name}`"
    if record.lease is not None and record.lease.held():
        seen = f"{record.lease.operation} is under way, by process {record.lease.pid} on {record.lease.host}"
        yield Finding(check=check, verdict=Verdict.NOTE, seen=seen, way_out="wait for it")
        return
    if record.lease is not None:
        seen = f"{record.lease.operation} was broken off and left its lease behind"
        yield Finding(check=check, verdict=Verdict.NOTE, seen=seen, way_out=f"nothing is lost: {again}")
    if record.phase == "deleting":
        way_out = f"polyserve destroy {record.name}"
        yield Finding(check=check, verdict=Verdict.PROBLEM, seen="half destroyed", way_out=way_out)
    elif status.function is None:
        yield Finding(check=check, verdict=Verdict.PROBLEM, seen="the platform has nothing of it", way_out=again)
    elif not status.in_step:
        seen = "the platform does not route as recorded"
        yield Finding(check=check, verdict=Verdict.PROBLEM, seen=seen, way_out=again)
    else:
        yield _reachable(status, check)


def _reachable(status: DeploymentStatus, check: str) -> Finding:
    parts = urlsplit(status.url or "")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        way_out = f"polyserve status {status.record.name}, then polyserve logs {status.record.name}"
        seen = f"nothing listens at {status.url}: {error.strerror or error}"
        return Finding(check=check, verdict=Verdict.PROBLEM, seen=seen, way_out=way_out)
    return Finding(check=check, verdict=Verdict.OK, seen=f"listens at {status.url}")


def _show(out: Console, found: list[Finding], settings: Settings | None, problems: int) -> None:
    out.table(
        ["", Column("check", fold=True), Column("what was seen", fold=True)], [_row(finding) for finding in found]
    )
    if settings is not None:
        out.line()
        rows = [
            (key, Cell(source, "dim" if source == "default" else ""))
            for key, source in sorted(settings.sources.items())
        ]
        out.table(["setting", Column("from", fold=True)], [row for row in rows if row[1].text != "default"])
        defaults = sum(1 for _, cell in rows if cell.text == "default")
        out.line(Cell(f"{defaults} settings have their default; --json names them", "dim"))
    out.line()
    for finding in found:
        if finding.way_out:
            out.line(_LOOKS[finding.verdict], f"  {finding.check}: {finding.way_out}")
    out.line(
        Cell("all is well", "green")
        if not problems
        else Cell(f"{problems} problem{'s' if problems > 1 else ''}", "bold red")
    )


def _row(finding: Finding) -> tuple[str | Cell, ...]:
    return (_LOOKS[finding.verdict], finding.check, finding.seen)
