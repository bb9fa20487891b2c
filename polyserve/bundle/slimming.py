"""What a function cannot use, and why: decided by path alone, but for the symbols at the end of libraries.

Only what no code of a model reads while it answers: who needs more to go asks for `slim="traced"`, where the sample decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from polyserve.bundle import elf
from polyserve.bundle.contents import Content, Contents

__all__ = ["SLIM", "Slimmed", "for_graphics_cards", "on_processors", "standard"]

SLIM = ("standard", "off", "traced")
"""How much of the dependencies is left out."""

SYMBOLS = "debug symbols"

_BY_SUFFIX = {
    **dict.fromkeys((".pyi", ".typed"), "stubs"),
    **dict.fromkeys(
        (".h", ".hh", ".hpp", ".hxx", ".cuh", ".inl", ".c", ".cc", ".cpp", ".cxx", ".cu"), "headers and sources"
    ),
    **dict.fromkeys(
        (".f", ".f90", ".f95", ".pyx", ".pxd", ".pxi", ".tp", ".a", ".lib", ".o", ".cmake"), "headers and sources"
    ),
    **dict.fromkeys((".dll", ".pyd", ".exe", ".dylib"), "other systems"),
}
# What `importlib.metadata` and version checks read; and licences, which have to go where the code goes.
_METADATA = re.compile(
    r"METADATA|entry_points\.txt|top_level\.txt|licenses/.*|(LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*"
)
# The Python binding has the runtime linked into it; the library beside it is for C programs (29 MB).
_SECOND_COPIES = re.compile(r"onnxruntime/capi/libonnxruntime\.so[.\d]*")
# Begins with the end of the line before, which is found quickly.
_IMPORT = re.compile(
    r"\n[ \t]*(?:import[ \t]+(?P<module>[\w.]+)"
    r"|from[ \t]+(?P<name>[\w.]+)[ \t]+import[ \t]*(?:\((?P<many>[^)]*)\)|(?P<names>[\w, \t]*)))"
)
_LIBRARY = re.compile(r"\.so(\.\d+)*$")

_CUDA = re.compile(r"nvidia-.+|triton|pytorch-triton.*|cuda-(toolkit|bindings|pathfinder)")
# These link against the CUDA libraries: without them they do not even load.
_LINKED = frozenset(
    {"torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "cupy-cuda12x", "cupy-cuda13x", "tensorflow-gpu"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slimmed:
    """What is left, and how many bytes went for which reason."""

    files: Contents
    dropped: Mapping[str, int]


def for_graphics_cards(names: Iterable[str]) -> frozenset[str]:
    """Return which of these distributions are libraries for graphics cards that nothing else here is linked against."""
    known = {canonicalize_name(name) for name in names}
    return frozenset() if known & _LINKED else frozenset(name for name in known if _CUDA.fullmatch(name))


def on_processors(line: str) -> str:
    """Return what stands for a locked distribution where there is no graphics card: its own build without, where it has one.

    The same code and version under another name: there is an xgboost-cpu for each xgboost from 2.1.1 on.
    """
    name, _, version = line.partition("==")
    if canonicalize_name(name) == "xgboost" and Version(version) >= Version("2.1.1"):
        return f"xgboost-cpu=={version}"
    return line


def standard(files: Contents) -> Slimmed:
    """Leave out tests, headers and sources, stubs, other systems' libraries, debug symbols, and what only installers read.

    Raises:
        OSError: A library cannot be read.
    """
    kept: dict[str, Content] = {}
    dropped: dict[str, int] = {}
    needed = _imported_tests(files)
    for path, content in files.items():
        reason = None if path in needed else _reason(path)
        if reason is not None:
            dropped[reason] = dropped.get(reason, 0) + content.size
            continue
        shorter = _without_symbols(path, content)
        if shorter is not content:
            dropped[SYMBOLS] = dropped.get(SYMBOLS, 0) + content.size - shorter.size
        kept[path] = shorter
    return Slimmed(files=kept, dropped=dict(sorted(dropped.items())))


def _reason(path: str) -> str | None:
    *folders, name = path.split("/")
    top = folders[0] if folders else ""
    if top.endswith(".dist-info"):
        return None if _METADATA.fullmatch(path.partition("/")[2]) else "notes of installers"
    # `tests` is a package of tests in every distribution there is; `test` and `testing` are also modules that code imports.
    if "tests" in folders or name == "conftest.py":
        return "tests"
    if name in {"meson.build", "CMakeLists.txt"}:
        return "headers and sources"
    if _SECOND_COPIES.fullmatch(path):
        return "second copies"
    stem, dot, suffix = name.rpartition(".")
    return _BY_SUFFIX.get(f"{dot}{suffix}".lower()) if stem else None


def _imported_tests(files: Contents) -> frozenset[str]:
    """Return the modules of tests that other modules import: numpy 2.2's own `testing` imports one, and scikit-learn that."""
    pending = [path for path in files if path.endswith(".py") and _reason(path) != "tests"]
    needed: set[str] = set()
    while pending:
        path = pending.pop()
        source = _source(files[path])
        if b"tests" not in source and _reason(path) != "tests":
            continue
        found = {inside for name in _names_of_tests(source.decode(errors="replace"), path) for inside in _places(name)}
        new = (found & files.keys()) - needed
        needed |= new
        pending += sorted(inside for inside in new if _reason(inside) == "tests")
    return frozenset(needed)


def _source(content: Content) -> bytes:
    # Not compared with its digest: what stays is, before it is packed.
    return content.source.read_bytes() if isinstance(content.source, Path) else content.read()


def _names_of_tests(source: str, path: str) -> Iterator[str]:
    """Yield the dotted names that a module's lines import from packages of tests."""
    for match in _IMPORT.finditer(f"\n{source}"):
        name, names = match["name"] or match["module"], re.findall(r"\w+", match["many"] or match["names"] or "")
        dots = len(name) - len(name.lstrip("."))
        if dots:
            package = path.split("/")[:-dots]
            name = ".".join([*package, *filter(None, [name[dots:]])])
        for whole in (name, *(f"{name}.{each}" for each in names)):
            if "tests" in whole.split("."):
                yield whole


def _places(name: str) -> Iterator[str]:
    """Yield where a module may be, and the packages around it."""
    parts = name.split(".")
    yield "/".join(parts) + ".py"
    for depth in range(len(parts), 0, -1):
        yield "/".join([*parts[:depth], "__init__.py"])


def _without_symbols(path: str, content: Content) -> Content:
    if not _LIBRARY.search(path) or not isinstance(content.source, Path):
        return content
    size = elf.loaded_size(content.source)
    return content if size is None else replace(content, size=size, stripped=True)
