"""Who may import whom: every row of the design's table is a contract, and every provider's room is under them.

The contracts themselves are run by `test_tools.py`. What import-linter cannot say is said here: where in a file an
import may stand.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {contract["name"]: contract for contract in SETTINGS["tool"]["importlinter"]["contracts"]}
ROOMS = sorted(path for path in (ROOT / "providers").glob("*/polyserve_*") if path.is_dir())

UNFINISHED: set[str] = set()
"""Rooms whose provider does not pass every suite yet: they are built, typed and tested, and nothing reaches them by their name."""

# What a platform's own programming model makes of its entrypoint, beside the standard library.
PLATFORM = {"polyserve_azure": "azure"}

TRAVELLERS = sorted([*(ROOT / "polyserve" / "runtime").rglob("*.py"), *(ROOT / "providers").glob("*/*/entrypoint.py")])
# What a function may import when it runs: the model's own framework, and what makes it faster where it is installed.
OPTIONAL = {
    "ai_edge_litert",
    "cloudpickle",
    "httptools",
    "joblib",
    "keras",
    "lightgbm",
    "ml_dtypes",
    "mlflow",
    "numpy",
    "onnxruntime",
    "orjson",
    "pandas",
    "scipy",
    "sklearn",
    "skops",
    "tensorflow",
    "torch",
    "uvloop",
    "xgboost",
}


def _imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Yield every import of a file: its full name, whether it runs when the file is imported, and its line."""

    def walk(node: ast.AST, on_import: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((name.name, on_import, child.lineno) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno} is relative: write the full name"
                # Of the top package it matters which name is taken: a module of the core, or the version.
                inside = [f"polyserve.{name.name}" for name in child.names] if child.module == "polyserve" else []
                yield from ((name, on_import, child.lineno) for name in inside or [child.module or ""])
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(body=child.orelse, type_ignores=[]), on_import)
            else:
                inner = on_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inner)

    return walk(ast.parse(path.read_text()), True)


@pytest.mark.parametrize("path", TRAVELLERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_travels_with_a_function_imports_the_standard_library_only(path: Path) -> None:
    wrong = []
    for name, on_import, line in _imports(path):
        top = name.partition(".")[0]
        ours = name.startswith(("polyserve.runtime", "polyserve.__version__")) or top.startswith("polyserve_")
        platform = name.startswith("azure.functions") and PLATFORM.get(path.parent.name) == top
        if top in sys.stdlib_module_names or ours or platform or (top in OPTIONAL and not on_import):
            continue
        wrong.append(f"line {line}: {name}{' when it is imported' if on_import else ''}")

    assert not wrong


def test_every_row_of_the_table_of_rooms_has_its_contract() -> None:
    rows = {
        "What travels with a function needs the standard library only",
        "The contracts between core and driver need the standard library only",
        "The core never imports a provider or a cloud SDK",
        "The portable types know neither the command line nor the suites",
        "The command line knows the portable types, not drivers",
        "A provider knows drivers, not the portable types above them",
        "Providers are strangers",
        "The rooms of the core, top to bottom",
    }

    assert rows <= set(CONTRACTS)


def test_every_room_of_the_core_has_its_place_in_a_contract() -> None:
    rooms = {
        f"polyserve.{p.stem}"
        for p in (ROOT / "polyserve").glob("*")
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    rooms -= {"polyserve.__init__", "polyserve.__main__"}
    layers = " | ".join(CONTRACTS["The rooms of the core, top to bottom"]["layers"]).split(" | ")

    # The suites stand beside the house: they may look at every part of it, and nothing of it may look back.
    assert sorted(rooms - {"polyserve.testing"}) == sorted(layers)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_provider_is_registered_shipped_and_under_contract(room: Path) -> None:
    tool = SETTINGS["tool"]
    short = room.parent.name

    assert room.name in tool["importlinter"]["root_packages"]
    assert room.relative_to(ROOT).as_posix() in tool["hatch"]["build"]["targets"]["wheel"]["packages"]
    registered = SETTINGS["project"]["entry-points"]["polyserve.providers"]
    assert registered.get(short) == (None if short in UNFINISHED else f"{room.name}:INFO")
    assert room.name in CONTRACTS["The core never imports a provider or a cloud SDK"]["forbidden_modules"]
    assert (
        room.name
        in CONTRACTS["The contracts between core and driver need the standard library only"]["forbidden_modules"]
    )
    assert room.name in CONTRACTS["A provider knows drivers, not the portable types above them"]["source_modules"]
    assert room.name in CONTRACTS["Providers are strangers"]["modules"]
    assert (
        f"{room.name}.entrypoint"
        in CONTRACTS["What travels with a function needs the standard library only"]["source_modules"]
    )
    if (room.parent / "emulator").exists():
        assert "An emulator is never a mirror of its adapter" in CONTRACTS


def test_every_entry_point_has_a_room() -> None:
    names = {
        entry.name
        for entry in entry_points(group="polyserve.providers")
        if entry.dist and entry.dist.name == "polyserve-sdk"
    }

    assert names == {room.parent.name for room in ROOMS} - UNFINISHED


def test_the_providers_directory_itself_cannot_be_imported() -> None:
    assert not list((ROOT / "providers").glob("*.py"))
    assert not list((ROOT / "providers").glob("*/*.py"))


def test_onnxruntime_is_imported_by_what_turns_its_telemetry_off() -> None:
    sources = {path: path.read_text() for path in (ROOT / "polyserve").rglob("*.py")}
    importing = [
        path for path, source in sources.items() if "import onnxruntime" in source or "from onnxruntime" in source
    ]

    assert importing
    assert [path for path in importing if "import_onnxruntime()" not in sources[path]] == []
