"""What is installed here: which distribution a module belongs to, and the lock of what a model needs.

A distribution installed from a directory (an editable install, `pip install .`) is the user's own source: no index has it, so its
modules travel with the package as code instead of being locked.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from importlib.util import find_spec

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import NormalizedName, canonicalize_name

from polyserve.errors import PackageError
from polyserve.runtime.environment import without_build

_RUNTIME = "polyserve"
"""Travels with every bundle, so it is never locked."""
_MODULES = (".py", ".so", ".pyd")


class Environment:
    """The installed distributions, looked at once."""

    def __init__(self) -> None:
        # To read what a distribution says of itself takes milliseconds, and a package asks for the same dozen several times.
        self._owner_of: dict[str, str | None] = {}
        self._versions: dict[str, str] = {}
        self._needed: dict[tuple[str, frozenset[str]], list[tuple[NormalizedName, frozenset[str]]]] = {}

    @cached_property
    def _owners(self) -> Mapping[str, Sequence[Distribution]]:
        return _owners_on(tuple((entry, _changed(entry)) for entry in sys.path))

    def find(self, module: str) -> ModuleSpec | None:
        """Find a module without importing it or its parents; `None` where there is none."""
        top, *rest = module.split(".")
        spec = _top_level(top)
        name = top
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            name = f"{name}.{part}"
            spec = _inside(name, list(spec.submodule_search_locations))
        return spec

    def is_standard(self, module: str) -> bool:
        """Tell whether a module is Python's own, or polyserve's."""
        top = module.partition(".")[0]
        return top in sys.stdlib_module_names or top == _RUNTIME

    def owner(self, module: str) -> str | None:
        """Return the name of the distribution that a module was installed with; `None` where it is nobody's or the user's own source."""
        if module not in self._owner_of:
            self._owner_of[module] = self._find_owner(module)
        return self._owner_of[module]

    def _find_owner(self, module: str) -> str | None:
        names = sorted({item.metadata["Name"] for item in self._owners.get(module.partition(".")[0], ())})
        spec = self.find(module)
        place = _place(spec)
        if not names or spec is None:
            return None
        found = [item for item in map(distribution, names) if not _is_source(item) and _holds(item, place)]
        if len(found) > 1:  # a namespace that several distributions share
            exact = [item for item in found if _lists(item, place)]
            found = exact or found
        return canonicalize_name(found[0].metadata["Name"]) if found else None

    def lock(self, roots: Iterable[str], extra: Sequence[str] = (), *, bare: Container[str] = ()) -> tuple[str, ...]:
        """Return `name==version` of distributions and of whatever they need at runtime, sorted.

        Args:
            roots: Names of the distributions that the model needs.
            extra: Further requirements, such as `"pillow"` or `"pillow>=11"`, that nobody could see.
            bare: Names of distributions whose own requirements are left out.

        Raises:
            PackageError: One is not installed, is not of the version asked for, or is one that no package index has.
        """
        pending = [(canonicalize_name(name), frozenset[str]()) for name in roots]
        for text in extra:
            wanted = _requirement(text)
            _check_installed(wanted)
            pending.append((canonicalize_name(wanted.name), frozenset(wanted.extras)))
        done: set[tuple[str, frozenset[str]]] = set()
        locked: dict[str, str] = {}
        while pending:
            item = pending.pop()
            if item in done:
                continue
            done.add(item)
            try:
                installed = distribution(item[0])
            except PackageNotFoundError:
                continue  # it works here without, as where a package was installed without its dependencies
            if item[0] not in self._versions:
                self._versions[item[0]] = _version(installed)
            locked[item[0]] = self._versions[item[0]]
            if item[0] not in bare:
                if item not in self._needed:
                    self._needed[item] = _needs(installed, item[1])
                pending.extend(self._needed[item])
        return tuple(sorted(f"{name}=={version}" for name, version in locked.items()))


# What two hundred distributions say takes 50 ms to read, for every package anew. One that comes or goes changes its directory, as the
# import system relies on as well. Two paths: with and without somebody's own directory in front.
@lru_cache(maxsize=2)
def _owners_on(path: tuple[tuple[str, int], ...]) -> Mapping[str, Sequence[Distribution]]:
    owners: dict[str, list[Distribution]] = {}
    for installed in distributions(path=[entry for entry, _ in path]):
        for module in set(_top_levels(installed)):
            owners.setdefault(module, []).append(installed)
    return owners


def _changed(entry: str) -> int:
    """Return when a directory or an archive was last changed, in nanoseconds; 0 where there is none."""
    try:
        return os.stat(entry or ".").st_mtime_ns
    except OSError:
        return 0


def _top_levels(installed: Distribution) -> Iterator[str]:
    """Yield the modules at the top of a distribution: those that it declares, or else those of its files.

    As `importlib.metadata.packages_distributions()`, which takes ten times as long: it reads what every distribution says of itself, and
    makes a path of every file. Before Python 3.12 that overlooks a distribution of extension modules alone.
    """
    declared = (installed.read_text("top_level.txt") or "").split()
    if declared:
        yield from declared
        return
    record = installed.read_text("RECORD")
    files = [row[0] for row in csv.reader(record.splitlines()) if row] if record else map(str, installed.files or ())
    for file in files:
        if file.endswith(_MODULES):
            top, inside, _ = file.partition("/")
            name = top if inside else top.partition(".")[0]
            if name.isidentifier():  # not what lies beside the modules, in `../../bin` or `numpy.libs`
                yield name


def _top_level(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ValueError, ImportError):
        # A module that somebody put together by hand has no spec.
        return None


def _inside(name: str, places: list[str]) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, places)
    except KeyError:
        # A namespace inside another one asks that where to look, as a module that was imported. Without a parent it asks nobody.
        return PathFinder.find_spec(name.rpartition(".")[2], places)


def _place(spec: ModuleSpec | None) -> str:
    if spec is None:
        return ""
    if spec.has_location and spec.origin:
        return os.path.realpath(spec.origin)
    locations = list(spec.submodule_search_locations or [])
    return os.path.realpath(locations[0]) if locations else ""


def _holds(installed: Distribution, place: str) -> bool:
    root = os.path.realpath(str(installed.locate_file("")))
    return place.startswith(root + os.sep)


def _lists(installed: Distribution, place: str) -> bool:
    return any(
        os.path.realpath(str(installed.locate_file(file))) in {place, os.path.join(place, "__init__.py")}
        for file in installed.files or ()
    )


def _is_source(installed: Distribution) -> bool:
    raw = installed.read_text("direct_url.json")
    return raw is not None and "dir_info" in json.loads(raw)


def _version(installed: Distribution) -> str:
    metadata = installed.metadata
    name, version = metadata["Name"], metadata["Version"]
    if _is_source(installed):
        message = (
            f"the model needs {name!r}, which is installed from a directory, so no package index has it: "
            "install a released version of it and package again"
        )
        raise PackageError(message, operation="package", resource=name)
    # Where the model is served, the build for its hardware is chosen anew.
    version = without_build(version)
    if "+" in version:
        message = (
            f"the model needs {name!r}, installed here as the local version {version}, which no package index has: "
            f"install {name}=={version.partition('+')[0]} and package again"
        )
        raise PackageError(message, operation="package", resource=name)
    return version


def _needs(installed: Distribution, extras: frozenset[str]) -> list[tuple[NormalizedName, frozenset[str]]]:
    needed = []
    for text in installed.requires or ():
        wanted = Requirement(text)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            needed.append((canonicalize_name(wanted.name), frozenset(wanted.extras)))
    return needed


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        message = f"{text!r} is no requirement ({str(error).splitlines()[0]}): write a name, or a name and a version such as 'pillow==11.0'"
        raise PackageError(message, operation="package", resource=str(text)) from error


def _check_installed(wanted: Requirement) -> None:
    try:
        version = distribution(wanted.name).version
    except PackageNotFoundError as error:
        message = f"requirement {str(wanted)!r} is not installed here, so the model could not have run with it: install it first"
        raise PackageError(message, operation="package", resource=wanted.name) from error
    if not wanted.specifier.contains(version, prereleases=True):
        message = (
            f"requirement {str(wanted)!r} is not what is installed here, {version}: the model would run with another version than it "
            "was packaged with; install that version and package again"
        )
        raise PackageError(message, operation="package", resource=wanted.name)
