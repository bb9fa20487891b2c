"""Nobody can stay away from the contracts: every provider has a harness, every suite is run, no test of one is replaced."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from polyserve import registry
from polyserve.driver import Capability
from polyserve.testing.harness import Layered
from polyserve.testing.ledger import Deviation, contract_tests, enforce, overridden
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.stores import ObjectStoreContract

HERE = Path(__file__).parent
SUITES = Path(registry.__file__).parent / "testing"
pytest_plugins = ["pytester"]


def bases(directory: Path) -> dict[str, set[str]]:
    """Return the names of the bases of every class below a directory."""
    return {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for path in sorted(directory.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }


# A harness that came before its provider was registered: not all of the suites pass over it yet.
UNFINISHED: set[str] = set()


def test_every_entry_point_has_a_harness_and_every_harness_an_entry_point():
    harnesses = {path.parent.name for path in (HERE.parent / "providers").glob("*/harness.py")}

    assert harnesses - UNFINISHED == set(registry.providers())
    assert harnesses >= UNFINISHED


def test_every_suite_is_run():
    suites = bases(SUITES)
    taken = {base for found in (bases(HERE), suites) for names in found.values() for base in names}

    assert {name for name in suites if name.endswith("Contract")} <= taken


def test_every_capability_is_declared_by_somebody_and_refused_by_somebody(harness):
    declared = [info.capabilities for info in registry.providers().values()]
    declared += [MemoryHarness().provider().info.capabilities, frozenset()]

    assert frozenset.union(*declared) == frozenset(Capability)
    assert frozenset.intersection(*declared) == frozenset()
    assert harness.provider().info.capabilities <= frozenset(Capability)


def test_a_harness_behind_layers_tells_the_room_that_is_left_for_keys():
    assert Layered(MemoryHarness(), prefix="é/").key_bytes == 1021


class TestAdded(ObjectStoreContract):
    """Adds a test, which is allowed."""

    def test_something_of_its_own(self, harness):
        assert harness.name

    # Only the class matters here, its tests run elsewhere.
    __test__ = False


def test_adding_tests_is_allowed():
    assert overridden(TestAdded) == []
    assert "test_something_of_its_own" not in contract_tests(TestAdded)


def test_replacing_and_deleting_and_skipping_are_found():
    name = "test_an_empty_bucket_lists_nothing"
    replaced = type("Replaced", (ObjectStoreContract,), {name: lambda self: None})
    deleted = type("Deleted", (ObjectStoreContract,), {name: None})
    skipped = type("Skipped", (ObjectStoreContract,), {"pytestmark": [pytest.mark.skip(reason="no")]})

    assert overridden(replaced) == [name]
    assert overridden(deleted) == [name]
    assert overridden(skipped) == ["Skipped: pytest.mark.skip"]


CONFTEST = """
import pytest
from polyserve.testing.ledger import Deviation, enforce
from polyserve.testing.memory import MemoryStore
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.mutants import MUTANTS

@pytest.fixture(params=["memory"])
def harness(request):
    return MemoryHarness({store})

def pytest_collection_modifyitems(items):
    enforce(items, [{ledger}])
"""
LISTS_BACKWARDS = "store=MUTANTS['lists backwards']"
DEVIATION = "Deviation(harness='memory', test='{test}', kind='notyet', reason='it lists in the wrong order')"
TEST = "test_a_listing_is_in_the_order_of_utf8_bytes_across_pages"


def run(pytester, body, *, store="", ledger=""):
    pytester.makeconftest(CONFTEST.format(store=store, ledger=ledger))
    pytester.makepyfile(f"from polyserve.testing.listings import ListingContract\n{body}")
    return pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", "empty_bucket or utf8_bytes")


def test_a_suite_whose_test_is_replaced_is_not_run_at_all(pytester):
    result = run(pytester, "class TestIt(ListingContract):\n    def test_an_empty_bucket_lists_nothing(self): pass\n")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "must not replace" in "\n".join([*result.outlines, *result.errlines])


def test_a_known_deviation_is_expected_to_fail(pytester):
    ledger = DEVIATION.format(test=TEST)
    result = run(pytester, "class TestIt(ListingContract): pass", store=LISTS_BACKWARDS, ledger=ledger)

    # With pages of one object there is no order to get wrong.
    assert result.parseoutcomes() == {
        "passed": 1,
        "xfailed": 3,
        "failed": 1,
        "deselected": result.parseoutcomes()["deselected"],
    }


def test_a_deviation_that_is_none_any_more_fails(pytester):
    result = run(pytester, "class TestIt(ListingContract): pass", ledger=DEVIATION.format(test=TEST))

    assert result.parseoutcomes()["failed"] == 4


def test_a_ledger_that_names_no_test_is_refused(pytester):
    result = run(pytester, "class TestIt(ListingContract): pass", ledger=DEVIATION.format(test="test_nothing"))

    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_deviation_needs_a_reason():
    with pytest.raises(ValueError, match="reason"):
        Deviation(harness="memory", test=TEST, kind="never", reason="")
    enforce([], [])
