"""What is asked for: a package, the bundle that is built of it for a target, and the settings, as one value that the planner compares.

Touches nothing but the cache: whether it can be done, and what is there already, is for others to see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal

from polyserve import registry
from polyserve.bucket import Bucket
from polyserve.bundle import Bundle, Fitted, find_python, fit, machine
from polyserve.bundle import Target as Machine
from polyserve.driver import Artifact, Limits, Provider, ProviderInfo, Scaling
from polyserve.errors import PackageError
from polyserve.footprint import Footprint
from polyserve.model import ModelPackage
from polyserve.model.flavors import caution
from polyserve.planner import Desired, StepKind
from polyserve.records import prefix
from polyserve.runtime.manifest import FileEntry

__all__ = ["Event", "Listener", "Target", "desire"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a rollout tells its caller: a step of the plan began, went on or ended. `detail` says how far it is.

    What takes long before there is a plan, building the bundle, is told as step BUNDLE.
    """

    step: StepKind
    state: Literal["start", "progress", "done"]
    detail: str = ""
    seconds: float = 0.0


Listener = Callable[[Event], None]

REQUEST_BYTES = 64 << 20
"""Largest request body where nobody says otherwise and the platform takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where deployments live: a provider and the bucket of their records and bundles."""

    provider: Provider
    bucket: Bucket


def desire(
    package: ModelPackage,
    target: Target,
    *,
    name: str,
    memory_mb: int = 512,
    timeout: timedelta = timedelta(seconds=30),
    environment: Mapping[str, str] = MappingProxyType({}),
    request_bytes: int | None = None,
    scaling: Scaling = Scaling(),  # noqa: B008 - frozen
    canary: int | None = None,
    model_in_bucket_mb: int | None = None,
    python: str | None = None,
    architecture: str | None = None,
    slim: str = "standard",
    emulated: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
    listener: Listener | None = None,
) -> tuple[Desired, Bundle]:
    """Build the package's bundle for a target, and say what is asked for. Touches nothing but the cache of bundles.

    Requests may have 64 MiB, or what the platform takes if that is less, unless another bound is given. Where the target is emulated, the
    functions run under a Python of this machine: one that is not here is an obstacle, as is whatever the provider's driver knows to be one.

    Raises:
        PackageError: The package is damaged, or its dependencies cannot be brought together for the target.
        UnavailableError: The package index cannot be reached.
    """
    info = target.provider.info
    architecture = architecture or _architecture(info.limits)
    with _Telling(listener, f"bundle for {info.title}") as report:
        python, fitted = _fitted(
            package,
            info,
            _pythons(package, info, python),
            architecture=architecture,
            model_in_bucket_mb=model_in_bucket_mb,
            slim=slim,
            report=report,
        )
    bundle = fitted.bundle
    desired = Desired(
        name=name,
        info=info,
        package_digest=package.digest,
        model=package.name,
        signature=package.signature.to_dict(),
        requirements=package.manifest.requirements,
        python=python,
        architecture=architecture,
        artifact=Artifact(
            bucket=target.bucket.name,
            key=f"{prefix(name)}bundles/{bundle.sha256}.{info.bundle.archive}",
            sha256=bundle.sha256,
            size=bundle.size,
        ),
        unpacked_bytes=bundle.unpacked_size,
        memory_mb=memory_mb,
        timeout=timeout,
        environment=environment,
        request_bytes=request_bytes or min(REQUEST_BYTES, info.limits.request_bytes or REQUEST_BYTES),
        scaling=scaling,
        canary=canary,
        warnings=(*_warnings(package), *_moved(package, info, python), *bundle.notes),
        models={path: _model(target, name, package.manifest.files[path]) for path in fitted.remote},
        footprint=_footprint(package, info, fitted, python=python, architecture=architecture, slim=slim),
        providers=_providers(info),
        obstacles=tuple(_unrehearsable(package, info, python, architecture)) if emulated else (),
        options=options,
    )
    return _hindered(desired, target.provider), bundle


def _hindered(desired: Desired, provider: Provider) -> Desired:
    """Return what is asked for with what the provider's driver says is in the way of it; its number is none of its settings."""
    split = desired.canary is not None and desired.canary < 100
    told = provider.functions.obstacles(desired.spec(1), split=split)
    return replace(desired, obstacles=(*desired.obstacles, *told))


class _Telling:
    """Tells of something as of one step, from its first sign of life on: what is found in the cache is not worth a line."""

    def __init__(self, listener: Listener | None, title: str) -> None:
        self._listener = listener
        self._title = title
        self._begun: float | None = None

    def __enter__(self) -> Callable[[str], None]:
        return self._report

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._listener is not None and self._begun is not None and kind is None:
            seconds = time.perf_counter() - self._begun
            self._listener(Event(step=StepKind.BUNDLE, state="done", detail=self._title, seconds=seconds))

    def _report(self, text: str) -> None:
        if self._listener is None:
            return
        if self._begun is None:
            self._begun = time.perf_counter()
            self._listener(Event(step=StepKind.BUNDLE, state="start", detail=self._title))
        self._listener(Event(step=StepKind.BUNDLE, state="progress", detail=text))


def _model(target: Target, name: str, entry: FileEntry) -> Artifact:
    key = f"{prefix(name)}models/{entry.sha256}"
    return Artifact(bucket=target.bucket.name, key=key, sha256=entry.sha256, size=entry.size)


def _architecture(limits: Limits) -> str:
    here = machine()
    return here if here in limits.architectures else limits.architectures[0]


def _pythons(package: ModelPackage, info: ProviderInfo, asked: str | None) -> list[str]:
    """Return the Python versions that a package could run under, the best first: its own, then the next newer ones."""
    own = package.manifest.python
    if asked is not None:
        return [asked]
    if package.manifest.tied_to_python:
        return [own]
    return sorted({*info.limits.pythons} or {own}, key=lambda python: _distance(own, python))


def _distance(own: str, other: str) -> tuple[bool, int]:
    apart = int(other.partition(".")[2]) - int(own.partition(".")[2])
    return apart < 0, abs(apart)


def _fitted(package: ModelPackage, info: ProviderInfo, pythons: Sequence[str], **how: Any) -> tuple[str, Fitted]:
    """Build the bundle under the first Python that its dependencies have wheels for."""
    first: PackageError | None = None
    for python in pythons:
        try:
            return python, fit(package, info, python=python, **how)
        except PackageError as error:
            first = first or error
    assert first is not None
    raise first


def _footprint(
    package: ModelPackage, info: ProviderInfo, fitted: Fitted, *, python: str, architecture: str, slim: str
) -> Footprint:
    bundle, manifest = fitted.bundle, package.manifest
    machine = Machine.of(info, python=python, architecture=architecture)
    return Footprint(
        parts=bundle.parts,
        distributions=bundle.distributions,
        dropped=bundle.dropped,
        notes=bundle.notes,
        slim=slim,
        traceable=machine.is_here and package.golden_request() is not None,
        flavor=manifest.flavor,
    )


def _providers(info: ProviderInfo) -> tuple[ProviderInfo, ...]:
    """Return every installed provider; the one in question as it is configured."""
    known = {**registry.providers(), info.name: info}
    return tuple(known.values())


def _moved(package: ModelPackage, info: ProviderInfo, python: str) -> Iterator[str]:
    own = package.manifest.python
    if python != own:
        yield (
            f"the functions run under Python {python}, and the package was made under {own}: the model is bound to neither, and "
            f"{info.title} may not have what its dependencies need under {own}"
        )


def _unrehearsable(package: ModelPackage, info: ProviderInfo, python: str, architecture: str) -> Iterator[str]:
    if architecture != machine():
        fits = machine() in info.limits.architectures
        yield (
            f"the functions would run on {architecture}, and the emulator of {info.title} runs them on this machine, which is "
            f"{machine()}: rehearse {f'with --arch {machine()}' if fits else f'it on a machine that is {architecture}'}"
        )
    own = package.manifest.python
    if python not in info.limits.pythons or find_python(python) is not None:
        return
    # A compiled model is bound to no Python; what it was compiled from is served under its own.
    other = f", or serve the model as it is, under Python {own}, with --compile off" if _compiled(package) else ""
    yield (
        f"the functions would run under Python {python}, and the emulator of {info.title} runs them on this machine, which has "
        f"none: install it, so that python{python} is on the PATH{other}"
    )


def _compiled(package: ModelPackage) -> bool:
    return "compiled" in (package.manifest.origin or {})


def _warnings(package: ModelPackage) -> tuple[str, ...]:
    warnings = []
    report = package.compilation
    if report is not None and report.tried and not report.compiled:
        warnings.append(f"the model is served as it is, not as ONNX, which starts faster: {report.reason}")
    if package.golden_request() is None:
        warnings.append(
            "no golden sample: nothing proves that the model answers there as it did here; package it with sample="
        )
    if (told := caution(package.manifest)) is not None:
        warnings.append(told)
    return tuple(warnings)
