"""From a package's directory to a model that answers: nothing of the package runs before all of it has been verified."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from polyserve.runtime import environment, loaders, manifest
from polyserve.runtime.loaders import Model
from polyserve.runtime.manifest import Manifest, ManifestError

if TYPE_CHECKING:
    from polyserve.runtime.remote import Assembled, Remote

__all__ = ["LoadError", "Loaded", "load"]


class LoadError(Exception):
    """A package that must not be served: it is not what its manifest says, or this interpreter is not what it was locked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded package.

    Attributes:
        manifest: What it says of itself.
        model: What answers.
        import_ms: Milliseconds that the import of its loader took.
        load_ms: Milliseconds that the loading of its model took.
        fetch_ms: Milliseconds that it took to put the package together, where files of it had been left in the bucket.
        fetched_bytes: How much was read from the bucket.
    """

    manifest: Manifest
    model: Model
    import_ms: float
    load_ms: float
    fetch_ms: float = 0.0
    fetched_bytes: int = 0


def load(root: Path, remote: Remote | None = None) -> Loaded:
    """Verify every file, check Python and the installed distributions against the lock, import the loader, load the model.

    Args:
        root: The package's directory.
        remote: How to get the files that it lacks; without it, one that is missing is an error.

    Raises:
        LoadError: The package must not or cannot be served; says why and what to do. Where the model's own loading failed, its error
            is the cause.
    """
    began = perf_counter()
    try:
        described = manifest.read(root)
        whole = None if remote is None else _whole(root, described, remote)
        fetched = perf_counter()
        if whole is None:
            manifest.verify(root, described)
        else:
            root = whole.root
            manifest.verify(root, described, verified=whole.verified)
    except ManifestError as error:
        raise LoadError(f"the package is not whole: {error}; deploy it again") from error
    except OSError as error:
        raise LoadError(f"the package cannot be read: {error}") from error
    python = described.python if described.tied_to_python else None
    skew = list(environment.mismatches(python, described.requirements))
    if skew:
        way_out = "install what it was locked to, or package the model again under this interpreter"
        raise LoadError(f"{'; '.join(skew)}: {way_out}")
    started = perf_counter()
    # On its own first, so that its time is not counted as the model's; where it fails, `loaders.load` says it better.
    with suppress(ImportError):
        import_module(f"{loaders.__name__}.{described.flavor}")
    imported = perf_counter()
    try:
        model = loaders.load(root, described)
    except (Exception, SystemExit) as error:
        raise LoadError(f"loading model {described.name!r} failed: {type(error).__name__}: {error}") from error
    loaded = perf_counter()
    return Loaded(
        manifest=described,
        model=model,
        import_ms=(imported - started) * 1e3,
        load_ms=(loaded - imported) * 1e3,
        fetch_ms=(fetched - began) * 1e3 if whole is not None else 0.0,
        fetched_bytes=whole.fetched_bytes if whole is not None else 0,
    )


def _whole(root: Path, described: Manifest, remote: Remote) -> Assembled | None:
    """Put a package together that lacks files, and return it; `None` where it lacks none."""
    # Imported late: it costs milliseconds, and most packages lack nothing.
    from polyserve.runtime.remote import RemoteError, assemble

    try:
        whole = assemble(root, described, remote)
    except RemoteError as error:
        raise LoadError(f"the package cannot be put together: {error}; deploy it again") from error
    return None if whole.root == root else whole
