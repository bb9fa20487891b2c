"""The dependencies of a bundle: exactly the distributions of a lock, as built for a target, fetched once and kept by content.

    wheels/<key>/tree/...     the files, as their wheels have them
    wheels/<key>/files.json   what is there: digest, size, whether it is a program, and of which distribution

Nothing in a tree is ever edited: it shares its bytes with the installer's own cache. What depends on this machine or on the installer
(scripts, records of what was installed, byte-code) is no part of it, so that uv and pip give the same tree.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from polyserve.bundle import installers
from polyserve.bundle.contents import Content, Contents, of_text
from polyserve.bundle.slimming import for_graphics_cards, on_processors
from polyserve.bundle.target import Target
from polyserve.bundle.zipping import processors
from polyserve.errors import PackageError
from polyserve.model.storage import cache_directory, staging
from polyserve.runtime.manifest import file_digest, is_safe_path

__all__ = ["FORMAT", "Tree", "fetch"]

FORMAT = 1
"""Version of a tree's form; part of its key in the cache."""

Report = Callable[[str], None]

_LARGE = 256 << 10
_FILES = "files.json"
_TREE = "tree"
# What an installer writes about itself and its machine.
_NOTES = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"})
_LEFT_OUT = (
    "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: Not in this bundle: for graphics cards.\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The dependencies of one lock for one target.

    Attributes:
        key: What identifies it; where more is derived from it, that is kept under this name.
        root: Directory in the cache.
        files: Its files, by path below the directory that is to be on the function's path.
        left_out: Distributions of the lock that no function can use, `name==version`; nothing of them was fetched but their names.
        replaced: What stands for a distribution of the lock, by `name==version`: its build without graphics cards.
    """

    key: str
    root: Path
    files: Contents
    left_out: tuple[str, ...] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)


def fetch(
    lock: Sequence[str], more: Sequence[str], target: Target, *, slim: bool = True, report: Report = lambda text: None
) -> Tree:
    """Return the dependencies of a package for a target; milliseconds where they were fetched before.

    Interrupted, the next call goes on with what the installer has in its own cache.

    Args:
        lock: `name==version` of everything that the package needs, markers allowed.
        more: Further requirements, resolved so that the versions of the lock stand.
        target: Where it is to run.
        slim: Whether libraries for graphics cards are left out.
        report: Told what is being done, while it takes long.

    Raises:
        PackageError: A distribution has no wheel for the target (names it, the target and the way out), or the cache cannot be written.
        UnavailableError: The package index cannot be reached.
        MissingDependencyError: There is neither uv nor pip.
    """
    exact = tuple(sorted(_for_target(lock, target)))
    if more:
        exact = _resolved(exact, more, target, report)
    unused = for_graphics_cards(line.partition("==")[0] for line in exact) if slim else frozenset()
    used = [line for line in exact if canonicalize_name(line.partition("==")[0]) not in unused]
    left_out = tuple(line for line in exact if line not in used)
    replaced = {line: on_processors(line) for line in used if slim and on_processors(line) != line}
    wanted = sorted({replaced.get(line, line) for line in used})
    key = _key("\n".join(wanted), target.key, installers.sources())
    root = cache_directory() / "wheels" / key
    files = _read(root)
    if files is None:
        files = _make(root, wanted, target, report)
    named = dict(map(_named_only, (*left_out, *replaced)))
    return Tree(key=key, root=root, files={**named, **files}, left_out=left_out, replaced=replaced)


def _for_target(lock: Iterable[str], target: Target) -> Iterator[str]:
    """Yield the requirements of a lock that the target has, without their markers."""
    for line in lock:
        try:
            wanted = Requirement(line)
        except InvalidRequirement as error:
            message = f"requirement {line!r} of the package cannot be read: package the model again"
            raise PackageError(message, operation="build", resource=line) from error
        if wanted.marker is None or wanted.marker.evaluate(dict(target.markers)):
            yield f"{canonicalize_name(wanted.name)}{wanted.specifier}"


def _resolved(lock: tuple[str, ...], more: Sequence[str], target: Target, report: Report) -> tuple[str, ...]:
    """Return the lock and what the further requirements need beside it; resolved once for the same of both."""
    path = cache_directory() / "resolved" / _key("\n".join(lock), "\n".join(more), target.key, installers.sources())
    try:
        return tuple(json.loads(path.read_text()))
    except (OSError, ValueError):
        pass
    found = installers.resolve(more, lock, target, report=report)
    names = {canonicalize_name(line.partition("==")[0]) for line in lock}
    added = (line for line in found if canonicalize_name(line.partition("==")[0]) not in names)
    exact = tuple(sorted({*lock, *added}))
    with staging(path.parent) as fresh:
        (fresh / path.name).write_text(json.dumps(exact))
        os.replace(fresh / path.name, path)
    return exact


def _make(root: Path, lock: Sequence[str], target: Target, report: Report) -> Contents:
    with staging(root.parent) as fresh:
        tree = fresh / _TREE
        tree.mkdir()
        if lock:
            installers.install(lock, tree, target, report=report)
            report(f"reading {len(lock)} distributions")
        entries = _entries(tree)
        (fresh / _FILES).write_text(json.dumps(entries, separators=(",", ":"), sort_keys=True))
        fresh.chmod(0o755)
        try:
            fresh.rename(root)
        except OSError:
            # Somebody else was quicker, or what is there is broken and makes room.
            if _read(root) is None:
                shutil.rmtree(root, ignore_errors=True)
                fresh.rename(root)
    return _contents(root, entries)


def _entries(tree: Path) -> dict[str, list[Any]]:
    """Describe the files of a tree that are the wheels' own."""
    owners = dict(_owners(tree))
    root = str(tree)
    facts = {path: each for path, each in sorted(_walk(root)) if _belongs(path)}
    # Handing a small file to another thread takes longer than reading it.
    large = [path for path, found in facts.items() if found.st_size >= _LARGE]
    with ThreadPoolExecutor(processors()) as pool:
        digests = pool.map(lambda path: file_digest(tree / path), large)
        found = {path: _digest(f"{root}/{path}") for path, each in facts.items() if each.st_size < _LARGE}
        found.update(zip(large, digests, strict=True))
    return {
        path: [found[path], each.st_size, bool(each.st_mode & 0o100), owners.get(path, "")]
        for path, each in facts.items()
    }


def _digest(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.sha256(file.read()).hexdigest()


def _walk(folder: str, inside: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files below a directory that are no links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    yield from _walk(entry.path, f"{inside}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield f"{inside}{entry.name}", entry.stat(follow_symlinks=False)


def _belongs(inside: str) -> bool:
    top, slash, rest = inside.partition("/")
    if not is_safe_path(inside) or top == "bin" or inside == ".lock" or inside.endswith(".pyc"):
        return False  # scripts name the interpreter of this machine
    return not (slash and top.endswith(".dist-info") and rest in _NOTES)


def _owners(tree: Path) -> Iterator[tuple[str, str]]:
    """Yield which distribution each file is of, as its installer noted it."""
    for record in sorted(tree.glob("*.dist-info/RECORD")):
        owner = canonicalize_name(record.parent.name.partition("-")[0])
        with record.open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                if row:
                    yield row[0], owner


def _read(root: Path) -> Contents | None:
    """Return the files of a tree in the cache, or `None` where there is none that is whole."""
    try:
        entries: Mapping[str, list[Any]] = json.loads((root / _FILES).read_bytes())
    except (OSError, ValueError):
        return None
    return _contents(root, entries)


def _contents(root: Path, entries: Mapping[str, Sequence[Any]]) -> Contents:
    tree = root / _TREE
    return {
        inside: Content(source=tree / inside, sha256=sha256, size=size, executable=runs, owner=owner, shared=True)
        for inside, (sha256, size, runs, owner) in entries.items()
    }


def _named_only(line: str) -> tuple[str, Content]:
    """Return the metadata of a distribution that is not there: what checks versions finds the one that is locked."""
    name, _, version = line.partition("==")
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    return f"{folder}/METADATA", of_text(_LEFT_OUT.format(name=name, version=version))


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join([str(FORMAT), *parts]).encode()).hexdigest()[:40]
