"""One emulator for all tests of the adapter in a process."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from polyserve.testing.functions import Functions


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Give the harness."""
    spec = spec_from_file_location("harness_of_aws", Path(__file__).with_name("harness.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    harness = module.open_harness(tmp_path_factory.mktemp("aws"))
    yield harness
    left = list(harness.inventory())
    harness.close()
    assert left == []


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
