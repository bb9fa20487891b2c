"""The public surface is what it says it is: a name enters or leaves `polyserve` only on purpose."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyserve
import polyserve.driver

SOURCE = Path(polyserve.__file__)

# Adding a name here is a promise to users; removing one is a breaking change.
NAMES = [
    "AlreadyExistsError",
    "Bucket",
    "Capability",
    "ConflictError",
    "DeadlineExceededError",
    "Deployment",
    "Endpoint",
    "ErrorCode",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "MissingDependencyError",
    "ModelPackage",
    "NotFoundError",
    "PackageError",
    "PermissionDeniedError",
    "Plan",
    "PlanRefused",
    "PolyserveError",
    "ResourceExhaustedError",
    "SettingsError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "VerificationError",
    "compress",
    "connect",
    "deploy",
    "destroy",
    "diff",
    "list_deployments",
    "open_bucket",
    "package",
    "partition",
    "plan",
]


def test_the_public_names_are_pinned_and_sorted() -> None:
    assert polyserve.__all__ == NAMES == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    value = getattr(polyserve, name)

    assert inspect.getdoc(value)


def test_the_names_that_type_checkers_see_are_those_that_are_imported_lazily() -> None:
    tree = ast.parse(SOURCE.read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        node.module: tuple(alias.name for alias in node.names)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
    }

    assert seen == polyserve._HOMES


def test_the_directory_of_the_module_is_its_public_names_and_its_version() -> None:
    assert sorted(dir(polyserve)) == sorted([*NAMES, "__version__"])


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="deplyo"):
        polyserve.deplyo  # noqa: B018 - the access is the test


def test_every_name_that_a_driver_may_use_exists() -> None:
    assert sorted(polyserve.driver.__all__) == polyserve.driver.__all__
    assert [name for name in polyserve.driver.__all__ if not hasattr(polyserve.driver, name)] == []


def _modules() -> Iterator[str]:
    for package in ("polyserve", "polyserve_local"):
        yield package
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                yield found.name


def _undocumented(tree: ast.Module) -> Iterator[str]:
    """Yield the public classes, functions and methods of a module that have no docstring.

    An overload's documentation is its implementation's, and a test of a conformance suite says by its name what it is.
    """
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        for child in node.body if isinstance(node, ast.ClassDef) else []:
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith(("_", "test_")):
                continue
            overload = any(ast.unparse(each) == "overload" for each in child.decorator_list)
            if not overload and not ast.get_docstring(child):
                yield f"{node.name}.{child.name}"


@pytest.mark.parametrize("name", sorted(_modules()))
def test_every_module_says_what_it_is_for_and_documents_what_is_public(name: str) -> None:
    path = importlib.util.find_spec(name).origin
    tree = ast.parse(Path(path).read_text())

    assert ast.get_docstring(tree)
    assert list(_undocumented(tree)) == []
