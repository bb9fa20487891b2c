"""`polyserve deploy`: make a deployment serve a model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console, Step, duration, shares, size
from polyserve.cli.list import described, parts_table
from polyserve.cli.package import build

if TYPE_CHECKING:
    from polyserve.deployment import Deployment, DeploymentStatus
    from polyserve.records import Revision
    from polyserve.rollout import Event


BUNDLE = "bundle"
"""The step that is done on this machine alone, so that it changes nothing there."""


@click.command("deploy", short_help="Deploy a model, or a new revision of it.")
@options.model
@options.shape
@options.where
@options.json_output
def command(*, model: str, name: str | None, where: options.Where, as_json: bool, **given: Any) -> None:
    """Deploy MODEL: a file, a package, or module:attribute.

    Uploads the bundle if it is not there, makes a revision, waits for it, replays the package's sample on it, and
    only then gives it the traffic: all of it, or the share of --canary. The same command again changes nothing; after
    a failure or Ctrl-C it continues.
    """
    from polyserve import api
    from polyserve.settings import resolve

    out = Console(as_json=as_json)
    # A mistyped provider or profile is told before the work of packaging, not after it.
    resolve(**where)
    package = build(out, model, name=name, sample=given["sample"], compiling=given["compiling"])
    shaped = options.shaped(given)
    began, kinds = time.perf_counter(), list[str]()
    with out.progress() as begin:
        deployment = api.deploy(package, name=name, **where, on_event=listener(begin, kinds), **shaped)
    seconds = time.perf_counter() - began
    with deployment:
        if package.golden_request() is None:
            out.warn(
                "the package has no sample, so nothing proved that it answers as it did here: give one with --sample"
            )
        status = deployment.status()
        if status.parts:
            show_group(out, status, changed=bool(kinds), seconds=seconds, again=options.spelt(where))
            return
        revision = served(deployment, canary=given["canary"] is not None)
        if as_json:
            facts = {"revision": revision.number, "changed": bool(kinds), "package_digest": revision.package_digest}
            took = {"bundle_bytes": revision.artifact.size, "deploy_seconds": round(seconds, 3)}
            out.json({**described(status), **facts, **took})
            return
        _show(
            out, deployment, revision, changed=bool(kinds), seconds=seconds, url=status.url, again=options.spelt(where)
        )


def listener(begin: Callable[[str], Step], kinds: list[str]) -> Callable[[Event], None]:
    """Return what shows a rollout's events as steps, and notes the kinds of the steps that changed something."""
    running: dict[str, Step] = {}

    def on_event(event: Event) -> None:
        kind = event.step.value
        # What follows a colon are particulars, and a step is one short line.
        title = event.detail.partition(": ")[0] or kind
        if event.state == "start":
            running[kind] = begin(title)
            return
        if event.state == "progress":
            running[kind].note(event.detail)
            return
        if event.step.value != BUNDLE:
            kinds.append(kind)
        running.pop(kind).done(title, seconds=event.seconds)

    return on_event


def show_group(out: Console, status: DeploymentStatus, *, changed: bool, seconds: float, again: str) -> None:
    """Write what a deploy of a partitioned model came to."""
    record = status.record
    assert record.group is not None
    if out.as_json:
        facts = {"changed": changed, "package_digest": record.group.package_digest, "deploy_seconds": round(seconds, 3)}
        out.json({**described(status), **facts})
        return
    headline = f" in {len(status.parts)} parts on {record.provider}, in {record.group.combining['how']}"
    out.line(Cell(record.name, "bold"), headline, Cell("" if changed else ", nothing to do: it is as asked", "dim"))
    parts_table(out, status)
    out.fields([("package", record.group.package_digest[:12]), ("took", duration(seconds))])
    out.next(f"polyserve invoke {record.name}{again} --file INPUT")


def served(deployment: Deployment, *, canary: bool) -> Revision:
    """Return the revision that a deploy which just succeeded was about."""
    record = deployment.record
    revision = (record.canary if canary else None) or record.stable
    assert revision is not None
    return revision


def _show(
    out: Console,
    deployment: Deployment,
    revision: Revision,
    *,
    changed: bool,
    seconds: float,
    url: str | None,
    again: str,
) -> None:
    record = deployment.record
    headline = f" revision {revision.number} on {deployment.provider}"
    out.line(Cell(record.name, "bold"), headline, Cell("" if changed else ", nothing to do: it is as asked", "dim"))
    out.fields(
        [
            ("url", url or "-"),
            ("traffic", shares(record.weights)),
            ("package", revision.package_digest[:12]),
            ("bundle", size(revision.artifact.size)),
            ("took", duration(seconds)),
        ]
    )
    if record.canary is not None:
        out.next(*(f"polyserve {verb} {record.name}{again}" for verb in ("metrics", "promote", "rollback")))
    else:
        out.next(f"polyserve invoke {record.name}{again} --file INPUT", f"polyserve logs {record.name}{again} --follow")
