"""`polyserve demo`: the whole way from a trained model to answers over HTTP, on real data, on one screen."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyserve.cli import options
from polyserve.cli.console import Cell, Console, milliseconds, size
from polyserve.cli.deploy import listener, served
from polyserve.cli.exit_codes import FAILED

if TYPE_CHECKING:
    import numpy as np

    from polyserve.cli.console import Step
    from polyserve.deployment import Deployment
    from polyserve.rollout import Event

NAME = "digits-demo"
COLD_STEPS = ("apply", "wait", "verify")
WARM_CALLS = 200
BATCH = 30
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model and the data it has not seen."""

    model: Any
    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    sample: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the demo found out; the object of `--json`.

    Attributes:
        provider: The provider it ran on.
        deployment: Name of the deployment.
        revision: Number of the revision.
        url: Where it is called.
        package_digest: Tree digest of the model package.
        package_bytes: Size of the package.
        bundle_bytes: Size of the bundle as uploaded.
        deploy_seconds: The whole deploy, bundle and verification included.
        cold_ms: From asking the platform for the revision, nothing running, to its first answer.
        warm_ms_p50: Median of one image's round trip over HTTP, in milliseconds.
        warm_ms_p99: 99th percentile of the same.
        images: Number of held-out images.
        accuracy_endpoint: Share of them that the deployment named rightly.
        accuracy_in_process: The same by the model in this process.
        answers_equal: Whether both gave the same answer to every single image.
        input_file: Some of the images, as input for `polyserve invoke`.
    """

    provider: str
    deployment: str
    revision: int
    url: str
    package_digest: str
    package_bytes: int
    bundle_bytes: int
    deploy_seconds: float
    cold_ms: float
    warm_ms_p50: float
    warm_ms_p99: float
    images: int
    accuracy_endpoint: float
    accuracy_in_process: float
    answers_equal: bool
    input_file: str


@click.command("demo", short_help="See it all work.")
@options.where
@options.json_output
@click.pass_context
def command(ctx: click.Context, /, *, where: options.Where, as_json: bool) -> None:
    """Train a classifier on scikit-learn's digits, package it, deploy it as digits-demo and call it over HTTP.

    All of it is real: a third of the 1,797 images is held out from training and sent to the deployment, and the
    accuracy of its answers is held against the model's in this process. They must be equal, or the demo fails.

    "cold" is from asking the platform for the revision, while nothing runs, to the first answer: the golden sample's,
    by which a deploy is verified. "warm" is one image over HTTP, from numpy array to numpy array.

    A demo that was deployed before is destroyed first, so that every run starts cold. The deployment stays, to be
    played with.
    """
    out = Console(as_json=as_json)
    with out.progress() as begin:
        step = begin("training on scikit-learn's digits")
        trained = train()
        step.done("trained on scikit-learn's digits")
        result = _run(trained, begin, where)
    out.json(asdict(result)) if as_json else _show(out, result, where)
    if not result.answers_equal:
        ctx.exit(FAILED)


def train() -> Trained:
    """Train the demo's model; the same one on every run.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError as error:
        from polyserve.errors import MissingDependencyError

        message = "the demo needs scikit-learn, which is not installed: pip install -e '.[demo]'"
        raise MissingDependencyError(message, operation="demo", resource="scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    seen, held_out, seen_labels, held_out_labels = train_test_split(
        images, labels, test_size=1 / 3, stratify=labels, random_state=0
    )
    # One thread: the order of sums, and with it the last bits of the weights and the package's digest, stays the same.
    with threadpool_limits(1):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(seen, seen_labels)
    return Trained(model=model, images=held_out, labels=held_out_labels, sample=seen[:8])


def _run(trained: Trained, begin: Any, where: options.Where) -> Result:
    from polyserve import api

    step: Step = begin("packaging")
    # As it is, whatever is installed here: the same digest on every machine and every provider.
    package = api.package(trained.model, name=NAME, sample=trained.sample, compile="off")
    step.done(f"package {package.digest[:12]}, {size(package.size_bytes)}")
    _destroy_last(begin, where)
    kinds: list[str] = []
    cold: list[float] = []
    show = listener(begin, kinds)

    def on_event(event: Event) -> None:
        if event.state == "done" and event.step.value in COLD_STEPS:
            cold.append(event.seconds)
        show(event)

    began = time.perf_counter()
    deployment = api.deploy(package, name=NAME, **where, on_event=on_event)
    seconds = time.perf_counter() - began
    with deployment:
        step = begin(f"sending {len(trained.images)} held-out images over HTTP")
        answers = _answers(deployment, trained.images)
        step.done(f"sent {len(trained.images)} held-out images over HTTP")
        step = begin(f"calling it {WARM_CALLS} times with one image")
        warm = sorted(_round_trip(deployment, trained.images[i % len(trained.images)]) for i in range(WARM_CALLS))
        step.done(f"called it {WARM_CALLS} times with one image")
        revision = served(deployment, canary=False)
        here = trained.model.predict(trained.images)
        return Result(
            provider=deployment.provider,
            deployment=deployment.name,
            revision=revision.number,
            url=deployment.url or "",
            package_digest=package.digest,
            package_bytes=package.size_bytes,
            bundle_bytes=revision.artifact.size,
            deploy_seconds=round(seconds, 3),
            cold_ms=round(sum(cold) * 1000, 1),
            warm_ms_p50=round(_percentile(warm, 50) * 1000, 3),
            warm_ms_p99=round(_percentile(warm, 99) * 1000, 3),
            images=len(trained.images),
            accuracy_endpoint=_accuracy(answers, trained.labels),
            accuracy_in_process=_accuracy(here, trained.labels),
            answers_equal=[int(a) for a in answers] == [int(a) for a in here],
            input_file=str(_keep_images(trained.images[:SHOWN])),
        )


def _destroy_last(begin: Any, where: options.Where) -> None:
    """Destroy the deployment of a demo before this one, so that nothing of it is warm."""
    from polyserve import api
    from polyserve.errors import AlreadyExistsError, NotFoundError

    try:
        with api.connect(NAME, **where) as last:
            strangers = {revision.model for revision in last.record.revisions} - {NAME}
    except NotFoundError:
        return
    if strangers:
        message = f"the deployment {NAME!r} serves the model {min(strangers)!r}, not the demo's: destroy it first if nobody needs it"
        raise AlreadyExistsError(message, operation="demo", resource=NAME)
    step: Step = begin("destroying the demo that was there")
    api.destroy(NAME, **where)
    step.done("destroyed the demo that was there")


def _keep_images(images: np.ndarray[Any, Any]) -> Path:
    """Write images to the cache, for people to invoke the deployment with, and return the file."""
    from polyserve.model.storage import cache_directory

    file = cache_directory() / "demo.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(images.tolist()))
    return file


def _answers(deployment: Deployment, images: np.ndarray[Any, Any]) -> list[Any]:
    """Return the answers to all images, sent in batches, in order."""
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return [answer for batch in batches for answer in deployment.invoke(batch)]


def _round_trip(deployment: Deployment, image: np.ndarray[Any, Any]) -> float:
    began = time.perf_counter()
    deployment.invoke(image[None, :], timeout=timedelta(seconds=30))
    return time.perf_counter() - began


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile by nearest rank."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _accuracy(answers: Sequence[Any], labels: np.ndarray[Any, Any]) -> float:
    right = sum(int(answer) == int(label) for answer, label in zip(answers, labels, strict=True))
    return round(right / len(labels), 6)


def _show(out: Console, result: Result, where: options.Where) -> None:
    again = options.spelt(where)
    verdict = Cell("equal, image by image", "green") if result.answers_equal else Cell("they differ", "bold red")
    out.line()
    out.line(Cell(result.deployment, "bold"), f" answers on {result.provider}, revision {result.revision}")
    out.line()
    out.fields(
        [
            ("package", f"{result.package_digest[:12]}  {size(result.package_bytes)}"),
            ("bundle", size(result.bundle_bytes)),
            ("deployed in", f"{result.deploy_seconds:.2f} s"),
            ("cold", f"{milliseconds(result.cold_ms)} ms  from nothing running to the first answer"),
            (
                "warm",
                f"{milliseconds(result.warm_ms_p50)} ms  p50, {milliseconds(result.warm_ms_p99)} ms p99, one image over HTTP",
            ),
        ]
    )
    out.line()
    out.fields(
        [
            ("accuracy   ", f"{result.accuracy_endpoint:.2%}  over the endpoint, {result.images} held-out images"),
            ("", f"{result.accuracy_in_process:.2%}  in this process"),
            ("", verdict),
        ]
    )
    out.line()
    out.fields([("url        ", result.url)])
    out.line()
    file = _shown(result.input_file)
    for title, line in (
        ("try", f"polyserve invoke {result.deployment}{again} --file {file}"),
        ("", f"polyserve metrics {result.deployment}{again}"),
        ("", f"polyserve logs {result.deployment}{again} --follow"),
        ("", f"polyserve destroy {result.deployment}{again}"),
    ):
        out.line(Cell(f"  {title.ljust(3)}  ", "dim"), Cell(line, "cyan"))


def _shown(path: str) -> str:
    """Return a path as a word of a shell, short where it is in the home directory."""
    home = f"{Path.home()}/"
    return f"~/{shlex.quote(path.removeprefix(home))}" if path.startswith(home) else shlex.quote(path)
