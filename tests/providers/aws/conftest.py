"""One emulator for all tests of the adapter in a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from polyserve.testing.functions import Functions


@pytest.fixture(scope="session")
def aws(harness_of: Callable[..., Any]) -> Iterator[Any]:
    """Give the harness."""
    harness = harness_of("aws")
    yield harness
    assert list(harness.inventory()) == []


@pytest.fixture
def functions(aws: Any) -> Iterator[Functions]:
    """Give the function platform, and take away what a test made."""
    given = Functions(aws)
    yield given
    given.gone()


@pytest.fixture
def bucket(aws: Any) -> Iterator[str]:
    """Give an empty bucket."""
    name = aws.fresh_bucket()
    yield name
    aws.drop_bucket(name)
