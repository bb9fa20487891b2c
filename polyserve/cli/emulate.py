"""`polyserve emulate`: run the emulators of clouds on this machine."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console

if TYPE_CHECKING:
    from polyserve.driver import ProviderInfo
    from polyserve.emulation import Emulator

LOOK_SECONDS = 0.5
"""Seconds between two looks at whether the emulators still run."""


@click.command("emulate", short_help="Run a cloud's emulator here.", epilog="Example: polyserve emulate aws --detach")
@click.argument("names", nargs=-1, metavar="[PROVIDER]...")
@click.option("--detach", is_flag=True, help="Leave it running in the background.")
@click.option("--stop", "stopping", is_flag=True, help="Stop the one that runs; what it keeps is deleted.")
@click.option("--status", "asking", is_flag=True, help="Show which ones run.")
@options.json_output
def command(*, names: tuple[str, ...], detach: bool, stopping: bool, asking: bool, as_json: bool) -> None:
    """Run the emulator of PROVIDER on this machine, of every cloud where none is named, until Ctrl-C.

    Every command with --emulate goes to it, and starts one in the background where none runs. It takes the real SDK's
    calls and really runs what is uploaded; what it has is gone once it stops.
    """
    if sum((detach, stopping, asking)) > 1:
        raise click.UsageError("--detach, --stop and --status exclude each other")
    out = Console(as_json=as_json)
    infos = _infos(names)
    if asking:
        _tell(out, _running(infos))
    elif stopping:
        _stop(out, infos, named=bool(names))
    else:
        _run(out, infos, detach=detach)


def _infos(names: tuple[str, ...]) -> list[ProviderInfo]:
    from polyserve import registry

    if names:
        return [registry.info(name) for name in dict.fromkeys(names)]
    return [info for info in registry.providers().values() if info.emulator]


def _running(infos: list[ProviderInfo]) -> list[Emulator]:
    from polyserve import emulation

    return [found for found in map(emulation.running, infos) if found is not None]


def _run(out: Console, infos: list[ProviderInfo], *, detach: bool) -> None:
    from polyserve import emulation

    before = {found.provider for found in _running(infos)}
    started: list[Emulator] = []
    try:
        with out.progress() as begin:
            for info in infos:
                step = begin(f"starting the emulator of {info.title}")
                started.append(emulation.start(info))
                step.done(f"the emulator of {info.title} runs")
        _tell(out, started)
        if not detach:
            _wait(out, infos)
    finally:
        if not detach:
            # Those that ran before are somebody else's.
            _stop_all([info for info in infos if info.name not in before])


def _wait(out: Console, infos: list[ProviderInfo]) -> None:
    """Wait for Ctrl-C, or until none of them runs any more."""
    out.line(Cell("  Ctrl-C stops what was started here", "dim"), flush=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: ended.set())
    while not ended.wait(LOOK_SECONDS) and _running(infos):
        pass


def _stop(out: Console, infos: list[ProviderInfo], *, named: bool) -> None:
    from polyserve import emulation

    if named:
        for info in infos:
            emulation.stop(info)
        stopped = [info.name for info in infos]
    else:
        stopped = _stop_all(infos)
    if out.as_json:
        out.json({"stopped": stopped})
    else:
        out.line("stopped: " + (", ".join(stopped) or "none ran"))


def _stop_all(infos: list[ProviderInfo]) -> list[str]:
    from polyserve import emulation
    from polyserve.errors import NotFoundError

    stopped = []
    for info in infos:
        try:
            emulation.stop(info)
        except NotFoundError:
            continue
        stopped.append(info.name)
    return stopped


def _tell(out: Console, found: list[Emulator]) -> None:
    if out.as_json:
        out.json([_described(each) for each in found])
        return
    if not found:
        out.line("no emulator runs")
    for each in found:
        out.line(Cell(each.provider, "bold"), f" is emulated at {each.url} (process {each.pid})")
        out.line(Cell("  try  ", "dim"), Cell(f"polyserve demo --provider {each.provider} --emulate", "cyan"))


def _described(found: Emulator) -> dict[str, Any]:
    return {
        "provider": found.provider,
        "pid": found.pid,
        "url": found.url,
        "options": dict(found.options),
        "directory": str(found.directory),
    }
