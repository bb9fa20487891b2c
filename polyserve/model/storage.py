"""A model package on disk, and the cache in which packages are kept by digest.

A directory in the cache is complete or not there: it is written beside its place and moved into it. What is read from the cache
is verified, and what does not verify is made again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from polyserve.errors import NotFoundError, PackageError
from polyserve.model import golden
from polyserve.runtime import archive
from polyserve.runtime import manifest as manifests
from polyserve.runtime.manifest import Manifest, ManifestError
from polyserve.runtime.messages import Request, Response
from polyserve.runtime.signature import Signature

if TYPE_CHECKING:
    from polyserve.model.compile.report import Compilation

SUFFIX = ".zip"


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """One trained model with everything it needs. Immutable; its identity is `digest`.

    Attributes:
        root: The directory it is in.
        manifest: What it says of itself.
        digest: Tree digest (sha256, hex) of everything in it: the same on every machine and in every cloud.
        compilation: What came of compiling it, where it was made just now and could have been compiled; part of no digest.
    """

    root: Path = field(compare=False)
    manifest: Manifest = field(compare=False, repr=False)
    digest: str
    compilation: Compilation | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Return the model's name."""
        return self.manifest.name

    @property
    def signature(self) -> Signature:
        """Return names, datatypes and shapes of what goes in and out."""
        return self.manifest.signature

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(entry.size for entry in self.manifest.files.values()) + len(self.manifest.to_json())

    @classmethod
    def open(cls, path: Path | str) -> ModelPackage:
        """Open a package and verify every file of it: a directory in place, an archive by unpacking it into the cache.

        Raises:
            PackageError: It is no package, or is not what its manifest says; names the file.
            NotFoundError: There is nothing at that path.
        """
        path = Path(path)
        if path.is_dir():
            return _open_directory(path)
        if not path.is_file():
            raise NotFoundError(
                f"{str(path)!r} does not exist: pass a package's directory or archive",
                operation="open",
                resource=str(path),
            )
        with staging(packages_directory()) as unpacked:
            try:
                archive.extract(path, unpacked)
            except archive.ArchiveError as error:
                raise PackageError(
                    f"{path.name!r} is no model package: {error}", operation="open", resource=str(path)
                ) from error
            return keep(_open_directory(unpacked, str(path)))

    def verify(self) -> None:
        """Compare every file with the manifest's digests.

        Raises:
            PackageError: A file is missing, extra, or of other content; names it.
        """
        try:
            manifests.verify(self.root, self.manifest)
        except (ManifestError, OSError) as error:
            raise PackageError(
                f"{self.root.name!r} is damaged: {error}. Package the model again",
                operation="open",
                resource=str(self.root),
            ) from error

    def save(self, path: Path | str) -> Path:
        """Write the package as one archive, the same bytes every time, and return its path.

        Args:
            path: The archive, or a directory in which it is to be called `<name>-<first 12 of the digest>.zip`.

        Raises:
            PackageError: The package is damaged, or the archive cannot be written.
        """
        self.verify()
        target = Path(path)
        if target.is_dir():
            target /= f"{self.name}-{self.digest[:12]}{SUFFIX}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            archive.write(
                target, {inside: self.root / inside for inside in [manifests.FILE_NAME, *self.manifest.files]}
            )
        except OSError as error:
            raise PackageError(
                f"{str(target)!r} cannot be written: {error.strerror}", operation="save", resource=str(target)
            ) from error
        return target

    def golden_request(self) -> Request | None:
        """Return the request of the golden sample, or `None` where there is none."""
        return golden.request(self.root, self.manifest)

    def difference(self, response: Response) -> str | None:
        """Compare an answer to the golden request with the golden answer.

        Returns:
            `None` where they are equal, floats within the manifest's tolerance; otherwise one sentence that names the output, the
            index, what was expected and what came. Always `None` without a sample.
        """
        return golden.difference(self.root, self.manifest, response)


def cache_directory() -> Path:
    """Return where packages and bundles are kept: `$POLYSERVE_CACHE`, or `~/.cache/polyserve`."""
    return Path(os.environ.get("POLYSERVE_CACHE") or Path.home() / ".cache" / "polyserve").absolute()


def packages_directory() -> Path:
    """Return where packages are kept by digest."""
    return cache_directory() / "packages"


@contextmanager
def staging(beside: Path) -> Iterator[Path]:
    """Yield a new directory on the file system of another, and remove what is left of it."""
    try:
        beside.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=beside, prefix=".new-"))
    except OSError as error:
        message = f"{str(beside)!r} cannot be written ({error.strerror}): set POLYSERVE_CACHE to a directory that can"
        raise PackageError(message, operation="package", resource=str(beside)) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def keep(made: ModelPackage) -> ModelPackage:
    """Move a complete package from its staging directory to its place beside it; where it is already, and sound, that one stands.

    Safe to be called for one package by several processes at once.
    """
    place = made.root.parent / made.digest
    for _ in range(3):
        try:
            made.root.rename(place)
        except OSError:
            # It is there already, made before or by another process just now.
            try:
                return _open_directory(place)
            except PackageError:
                _discard(place)
        else:
            place.chmod(0o755)
            return ModelPackage(root=place, manifest=made.manifest, digest=made.digest)
    raise PackageError(
        f"{str(place)!r} is damaged and cannot be replaced: remove it", operation="package", resource=str(place)
    )


def _open_directory(root: Path, shown: str = "") -> ModelPackage:
    shown = shown or str(root)
    try:
        manifest = manifests.read(root)
        manifests.verify(root, manifest)
    except (ManifestError, OSError) as error:
        reason = str(error).replace(str(root), repr(shown))
        message = f"{shown!r} cannot be opened as a model package: {reason}"
        raise PackageError(message, operation="open", resource=shown) from error
    return ModelPackage(root=root, manifest=manifest, digest=manifest.digest)


def _discard(place: Path) -> None:
    """Take a broken entry out of the cache in one step, so that nobody sees half of it."""
    with staging(place.parent) as bin_:
        try:
            place.rename(bin_ / "broken")
        except OSError:
            return  # another process was quicker
