"""Build a bundle, or find the one that was built before.

    package/...              the model package, file by file
    polyserve/               the runtime, and the lazy `__init__.py` above it
    polyserve_entrypoint.py  the provider's entrypoint: native event -> request -> host -> native response

Knows no provider beyond what its `ProviderInfo` says.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import polyserve
from polyserve.driver import ProviderInfo
from polyserve.errors import PackageError
from polyserve.model.storage import ModelPackage, cache_directory
from polyserve.runtime import archive
from polyserve.runtime.manifest import FILE_NAME, file_digest

FORMAT = 1
"""Version of the bundle's form; part of its key in the cache."""

PACKAGE = "package"
"""Where the model package is within a bundle."""

ENTRYPOINT = "polyserve_entrypoint"
"""The entrypoint's module within a bundle, whichever provider it is from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        path: The archive.
        sha256: Of the archive, hex.
        size: Of the archive, in bytes.
        unpacked_size: Of its files together, in bytes.
        parts: What `unpacked_size` is made of, in bytes: `package`, `runtime`, `entrypoint`.
        package_digest: Tree digest of the model package in it.
    """

    path: Path
    sha256: str
    size: int
    unpacked_size: int
    parts: Mapping[str, int]
    package_digest: str


def build(
    package: ModelPackage, info: ProviderInfo, *, python: str, architecture: str, remote: Collection[str] = ()
) -> Bundle:
    """Build the bundle of a package for a provider; the same input gives the same bytes. Takes milliseconds where it was built before.

    Args:
        package: The model package; verified before its files are read.
        info: The provider.
        python: Python minor version that the function runs under; must be the package's.
        architecture: Processor architecture that the function runs on.
        remote: Files of the package that are left out: whoever deploys the bundle puts them in the bucket, and the function gets them
            from there when it starts.

    Raises:
        PackageError: The package is damaged, is of another Python, or the cache cannot be written.
    """
    if python != package.manifest.python:
        message = (
            f"package {package.name!r} was made under Python {package.manifest.python} and cannot run under {python}: "
            f"package the model again under {python}, or deploy it under {package.manifest.python}"
        )
        raise PackageError(message, provider=info.name, operation="build", resource=package.name)
    contents = _contents(package, info, frozenset(remote))
    sizes = {part: sum(file.stat().st_size for file in files.values()) for part, files in contents.items()}
    key = _key(package, contents, python, architecture)
    path = cache_directory() / "bundles" / f"{key}.zip"
    digest = _cached(path)
    if digest is None:
        package.verify()
        digest = _write(path, {inside: file for files in contents.values() for inside, file in files.items()})
    return Bundle(
        path=path,
        sha256=digest,
        size=path.stat().st_size,
        unpacked_size=sum(sizes.values()),
        parts=sizes,
        package_digest=package.digest,
    )


def _contents(package: ModelPackage, info: ProviderInfo, remote: frozenset[str]) -> dict[str, dict[str, Path]]:
    """Return every file by part and by path within the bundle. Wheels for a target become one more part, `dependencies`."""
    library = Path(polyserve.__file__).parent
    runtime = [library / "__init__.py", *library.glob("runtime/**/*.py")]
    spec = find_spec(info.entrypoint)
    if spec is None or spec.origin is None:
        message = f"provider {info.name!r} names entrypoint {info.entrypoint!r}, which is not installed: reinstall the provider"
        raise PackageError(message, provider=info.name, operation="build", resource=info.entrypoint)
    return {
        "package": {
            f"{PACKAGE}/{inside}": package.root / inside
            for inside in [FILE_NAME, *package.manifest.files]
            if inside not in remote
        },
        "runtime": {f"{library.name}/{file.relative_to(library).as_posix()}": file for file in runtime},
        "entrypoint": {f"{ENTRYPOINT}.py": Path(spec.origin)},
    }


def _key(package: ModelPackage, contents: Mapping[str, Mapping[str, Path]], python: str, architecture: str) -> str:
    key = hashlib.sha256(f"{FORMAT}\0{archive.LEVEL}\0{package.digest}\0{python}\0{architecture}\0".encode())
    # Which files of the package are left out is all that its digest does not tell.
    key.update("".join(f"{inside}\0" for inside in sorted(contents["package"])).encode())
    for part in ("runtime", "entrypoint"):
        for inside, file in sorted(contents[part].items()):
            key.update(f"{inside}\0{file_digest(file)}\0".encode())
    return key.hexdigest()


def _cached(path: Path) -> str | None:
    """Return the digest of an archive in the cache, or `None` where it is not there or not what was written."""
    try:
        digest = path.with_suffix(".sha256").read_text()
        return digest if file_digest(path) == digest else None
    except OSError:
        return None


def _write(path: Path, files: Mapping[str, Path]) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        archive.write(path, files)
        digest = file_digest(path)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".sha256")
        with os.fdopen(descriptor, "w") as file:
            file.write(digest)
        os.replace(name, path.with_suffix(".sha256"))
    except OSError as error:
        message = (
            f"bundle {str(path)!r} cannot be written ({error.strerror}): set POLYSERVE_CACHE to a directory that can"
        )
        raise PackageError(message, operation="build", resource=str(path)) from error
    return digest
