"""Which files of a model travel in the bundle, and which stay in the bucket and are read when an instance starts.

By default all travel: nothing starts faster. Where the platform takes no bundle of that size, the largest files stay, as few of them as
it takes; or all from a size on, where somebody says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from polyserve.bundle.build import Bundle, build
from polyserve.driver import ProviderInfo
from polyserve.model.storage import ModelPackage

__all__ = ["Fitted", "fit"]

SMALLEST = 1 << 20
"""Files below this stay in the bundle unless somebody says otherwise: a request for each would cost more than it saves."""

_MODEL = "model/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A bundle, and the paths of the package's files that it leaves to the bucket."""

    bundle: Bundle
    remote: tuple[str, ...]


def fit(
    package: ModelPackage,
    info: ProviderInfo,
    *,
    python: str,
    architecture: str,
    model_in_bucket_mb: int | None = None,
    slim: str = "standard",
    report: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Build the bundle of a package, without the model files that are to stay in the bucket.

    Args:
        package: The model package.
        info: The provider.
        python: As for `build`.
        architecture: As for `build`.
        model_in_bucket_mb: Size in MiB from which on a model's file stays in the bucket. `None` leaves there what has to be left: the
            largest files, where the bundle would be over a limit of the platform otherwise.
        slim: As for `build`.
        report: As for `build`.

    Raises:
        PackageError: As `build`.
    """

    def built(remote: list[str]) -> Fitted:
        bundle = build(package, info, python=python, architecture=architecture, remote=remote, slim=slim, report=report)
        return Fitted(bundle=bundle, remote=tuple(sorted(remote)))

    sizes = {path: entry.size for path, entry in package.manifest.files.items() if path.startswith(_MODEL)}
    if model_in_bucket_mb is not None:
        return built([path for path, size in sizes.items() if size >= model_in_bucket_mb << 20])
    limits, remote = info.limits, list[str]()
    candidates = sorted(
        (path for path, size in sizes.items() if size >= SMALLEST), key=lambda path: (-sizes[path], path)
    )
    # What is too large by itself need not be packed to know it: that takes minutes.
    excess = package.size_bytes - (limits.bundle_unpacked_bytes or package.size_bytes)
    while True:
        while excess > 0 and candidates:
            remote.append(candidates.pop(0))
            excess -= sizes[remote[-1]]
        fitted = built(remote)
        bundle = fitted.bundle
        excess = max(
            bundle.unpacked_size - (limits.bundle_unpacked_bytes or bundle.unpacked_size),
            bundle.size - (limits.bundle_bytes or bundle.size),
        )
        if excess <= 0 or not candidates:
            return fitted
