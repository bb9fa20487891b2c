"""The user's own modules that a model needs: found by following imports in their source, and never by running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyserve.errors import PackageError
from polyserve.model.environment import Environment

MAIN = "__main__"

_SKIPPED = ("__pycache__", ".git", ".venv", "node_modules")


@dataclass(slots=True)
class Sources:
    """What was found.

    Attributes:
        files: The user's source files, by posix path below the package's `code/`.
        distributions: Names of the installed distributions that they import.
    """

    files: dict[str, Path] = field(default_factory=dict)
    distributions: set[str] = field(default_factory=set)


def main_name() -> str | None:
    """Return the name by which the running script can be imported, or `None` in an interactive session."""
    main = sys.modules[MAIN]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:  # python -m package.module
        return str(spec.name).removesuffix(f".{MAIN}")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file and Path(file).suffix == ".py" and Path(file).is_file() else None


def travelling_name(what: str) -> str:
    """Return the name by which the running script travels.

    Raises:
        PackageError: There is no script, or none that can be imported by its name.
    """
    name = main_name()
    if name is None:
        message = (
            f"{what} is defined in an interactive session, which has no file that could travel: save it in a .py file and pass it as "
            "'module:attribute'"
        )
        raise PackageError(message, operation="package", resource=what)
    if not all(part.isidentifier() for part in name.split(".")):
        message = f"{what} is defined in the script {name + '.py'!r}, which cannot be imported by that name: move it into a module"
        raise PackageError(message, operation="package", resource=what)
    return name


def collect(
    modules: Iterable[str],
    environment: Environment,
    *,
    code: Sequence[Path] = (),
    renamed: Mapping[str, str] | None = None,
) -> Sources:
    """Find the source of modules and of all that they import, and the distributions that the rest comes from.

    Args:
        modules: Modules that must be there where the model is loaded, by their name in this process.
        environment: What is installed here.
        code: Files and directories that the caller adds: what no `import` statement shows.
        renamed: Names under which modules will travel, such as that of `__main__`.

    Raises:
        PackageError: A module's source cannot be found, or a path of `code` does not exist; names it and the way out.
    """
    walk = _Walk(environment, dict(renamed or {}))
    for path in code:
        walk.add_path(Path(path))
    for module in sorted({_imported_as(module) for module in modules}):
        walk.require(module)
    walk.follow()
    return walk.found


def _imported_as(module: str) -> str:
    """Return the name by which a module was imported, where it goes by another one, too.

    Modules of Cython may call themselves by their last name alone: scikit-learn 1.7's losses are of a module `_loss`, which is there only
    because `sklearn._loss._loss` was imported.
    """
    spec = getattr(sys.modules.get(module), "__spec__", None)
    name = getattr(spec, "name", None)
    return name if isinstance(name, str) and name.endswith(f".{module}") and module != MAIN else module


class _Walk:
    def __init__(self, environment: Environment, renamed: Mapping[str, str]) -> None:
        self.found = Sources()
        self._environment = environment
        self._renamed = renamed
        self._seen: set[str] = set()
        self._pending: list[tuple[str, Path, bool]] = []

    def require(self, module: str) -> None:
        if not self._visit(module):
            message = (
                f"the model refers to module {module!r}, whose source cannot be found, so it would be missing where the model is served: "
                "put it in a .py file that can be imported, or name that file with code=[...]"
            )
            raise PackageError(message, operation="package", resource=module)

    def add_path(self, path: Path) -> None:
        if path.is_file():
            self._take(path.name, path)
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                inside = file.relative_to(path)
                if file.is_file() and not set(inside.parts) & set(_SKIPPED) and file.suffix != ".pyc":
                    self._take(f"{path.resolve().name}/{inside.as_posix()}", file)
        else:
            message = f"code={str(path)!r} is neither a file nor a directory: name the modules that the model imports"
            raise PackageError(message, operation="package", resource=str(path))

    def follow(self) -> None:
        while self._pending:
            name, file, is_package = self._pending.pop()
            for wanted in _imports(name, file, is_package=is_package):
                self._visit(wanted)

    def _take(self, inside: str, file: Path) -> None:
        if inside in self.found.files:
            return
        self.found.files[inside] = file
        if file.suffix == ".py":
            parts = inside.removesuffix(".py").split("/")
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            self._seen.add(name)
            self._pending.append((name, file, is_package))

    def _visit(self, module: str) -> bool:
        """Take a module in; false where it cannot be found."""
        if module in self._seen or (self._environment.is_standard(module) and module != MAIN):
            return True
        file = self._own_file(module)
        if file is None:
            owner = self._environment.owner(module)
            if owner is not None:
                self.found.distributions.add(owner)
                return True
            spec = self._environment.find(module)
            # A namespace package has no file of its own.
            return spec is not None and spec.submodule_search_locations is not None and not spec.has_location
        name = self._renamed.get(module, module)
        self._seen.add(module)
        stem = name.replace(".", "/")
        self._take(f"{stem}/__init__.py" if file.name == "__init__.py" else f"{stem}.py", file)
        parent = name.rpartition(".")[0]
        return not parent or self._visit(parent) or self._is_bare(parent)

    @staticmethod
    def _is_bare(package: str) -> bool:
        """Tell whether a package that no search finds is only a directory, such as a test runner makes up."""
        return package in sys.modules and getattr(sys.modules[package], "__file__", None) is None

    def _own_file(self, module: str) -> Path | None:
        """Return the source file of a module of the user's own; `None` for what is installed and for what cannot be found."""
        if module == MAIN:
            return Path(sys.modules[MAIN].__file__ or "")
        if self._environment.owner(module) is not None:
            return None
        spec = self._environment.find(module)
        origin = spec.origin if spec is not None and spec.has_location else None
        if origin is None and module in sys.modules:
            # Imported from where no search would find it again, such as by a test runner.
            origin = getattr(sys.modules[module], "__file__", None)
        return Path(origin) if origin is not None and origin.endswith(".py") else None


def _imports(name: str, file: Path, *, is_package: bool) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        raise PackageError(f"{file.name} is not Python: {error}", operation="package", resource=name) from error
    package = name if is_package else name.rpartition(".")[0]
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if package else []
            kept = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*kept, *([node.module] if node.module else [])])
            if source:
                yield source
                yield from (f"{source}.{alias.name}" for alias in node.names if alias.name != "*")
        else:
            pending.extend(ast.iter_child_nodes(node))


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
