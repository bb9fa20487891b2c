"""What the retrying layer does to whole providers; what it does to stores is a contract."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from polyserve.driver import Capability, ErrorCode, LogEvent, Scaling
from polyserve.errors import UnavailableError
from polyserve.layers.retrying import RetryPolicy, retrying
from polyserve.testing.memory import MemoryFault, MemoryProvider

AT_ONCE = RetryPolicy(attempts=3, first_wait=timedelta(0), longest_wait=timedelta(0))
LOST = MemoryFault(ErrorCode.UNAVAILABLE, "lost")
GONE = MemoryFault(ErrorCode.NOT_FOUND, "gone")


class Platform:
    """Answers every call with the next of a list: an error to raise or a value."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []

    def __getattr__(self, verb):
        def call(*arguments, **named):
            self.calls.append((verb, *arguments, *named.values()))
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


@pytest.fixture
def provider():
    return MemoryProvider()


def platform(provider, *answers):
    provider.__dict__["functions"] = Platform(*answers)
    return retrying(provider, AT_ONCE).functions, provider.functions


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("apply", ("spec",)), ("describe", ("iris",)), ("route", ("iris", {1: 100})), ("scale", ("iris", Scaling()))],
)
def test_a_call_of_the_platform_is_repeated(provider, verb, arguments):
    functions, native = platform(provider, LOST, LOST, "answer")

    answer = getattr(functions, verb)(*arguments)

    assert answer == ("answer" if verb in ("apply", "describe") else None)
    assert native.calls == [(verb, *arguments)] * 3


@pytest.mark.parametrize(("verb", "arguments"), [("delete", ("iris",)), ("remove_revision", ("iris", 1))])
def test_a_deletion_whose_answer_was_lost_has_succeeded_and_a_missing_thing_is_missing(provider, verb, arguments):
    functions, _ = platform(provider, LOST, GONE)
    getattr(functions, verb)(*arguments)

    functions, native = platform(provider, GONE)
    with pytest.raises(MemoryFault, match="gone"):
        getattr(functions, verb)(*arguments)
    assert len(native.calls) == 1


def test_a_throttled_deletion_that_finds_nothing_then_found_nothing(provider):
    functions, _ = platform(provider, MemoryFault(ErrorCode.RESOURCE_EXHAUSTED, "slow down"), GONE)

    with pytest.raises(MemoryFault, match="gone"):
        functions.delete("iris")


def test_logs_that_break_off_go_on_where_they_were(provider):
    events = [LogEvent(at=datetime.now(UTC), message=str(number)) for number in range(5)]

    def breaking(after: int) -> Iterator[LogEvent]:
        yield from events[:after]
        raise LOST

    functions, native = platform(provider, breaking(2), breaking(3), LOST, iter(events))

    assert [event.message for event in functions.logs("iris", since=None)] == ["0", "1", "2", "3", "4"]
    assert native.calls == [("logs", "iris", None)] * 4


def test_a_list_that_breaks_off_is_asked_for_anew_and_tells_nothing_twice(provider):
    def breaking():
        yield "a"
        raise LOST

    functions, _ = platform(provider, breaking(), iter(["a", "b"]))

    assert list(functions.list(labels={})) == ["a", "b"]


def test_permissions_are_passed_on(provider):
    functions, _ = platform(provider, ("s3:PutObject",))

    assert functions.permissions("spec") == ("s3:PutObject",)


def test_resolving_is_repeated_and_preparing_and_parsing_are_the_drivers_own(provider):
    native = SimpleNamespace(resolve=Platform(LOST, "address").resolve, prepare=object(), parse=object())
    provider.__dict__["invoker"] = native
    invoker = retrying(provider, AT_ONCE).invoker

    assert invoker.resolve("iris", revision=2) == "address"
    assert invoker.prepare is native.prepare
    assert invoker.parse is native.parse


def test_the_rest_of_the_provider_is_passed_on(provider):
    layered = retrying(provider)

    layered.ensure_bucket("bucket")
    assert layered.unwrap(dict) == {"bucket": provider.buckets["bucket"]}
    assert layered.info is provider.info
    assert Capability.SIGNED_URL in layered.info.capabilities
    assert layered.classify(LOST) is ErrorCode.UNAVAILABLE
    assert layered.retry_after(LOST) is None
    assert layered.functions is layered.functions
    layered.remove_bucket("bucket")
    assert provider.buckets == {}
    layered.close()


def test_what_retries_already_is_not_wrapped_again(provider):
    layered = retrying(provider)

    assert retrying(layered) is layered


def test_one_of_our_own_errors_is_judged_by_its_code(provider):
    functions, native = platform(provider, UnavailableError("lost"), "answer")

    assert functions.describe("iris") == "answer"
    assert len(native.calls) == 2


def test_a_service_that_says_how_long_to_wait_is_obeyed(provider, monkeypatch):
    asked = timedelta(seconds=42)
    functions, _ = platform(provider, MemoryFault(ErrorCode.RESOURCE_EXHAUSTED, "slow", retry_after=asked), "answer")
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)

    assert functions.describe("iris") == "answer"
    assert waits == [42.0]


def test_waits_grow_with_jitter_and_stay_below_the_longest(provider, monkeypatch):
    policy = RetryPolicy(attempts=8, first_wait=timedelta(seconds=1), longest_wait=timedelta(seconds=5))
    provider.__dict__["functions"] = Platform(*[LOST] * 8)
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)

    with pytest.raises(MemoryFault):
        retrying(provider, policy).functions.describe("iris")

    assert len(waits) == 7
    assert all(1 <= wait <= 5 for wait in waits)
    assert waits[-1] == 5


BUSY = MemoryFault(ErrorCode.UNAVAILABLE, "another change is under way", retry_after=timedelta(seconds=30))


@pytest.fixture
def clock(monkeypatch):
    """Give the seconds that were waited, of a clock that goes on by waiting alone."""
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("time.monotonic", lambda: sum(waits))
    return waits


CHANGES = [
    ("apply", ("spec",)),
    ("route", ("iris", {1: 100})),
    ("scale", ("iris", Scaling())),
    ("remove_revision", ("iris", 2)),
    ("delete", ("iris",)),
]


@pytest.mark.parametrize(("verb", "arguments"), CHANGES)
def test_a_change_waits_until_the_function_is_done_with_another(provider, clock, verb, arguments):
    functions, native = platform(provider, *[BUSY] * 19, LOST, BUSY, "answer")

    getattr(functions, verb)(*arguments)

    # More often than a lost call is repeated, and for longer; a call that was lost on the way is none of these.
    assert native.calls == [(verb, *arguments)] * 22
    assert clock == [30.0] * 19 + [0.0] + [30.0]


def test_a_change_is_asked_for_less_and_less_often_while_the_function_stays_busy(provider, clock):
    policy = RetryPolicy(first_wait=timedelta(milliseconds=100), longest_wait=timedelta(seconds=2))
    busy = MemoryFault(ErrorCode.UNAVAILABLE, "another change is under way", retry_after=timedelta(seconds=0.3))
    provider.__dict__["functions"] = Platform(*[busy] * 7, "answer")

    retrying(provider, policy).functions.scale("iris", Scaling())

    assert clock == [0.3, 0.3, 0.4, 0.8, 1.6, 2.0, 2.0]


@pytest.mark.parametrize(("verb", "arguments"), CHANGES)
def test_a_function_that_is_busy_for_ever_is_given_up(provider, clock, verb, arguments):
    functions, _ = platform(provider, *[BUSY] * 100)

    with pytest.raises(MemoryFault, match="under way"):
        getattr(functions, verb)(*arguments)

    assert 600 <= sum(clock) <= 700


def test_nobody_waits_so_long_to_look(provider, clock):
    functions, native = platform(provider, *[BUSY] * 100)

    with pytest.raises(MemoryFault, match="under way"):
        functions.describe("iris")

    assert len(native.calls) == AT_ONCE.attempts
