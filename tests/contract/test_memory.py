"""The provider in memory runs real functions: the fake that core's tests stand on is held to what the drivers promise."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest

from polyserve.driver import Artifact, Capability, Phase, Scaling
from polyserve.endpoint import Endpoint
from polyserve.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    translating,
)
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.packages import times


@pytest.fixture
def harness():
    harness = MemoryHarness()
    yield harness
    harness.close()


def ready(platform, name, number):
    deadline = time.monotonic() + 30
    while (status := platform.describe(name).revision(number)).phase is Phase.PROVISIONING:
        assert time.monotonic() < deadline
        platform._functions[name].revisions[number].loading.join()
    return status


def ask(harness, name, revision=None):
    package = times(1)
    asked = {"model": package.name, "signature": package.signature, "timeout": timedelta(seconds=30)}
    with Endpoint(harness.provider(), name, revision=revision, **asked) as endpoint:
        return endpoint.invoke([[1.0, 2.0]])


def test_revisions_answer_side_by_side_by_weight(harness):
    functions = harness.provider().functions
    for number in (1, 2):
        functions.apply(harness.function_spec("iris", number))
        assert ready(functions, "iris", number).phase is Phase.READY
    functions.route("iris", {1: 50, 2: 50})

    answers = {tuple(ask(harness, "iris")[0]) for _ in range(40)}

    assert answers == {(1.0, 2.0), (2.0, 4.0)}
    assert list(ask(harness, "iris", revision=2)[0]) == [2.0, 4.0]
    assert any("infer" in event.message for event in functions.logs("iris", since=None))
    functions.delete("iris")
    with pytest.raises(NotFoundError), translating(harness.provider(), "describe", "iris"):
        functions.describe("iris")


def test_what_is_applied_twice_is_one_revision_and_another_of_its_number_is_refused(harness):
    provider = harness.provider()
    spec = harness.function_spec("iris", 1)
    provider.functions.apply(spec)
    assert len(provider.functions.apply(spec).revisions) == 1

    with pytest.raises(AlreadyExistsError), translating(provider, "apply", "iris"):
        provider.functions.apply(replace(spec, memory_mb=1024))


def test_a_bundle_that_is_not_the_one_of_the_spec_fails_and_is_tried_anew(harness):
    functions = harness.provider().functions
    spec = harness.function_spec("iris", 1)
    artifact = spec.artifact
    wrong = Artifact(bucket=artifact.bucket, key=artifact.key, sha256="0" * 64, size=artifact.size)
    functions.apply(replace(spec, artifact=wrong))
    status = ready(functions, "iris", 1)

    assert (status.phase, "sha256 differs" in status.reason) == (Phase.FAILED, True)
    functions.apply(replace(spec, artifact=wrong))
    assert ready(functions, "iris", 1).phase is Phase.FAILED
    functions.remove_revision("iris", 1)
    functions.apply(spec)
    assert ready(functions, "iris", 1).phase is Phase.READY


def test_what_makes_no_sense_is_refused(harness):
    provider = harness.provider()
    functions = provider.functions
    functions.apply(harness.function_spec("iris", 1))
    functions.route("iris", {1: 100})
    for expected, call in [
        (FailedPreconditionError, lambda: functions.route("iris", {2: 100})),
        (InvalidArgumentError, lambda: functions.route("iris", {1: 50})),
        (FailedPreconditionError, lambda: functions.remove_revision("iris", 1)),
        (NotFoundError, lambda: functions.remove_revision("iris", 2)),
        (NotFoundError, lambda: provider.invoker.resolve("iris", revision=2)),
        (NotFoundError, lambda: provider.invoker.resolve("other")),
        (NotFoundError, lambda: functions.scale("other", Scaling())),
    ]:
        with pytest.raises(expected), translating(provider, "call", "iris"):
            call()


def test_what_is_not_declared_is_refused():
    harness = MemoryHarness(capabilities=frozenset({Capability.CONDITIONAL_PUT}))
    provider = harness.provider()
    for number in (1, 2):
        provider.functions.apply(harness.function_spec("iris", number))
    try:
        for call in (
            lambda: provider.functions.route("iris", {1: 50, 2: 50}),
            lambda: provider.functions.scale("iris", Scaling(min_instances=1)),
            lambda: provider.functions.scale("iris", Scaling(max_instances=1)),
            lambda: provider.functions.apply(
                replace(harness.function_spec("iris", 3), scaling=Scaling(min_instances=1))
            ),
        ):
            with pytest.raises(UnsupportedError), translating(provider, "call", "iris"):
                call()
    finally:
        harness.close()
