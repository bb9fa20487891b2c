"""Compile a model: convert it to ONNX, and serve that by onnxruntime where it answers as the original does, else the original.

    decide     is there a converter for the flavor, are there rows enough, is what converts it installed?
    convert    the flavor's module here makes what it can, the most exact first
    guard      each is loaded as in the function and compared with the original; the first that passes is taken
    package    its files, the original's sample with the original's answer, a lock of onnxruntime and numpy

The golden sample stays the original's, so a deployment proves that it answers as the user's own model did.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyserve.errors import PackageError
from polyserve.model import golden
from polyserve.model.compile.report import Compilation, Served
from polyserve.model.environment import Environment
from polyserve.model.rehearsal import RehearsalError, rehearse
from polyserve.model.storage import ModelPackage, keep, staging
from polyserve.runtime import loaders, modules
from polyserve.runtime import manifest as manifests
from polyserve.runtime.host import Host
from polyserve.runtime.loading import LoadError
from polyserve.runtime.manifest import Manifest, Tolerance
from polyserve.runtime.protocol import parse_infer
from polyserve.runtime.signature import match
from polyserve.runtime.tensors import Tensor

__all__ = ["CHOICES", "SAMPLE_ROWS", "Compilation", "check", "compiled"]

CHOICES = ("auto", "onnx", "off")
"""What may be asked: where it can be proven, or else refuse, or never."""

SAMPLE_ROWS = 32
"""Rows of a sample from which `auto` compiles. Where n rows of n agree, fewer than 3/n of all rows differ, 19 times of 20: of 32, fewer
than one in ten, before any probe."""

CONVERTERS: Mapping[str, str] = {"sklearn": "sklearn", "xgboost": "boosters", "lightgbm": "boosters", "torch": "torch"}
"""The module here that converts each flavor's models."""

_PATH = "model/model.onnx"
_RUNTIME = ("onnxruntime", "numpy")
_CALLS = 15


class _NotCompiled(Exception):
    """Why a package stays as it is, as a sentence."""

    tried = True


class _NotTried(_NotCompiled):
    """The same, where there was nothing to compare answers on."""

    tried = False


def check(asked: str) -> None:
    """Refuse a choice that there is not.

    Raises:
        PackageError: It is none of `CHOICES`.
    """
    if asked not in CHOICES:
        message = f"compile={asked!r} is none of {', '.join(map(repr, CHOICES))}"
        raise PackageError(message, operation="package", resource=str(asked))


def compiled(original: ModelPackage, asked: str) -> ModelPackage:
    """Return the compiled package of a model, or the original with the reason why not.

    Args:
        original: The package of the model as it is.
        asked: One of `CHOICES`.

    Raises:
        PackageError: `"onnx"` was asked for and cannot be had.
    """
    if asked == "off" or original.manifest.flavor == "onnx" or _is_nobodys(original, asked):
        return original
    try:
        return _compiled(original, asked)
    except _NotCompiled as error:
        if asked == "onnx":
            message = f"{original.name!r} cannot be compiled: {error}. Pass compile='off' to serve it as it is"
            raise PackageError(message, operation="package", resource=original.name) from error
        return replace(original, compilation=Compilation(compiled=False, tried=error.tried, reason=str(error)))


def _is_nobodys(original: ModelPackage, asked: str) -> bool:
    """Tell whether nobody would expect a package to be compiled, so that there is no reason to give."""
    return asked == "auto" and original.manifest.flavor not in CONVERTERS


def _compiled(original: ModelPackage, asked: str) -> ModelPackage:
    manifest = original.manifest
    inputs = _sample(original, asked)
    if manifest.flavor not in CONVERTERS:
        known = ", ".join(CONVERTERS)
        raise _NotCompiled(f"models of flavor {manifest.flavor} have no counterpart in ONNX; those of {known} may have")
    converter = import_module(f"{__name__}.{CONVERTERS[manifest.flavor]}")
    missing = [name for name in converter.NEEDS if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise _NotCompiled(
            f"{names} {'is' if len(missing) == 1 else 'are'} not installed: pip install {' '.join(missing)}"
        )
    if (original.root / modules.CODE).is_dir() and not getattr(converter, "TAKES_CODE", False):
        raise _NotCompiled("it has code of your own, and code cannot be converted")
    with warnings.catch_warnings():
        # Of rows that no caller sends, and of versions and deprecations; what counts is compared.
        warnings.simplefilter("ignore")
        return _Compiling(original, inputs, converter).run()


def _sample(original: ModelPackage, asked: str) -> list[Tensor]:
    """Return the sample, if it is enough."""
    request = original.golden_request()
    if request is None:
        raise _NotTried("there is no sample to compare answers on: pass sample=X[:100]")
    inputs = match(parse_infer(request.body, request.headers).inputs, original.signature.inputs)
    counts = {tensor.shape[0] if tensor.shape else 0 for tensor in inputs}
    if len(counts) != 1 or 0 in counts:
        raise _NotCompiled("its inputs are not rows")
    [count] = counts
    if asked == "auto" and count < SAMPLE_ROWS:
        raise _NotTried(
            f"the sample of {count} row{'s' if count > 1 else ''} proves too little: pass {SAMPLE_ROWS} or more, such as sample=X[:100]"
        )
    return inputs


@dataclass(slots=True)
class _Compiling:
    """One attempt at one package."""

    original: ModelPackage
    inputs: list[Tensor]
    converter: Any

    def run(self) -> ModelPackage:
        model, load_ms = _loaded(self.original.root, self.original.manifest)
        first = ""
        for converted in self._candidates(model):
            try:
                return self._package(model, load_ms, converted)
            except _NotCompiled as error:
                first = first or str(error)
        raise _NotCompiled(first or "nothing came of it")

    def _candidates(self, model: loaders.Model) -> Iterator[Any]:
        from polyserve.model.compile.trees import CannotConvert

        try:
            yield from self.converter.candidates(model, self.original.signature)
        except CannotConvert as error:
            raise _NotCompiled(str(error)) from error
        except Exception as error:
            # A converter reads what frameworks keep to themselves, and another version may keep it elsewhere: no reason not to package.
            told = (str(error).strip().splitlines() or [""])[0]
            raise _NotCompiled(f"its converter failed ({type(error).__name__}: {told[:200]})") from error

    def _package(self, model: loaders.Model, load_ms: float, converted: Any) -> ModelPackage:
        from polyserve.model.compile import guard, refusing
        from polyserve.model.compile.graph import serialize
        from polyserve.model.compile.trees import CannotConvert

        before = self.original.manifest
        try:
            raw = serialize(converted, before.signature)
            limits = refusing.limits(model, self.inputs)
        except CannotConvert as error:
            raise _NotCompiled(str(error)) from error
        with staging(self.original.root.parent) as root:
            for inside in before.files:
                if inside.startswith("sample/"):
                    (root / inside).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.original.root / inside, root / inside)
            (root / _PATH).parent.mkdir(parents=True)
            (root / _PATH).write_bytes(raw)
            names = [spec.name for spec in before.signature.outputs]
            manifest = replace(
                before,
                flavor="onnx",
                loader={"format": "onnx", "path": _PATH, "methods": names, **limits},
                requirements=_lock(),
                safe=True,
                row_wise=False,
                files=manifests.file_entries(root),
                tolerance=self._tolerance(guard.ROW_TOLERANCE),
                origin={"digest": self.original.digest, "compiled": {"from": before.flavor, **_stated()}},
            )
            manifest = self._rehearsed(root, manifest)
            loaded, onnx_ms = _loaded(root, manifest)
            seen = guard.compare(model, loaded, self.inputs, converted.thresholds)
            if seen.reason:
                raise _NotCompiled(seen.reason)
            (root / manifests.FILE_NAME).write_bytes(manifest.to_json())
            made = ModelPackage(root=root, manifest=manifest, digest=manifest.digest)
            self._replay(made)
            row = [tensor.split([1, tensor.rows - 1])[0] if tensor.rows > 1 else tensor for tensor in self.inputs]
            report = Compilation(
                compiled=True,
                rows=seen.rows,
                probes=seen.probes,
                largest_difference=seen.largest_difference,
                original=_served(self.original, load_ms, model, row),
                onnx=_served(made, onnx_ms, loaded, row),
            )
            return replace(keep(made), compilation=report)

    def _rehearsed(self, root: Path, manifest: Manifest) -> Manifest:
        """Return the manifest with what only the compiled model can tell: whether rows may be put together."""
        outputs = manifest.signature.outputs
        try:
            done = rehearse(root, manifest, self.inputs, outputs[0].name)
        except RehearsalError as error:
            # Without the path of the file.
            told = str(error).rpartition(" failed:")[2]
            raise _NotCompiled(f"what it became cannot be run by onnxruntime ({told[:200]})") from error
        return replace(manifest, row_wise=done.row_wise)

    def _tolerance(self, row_tolerance: Mapping[str, float]) -> Tolerance:
        """Return how far a number of a deployment may be from the original's golden answer: as far as the guard allows, at least."""
        before = self.original.manifest.tolerance
        largest = golden.largest(self.original.root, self.original.manifest, row_tolerance)
        # A power of ten: nothing of it is this machine's.
        scale = 10.0 ** math.ceil(math.log10(largest)) if largest else 0.0
        return replace(before, absolute=max(before.absolute, scale))

    def _replay(self, made: ModelPackage) -> None:
        """Have the golden sample answered as every deployment will."""
        request = made.golden_request()
        host = Host(made.root, sink=lambda lines: None)
        try:
            host.load()
        except LoadError as error:
            raise _NotCompiled(f"what it became cannot be loaded ({error})") from error
        difference = "there is none" if request is None else made.difference(host.handle(request))
        if difference is not None:
            raise _NotCompiled(f"the golden sample is answered differently: {difference}")


def _stated() -> dict[str, object]:
    from polyserve.model.compile.guard import ABSOLUTE_TOLERANCE, TOLERANCE

    return {"to": "onnx", "tolerance": {"absolute": dict(ABSOLUTE_TOLERANCE), "relative": dict(TOLERANCE)}}


def _lock() -> tuple[str, ...]:
    environment = Environment()
    # Such as onnxruntime-gpu has another name than what it is imported by; to look for it takes a while.
    names = {name if _is_distribution(name) else environment.owner(name) or name for name in _RUNTIME}
    # onnxruntime asks for more than serving imports: protobuf, sympy, ...
    return environment.lock(names, bare=names)


def _is_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _loaded(root: Path, manifest: Manifest) -> tuple[loaders.Model, float]:
    import_module("onnxruntime")
    path = list(sys.path)
    began = time.perf_counter()
    try:
        model = loaders.load(root, manifest)
    finally:
        # A package with code of its own put that first.
        sys.path[:] = path
    return model, (time.perf_counter() - began) * 1000


def _served(package: ModelPackage, load_ms: float, model: loaders.Model, row: Sequence[Tensor]) -> Served:
    return Served(
        digest=package.digest,
        size_bytes=package.size_bytes,
        load_ms=load_ms,
        row_us=_median(lambda: model.predict(row, None)),
    )


def _median(call: Callable[[], object]) -> float:
    took = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1e6)
    return sorted(took)[_CALLS // 2]
