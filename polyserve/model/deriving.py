"""Make a package of another one: its model's files changed, everything else kept, its sample answered anew.

What is made is a package like any other: it has a digest and a golden sample of its own, and its manifest says which package it
was made of, and how. Nothing is kept until the caller says so.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyserve.errors import PackageError
from polyserve.model import golden
from polyserve.model.packing import package
from polyserve.model.rehearsal import Rehearsal, RehearsalError, rehearse
from polyserve.model.storage import ModelPackage, packages_directory, staging
from polyserve.runtime import manifest as manifests
from polyserve.runtime import values
from polyserve.runtime.manifest import Manifest, Tolerance
from polyserve.runtime.messages import RequestError
from polyserve.runtime.protocol import parse_infer
from polyserve.runtime.signature import Signature, TensorSpec, match
from polyserve.runtime.tensors import Tensor

SAMPLE_ROWS = 8
"""How many rows of the caller's data become the sample of a package that has none."""

MODEL = "model"
"""The directory of a package that has the model's own files."""

_DIGEST = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of the model's files.

    Attributes:
        loader: What the loader needs to load them.
        flavor: The flavor, where it is another one now.
        safe: Whether loading runs no code of the model's own, where that changed.
        inputs: What goes in now, as a kind and specs; `None` where that is as it was.
        output_name: What to call an output that has no name of its own; `None` for the name of the original's first output.
    """

    loader: Mapping[str, object]
    flavor: str | None = None
    safe: bool | None = None
    inputs: tuple[str, tuple[TensorSpec, ...]] | None = None
    output_name: str | None = None


def opened(model: object, *, sample: object = None, name: str | None = None) -> ModelPackage:
    """Return the package that a model is, or becomes: everything that `package` takes, or the digest of a package in the cache.

    Args:
        model: The model; of a digest the first 12 digits do.
        sample: The sample of a model that is no package yet.
        name: The name of a model that is no package yet.

    Raises:
        PackageError: It is not, and cannot become, a package.
    """
    if isinstance(model, str) and _DIGEST.fullmatch(model) and not Path(model).exists():
        found = sorted(packages_directory().glob(f"{model}*"))
        if len(found) != 1:
            number = "no package" if not found else f"{len(found)} packages"
            message = (
                f"{number} in the cache whose digest begins with {model!r}: pass the package's directory or archive"
            )
            raise PackageError(message, operation="open", resource=model)
        return ModelPackage.open(found[0])
    if isinstance(model, ModelPackage):
        return model
    path = Path(model) if isinstance(model, str | Path) else None
    if path is not None and (path.suffix.lower() == ".zip" or (path / manifests.FILE_NAME).is_file()):
        return package(model)
    # What is made of the model is said by the caller, so nothing else is made of it first.
    return package(model, sample=sample, name=name, compile="off")


def sample_of(original: ModelPackage) -> list[Tensor] | None:
    """Return the inputs of a package's golden sample, or `None` where it has none."""
    request = original.golden_request()
    if request is None:
        return None
    return match(parse_infer(request.body, request.headers).inputs, original.signature.inputs)


def tensors_of(data: object, signature: Signature, what: str = "the data") -> list[Tensor]:
    """Return rows of input as the tensors that a model takes.

    Raises:
        PackageError: They are not what it takes, or there are none.
    """
    try:
        tensors = values.to_tensors(data, signature.inputs, signature.input_kind)
    except RequestError as error:
        raise PackageError(f"{what} is not what the model takes: {error.message}", resource=what) from error
    lengths = {tensor.rows for tensor in tensors}
    if lengths == {0} or not lengths or any(not tensor.shape for tensor in tensors):
        raise PackageError(f"{what} has no rows: pass at least one", resource=what)
    if len(lengths) > 1:
        told = ", ".join(f"{tensor.name!r} has {tensor.rows}" for tensor in tensors)
        raise PackageError(f"the inputs in {what} must have as many rows as each other: {told}", resource=what)
    return tensors


def rows_of(tensors: Sequence[Tensor], begin: int, end: int) -> list[Tensor]:
    """Return some rows of inputs, from one number up to, but not including, another."""
    total = tensors[0].rows
    counts = [begin, min(end, total) - begin, max(0, total - end)]
    return [tensor.split(counts)[1] for tensor in tensors]


@contextmanager
def derived(
    original: ModelPackage,
    change: Callable[[Path], Change],
    *,
    origin: Mapping[str, Any],
    inputs: Sequence[Tensor],
    name: str | None = None,
    into: Path | None = None,
) -> Iterator[ModelPackage]:
    """Yield the package that another one becomes. It is gone afterwards, unless it went to `storage.keep` meanwhile.

    Args:
        original: The package.
        change: Changes the model's files below `root / "model"`, of a copy of the package without manifest and sample.
        origin: What the manifest is to say of how it was made; the original's digest is added.
        inputs: The inputs of its sample.
        name: Its name; by default the original's.
        into: The directory below which it may be kept; by default the cache.

    Raises:
        PackageError: It cannot be loaded, does not take the sample, or answers differently each time.
    """
    original.verify()
    with staging(into or packages_directory()) as root:
        for inside in original.manifest.files:
            if not inside.startswith("sample/"):
                (root / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original.root / inside, root / inside)
        changed = change(root)
        before = original.manifest
        kind, specs = changed.inputs or (before.signature.input_kind, before.signature.inputs)
        manifest = replace(
            before,
            name=name or before.name,
            flavor=changed.flavor or before.flavor,
            safe=before.safe if changed.safe is None else changed.safe,
            loader=changed.loader,
            signature=Signature(input_kind=kind, output_kind="array", inputs=specs, outputs=()),
            row_wise=False,
            sample=None,
            tolerance=Tolerance(),
            files={},
            origin={**origin, "digest": original.digest},
        )
        named = [spec.name for spec in before.signature.outputs]
        done = _rehearsed(root, manifest, inputs, changed.output_name or (named[0] if named else "output"))
        tolerance = golden.tolerance_for([tensor.datatype for tensor in done.outputs])
        described = golden.write(root, inputs, done.outputs, tolerance)
        manifest = replace(
            manifest,
            signature=_same_shapes(done.signature, before.signature),
            row_wise=done.row_wise,
            sample=described,
            tolerance=tolerance,
            files=manifests.file_entries(root),
        )
        (root / manifests.FILE_NAME).write_bytes(manifest.to_json())
        yield ModelPackage(root=root, manifest=manifest, digest=manifest.digest)


def _rehearsed(root: Path, manifest: Manifest, inputs: Sequence[Tensor], output_name: str) -> Rehearsal:
    golden.check_size(inputs)
    try:
        done = rehearse(root, manifest, inputs, output_name)
    except RehearsalError as error:
        what = {
            "load": "cannot be loaded",
            "sample": "does not take the sample",
            "answer": "answers what cannot be sent",
        }
        message = f"what became of {manifest.name!r} {what.get(error.stage, 'fails')}: {error}"
        raise PackageError(message, operation="package", resource=manifest.name) from error
    tolerance = golden.tolerance_for([tensor.datatype for tensor in done.outputs])
    difference = golden.same(done.outputs, done.repeated, tolerance)
    if difference is not None:
        message = f"what became of {manifest.name!r} answers the same sample differently each time ({difference})"
        raise PackageError(message, operation="package", resource=manifest.name)
    return done


def _same_shapes(made: Signature, before: Signature) -> Signature:
    """Return a signature with the original's outputs where the answer fits them: it may know shapes that one answer does not show."""
    pairs = list(zip(made.outputs, before.outputs, strict=False))
    same = len(made.outputs) == len(before.outputs) and all(
        (new.name, new.datatype, len(new.shape)) == (old.name, old.datatype, len(old.shape)) for new, old in pairs
    )
    return replace(made, outputs=before.outputs, output_kind=before.output_kind) if same else made
