"""One emulator for the tests of this room, and a function on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from polyserve.testing.functions import Functions


@pytest.fixture(scope="module")
def harness(harness_of: Callable[..., Any]) -> Any:
    """Give the harness of the contract suites."""
    return harness_of("azure")


@pytest.fixture
def functions(harness: Any) -> Iterator[Functions]:
    """Give the function platform, and take away what a test made."""
    given = Functions(harness)
    yield given
    given.gone()
