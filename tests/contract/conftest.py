"""Runs every suite over every registered provider, and over the provider in memory with and without its capabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyserve import registry
from polyserve.driver import Capability
from polyserve.testing.harness import Harness
from polyserve.testing.ledger import Deviation, enforce
from polyserve.testing.memory_apps import MemoryAppProvider
from polyserve.testing.memory_harness import MemoryHarness

# The ledger of known deviations. Empty is the goal.
DEVIATIONS: list[Deviation] = []


# "bare" declares no capability, so that every refusal is asserted too; "fronted" has apps only.
IN_MEMORY: dict[str, Callable[[], MemoryHarness]] = {
    "memory": MemoryHarness,
    "bare": lambda: MemoryHarness(capabilities=frozenset()),
    "single": lambda: MemoryHarness(capabilities=frozenset(Capability) - {Capability.TRAFFIC_SPLIT}),
    "fronted": lambda: MemoryHarness(kind=MemoryAppProvider),
}


# Settings that make another platform of a provider, by the name that its tests have.
PLATFORMS: dict[str, dict[str, str]] = {"gcp-run": {"platform": "run"}}


@pytest.fixture(scope="module", params=[*registry.providers(), *PLATFORMS, "memory", "bare", "fronted"])
def harness(request: pytest.FixtureRequest, harness_of: Callable[..., Harness]) -> Iterator[Harness]:
    """Give each provider's harness, on each of its platforms, and the ones in memory."""
    in_memory = IN_MEMORY.get(request.param)
    provider = request.param.partition("-")[0]
    found = harness_of(provider, **PLATFORMS.get(request.param, {})) if in_memory is None else in_memory()
    yield found
    left = list(found.inventory())
    if in_memory is not None:
        found.close()
    assert left == []


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory of `one_cache`."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def one_cache(shared_cache: Path, isolation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build packages and bundles once for all tests: whoever takes them, they are the same."""
    monkeypatch.setenv("POLYSERVE_CACHE", str(shared_cache))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    enforce([item for item in items if Path(__file__).parent in item.path.parents], DEVIATIONS)
