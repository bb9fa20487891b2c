"""The conformance suites: what a provider must do, as tests that its author runs.

Write a harness (`polyserve.testing.harness.Harness`): it brings the provider up on loopback, keeps a raw oracle that bypasses the drivers,
and tells what exists. `MemoryHarness` is one to read. Then a test module is

    import pytest
    from polyserve.testing.errors import ErrorContract
    from polyserve.testing.harness import Layered
    from polyserve.testing.info import InfoContract
    from polyserve.testing.layers import LayerContract
    from polyserve.testing.stores import ObjectStoreContract

    @pytest.fixture(scope="session")
    def harness(tmp_path_factory):
        harness = MyHarness(tmp_path_factory.mktemp("mine"))
        yield harness
        harness.close()
        assert list(harness.inventory()) == []

    class TestStore(ObjectStoreContract): ...
    class TestErrors(ErrorContract): ...
    class TestInfo(InfoContract): ...
    class TestLayers(LayerContract): ...

    class TestStoreBehindLayers(ObjectStoreContract):
        @pytest.fixture
        def harness(self, harness):
            return Layered(harness)

and, so that nobody dodges a test by accident, its `conftest.py` has

    from polyserve.testing.ledger import Deviation, enforce

    DEVIATIONS = []          # Deviation(harness="mine", test="test_...", kind="notyet", reason="...", raises=...)

    def pytest_collection_modifyitems(items):
        enforce(items, DEVIATIONS)

Add tests to these classes as you like; replacing or deleting one is refused. Nothing is skipped: a capability that `info` declares is
tried out, and one that it does not declare must be refused, which is asserted too. A deviation that cannot be helped goes into the
ledger with its reason, and its test must then fail.

`MemoryProvider` (`polyserve.testing.memory`) is a complete provider in the process, for tests of what stands on providers. The names
below are
imported when they are first used; the extra `testing` installs what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyserve.testing.errors import ErrorContract
    from polyserve.testing.harness import ErrorCase, Harness, Layered, RawObject, sample_spec
    from polyserve.testing.info import InfoContract
    from polyserve.testing.layers import LayerContract
    from polyserve.testing.ledger import Deviation, enforce
    from polyserve.testing.memory import MemoryProvider
    from polyserve.testing.memory_harness import MemoryHarness
    from polyserve.testing.stores import ObjectStoreContract

_HOMES = {
    "Deviation": "ledger",
    "ErrorCase": "harness",
    "ErrorContract": "errors",
    "Harness": "harness",
    "InfoContract": "info",
    "LayerContract": "layers",
    "Layered": "harness",
    "MemoryHarness": "memory_harness",
    "MemoryProvider": "memory",
    "ObjectStoreContract": "stores",
    "RawObject": "harness",
    "enforce": "ledger",
    "sample_spec": "harness",
}

__all__ = [
    "Deviation",
    "ErrorCase",
    "ErrorContract",
    "Harness",
    "InfoContract",
    "LayerContract",
    "Layered",
    "MemoryHarness",
    "MemoryProvider",
    "ObjectStoreContract",
    "RawObject",
    "enforce",
    "sample_spec",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
