"""The manifest of a model package: what is in it, how it is loaded, and the digests that prove it is whole.

Read by the tool that makes packages and by the function that serves them. Knows no framework and imports none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from polyserve.runtime.signature import Signature

SCHEMA = 1
"""Version of the manifest's form. A function refuses a form that it does not know."""

FILE_NAME = "manifest.json"
"""Where the manifest is, in the root of its package."""

RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-7
"""How far a float may be from the golden answer: processors and their BLAS kernels differ in the last bits."""

_CHUNK = 1 << 20


class ManifestError(Exception):
    """A manifest that cannot be read, or a package that is not what its manifest says."""


_ANY_PYTHON = frozenset({"onnx", "tflite", "xgboost", "lightgbm"})
"""Flavors whose models are data in a format of their own."""

_CODE = "code/"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a package: its content's sha256 (hex) and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a float may be from the golden answer: `absolute + relative * abs(expected)`."""

    relative: float = RELATIVE_TOLERANCE
    absolute: float = ABSOLUTE_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a package says of itself.

    Attributes:
        name: The model's name: lower-case letters, digits and hyphens.
        python: Python minor version it was packaged under, such as `"3.11"`.
        flavor: How it is loaded: the module of that name in `polyserve.runtime.loaders`.
        loader: What that loader needs; its own form for each flavor.
        requirements: Locked distributions, `name==version`, sorted.
        signature: Names, datatypes and shapes of what goes in and out.
        row_wise: Whether rows may be put together into one call and the answers split again, without a changed bit. Proven on the sample.
        safe: Whether loading runs no code of the model's own; false for whatever is pickled.
        sample: Paths of the golden `request` and `answer`, and the `*_json_bytes` of binary ones; `None` where there is no sample.
        tolerance: How far a float may be from the golden answer.
        files: Every file by posix path, but the manifest.
        origin: What the package was made of, where it was made of another one: that one's `digest` and what was done; `None` otherwise.
    """

    name: str
    python: str
    flavor: str
    loader: Mapping[str, object]
    requirements: tuple[str, ...]
    signature: Signature
    row_wise: bool
    safe: bool
    sample: Mapping[str, str | int] | None
    tolerance: Tolerance
    files: Mapping[str, FileEntry]
    origin: Mapping[str, object] | None = None
    schema: int = SCHEMA

    @property
    def tied_to_python(self) -> bool:
        """Whether it runs under the Python minor version that it was packaged under alone: all code and pickles are."""
        return self.flavor not in _ANY_PYTHON or any(path.startswith(_CODE) for path in self.files)

    def to_json(self) -> bytes:
        """Return the canonical JSON: the one form whose bytes the package's digest is made of."""
        return json.dumps(
            {
                "schema": self.schema,
                "name": self.name,
                "python": self.python,
                "flavor": self.flavor,
                "loader": self.loader,
                "requirements": list(self.requirements),
                "signature": self.signature.to_dict(),
                "row_wise": self.row_wise,
                "safe": self.safe,
                "sample": None if self.sample is None else dict(self.sample),
                "tolerance": {"relative": self.tolerance.relative, "absolute": self.tolerance.absolute},
                "files": {path: {"sha256": entry.sha256, "size": entry.size} for path, entry in self.files.items()},
                **({} if self.origin is None else {"origin": dict(self.origin)}),
            },
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        ).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        """Read a manifest from its canonical JSON.

        Raises:
            ManifestError: It is not JSON, not of a known schema, lacks a key, or is not in canonical form.
        """
        try:
            fields = json.loads(raw)
        except ValueError as error:
            raise ManifestError(f"{FILE_NAME} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ManifestError(f"{FILE_NAME} holds a {type(fields).__name__}, not an object")
        if fields.get("schema") != SCHEMA:
            raise ManifestError(
                f"{FILE_NAME} has schema {fields.get('schema')!r}, and this polyserve reads {SCHEMA}: upgrade "
                "polyserve or package the model again"
            )
        manifest = _from_fields(fields)
        if manifest.to_json() != raw:
            # Two spellings of one manifest would be two digests of one package.
            raise ManifestError(f"{FILE_NAME} is not in canonical form: it was edited; package the model again")
        return manifest

    @property
    def digest(self) -> str:
        """Return the package's tree digest as this manifest promises it; that of its directory once `verify` has passed."""
        raw = self.to_json()
        entries = {path: entry.sha256 for path, entry in self.files.items()}
        entries[FILE_NAME] = hashlib.sha256(raw).hexdigest()
        return _tree(entries)


def read(root: Path) -> Manifest:
    """Read the manifest of the package in a directory, without looking at its other files.

    Raises:
        ManifestError: There is none, or it cannot be read.
    """
    try:
        raw = (root / FILE_NAME).read_bytes()
    except OSError as error:
        raise ManifestError(f"{root} is no model package: {FILE_NAME} cannot be read ({error.strerror})") from error
    return Manifest.from_json(raw)


def verify(root: Path, manifest: Manifest, *, verified: Collection[str] = ()) -> None:
    """Compare every file of a package with its manifest.

    Args:
        root: The package's directory.
        manifest: Its manifest.
        verified: Paths whose content was compared a moment ago: their size is looked at, they are not read again.

    Raises:
        ManifestError: Naming the first file, in order of path, that is missing, extra, a link, or of other content.
    """
    if (root / FILE_NAME).read_bytes() != manifest.to_json():
        raise ManifestError(f"{FILE_NAME} is not the manifest that was read: the package changed meanwhile")
    there = {path for path in _walk(root) if path != FILE_NAME}
    for path in sorted(there | set(manifest.files), key=str.encode):
        if path not in there:
            raise ManifestError(f"{path} is missing")
        if path not in manifest.files:
            raise ManifestError(f"{path} is not in the manifest: it was added after packaging")
        expected, file = manifest.files[path], root / path
        size = file.stat().st_size
        if size != expected.size:
            raise ManifestError(f"{path} has {size} bytes, and the manifest says {expected.size}")
        if path in verified:
            continue
        digest = file_digest(file)
        if digest != expected.sha256:
            raise ManifestError(f"{path} has sha256 {digest[:12]}, and the manifest says {expected.sha256[:12]}")


def tree_digest(root: Path) -> str:
    """Return the sha256 (hex) of a directory's files: paths, contents and mode 644, whatever the modes on disk are.

    Raises:
        ManifestError: Something in it is neither a file nor a directory.
    """
    return _tree({path: file_digest(root / path) for path in _walk(root)})


def file_entries(root: Path) -> dict[str, FileEntry]:
    """Return an entry for every file of a directory but its manifest, by posix path in UTF-8 order."""
    return {
        path: FileEntry(sha256=file_digest(root / path), size=(root / path).stat().st_size)
        for path in sorted(_walk(root), key=str.encode)
        if path != FILE_NAME
    }


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_safe_path(path: str) -> bool:
    """Tell whether a path stays below the directory it is joined to, whatever the platform: relative, no `..`, no drive."""
    parts = path.split("/")
    return bool(path) and not any(part in {"", ".", ".."} for part in parts) and not set(path) & set("\\:\0")


def _tree(digests: Mapping[str, str]) -> str:
    tree = hashlib.sha256()
    for path in sorted(digests, key=str.encode):
        tree.update(f"{0o644:o} {digests[path]} {path}\0".encode())
    return tree.hexdigest()


def _walk(root: Path) -> Iterator[str]:
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    yield path
                else:
                    # What a link points to is outside of what was digested.
                    raise ManifestError(
                        f"{path} is neither a file nor a directory: a package holds no links or devices"
                    )


def _from_fields(fields: dict[str, object]) -> Manifest:
    try:
        tolerance = cast("dict[str, float]", fields["tolerance"])
        files = cast("dict[str, dict[str, str | int]]", fields["files"])
        sample = cast("dict[str, str | int] | None", fields["sample"])
        origin = cast("dict[str, object] | None", fields.get("origin"))
        manifest = Manifest(
            name=_text(fields, "name"),
            python=_text(fields, "python"),
            flavor=_text(fields, "flavor"),
            loader=dict(cast("dict[str, object]", fields["loader"])),
            requirements=tuple(cast("list[str]", fields["requirements"])),
            signature=Signature.from_dict(cast("dict[str, object]", fields["signature"])),
            row_wise=bool(fields["row_wise"]),
            safe=bool(fields["safe"]),
            sample=None if sample is None else dict(sample),
            tolerance=Tolerance(relative=tolerance["relative"], absolute=tolerance["absolute"]),
            files={
                path: FileEntry(sha256=str(entry["sha256"]), size=int(entry["size"])) for path, entry in files.items()
            },
            origin=None if origin is None else dict(origin),
        )
    except KeyError as error:
        raise ManifestError(f"{FILE_NAME} lacks {error.args[0]!r}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ManifestError(f"{FILE_NAME} has a field of the wrong type: {error}") from error
    for path in manifest.files:
        if not is_safe_path(path):
            raise ManifestError(f"{FILE_NAME} names {path!r}, which is no path inside the package")
    if not manifest.flavor.isidentifier():
        raise ManifestError(f"{FILE_NAME} names flavor {manifest.flavor!r}, which is no flavor's name")
    return manifest


def _text(fields: Mapping[str, object], key: str) -> str:
    value = fields[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is a {type(value).__name__}, not text")
    return value
