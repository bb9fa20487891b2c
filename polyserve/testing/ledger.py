"""What keeps the suites honest: nobody replaces or deletes a test of a contract, and every known deviation is written down with its reason.

A `conftest.py` hands what was collected to `enforce`, from its `pytest_collection_modifyitems`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

__all__ = ["Deviation", "contract_tests", "enforce", "overridden"]

_HOME = "polyserve.testing."


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """A test of a contract that a provider does not pass. It is expected to fail; passing it is a failure of the ledger.

    Attributes:
        harness: Id of the harness in the test's parameters, such as `"aws"`.
        test: Name of the test, without its parameters.
        kind: `"notimpl"`: we could and have not. `"notyet"`: somebody upstream has to. `"never"`: the service never will.
        reason: Why, in a sentence, with its source.
        raises: The error that the test fails with.
        parameters: The test's id in brackets, where only one of its parametrisations fails.
    """

    harness: str
    test: str
    kind: Literal["notimpl", "notyet", "never"]
    reason: str
    raises: type[Exception] = AssertionError
    parameters: str = ""

    def __post_init__(self) -> None:
        if len(self.reason.split()) < 3:
            raise ValueError(f"the deviation of {self.harness} in {self.test} needs a reason, in a sentence")


def contract_tests(suite: type) -> dict[str, object]:
    """Return the tests that a class inherits from the suites of `polyserve.testing`, as the suites have them."""
    found: dict[str, object] = {}
    for kind in reversed(suite.__mro__):
        if kind.__module__.startswith(_HOME):
            found.update({name: value for name, value in vars(kind).items() if name.startswith("test_")})
    return found


def overridden(suite: type) -> list[str]:
    """Return the tests of a contract that a subclass replaces or deletes, and `pytest`-marks that would skip them."""
    wrong = [
        name for name, value in contract_tests(suite).items() if inspect.getattr_static(suite, name, None) is not value
    ]
    own = [kind for kind in suite.__mro__ if not kind.__module__.startswith(_HOME) and "pytestmark" in vars(kind)]
    for kind in own:
        marks = kind.__dict__["pytestmark"]
        marks = marks if isinstance(marks, list) else [marks]
        wrong += [
            f"{kind.__name__}: pytest.mark.{mark.name}" for mark in marks if mark.name in ("skip", "skipif", "xfail")
        ]
    return wrong


def enforce(items: Iterable[pytest.Item], ledger: Sequence[Deviation] = ()) -> None:
    """Refuse tests that dodge a contract, and expect the failures that the ledger knows.

    Args:
        items: What pytest collected.
        ledger: The known deviations; empty is the goal.

    Raises:
        pytest.UsageError: A class replaces, deletes or skips tests of a contract, or the ledger names a test that does not exist.
    """
    tests = [item for item in items if isinstance(item, pytest.Function) and item.cls is not None]
    suites = {item.cls for item in tests}
    for suite in suites:
        if wrong := overridden(suite):
            message = (
                f"{suite.__module__}.{suite.__qualname__} must not replace, delete or skip tests of its contract: "
            )
            raise pytest.UsageError(message + ", ".join(wrong))
    known = {name for suite in suites for name in contract_tests(suite)}
    for deviation in ledger:
        if known and deviation.test not in known:
            raise pytest.UsageError(f"the ledger names {deviation.test!r}, and no contract has that test")
        for item in tests:
            if _concerns(deviation, item):
                reason = f"{deviation.kind}: {deviation.reason}"
                item.add_marker(pytest.mark.xfail(reason=reason, raises=deviation.raises, strict=True))


def _concerns(deviation: Deviation, item: pytest.Function) -> bool:
    if item.originalname != deviation.test or not hasattr(item, "callspec"):
        return False
    return deviation.harness in item.callspec.id.split("-") and deviation.parameters in item.callspec.id
