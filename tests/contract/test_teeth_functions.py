"""The contract of functions must fail for whoever lies: each mutant is one lie, and names the test that notices it."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from polyserve.driver import Address, Capability, ErrorCode, FunctionStatus, Phase, Scaling
from polyserve.errors import PolyserveError
from polyserve.testing import functions
from polyserve.testing.functions import Functions, FunctionsContract
from polyserve.testing.memory import INFO, MemoryFault, MemoryProvider
from polyserve.testing.memory_functions import MemoryInvoker, MemoryPlatform
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.teeth import Liars, first_failure, lying

NOTHING: frozenset[Capability] = frozenset()
LIARS = Liars(FunctionsContract)


def first_failure_of(harness, directory, only=()):
    """Run the suite, or some tests of it, and return the name of the first that fails."""

    @contextmanager
    def fixtures(bucket):
        given = Functions(harness)
        yield {"functions": given}
        given.gone()

    platform = harness.provider().functions
    noticed = (AssertionError, PolyserveError, MemoryFault, LookupError, ValueError)
    try:
        return first_failure(FunctionsContract, harness, directory, fixtures, only=only, noticed=noticed)
    finally:
        for name in list(platform._functions):
            MemoryPlatform.delete(platform, name)
        harness.close()


@pytest.mark.parametrize("capabilities", [INFO.capabilities, NOTHING], ids=["able", "bare"])
def test_an_honest_provider_passes(capabilities, tmp_path):
    assert first_failure_of(MemoryHarness(capabilities=capabilities), tmp_path) is None


# --- liars about functions ---


@LIARS.caught_by(FunctionsContract.test_a_revision_is_made_without_traffic_and_can_be_called_all_the_same)
class GivesTrafficAtOnce(MemoryPlatform):
    def apply(self, spec):
        super().apply(spec)
        self._functions[spec.name].weights = {spec.revision: 100}
        return self.describe(spec.name)


@LIARS.caught_by(FunctionsContract.test_applying_the_same_revision_again_changes_nothing)
class TakesTheTrafficAwayOnEveryApply(MemoryPlatform):
    def apply(self, spec):
        super().apply(spec)
        self._functions[spec.name].weights = {}
        return self.describe(spec.name)


@LIARS.caught_by(FunctionsContract.test_applying_the_same_revision_again_changes_nothing)
class RefusesTheSameRevisionAgain(MemoryPlatform):
    def apply(self, spec):
        if spec.name in self._functions and spec.revision in self._functions[spec.name].revisions:
            raise MemoryFault(ErrorCode.ALREADY_EXISTS, "there is one")
        return super().apply(spec)


@LIARS.caught_by(FunctionsContract.test_a_revision_that_failed_is_tried_anew_when_it_is_applied_again)
class GivesUpForEver(MemoryPlatform):
    def apply(self, spec):
        known = spec.name in self._functions and self._functions[spec.name].revisions.get(spec.revision)
        return self.describe(spec.name) if known and known.phase is Phase.FAILED else super().apply(spec)


@LIARS.caught_by(FunctionsContract.test_another_spec_under_a_number_that_is_taken_already_exists)
class TakesAnotherSpecForTheSame(MemoryPlatform):
    def apply(self, spec):
        known = spec.name in self._functions and self._functions[spec.name].revisions.get(spec.revision)
        return self.describe(spec.name) if known else super().apply(spec)


@LIARS.caught_by(FunctionsContract.test_another_spec_under_a_number_that_is_taken_already_exists)
class ReplacesARevision(MemoryPlatform):
    def apply(self, spec):
        known = spec.name in self._functions and self._functions[spec.name].revisions.get(spec.revision)
        if known and known.spec.digest() != spec.digest():
            MemoryPlatform.remove_revision(self, spec.name, spec.revision)
        return super().apply(spec)


class _Tells(MemoryPlatform):
    """Changes what is told of a revision."""

    def _status(self, function):
        status = super()._status(function)
        return replace(
            status, revisions=tuple(self.told(r, function.revisions[r.number].spec) for r in status.revisions)
        )


@LIARS.caught_by(FunctionsContract.test_the_spec_digest_of_a_revision_is_that_of_its_spec)
class TellsTheDigestOfThePackage(_Tells):
    def told(self, revision, spec):
        return replace(revision, spec_digest=spec.package_digest)


@LIARS.caught_by(FunctionsContract.test_the_spec_digest_of_a_revision_is_that_of_its_spec)
class ForgetsTheLabelsInTheDigest(_Tells):
    def told(self, revision, spec):
        return replace(revision, spec_digest=replace(spec, labels={}).digest())


@LIARS.caught_by(FunctionsContract.test_a_bundle_that_is_not_there_fails_the_revision_with_a_reason)
class FailsWithoutAReason(_Tells):
    def told(self, revision, spec):
        return replace(revision, reason=None)


@LIARS.caught_by(FunctionsContract.test_a_bundle_that_is_not_there_fails_the_revision_with_a_reason)
class IsReadyWithoutItsBundle(_Tells):
    def told(self, revision, spec):
        return replace(revision, phase=Phase.READY)


@LIARS.caught_by(FunctionsContract.test_a_bundle_that_is_another_fails_the_revision_with_a_reason)
class TakesAnyBundle(MemoryPlatform):
    def _load(self, function, revision):
        artifact, asked = revision.spec.artifact, revision.spec
        content = self._provider.store(artifact.bucket).get(artifact.key)[1].read()
        revision.spec = replace(asked, artifact=replace(artifact, sha256=hashlib.sha256(content).hexdigest()))
        super()._load(function, revision)
        revision.spec = asked


@LIARS.caught_by(FunctionsContract.test_what_is_not_there_is_not_found)
class DescribesWhatIsNotThere(MemoryPlatform):
    def describe(self, name):
        if name in self._functions:
            return super().describe(name)
        scaling, phase = Scaling(), Phase.READY
        empty = {"url": None, "revisions": (), "weights": {}, "scaling": scaling, "labels": {}, "native_id": ""}
        return FunctionStatus(name=name, phase=phase, **empty)


def silent(verb, answer=None):
    """Return a platform of which one verb says nothing where there is no such function."""

    def method(self, name, *arguments, **options):
        return getattr(MemoryPlatform, verb)(self, name, *arguments, **options) if name in self._functions else answer

    words = "".join(word.capitalize() for word in verb.split("_"))
    return type(f"IsSilentOnAMissingFunctionWhenAskedFor{words}", (MemoryPlatform,), {verb: method})


for _verb, _answer in {"route": None, "scale": None, "logs": (), "remove_revision": None, "delete": None}.items():
    LIARS.caught_by(FunctionsContract.test_what_is_not_there_is_not_found)(silent(_verb, _answer))


@LIARS.caught_by(FunctionsContract.test_what_is_not_there_is_not_found)
class ResolvesWhatIsNotThere(MemoryInvoker):
    def resolve(self, name, *, revision=None):
        return Address(url=f"http://127.0.0.1:9/functions/{name}/{revision or 'traffic'}")


@LIARS.caught_by(FunctionsContract.test_what_is_not_there_is_not_found)
class CallsEveryErrorUnknown(MemoryProvider):
    def classify(self, error):
        return ErrorCode.UNKNOWN


class _Follows(MemoryPlatform):
    """Gives the traffic to a revision of its own choice."""

    def answer(self, request):
        _, _, name, which, path = request.path.split("/", 4)
        function = self._functions.get(name)
        if which == "traffic" and function is not None and function.weights:
            request = replace(request, path=f"/functions/{name}/{self.choice(function)}/{path}")
        return super().answer(request)


@LIARS.caught_by(FunctionsContract.test_traffic_goes_where_it_is_routed_and_routing_again_changes_nothing)
class FollowsTheNewestRevision(_Follows):
    def choice(self, function):
        return max(function.revisions)


@LIARS.caught_by(FunctionsContract.test_traffic_goes_where_it_is_routed_and_routing_again_changes_nothing)
class FollowsTheOldestRevision(_Follows):
    def choice(self, function):
        return min(function.revisions)


@LIARS.caught_by(FunctionsContract.test_a_split_is_honoured_or_refused_never_ignored)
class FollowsTheFirstOfASplit(_Follows):
    def choice(self, function):
        return min(function.weights)


@LIARS.caught_by(FunctionsContract.test_traffic_goes_where_it_is_routed_and_routing_again_changes_nothing)
class KeepsTheWeightsOfBefore(MemoryPlatform):
    def route(self, name, weights):
        before = self._function(name).weights
        super().route(name, weights)
        self._function(name).weights = {**before, **weights}


@LIARS.caught_by(FunctionsContract.test_traffic_goes_where_it_is_routed_and_routing_again_changes_nothing)
class RefusesTheSameRouteAgain(MemoryPlatform):
    def route(self, name, weights):
        if self._function(name).weights == weights:
            raise MemoryFault(ErrorCode.FAILED_PRECONDITION, "nothing to change")
        super().route(name, weights)


@LIARS.caught_by(FunctionsContract.test_revisions_are_told_oldest_first_and_each_can_be_called_whatever_its_traffic)
class TellsTheNewestFirst(MemoryPlatform):
    def _status(self, function):
        status = super()._status(function)
        return replace(status, revisions=status.revisions[::-1])


@LIARS.caught_by(FunctionsContract.test_revisions_are_told_oldest_first_and_each_can_be_called_whatever_its_traffic)
class CallsWhatHasTheTrafficWhicheverIsAskedFor(MemoryInvoker):
    def resolve(self, name, *, revision=None):
        routed = bool(self._provider.functions.describe(name).weights)
        return super().resolve(name, revision=None if routed else revision)


@LIARS.caught_by(FunctionsContract.test_a_split_is_honoured_or_refused_never_ignored, NOTHING)
class SplitsWithoutDeclaringIt(MemoryPlatform):
    def route(self, name, weights):
        self._function(name).weights = dict(weights)


@LIARS.caught_by(FunctionsContract.test_a_split_is_honoured_or_refused_never_ignored, NOTHING)
class RoundsASplitItDoesNotDeclare(MemoryPlatform):
    def route(self, name, weights):
        super().route(name, {max(weights): 100})


@LIARS.caught_by(FunctionsContract.test_a_split_is_honoured_or_refused_never_ignored)
class RefusesASplitItDeclares(MemoryPlatform):
    def route(self, name, weights):
        if len(weights) > 1:
            raise MemoryFault(ErrorCode.UNSUPPORTED, "one revision only")
        super().route(name, weights)


@LIARS.caught_by(FunctionsContract.test_traffic_for_a_revision_that_is_not_there_is_refused_and_changes_nothing)
class RoutesToUnknownRevisions(MemoryPlatform):
    def route(self, name, weights):
        self._function(name).weights = dict(weights)


@LIARS.caught_by(FunctionsContract.test_traffic_for_a_revision_that_is_not_there_is_refused_and_changes_nothing)
class RoutesBeforeItLooks(MemoryPlatform):
    def route(self, name, weights):
        self._function(name).weights = dict(weights)
        super().route(name, weights)


@LIARS.caught_by(FunctionsContract.test_bounds_are_honoured_or_refused_never_ignored)
class IgnoresBounds(MemoryPlatform):
    def scale(self, name, scaling):
        self._function(name)


@LIARS.caught_by(FunctionsContract.test_bounds_are_honoured_or_refused_never_ignored, NOTHING)
class TakesBoundsItDoesNotDeclare(MemoryPlatform):
    def scale(self, name, scaling):
        self._function(name).scaling = scaling


@LIARS.caught_by(FunctionsContract.test_bounds_are_honoured_or_refused_never_ignored, NOTHING)
class TakesBoundsItDoesNotDeclareWithARevision(MemoryPlatform):
    def apply(self, spec):
        return super().apply(replace(spec, scaling=Scaling()))


@LIARS.caught_by(FunctionsContract.test_bounds_are_honoured_or_refused_never_ignored)
class ForgetsBoundsWithEveryRevision(MemoryPlatform):
    def apply(self, spec):
        super().apply(spec)
        self._functions[spec.name].scaling = spec.scaling
        return self.describe(spec.name)


@LIARS.caught_by(FunctionsContract.test_functions_are_found_by_their_labels)
class IgnoresLabels(MemoryPlatform):
    def list(self, *, labels):
        return super().list(labels={})


@LIARS.caught_by(FunctionsContract.test_functions_are_found_by_their_labels)
class TakesAnyOfTheLabels(MemoryPlatform):
    def list(self, *, labels):
        return (status for status in super().list(labels={}) if labels.items() & status.labels.items())


@LIARS.caught_by(FunctionsContract.test_functions_are_found_by_their_labels)
class ForgetsLabels(MemoryPlatform):
    def _status(self, function):
        return replace(super()._status(function), labels={})


@LIARS.caught_by(FunctionsContract.test_functions_are_listed_by_name)
class ListsByAge(MemoryPlatform):
    def list(self, *, labels):
        return iter(sorted(super().list(labels=labels), key=lambda status: [*self._functions].index(status.name)))


@LIARS.caught_by(FunctionsContract.test_a_revision_without_traffic_can_be_removed_and_one_with_traffic_cannot)
class RemovesWhatHasTraffic(MemoryPlatform):
    def remove_revision(self, name, number):
        self._function(name).weights.pop(number, None)
        super().remove_revision(name, number)


@LIARS.caught_by(FunctionsContract.test_a_revision_without_traffic_can_be_removed_and_one_with_traffic_cannot)
class IsSilentOnMissingRevisions(MemoryPlatform):
    def remove_revision(self, name, number):
        if number in self._function(name).revisions:
            super().remove_revision(name, number)


@LIARS.caught_by(FunctionsContract.test_a_revision_without_traffic_can_be_removed_and_one_with_traffic_cannot)
class RemovesNothing(MemoryPlatform):
    def remove_revision(self, name, number):
        if number not in self._function(name).revisions or number in self._function(name).weights:
            super().remove_revision(name, number)


@LIARS.caught_by(FunctionsContract.test_a_model_that_breaks_there_is_an_error_with_a_reason_and_not_a_wait_for_ever)
class DropsTheEnvironment(MemoryPlatform):
    def apply(self, spec):
        return super().apply(replace(spec, environment={}))


@LIARS.caught_by(FunctionsContract.test_a_model_that_breaks_there_is_an_error_with_a_reason_and_not_a_wait_for_ever)
class KeepsFailuresOutOfTheLogs(MemoryPlatform):
    def logs(self, name, *, since):
        return (event for event in super().logs(name, since=since) if "broken" not in event.message)


@LIARS.caught_by(FunctionsContract.test_logs_come_in_order_and_from_a_moment_on)
class TellsTheLatestFirst(MemoryPlatform):
    def logs(self, name, *, since):
        return reversed([*super().logs(name, since=since)])


@LIARS.caught_by(FunctionsContract.test_logs_come_in_order_and_from_a_moment_on)
class TellsTheWholeLogWheneverItIsAsked(MemoryPlatform):
    def logs(self, name, *, since):
        return super().logs(name, since=None)


@LIARS.caught_by(FunctionsContract.test_logs_come_in_order_and_from_a_moment_on)
class LosesTheLastLine(MemoryPlatform):
    def logs(self, name, *, since):
        return iter([*super().logs(name, since=since)][:-1])


@LIARS.caught_by(FunctionsContract.test_logs_come_in_order_and_from_a_moment_on)
class ForgetsItsLogWhenItIsRead(MemoryPlatform):
    def logs(self, name, *, since):
        found = [*super().logs(name, since=since)]
        self._function(name).events.clear()
        return iter(found)


@LIARS.caught_by(FunctionsContract.test_permissions_are_the_providers_own_words_and_take_no_call)
class HasNoWordForAPermission(MemoryPlatform):
    def permissions(self, spec):
        return ("",)


@LIARS.caught_by(FunctionsContract.test_permissions_are_the_providers_own_words_and_take_no_call)
class TriesWhatItMay(MemoryPlatform):
    def permissions(self, spec):
        self.apply(spec)
        return ("apply",)


_KNOWS = FunctionsContract.test_nothing_is_in_the_way_of_the_sample_and_nobody_is_asked_whether_there_is


@LIARS.caught_by(_KNOWS)
class RefusesWhatItCanDo(MemoryPlatform):
    def obstacles(self, spec, *, split=False):
        return (f"memory_mb is {spec.memory_mb}: give more",)


@LIARS.caught_by(_KNOWS)
class RefusesTheSplitItDeclares(MemoryPlatform):
    def obstacles(self, spec, *, split=False):
        return ("there is one revision at a time: leave out the canary",) if split else ()


@LIARS.caught_by(_KNOWS)
class TriesWhetherAnythingIsInTheWay(MemoryPlatform):
    def obstacles(self, spec, *, split=False):
        self.apply(spec)
        return ()


@LIARS.caught_by(_KNOWS)
class AsksWhetherAnythingIsInTheWay(MemoryPlatform):
    def obstacles(self, spec, *, split=False):
        httpx.get(self._provider.loopback.url, trust_env=False)
        return ()


@LIARS.caught_by(FunctionsContract.test_a_deleted_function_can_be_made_anew_and_has_nothing_of_the_old_one)
class DeletesNothing(MemoryPlatform):
    def delete(self, name):
        self._function(name)


class _Keeps(MemoryPlatform):
    """Keeps something of a function that was deleted."""

    def delete(self, name):
        self.kept = self._function(name)
        super().delete(name)

    def apply(self, spec):
        super().apply(spec)
        if hasattr(self, "kept"):
            self.keep(self._functions[spec.name], self.kept)
            del self.kept
        return self.describe(spec.name)


@LIARS.caught_by(FunctionsContract.test_a_deleted_function_can_be_made_anew_and_has_nothing_of_the_old_one)
class KeepsTheLogOfADeletedFunction(_Keeps):
    def keep(self, new, old):
        new.events[:0] = old.events


@LIARS.caught_by(FunctionsContract.test_a_deleted_function_can_be_made_anew_and_has_nothing_of_the_old_one)
class KeepsTheRevisionsOfADeletedFunction(_Keeps):
    def keep(self, new, old):
        new.revisions.update(old.revisions)


@LIARS.caught_by(FunctionsContract.test_a_deleted_function_can_be_made_anew_and_has_nothing_of_the_old_one)
class KeepsTheWeightsOfADeletedFunction(_Keeps):
    def keep(self, new, old):
        new.weights = old.weights


# --- all of them ---


@pytest.mark.parametrize(("lie", "test", "capabilities"), LIARS.cases.values(), ids=LIARS.cases)
def test_the_contract_of_functions_catches_a_provider_that(lie, test, capabilities, tmp_path, monkeypatch):
    # Nobody waits a minute for what a liar will never do.
    monkeypatch.setattr(functions, "WITHIN", timedelta(seconds=1))
    assert first_failure_of(lying(lie, capabilities), tmp_path, only={test}) == test


def test_every_test_of_the_contract_catches_somebody():
    assert LIARS.toothless() == set()
