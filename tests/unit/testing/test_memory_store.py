"""The parts of the provider in memory that no contract reaches."""

from __future__ import annotations

from datetime import timedelta

import pytest

from polyserve.driver import ErrorCode
from polyserve.testing.harness import RawObject
from polyserve.testing.memory import INFO, MemoryFault, MemoryProvider
from polyserve.testing.memory_harness import MemoryHarness


def test_it_is_made_without_settings_and_with_those_that_a_factory_gets():
    assert MemoryProvider().info == INFO == MemoryProvider(object()).info


def test_closing_what_was_never_opened_does_nothing():
    MemoryProvider().close()


def test_its_faults_say_what_they_are():
    fault = MemoryFault(ErrorCode.RESOURCE_EXHAUSTED, "slow down", retry_after=timedelta(seconds=1))
    provider = MemoryProvider()

    assert (provider.classify(fault), provider.retry_after(fault)) == (fault.code, fault.retry_after)
    assert (provider.classify(KeyError("k")), provider.retry_after(KeyError("k"))) == (ErrorCode.UNKNOWN, None)


def test_its_harness_tells_what_there_is():
    harness = MemoryHarness()
    bucket = harness.fresh_bucket()
    harness.raw_put(bucket, "k", RawObject(body=b"x"))

    assert list(harness.inventory()) == [f"bucket {bucket}"]
    assert list(harness.raw_list(bucket)) == ["k"]
    harness.drop_bucket(bucket)
    harness.drop_bucket(bucket)
    assert list(harness.inventory()) == []
    with pytest.raises(KeyError):
        harness.raw_list(bucket)
