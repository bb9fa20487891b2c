"""Runs every suite over every registered provider, and over the provider in memory with and without its capabilities."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from polyserve import registry
from polyserve.driver import Capability
from polyserve.testing.harness import Harness
from polyserve.testing.ledger import Deviation, enforce
from polyserve.testing.memory_apps import MemoryAppProvider
from polyserve.testing.memory_harness import MemoryHarness

ROOMS = Path(__file__).parents[1] / "providers"

# The ledger of known deviations. Empty is the goal.
DEVIATIONS: list[Deviation] = []


def harness_module(name: str) -> ModuleType:
    """Import `tests/providers/<name>/harness.py`; a provider without one fails here."""
    path = ROOMS / name / "harness.py"
    if not path.exists():
        pytest.fail(f"provider {name!r} has no harness: write tests/providers/{name}/harness.py with open_harness()")
    spec = spec_from_file_location(f"harness_of_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[*registry.providers(), "memory", "bare", "fronted"])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """Give each provider's harness; "bare" declares no capability, so that every refusal is asserted too; "fronted" has apps only."""
    if request.param == "memory":
        found: Harness = MemoryHarness()
    elif request.param == "bare":
        found = MemoryHarness(capabilities=frozenset())
    elif request.param == "single":
        found = MemoryHarness(capabilities=frozenset(Capability) - {Capability.TRAFFIC_SPLIT})
    elif request.param == "fronted":
        found = MemoryHarness(kind=MemoryAppProvider)
    else:
        # Not below pytest's own directory: paths of unix sockets are short.
        found = harness_module(request.param).open_harness(tmp_path_factory.mktemp(request.param))
    yield found
    left = list(found.inventory())
    found.close()
    assert left == []


@pytest.fixture(scope="session")
def cache_of_liars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory of `one_cache`."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def one_cache(cache_of_liars: Path, isolation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build packages and bundles once for many tests: they are the same for every provider that lies."""
    monkeypatch.setenv("POLYSERVE_CACHE", str(cache_of_liars))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    enforce([item for item in items if Path(__file__).parent in item.path.parents], DEVIATIONS)
