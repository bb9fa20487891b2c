"""Runs the tests of a suite on a harness that lies, to see whether the suite has teeth.

    assert first_failure(FunctionsContract, harness, tmp_path, fixtures) is None            # of an honest one
    assert first_failure(FunctionsContract, lying, tmp_path, fixtures) is not None          # of a mutant

A contract without negative controls is decoration: for every promise there is a mutant that breaks that promise and no other, and a
test that notices. Without pytest's collection, so that a hundred mutants share one process.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from polyserve.driver import Capability
from polyserve.testing.harness import Harness
from polyserve.testing.ledger import contract_tests
from polyserve.testing.memory import INFO, MemoryProvider, MemoryStore
from polyserve.testing.memory_functions import MemoryInvoker, MemoryPlatform
from polyserve.testing.memory_harness import MemoryHarness

__all__ = ["Fixtures", "Liars", "first_failure", "lying", "parametrised"]

Fixtures = Callable[[str], AbstractContextManager[Mapping[str, Any]]]
"""Makes the fixtures of one test from the name of a fresh bucket, and takes them away."""


def parametrised(test: Callable[..., object]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each parametrisation of a test, as pytest would."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    choices = []
    for mark in marks:
        names = [name.strip() for name in mark.args[0].split(",")] if isinstance(mark.args[0], str) else mark.args[0]
        choices.append([dict(zip(names, value if len(names) > 1 else (value,), strict=True)) for value in mark.args[1]])
    for choice in itertools.product(*choices):
        yield {name: value for part in choice for name, value in part.items()}


def first_failure(
    suite: type,
    harness: Harness,
    tmp_path: Path,
    fixtures: Fixtures,
    *,
    only: Collection[str] = (),
    noticed: tuple[type[BaseException], ...] = (Exception,),
) -> str | None:
    """Run the tests of a suite until one fails, and return its name.

    Args:
        suite: The class of tests.
        harness: What they run on.
        tmp_path: An empty directory.
        fixtures: Makes what the tests take besides `harness` and `tmp_path`.
        only: Names of the tests to run; all of them where it is empty.
        noticed: The errors that count as a failure; any other is the mutant's own mistake, and raised.
    """
    for name, test in contract_tests(suite).items():
        assert callable(test)
        if only and name not in only:
            continue
        for number, given in enumerate(parametrised(test)):
            bucket = harness.fresh_bucket()
            # A directory of its own for every test, whose names are too long for one.
            directory = tmp_path / f"{abs(hash(name))}-{number}"
            directory.mkdir()
            try:
                with fixtures(bucket) as made:
                    there = {"harness": harness, "tmp_path": directory, **made, **given}
                    wanted = {key: there[key] for key in inspect.signature(test).parameters if key != "self"}
                    test(suite(), **wanted)
            except (*noticed, pytest.fail.Exception):
                return name
            finally:
                harness.drop_bucket(bucket)
    return None


def lying(lie: type, capabilities: frozenset[Capability] = INFO.capabilities) -> MemoryHarness:
    """Return the harness of a provider in memory of which one part lies.

    Args:
        lie: A subclass of the part: of `MemoryProvider`, `MemoryStore`, `MemoryPlatform` or `MemoryInvoker`.
        capabilities: What the provider declares.
    """
    if issubclass(lie, MemoryStore):
        return MemoryHarness(capabilities=capabilities, store=lie)
    harness = MemoryHarness(capabilities=capabilities)
    provider = harness.memory
    if issubclass(lie, MemoryPlatform):
        provider.functions = lie(provider)
    elif issubclass(lie, MemoryInvoker):
        provider.invoker = lie(provider)
    elif issubclass(lie, MemoryProvider):
        provider.__class__ = lie
    else:
        raise TypeError(f"{lie.__name__} is no part of the provider in memory")
    return harness


class Liars:
    """Mutants of some suites, each with the test that notices it.

    Args:
        suites: The classes of tests.
    """

    def __init__(self, *suites: type) -> None:
        self._suites = suites
        self.cases: dict[str, tuple[type, str, frozenset[Capability]]] = {}

    def caught_by(
        self, test: Callable[..., object], capabilities: frozenset[Capability] = INFO.capabilities
    ) -> Callable[[type], type]:
        """Add a class that tells one lie; its name says which.

        Args:
            test: The test that has to notice.
            capabilities: What its provider declares.
        """

        def add(lie: type) -> type:
            words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in lie.__name__).strip()
            assert words not in self.cases
            self.cases[words] = (lie, test.__name__, capabilities)
            return lie

        return add

    def toothless(self) -> set[str]:
        """Return the tests of the suites that notice no lie."""
        tests = {name for suite in self._suites for name in contract_tests(suite)}
        return tests - {test for _, test, _ in self.cases.values()}
