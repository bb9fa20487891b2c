"""The contracts of deployments and interruptions must fail for whoever lies, below the portable core or in it."""

from __future__ import annotations

import io
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta

import pytest

from polyserve import deployment, planner, records, rollout, teardown
from polyserve.driver import Capability, ErrorCode
from polyserve.errors import PolyserveError, translating
from polyserve.testing import interruptions
from polyserve.testing.deployments import NAME, DeploymentContract, World
from polyserve.testing.interruptions import FaultContract
from polyserve.testing.memory import INFO, MemoryFault, MemoryProvider, MemoryStore
from polyserve.testing.memory_functions import MemoryInvoker, MemoryPlatform
from polyserve.testing.memory_harness import MemoryHarness
from polyserve.testing.teeth import Liars, first_failure, lying

WHOLE = frozenset(Capability) - {Capability.TRAFFIC_SPLIT}
LIARS = Liars(DeploymentContract)


def first_failure_of(harness, directory, suite=DeploymentContract, only=()):
    """Run a suite, or some tests of it, and return the name of the first that fails."""

    @contextmanager
    def fixtures(bucket):
        world = World(harness, bucket)
        yield {"world": world}
        world.gone()

    if suite is FaultContract:

        def fixtures(bucket):
            harness.drop_bucket(bucket)
            return nullcontext({})

    platform = harness.provider().functions
    noticed = (AssertionError, PolyserveError, MemoryFault)
    try:
        return first_failure(suite, harness, directory, fixtures, only=only, noticed=noticed)
    finally:
        for name in list(platform._functions):
            MemoryPlatform.delete(platform, name)
        harness.close()


@pytest.mark.parametrize("capabilities", [INFO.capabilities, WHOLE], ids=["able", "single"])
@pytest.mark.parametrize("suite", [DeploymentContract, FaultContract])
def test_an_honest_provider_under_the_honest_core_passes(suite, capabilities, tmp_path):
    assert first_failure_of(MemoryHarness(capabilities=capabilities), tmp_path, suite) is None


# --- liars below the core ---


@LIARS.caught_by(DeploymentContract.test_a_revision_that_answers_differently_never_gets_traffic)
class RoutesOnItsOwn(MemoryPlatform):
    def apply(self, spec):
        super().apply(spec)
        self._functions[spec.name].weights = {spec.revision: 100}
        return self.describe(spec.name)


@LIARS.caught_by(DeploymentContract.test_a_first_revision_that_answers_differently_gets_no_traffic_either)
class RoutesTheFirstRevisionOnItsOwn(MemoryPlatform):
    def apply(self, spec):
        super().apply(spec)
        if spec.revision == 1:
            self._functions[spec.name].weights = {1: 100}
        return self.describe(spec.name)


@LIARS.caught_by(DeploymentContract.test_a_package_that_cannot_be_loaded_there_fails_with_the_reason)
class ForgetsItsRoutesWithEveryRevision(MemoryPlatform):
    def apply(self, spec):
        super().apply(spec)
        self._functions[spec.name].weights = {}
        return self.describe(spec.name)


@LIARS.caught_by(DeploymentContract.test_a_deployed_package_answers_as_it_does_here)
class TellsNoUrl(MemoryPlatform):
    def _status(self, function):
        return replace(super()._status(function), url=None)


@LIARS.caught_by(DeploymentContract.test_a_deployed_package_answers_as_it_does_here)
class TellsNoWeights(MemoryPlatform):
    def _status(self, function):
        return replace(super()._status(function), weights={})


@LIARS.caught_by(DeploymentContract.test_the_same_deploy_again_changes_nothing)
class TellsAnotherDigestEveryTime(MemoryPlatform):
    def _status(self, function):
        status = super()._status(function)
        return replace(status, revisions=tuple(replace(r, spec_digest="0" * 64) for r in status.revisions))


@LIARS.caught_by(DeploymentContract.test_an_update_takes_the_traffic_and_a_rollback_gives_it_back)
class MakesABucketOnlyOnce(MemoryProvider):
    def ensure_bucket(self, bucket):
        if bucket in self.buckets:
            raise MemoryFault(ErrorCode.ALREADY_EXISTS, f"bucket {bucket!r} exists already")
        super().ensure_bucket(bucket)


@LIARS.caught_by(DeploymentContract.test_three_revisions_share_the_traffic_or_are_refused)
class SendsAllToOneOfThree(MemoryPlatform):
    def answer(self, request):
        _, _, name, which, path = request.path.split("/", 4)
        weights = self._functions[name].weights
        if which == "traffic" and len(weights) > 2:
            request = replace(request, path=f"/functions/{name}/{min(weights)}/{path}")
        return super().answer(request)


@LIARS.caught_by(DeploymentContract.test_an_update_takes_the_traffic_and_a_rollback_gives_it_back)
class KeepsToItsFirstRoute(MemoryPlatform):
    def route(self, name, weights):
        if not self._function(name).weights:
            super().route(name, weights)


@LIARS.caught_by(DeploymentContract.test_an_update_takes_the_traffic_and_a_rollback_gives_it_back)
class ReachesOnlyWhatHasTraffic(MemoryInvoker):
    def resolve(self, name, *, revision=None):
        routed = bool(self._provider.functions.describe(name).weights)
        return super().resolve(name, revision=None if routed else revision)


@LIARS.caught_by(DeploymentContract.test_a_package_that_had_traffic_before_is_routed_to_and_not_built_again)
class DropsRevisionsWithoutTraffic(MemoryPlatform):
    def route(self, name, weights):
        super().route(name, weights)
        for number in sorted(self._function(name).revisions.keys() - weights.keys()):
            self.remove_revision(name, number)


@LIARS.caught_by(DeploymentContract.test_a_canary_has_its_share_and_promotion_gives_it_all)
class SplitsToTheFirstOnly(MemoryPlatform):
    def answer(self, request):
        first = min(self._functions[NAME].weights, default="traffic")
        return super().answer(replace(request, path=request.path.replace("/traffic/", f"/{first}/")))


@LIARS.caught_by(DeploymentContract.test_a_canary_is_rolled_back_to_the_stable_revision)
class NeverTakesACanaryBack(MemoryPlatform):
    def route(self, name, weights):
        super().route(name, self._function(name).weights if len(self._function(name).weights) > 1 else weights)


@LIARS.caught_by(DeploymentContract.test_bounds_are_set_and_kept_by_the_next_deploy_that_does_not_name_them)
class IgnoresBounds(MemoryPlatform):
    def scale(self, name, scaling):
        self._function(name)


@LIARS.caught_by(DeploymentContract.test_logs_and_metrics_tell_of_the_calls)
class KeepsNoLog(MemoryPlatform):
    def logs(self, name, *, since):
        return iter(())


@LIARS.caught_by(DeploymentContract.test_logs_and_metrics_tell_of_the_calls)
class TellsEveryLineTwice(MemoryPlatform):
    def logs(self, name, *, since):
        return (event for event in super().logs(name, since=since) for _ in range(2))


@LIARS.caught_by(DeploymentContract.test_a_revision_that_answers_differently_never_gets_traffic)
class DropsTheEnvironment(MemoryPlatform):
    def _load(self, function, revision):
        revision.spec = replace(revision.spec, environment={})
        super()._load(function, revision)


@LIARS.caught_by(DeploymentContract.test_destroy_leaves_nothing_and_says_so_when_there_is_nothing)
class DeletesNoObjects(MemoryStore):
    def delete(self, key):
        self.head(key)


@LIARS.caught_by(DeploymentContract.test_destroy_leaves_nothing_and_says_so_when_there_is_nothing)
class DeletesNoFunctions(MemoryPlatform):
    def delete(self, name):
        self._function(name)


@LIARS.caught_by(DeploymentContract.test_destroy_leaves_nothing_and_says_so_when_there_is_nothing)
class RemovesNoBucket(MemoryProvider):
    def remove_bucket(self, bucket):
        if self.buckets[bucket].objects:
            super().remove_bucket(bucket)


@LIARS.caught_by(DeploymentContract.test_destroy_leaves_nothing_and_says_so_when_there_is_nothing)
class ListsTheRecordOnly(MemoryStore):
    def list_page(self, **asked):
        page = super().list_page(**asked)
        return replace(page, objects=tuple(meta for meta in page.objects if meta.key.endswith("record.json")))


@LIARS.caught_by(DeploymentContract.test_destroy_leaves_what_is_not_the_deployments)
class RemovesBucketsThatAreNotEmpty(MemoryProvider):
    def remove_bucket(self, bucket):
        self.buckets.pop(bucket)


@LIARS.caught_by(DeploymentContract.test_destroy_leaves_what_is_not_the_deployments)
class ListsMoreThanThePrefix(MemoryStore):
    def list_page(self, *, prefix, **asked):
        return super().list_page(prefix=prefix.removesuffix("/"), **asked)


@LIARS.caught_by(DeploymentContract.test_a_deployment_that_somebody_else_is_changing_is_a_conflict)
class ReadsTheFirstVersionForEver(MemoryStore):
    def get(self, key, **part):
        meta, body = super().get(key, **part)
        content = body.read()
        kept = self.provider.__dict__.setdefault("kept", {}).setdefault((self.bucket, key), content)
        return meta, io.BytesIO(kept)


@pytest.mark.parametrize(("lie", "test", "capabilities"), LIARS.cases.values(), ids=LIARS.cases)
def test_the_contract_of_deployments_catches_a_provider_that(lie, test, capabilities, tmp_path, monkeypatch):
    # Nobody waits a quarter of an hour for what a liar will never do.
    monkeypatch.setattr(rollout, "READY_WITHIN", timedelta(seconds=1))
    assert first_failure_of(lying(lie, capabilities), tmp_path, only={test}) == test


# --- liars in the core ---


def records_values(self, number, observed, announce=rollout._Rollout._announce):
    announce(self, number, observed)
    revision = self.ledger.record.revision(number)
    shown = tuple(f"{name}={value}" for name, value in self.desired.environment.items())
    self.ledger.save(self.ledger.record.with_revision(replace(revision, environment=shown)))


CORE = {
    "verifies nothing": (rollout, "verify", lambda *arguments: None, "answers_differently"),
    "goes on where it refused": (rollout, "refuse", lambda planned: None, "refused_plan"),
    "believes no lease": (records.Lease, "held", lambda self: False, "somebody_else"),
    "records what is secret": (rollout._Rollout, "_announce", records_values, "no_record"),
    "takes any weights": (deployment.Deployment, "_check_weights", lambda *arguments: None, "weights_that_cannot_be"),
}


@pytest.mark.parametrize("lie", CORE)
def test_the_contract_of_deployments_catches_a_core_that(lie, tmp_path, monkeypatch):
    owner, name, instead, test = CORE[lie]
    monkeypatch.setattr(owner, name, instead)

    assert test in (first_failure_of(MemoryHarness(), tmp_path) or "")


def test_every_test_of_the_contract_catches_somebody():
    of_the_core = [test for *_, test in CORE.values()]

    assert [test for test in LIARS.toothless() if not any(words in test for words in of_the_core)] == []


# --- interruptions ---


class _Late(rollout._Rollout):
    """Tells the platform first and writes it down afterwards."""

    __slots__ = ()

    def _record(self, planned):
        with translating(self.target.provider, "route", self.desired.name):
            self.target.provider.functions.route(self.desired.name, planned.weights)
        super()._record(planned)


class _AppliesUnannounced(rollout._Rollout):
    __slots__ = ()

    def _announce(self, number, observed):
        target, key = self.target, self.desired.artifact.key
        if not target.bucket.exists(key):
            target.bucket.put(key, self.bundle.path)
        with translating(target.provider, "apply", self.desired.name):
            target.provider.functions.apply(self.desired.spec(number))
        super()._announce(number, observed)


def destroys_its_record_first(target, name, honest=teardown.destroy):
    target.bucket.delete(records.record_key(name), missing_ok=True)
    honest(target, name)


def releases_nothing(self):
    return None


def keeps_numbers_to_itself(desired, observed):
    return None


def routes_only_what_is_new(self, ledger, weights, *, action, revision):
    if ledger.record.weights != weights:
        ledger.save(ledger.record.routed(weights, action=action, revision=revision))
        with translating(self._target.provider, action, self.name):
            self._target.provider.functions.route(self.name, weights)


def routes_before_it_writes(self, ledger, weights, *, action, revision):
    with translating(self._target.provider, action, self.name):
        self._target.provider.functions.route(self.name, weights)
    ledger.save(ledger.record.routed(weights, action=action, revision=revision))


class _Swallows:
    """Calls a failed control call a success."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return error is not None and "injected" in str(error)


def leaves_bundles(target, name):
    with records.leased(target.bucket, name, "destroy") as ledger:
        ledger.delete()
        target.provider.functions.delete(name)


INTERRUPTED = {
    "routes before it records": ("update", rollout, "_Rollout", _Late),
    "applies before it records": ("update", rollout, "_Rollout", _AppliesUnannounced),
    "destroys its record first": ("destroy", interruptions, "destroy", destroys_its_record_first),
    "deletes the record before the function": ("destroy", interruptions, "destroy", leaves_bundles),
    "releases no lease": ("scale", records.Ledger, "release", releases_nothing),
    "believes the lease of an operation that failed": ("update", records.Lease, "held", lambda self: True),
    "takes a new number for every try": ("deploy", planner, "matching_revision", keeps_numbers_to_itself),
    "routes only what is new": ("rollback", deployment.Deployment, "_route", routes_only_what_is_new),
    "moves traffic before it records": ("rollback", deployment.Deployment, "_route", routes_before_it_writes),
    "calls a failure a success": ("scale", deployment, "translating", _Swallows),
}


@pytest.mark.parametrize("lie", INTERRUPTED)
def test_the_contract_of_interruptions_catches_a_core_that(lie, monkeypatch, tmp_path):
    operation, owner, name, instead = INTERRUPTED[lie]
    honest, harness = MemoryHarness(), MemoryHarness()
    platform = harness.provider().functions
    converges = FaultContract().test_an_operation_that_fails_at_any_control_call_converges_when_repeated
    try:
        for mode in ("before", "after"):
            converges(honest, operation, mode)
        monkeypatch.setattr(owner, name, instead)
        noticed = (AssertionError, PolyserveError, MemoryFault, pytest.fail.Exception)
        with pytest.raises(noticed):
            for mode in ("before", "after"):
                converges(harness, operation, mode)
    finally:
        monkeypatch.undo()
        for each in list(platform._functions):
            platform.delete(each)
        honest.close()
        harness.close()
