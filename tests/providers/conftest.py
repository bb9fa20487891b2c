"""What the tests of several providers have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def untouched(harness: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the harness, and see that nothing is there in the end that was not there before."""
    monkeypatch.setenv("POLYSERVE_BUCKET", "contract-of-the-refusals")
    before = sorted(harness.inventory())
    yield harness
    assert sorted(harness.inventory()) == before
