"""The contract of errors: what a provider's SDK raises is sorted, once, and nothing that is documented is UNKNOWN."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import ClassVar

import pytest

from polyserve.driver import ErrorCode
from polyserve.errors import RETRYABLE, NotFoundError, PolyserveError, error_for, translating
from polyserve.testing.harness import Harness

__all__ = ["ErrorContract"]


class ErrorContract:
    """What users of an error rely on."""

    EXPECTED: ClassVar[frozenset[ErrorCode]] = frozenset(
        {
            ErrorCode.NOT_FOUND,
            ErrorCode.PERMISSION_DENIED,
            ErrorCode.FAILED_PRECONDITION,
            ErrorCode.RESOURCE_EXHAUSTED,
            ErrorCode.DEADLINE_EXCEEDED,
            ErrorCode.UNAVAILABLE,
            ErrorCode.INVALID_ARGUMENT,
        }
    )
    """Codes that every provider has an error for, whatever it is made of."""

    def test_every_documented_error_is_sorted(self, harness: Harness) -> None:
        provider = harness.provider()
        cases = harness.error_cases()

        assert {case.name: provider.classify(case.error) for case in cases} == {case.name: case.code for case in cases}
        assert ErrorCode.UNKNOWN not in {case.code for case in cases}

    def test_every_kind_of_failure_has_an_error(self, harness: Harness) -> None:
        assert {case.code for case in harness.error_cases()} >= self.EXPECTED

    def test_the_time_that_a_service_asks_for_is_told(self, harness: Harness) -> None:
        provider = harness.provider()
        told = {case.name: provider.retry_after(case.error) for case in harness.error_cases()}

        assert told == {case.name: case.retry_after for case in harness.error_cases()}
        assert all(wait is None or wait >= timedelta(0) for wait in told.values())

    @pytest.mark.parametrize("error", [Exception(), ValueError("x"), KeyError("k"), RuntimeError("no")], ids=repr)
    def test_what_the_provider_has_never_heard_of_is_unknown(self, harness: Harness, error: Exception) -> None:
        provider = harness.provider()

        assert provider.classify(error) is ErrorCode.UNKNOWN
        assert provider.retry_after(error) is None

    def test_sorting_changes_nothing(self, harness: Harness) -> None:
        provider = harness.provider()
        for case in harness.error_cases():
            before = copy.copy(vars(case.error)), case.error.args
            assert provider.classify(case.error) is provider.classify(case.error)
            assert (copy.copy(vars(case.error)), case.error.args) == before

    def test_an_error_is_wrapped_once_with_its_cause_and_says_where_it_happened(self, harness: Harness) -> None:
        provider = harness.provider()
        for case in harness.error_cases():
            with (
                pytest.raises(PolyserveError) as raised,
                translating(provider, "outer", "o"),
                translating(provider, "put", "some/key"),
            ):
                raise case.error
            error = raised.value
            assert type(error) is error_for(case.code), case.name
            assert error.__cause__ is case.error
            assert (error.code, error.operation, error.resource) == (case.code, "put", "some/key")
            assert error.provider == provider.info.name
            assert error.retryable is (case.code in RETRYABLE)
            assert error.retry_after == case.retry_after
            assert str(error).startswith(f"put 'some/key' failed on {provider.info.name}: ")

    def test_our_own_errors_and_interrupts_pass_unchanged(self, harness: Harness) -> None:
        for error in (NotFoundError("k"), KeyboardInterrupt(), SystemExit(1)):
            with pytest.raises(type(error)) as raised, translating(harness.provider(), "get", "k"):
                raise error
            assert raised.value is error
