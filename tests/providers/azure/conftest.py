"""One emulator for the tests of this room, and a function on it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from polyserve.testing.functions import Functions


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Give the harness of the contract suites."""
    spec = spec_from_file_location("harness_of_azure", Path(__file__).with_name("harness.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.open_harness(tmp_path_factory.mktemp("azure"))
    yield found
    found.close()


@pytest.fixture
def functions(harness: Any) -> Iterator[Functions]:
    """Give the function platform, and take away what a test made."""
    given = Functions(harness)
    yield given
    given.gone()
