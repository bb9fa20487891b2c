"""What of a bundle is the same for many bundles, compressed and with its byte-code: made once for a distribution, and kept by content.

All that is missing is made at once. Sources go through a process for each processor, which compiles them, while threads compress them,
their byte-code and all other files; no step waits for another to be over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from polyserve.bundle import bytecode, compiling, members, packs
from polyserve.bundle.contents import Content, Contents, Packed
from polyserve.bundle.packs import Pack, Writer
from polyserve.bundle.zipping import processors

__all__ = ["Prepared", "prepare"]

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Files that are ready for an archive.

    Attributes:
        compressed: What was compressed, by what identifies each file's content.
        byte_code: The byte-code of each of the groups, by path; `None` where no interpreter of the version is here.
    """

    compressed: Mapping[str, Packed]
    byte_code: Sequence[Contents] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Module:
    """A source file on its way into a pack."""

    path: str
    content: Content
    pack: Writer


def prepare(groups: Sequence[Contents], python: str, *, report: Report = lambda text: None) -> Prepared:
    """Compress files and compile the Python files among them; milliseconds where that was done before.

    Args:
        groups: Files by path: those of a group are kept together, and found again when they are the same.
        python: Python minor version to compile for.
        report: Told that it is being done, the first time.

    Raises:
        PackageError: A file is not what it was, or the interpreter cannot compile.
        OSError: A file cannot be read or the cache cannot be written.
    """
    with_byte_code = _prepared(groups, python, report)
    if with_byte_code is not None:
        return with_byte_code
    without = _prepared(groups, "", report)
    assert without is not None
    return Prepared(compressed=without.compressed, byte_code=None)


def _prepared(groups: Sequence[Contents], python: str, report: Report) -> Prepared | None:
    """Return files that are ready, without byte-code where no Python is given, or `None` where there is none of that version."""
    places = [packs.place(_key(group, python)) for group in groups]
    found = {place: packs.opened(place) for place in places}
    missing = {place: group for place, group in zip(places, groups, strict=True) if found[place] is None}
    if missing:
        modules = sum(path.endswith(".py") for group in missing.values() for path in group) if python else 0
        interpreter = compiling.find_python(python) if modules else None
        if modules and interpreter is None:
            return None
        report(f"compiling {modules} modules for Python {python}" if modules else "compressing the dependencies")
        found |= _make(missing, python, interpreter)
    ready = [pack for pack in map(found.get, places) if pack is not None]
    return Prepared(
        compressed={key: packed for pack in ready for key, packed in pack.files.items()}
        | {sha256: packed for pack in ready for sha256, packed in pack.byte_code.values()},
        byte_code=[_byte_code(pack, group, python) for pack, group in zip(ready, groups, strict=True)],
    )


def _key(group: Contents, python: str) -> str:
    listed = "".join(f"{path}\0{content.key}\0" for path, content in sorted(group.items()))
    made = f"{members.CODEC}\0{compiling.FORMAT}\0{python}\0{listed}"
    return hashlib.sha256(made.encode()).hexdigest()[:40]


def _byte_code(pack: Pack, group: Contents, python: str) -> Contents:
    owners = {bytecode.path_of(path, python): content.owner for path, content in group.items() if path.endswith(".py")}
    return {
        inside: Content(source=packed, sha256=sha256, size=packed.size, shared=True, owner=owners[inside])
        for inside, (sha256, packed) in pack.byte_code.items()
    }


def _make(missing: Mapping[Path, Contents], python: str, interpreter: str | None) -> dict[Path, Pack]:
    sources: list[_Module] = []
    others: dict[tuple[Writer, str], Content] = {}
    with ExitStack() as stack:
        writers: dict[Path, Writer] = {}
        for place, group in missing.items():
            writer = writers[place] = Writer(place)
            stack.callback(writer.discard)
            for path, content in group.items():
                if interpreter is not None and path.endswith(".py"):
                    sources.append(_Module(path=path, content=content, pack=writer))
                elif not members.is_stored(content):
                    others[writer, content.key] = content
        # The largest first, so that no processor ends long after the others.
        sources.sort(key=lambda module: -module.content.size)
        largest = sorted(others.items(), key=lambda item: -item[1].size)
        count = min(processors(), max(1, len(sources) // 20)) if interpreter is not None and sources else 0
        compilers = [stack.enter_context(closing(compiling.Compiler(interpreter or ""))) for _ in range(count)]
        with _threads(2 * count + processors(), compilers) as pool:
            running: list[Future[None]] = []
            for number, compiler in enumerate(compilers):
                share = sources[number::count]
                running += [
                    pool.submit(_send, compiler, share),
                    pool.submit(_receive, compiler, share, python),
                ]
            running += [pool.submit(_compress, writer, content) for (writer, _), content in largest]
            for done in as_completed(running):
                done.result()
        return {place: writer.commit() for place, writer in writers.items()}


@contextmanager
def _threads(count: int, compilers: Sequence[compiling.Compiler]) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that end when the body does, whatever they wait for."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="polyserve-prepare")
    try:
        yield pool
    finally:
        for compiler in compilers:
            compiler.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _compress(pack: Writer, content: Content) -> None:
    pack.add_file(content.key, members.member(content))


def _send(compiler: compiling.Compiler, modules: Sequence[_Module]) -> None:
    for module in modules:
        source = module.content.read()
        compiler.send(module.path, source)
        module.pack.add_file(module.content.key, members.compressed(source))
    compiler.no_more()


def _receive(compiler: compiling.Compiler, modules: Sequence[_Module], python: str) -> None:
    for module in modules:
        made = compiler.receive()
        if made is not None:
            place = bytecode.path_of(module.path, python)
            module.pack.add_byte_code(place, hashlib.sha256(made).hexdigest(), members.compressed(made))
