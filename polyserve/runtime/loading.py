"""From a package's directory to a model that answers: nothing of the package runs before all of it has been verified."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter

from polyserve.runtime import environment, loaders, manifest
from polyserve.runtime.loaders import Model
from polyserve.runtime.manifest import Manifest, ManifestError

__all__ = ["LoadError", "Loaded", "load"]


class LoadError(Exception):
    """A package that must not be served: it is not what its manifest says, or this interpreter is not what it was locked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded package, and how many milliseconds the import of its loader and the loading of its model took."""

    manifest: Manifest
    model: Model
    import_ms: float
    load_ms: float


def load(root: Path) -> Loaded:
    """Verify every file, check Python and the installed distributions against the lock, import the loader, load the model.

    Raises:
        LoadError: The package must not or cannot be served; says why and what to do. Where the model's own loading failed, its error
            is the cause.
    """
    try:
        described = manifest.read(root)
        manifest.verify(root, described)
    except ManifestError as error:
        raise LoadError(f"the package is not whole: {error}; deploy it again") from error
    except OSError as error:
        raise LoadError(f"the package cannot be read: {error}") from error
    skew = list(environment.mismatches(described.python, described.requirements))
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
    )
