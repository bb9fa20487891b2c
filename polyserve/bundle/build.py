"""Build a bundle, or find the one that was built before.

    package/...              the model package, file by file
    polyserve/               the runtime, and the lazy `__init__.py` above it
    polyserve_entrypoint.py  the provider's entrypoint: native event -> request -> host -> native response

and, where the platform does not install them by itself, the dependencies for its machine, slimmed, with byte-code for its Python. Where
each of these goes is what `ProviderInfo.bundle` says; nothing more of a provider is known here.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polyserve
from polyserve.bundle import members, preparing, slimming, tarring, tracing, wheels, zipping
from polyserve.bundle.contents import Content, Contents, Packed, of_file, of_text
from polyserve.bundle.target import MACHINES, Target
from polyserve.driver import BundleForm, ProviderInfo
from polyserve.errors import PackageError
from polyserve.model.storage import ModelPackage, cache_directory
from polyserve.runtime.manifest import FILE_NAME, file_digest

FORMAT = 2
"""Version of the bundle's form; part of its key in the cache."""

PACKAGE = "package"
"""Where the model package is within a bundle."""

ENTRYPOINT = "polyserve_entrypoint"
"""The entrypoint's module within a bundle, whichever provider it is from."""

Report = Callable[[str], None]

_BYTE_CODE = "byte-code"
_DEPENDENCIES = "dependencies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        path: The archive.
        sha256: Of the archive, hex.
        size: Of the archive, in bytes.
        unpacked_size: Of its files together, in bytes.
        parts: What `unpacked_size` is made of, in bytes: `package`, `runtime`, `entrypoint`, and as the platform needs them `dependencies`,
            `byte-code` and `platform`.
        package_digest: Tree digest of the model package in it.
        distributions: Size in bytes of each dependency, its byte-code left out, largest first.
        dropped: Bytes of the dependencies that were left out, by reason.
        notes: What people should know of how it was made.
    """

    path: Path
    sha256: str
    size: int
    unpacked_size: int
    parts: Mapping[str, int]
    package_digest: str
    distributions: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Made:
    """What a bundle is made of, by part and by path within it."""

    parts: dict[str, Contents]
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    compressed: Mapping[str, Packed] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, Content]:
        return {path: content for part in self.parts.values() for path, content in part.items()}

    def size(self, part: str) -> int:
        return sum(content.size for content in self.parts[part].values())


def build(
    package: ModelPackage,
    info: ProviderInfo,
    *,
    python: str,
    architecture: str,
    remote: Collection[str] = (),
    slim: str = "standard",
    report: Report = lambda text: None,
) -> Bundle:
    """Build the bundle of a package for a provider; the same input gives the same bytes. Takes milliseconds where it was built before.

    Args:
        package: The model package; verified before its files are read.
        info: The provider.
        python: Python minor version that the function runs under; must be the package's own, unless the model is bound to none.
        architecture: Processor architecture that the function runs on.
        remote: Files of the package that are left out: whoever deploys the bundle puts them in the bucket, and the function gets them
            from there when it starts.
        slim: What of the dependencies is left out: `"standard"` (what no function can use), `"off"`, or `"traced"` (also what the
            package's sample never touches, proven by answering it without).
        report: Told what is being done, while it takes long.

    Raises:
        PackageError: The package is damaged or is of another Python, a dependency has no wheel for the target, the sample is not answered
            by what was left of them, or the cache cannot be written.
        UnavailableError: The package index cannot be reached.
    """
    where: dict[str, Any] = {"provider": info.name, "operation": "build", "resource": package.name}
    if python != package.manifest.python and package.manifest.tied_to_python:
        message = (
            f"package {package.name!r} was made under Python {package.manifest.python} and cannot run under {python}: "
            f"package the model again under {python}, or deploy it under {package.manifest.python}"
        )
        raise PackageError(message, **where)
    if slim not in slimming.SLIM:
        raise PackageError(f"slim is {slim!r}: it can be {', '.join(slimming.SLIM)}", **where)
    if architecture not in MACHINES:
        raise PackageError(f"architecture is {architecture!r}: it can be {', '.join(MACHINES)}", **where)
    made = _Made(parts=_own_parts(package, info, frozenset(remote)))
    target = Target.of(info, python=python, architecture=architecture)
    try:
        if info.bundle.dependencies is not None:
            _add_dependencies(made, package, info, target=target, slim=slim, report=report)
        if info.bundle.dependencies is not None or info.bundle.requirements_file is not None:
            _prepare(made, info, python, report)
        pack = partial(_pack, package=package, target=f"{python}\0{architecture}", form=info.bundle, report=report)
        bundle = pack(made)
        if _BYTE_CODE in made.parts and bundle.size > (info.limits.bundle_bytes or bundle.size):
            _leave_byte_code(made, "the upload would be larger than the platform takes")
            bundle = pack(made)
    except OSError as error:
        place = str(error.filename or cache_directory())
        message = f"{place!r} cannot be used ({error.strerror}): set POLYSERVE_CACHE to a directory that can"
        raise PackageError(message, operation="build", resource=place) from error
    return bundle


def _own_parts(package: ModelPackage, info: ProviderInfo, remote: frozenset[str]) -> dict[str, Contents]:
    library, form = Path(polyserve.__file__).parent, info.bundle
    runtime = [library / "__init__.py", *library.glob("runtime/**/*.py")]
    spec = find_spec(info.entrypoint)
    if spec is None or spec.origin is None:
        message = f"provider {info.name!r} names entrypoint {info.entrypoint!r}, which is not installed: reinstall the provider"
        raise PackageError(message, provider=info.name, operation="build", resource=info.entrypoint)
    files = {
        path: Content(source=package.root / path, sha256=entry.sha256, size=entry.size)
        for path, entry in package.manifest.files.items()
        if path not in remote
    }
    files[FILE_NAME] = of_file(package.root / FILE_NAME)
    platform = {path: of_text(text) for path, text in form.files.items()}
    if form.requirements_file is not None:
        lines = sorted({*package.manifest.requirements, *form.requirements})
        platform[form.requirements_file] = of_text("".join(f"{line}\n" for line in lines))
    parts: dict[str, Contents] = {
        "package": {f"{PACKAGE}/{path}": content for path, content in files.items()},
        "runtime": {f"{library.name}/{file.relative_to(library).as_posix()}": of_file(file) for file in runtime},
        "entrypoint": {form.entrypoint: of_file(Path(spec.origin))},
    }
    return parts | ({"platform": platform} if platform else {})


def _add_dependencies(
    made: _Made, package: ModelPackage, info: ProviderInfo, *, target: Target, slim: str, report: Report
) -> None:
    lock, more = package.manifest.requirements, info.bundle.requirements
    tree = wheels.fetch(lock, more, target, slim=slim != "off", report=report)
    for line in tree.left_out:
        made.notes.append(f"left out {line}: it is for graphics cards, and functions have none")
    for line, stand_in in tree.replaced.items():
        made.notes.append(f"took {stand_in} for {line}: the same without what is for graphics cards")
    files: Contents = tree.files
    if slim != "off":
        slimmed = slimming.standard(files)
        files, made.dropped = slimmed.files, slimmed.dropped
    prefix = _prefix(info)
    if slim == "traced":
        traced = tracing.traced(package, made.files, files, prefix, target, report=report)
        made.dropped = {**made.dropped, **traced.dropped}
        files = traced.files
    placed = {f"{prefix}{path}": content for path, content in files.items()}
    taken = made.files
    for path, content in placed.items():
        if path in taken:
            message = f"{content.owner or 'a dependency'} brings {path!r}, which is polyserve's own in a bundle: it cannot travel with it"
            raise PackageError(message, provider=info.name, operation="build", resource=content.owner)
    made.parts[_DEPENDENCIES] = placed


def _prepare(made: _Made, info: ProviderInfo, python: str, report: Report) -> None:
    """Compress all that other bundles have, too, and compile it; not the package, whose files are verified: an extra one is refused."""
    prefix = _prefix(info)
    groups: list[tuple[str, dict[str, Content]]] = [("", {**made.parts["runtime"], **made.parts["entrypoint"]})]
    owned: dict[str, dict[str, Content]] = {}
    for path, content in made.parts.get(_DEPENDENCIES, {}).items():
        # Without the prefix, a distribution is the same for every platform.
        owned.setdefault(content.owner, {})[path.removeprefix(prefix)] = content
    groups += [(prefix, files) for files in owned.values()]
    ready = preparing.prepare([files for _, files in groups], python, report=report)
    made.compressed = ready.compressed
    if ready.byte_code is None:
        made.notes.append(
            f"no byte-code, so that the first answer takes longer: only Python {python} makes it, and there is none here; "
            f"put a python{python} on the PATH"
        )
        return
    made.parts[_BYTE_CODE] = {
        f"{before}{path}": content
        for (before, _), found in zip(groups, ready.byte_code, strict=True)
        for path, content in found.items()
    }
    limit = info.limits.bundle_unpacked_bytes
    if limit is not None and sum(map(made.size, made.parts)) > limit:
        _leave_byte_code(made, "with it the bundle would be larger than the platform takes")


def _prefix(info: ProviderInfo) -> str:
    """Return where the dependencies are within a bundle: empty, or a directory with a slash at its end."""
    place = info.bundle.dependencies
    return "" if place in {None, "."} else f"{place}/"


def _leave_byte_code(made: _Made, reason: str) -> None:
    size = made.size(_BYTE_CODE)
    del made.parts[_BYTE_CODE]
    made.notes.append(f"no byte-code ({size:,} bytes), so that the first answer takes longer: {reason}")


def _pack(made: _Made, *, package: ModelPackage, target: str, form: BundleForm, report: Report) -> Bundle:
    files = made.files
    written = f"{zipping.FORMAT if form.archive == 'zip' else tarring.FORMAT}\0{members.CODEC}"
    key = hashlib.sha256(f"{FORMAT}\0{written}\0{package.digest}\0{target}\0".encode())
    for inside in sorted(files):
        key.update(f"{inside}\0{files[inside].key}\0{files[inside].executable:d}\0".encode())
    path = cache_directory() / "bundles" / f"{key.hexdigest()}.{form.archive}"
    digest = _cached(path)
    if digest is None:
        report(f"packing {len(files)} files")
        package.verify()
        zipped = partial(zipping.write, compressed=made.compressed)
        digest = _write(path, files, zipped if form.archive == "zip" else tarring.write)
    sizes = {part: made.size(part) for part in made.parts}
    owned: dict[str, int] = {}
    for content in made.parts.get(_DEPENDENCIES, {}).values():
        if content.owner:
            owned[content.owner] = owned.get(content.owner, 0) + content.size
    return Bundle(
        path=path,
        sha256=digest,
        size=path.stat().st_size,
        unpacked_size=sum(sizes.values()),
        parts=sizes,
        package_digest=package.digest,
        distributions=dict(sorted(owned.items(), key=lambda item: (-item[1], item[0]))),
        dropped=made.dropped,
        notes=tuple(made.notes),
    )


def _cached(path: Path) -> str | None:
    """Return the digest of an archive in the cache, or `None` where it is not there or not what was written."""
    try:
        digest = path.with_suffix(".sha256").read_text()
        return digest if file_digest(path) == digest else None
    except OSError:
        return None


def _write(path: Path, files: Contents, writer: Callable[[Path, Contents], str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = writer(path, files)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".sha256")
    with os.fdopen(descriptor, "w") as file:
        file.write(digest)
    os.replace(name, path.with_suffix(".sha256"))
    return digest
