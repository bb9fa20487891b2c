"""The planner is pure: every case is two values in, one plan out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.driver import (
    AppSpec,
    Artifact,
    Capability,
    FunctionStatus,
    Limits,
    Phase,
    Price,
    ProviderInfo,
    RevisionStatus,
    Scaling,
)
from polyserve.planner import Desired, Observed, StepKind, plan
from polyserve.records import DeploymentRecord, Revision

INFO = ProviderInfo(
    name="cloud",
    title="A cloud",
    store_service="its store",
    function_service="its functions",
    factory="nowhere:Nothing",
    settings="nowhere:Nothing",
    entrypoint="nowhere",
    extra="",
    capabilities=frozenset(Capability),
    limits=Limits(
        name_pattern=r"[a-z][a-z0-9-]{0,19}",
        name_rule="up to 20 lower-case letters, digits and hyphens",
        memory_mb=(128, 4096),
        timeout=timedelta(seconds=60),
        request_bytes=6_000_000,
        bundle_bytes=50_000_000,
        bundle_unpacked_bytes=250_000_000,
        environment_bytes=4096,
        pythons=("3.11", "3.12"),
        architectures=("x86_64",),
        max_instances=10,
        source="this test",
    ),
    price=Price(per_million_requests=0.2, per_gb_second=0.00001, source="this test"),
)
DESIRED = Desired(
    name="iris",
    info=INFO,
    package_digest="d" * 64,
    model="iris",
    signature={},
    requirements=("numpy==2.0.0",),
    python="3.11",
    architecture="x86_64",
    artifact=Artifact(bucket="models", key="k", sha256="a" * 64, size=1_000_000),
    unpacked_bytes=3_000_000,
    memory_mb=512,
    timeout=timedelta(seconds=30),
    environment={},
    request_bytes=1_000_000,
    scaling=Scaling(),
)


def revision(desired: Desired, number: int, state: str = "verified") -> Revision:
    return Revision(
        number=number,
        package_digest=desired.package_digest,
        spec_digest=desired.spec(number).digest(),
        artifact=desired.artifact,
        model=desired.model,
        signature={},
        python=desired.python,
        memory_mb=desired.memory_mb,
        timeout_s=desired.timeout.total_seconds(),
        environment=(),
        state=state,
        created_at=1.0,
    )


def after_deploy(desired: Desired, before: Observed | None = None) -> Observed:
    """Return what is there once the plan was carried out."""
    before = before or Observed()
    planned = plan(desired, before)
    record = before.record or DeploymentRecord(name=desired.name, provider="cloud")
    record = record.with_revision(revision(desired, planned.revision))
    record = replace(
        record.routed(planned.weights, action="deploy", revision=planned.revision), scaling=desired.scaling
    )
    old = before.function.revisions if before.function else ()
    new = RevisionStatus(
        number=planned.revision, spec_digest=desired.spec(planned.revision).digest(), phase=Phase.READY
    )
    revisions = tuple(sorted({r.number: r for r in (*old, new)}.values(), key=lambda r: r.number))
    function = FunctionStatus(
        name=desired.name,
        phase=Phase.READY,
        url="http://127.0.0.1:1",
        revisions=revisions,
        weights=dict(planned.weights),
        scaling=desired.scaling,
        labels={},
        native_id="x",
    )
    return Observed(record=record, function=function, artifact_present=True)


def kinds(desired: Desired, observed: Observed) -> list[StepKind]:
    return [step.kind for step in plan(desired, observed).steps]


ANOTHER = replace(DESIRED, package_digest="e" * 64)


def test_a_first_deploy_takes_every_step_in_order():
    expected = [StepKind.PREPARE, StepKind.UPLOAD, StepKind.APPLY, StepKind.WAIT, StepKind.VERIFY, StepKind.ROUTE]

    assert expected == kinds(DESIRED, Observed())


def test_the_same_deploy_again_has_nothing_to_do():
    planned = plan(DESIRED, after_deploy(DESIRED))

    assert not planned.changes
    assert planned.revision == 1


def test_another_package_becomes_the_next_revision():
    planned = plan(ANOTHER, after_deploy(DESIRED))

    assert planned.revision == 2
    assert planned.weights == {2: 100}


def test_a_package_that_was_there_before_only_gets_its_traffic_back():
    both = after_deploy(ANOTHER, after_deploy(DESIRED))

    assert kinds(DESIRED, both) == [StepKind.ROUTE]
    assert plan(DESIRED, both).revision == 1


def test_a_revision_that_was_applied_but_not_verified_is_verified_and_not_applied_again():
    there = after_deploy(DESIRED)
    record = replace(there.record.with_revision(revision(DESIRED, 1, "pending")), weights={}, lineage=(), history=())
    function = replace(there.function, weights={})

    assert kinds(DESIRED, replace(there, record=record, function=function)) == [
        StepKind.WAIT,
        StepKind.VERIFY,
        StepKind.ROUTE,
    ]


def test_a_revision_that_failed_on_the_platform_is_applied_again():
    there = after_deploy(DESIRED)
    broken = RevisionStatus(number=1, spec_digest=DESIRED.spec(1).digest(), phase=Phase.FAILED)

    assert StepKind.APPLY in kinds(DESIRED, replace(there, function=replace(there.function, revisions=(broken,))))


def test_a_function_that_lost_its_weights_is_routed_again():
    there = after_deploy(DESIRED)

    assert kinds(DESIRED, replace(there, function=replace(there.function, weights={}))) == [StepKind.ROUTE]


def test_a_function_whose_record_was_lost_gets_a_number_that_the_platform_never_used():
    there = after_deploy(ANOTHER, after_deploy(DESIRED))

    assert plan(DESIRED, replace(there, record=None)).revision == 3


def test_other_bounds_are_a_step_of_their_own():
    assert kinds(replace(DESIRED, scaling=Scaling(min_instances=1)), after_deploy(DESIRED)) == [StepKind.SCALE]


def test_a_canary_leaves_the_rest_to_the_stable_revision():
    planned = plan(replace(ANOTHER, canary=10), after_deploy(DESIRED))

    assert planned.weights == {1: 90, 2: 10}


def test_the_price_of_a_million_calls_follows_from_memory_and_the_assumed_duration():
    # 0.2 for the requests, and a million calls of 0.1 s at half a GiB.
    assert plan(DESIRED, Observed()).price_per_million == pytest.approx(0.2 + 1e6 * 0.1 * 0.5 * 0.00001)


REFUSED = {
    "a name the platform does not take": (replace(DESIRED, name="Iris_1"), "'Iris_1'", "--name"),
    "too much memory": (replace(DESIRED, memory_mb=8192), "8192 MB", "--memory"),
    "too little memory": (replace(DESIRED, memory_mb=1), "128 to 4096 MB", "--memory"),
    "a timeout over the limit": (replace(DESIRED, timeout=timedelta(seconds=61)), "the limit is 60 s", "--timeout"),
    "no time at all": (replace(DESIRED, timeout=timedelta(0)), "timeout is 0 s", "--timeout"),
    "a bundle over the limit": (
        replace(DESIRED, artifact=replace(DESIRED.artifact, size=50_000_001)),
        "50,000,001",
        "smaller model",
    ),
    "an unpacked bundle over the limit": (replace(DESIRED, unpacked_bytes=250_000_001), "250,000,001", "smaller model"),
    "a body over the limit": (replace(DESIRED, request_bytes=6_000_001), "request body", "request_bytes"),
    "an environment over the limit": (replace(DESIRED, environment={"A": "x" * 5000}), "5,001 bytes", "--env"),
    "an environment name that is none": (replace(DESIRED, environment={"A-B": "x"}), "'A-B'", "rename"),
    "an environment name of ours": (replace(DESIRED, environment={"POLYSERVE_X": "x"}), "'POLYSERVE_X'", "rename"),
    "a Python the platform does not run": (replace(DESIRED, python="3.14"), "Python 3.14", "3.11, 3.12"),
    "an architecture it does not have": (replace(DESIRED, architecture="arm64"), "arm64", "x86_64"),
    "max below min": (replace(DESIRED, scaling=Scaling(min_instances=3, max_instances=2)), "from 3 to 2", "min"),
    "too many instances": (replace(DESIRED, scaling=Scaling(max_instances=11)), "11 instances", "--max"),
    "what no limit tells of": (
        replace(DESIRED, obstacles=("there is no Python 3.12: install it",)),
        "Python 3.12",
        "install",
    ),
    "a canary over 100": (replace(DESIRED, canary=101), "101 %", "1 to 100"),
    "a canary with nothing beside it": (replace(DESIRED, canary=10), "a revision that has the traffic", "--canary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_value_and_the_way_out(case: str):
    desired, value, way_out = REFUSED[case]

    planned = plan(desired, Observed())

    (reason,) = planned.refusals
    assert value in reason
    assert way_out in reason
    assert planned.steps == ()


NEEDS = {
    Capability.CONDITIONAL_PUT: DESIRED,
    Capability.MIN_INSTANCES: replace(DESIRED, scaling=Scaling(min_instances=1)),
    Capability.MAX_INSTANCES: replace(DESIRED, scaling=Scaling(max_instances=1)),
    Capability.TRAFFIC_SPLIT: replace(ANOTHER, canary=50),
}


@pytest.mark.parametrize("capability", NEEDS)
def test_a_capability_that_is_not_declared_is_refused_and_one_that_is_declared_is_not(capability: Capability):
    desired = NEEDS[capability]
    without = replace(desired, info=replace(INFO, capabilities=INFO.capabilities - {capability}))

    assert plan(desired, after_deploy(DESIRED)).refusals == ()
    assert len(plan(without, after_deploy(DESIRED)).refusals) == 1


def test_a_deployment_that_is_being_destroyed_takes_no_deploy():
    there = after_deploy(DESIRED)

    (reason,) = plan(DESIRED, replace(there, record=replace(there.record, phase="deleting"))).refusals
    assert "polyserve destroy iris" in reason


@given(
    digests=st.lists(st.sampled_from("abc"), min_size=1, max_size=8),
    memories=st.sampled_from([128, 512, 1024]),
    bounds=st.builds(Scaling, min_instances=st.integers(0, 3), max_instances=st.none()),
)
def test_carrying_out_a_plan_leaves_nothing_to_do(digests: list[str], memories: int, bounds: Scaling):
    there = Observed()
    for digest in digests:
        desired = replace(DESIRED, package_digest=digest * 64, memory_mb=memories, scaling=bounds)
        there = after_deploy(desired, there)

    assert not plan(desired, there).changes
    assert len(there.record.revisions) == len(set(digests))


def test_files_in_the_bucket_are_planned_uploaded_once_and_part_of_the_revision():
    model = Artifact(bucket="models", key="deployments/iris/models/" + "a" * 64, sha256="a" * 64, size=60_000_000)
    large = replace(DESIRED, models={"model/a.bin": model, "model/copy.bin": model})

    planned = plan(large, Observed())

    assert (
        planned.in_bucket == planned.to_dict()["in_bucket"] == {"model/a.bin": 60_000_000, "model/copy.bin": 60_000_000}
    )
    (step,) = (step for step in planned.steps if step.kind is StepKind.MODELS)
    assert step.summary == "upload 1 model file, 60,000,000 bytes, to its store: read when an instance starts"
    assert [each.kind for each in planned.steps].index(StepKind.MODELS) < [each.kind for each in planned.steps].index(
        StepKind.APPLY
    )
    assert large.spec(1).models == (model,)
    assert large.spec(1).digest() != DESIRED.spec(1).digest()
    there = Observed(models_present=frozenset({model.key}))
    assert StepKind.MODELS not in {step.kind for step in plan(large, there).steps}


def test_the_files_of_a_revision_that_failed_are_uploaded_again():
    model = Artifact(bucket="models", key="deployments/iris/models/" + "a" * 64, sha256="a" * 64, size=1)
    large = replace(DESIRED, models={"model/a.bin": model})
    failed = RevisionStatus(number=1, spec_digest=large.spec(1).digest(), phase=Phase.FAILED)
    function = FunctionStatus(
        name="iris",
        phase=Phase.READY,
        url=None,
        revisions=(failed,),
        weights={},
        scaling=Scaling(),
        labels={},
        native_id="",
    )
    record = DeploymentRecord(
        name="iris",
        provider="cloud",
        revisions=(
            Revision(
                number=1,
                package_digest=large.package_digest,
                spec_digest=large.spec(1).digest(),
                artifact=large.artifact,
                model="iris",
                signature={},
                python="3.11",
                memory_mb=large.memory_mb,
                timeout_s=1.0,
                environment=(),
                state="failed",
                created_at=0.0,
            ),
        ),
    )
    seen = Observed(record=record, function=function, artifact_present=True, models_present=frozenset({model.key}))

    assert StepKind.MODELS in {step.kind for step in plan(large, seen).steps}


def test_a_revision_without_files_in_the_bucket_has_the_digest_that_it_always_had():
    # Of the code before there were any: what is deployed is not deployed again.
    assert DESIRED.spec(1).digest() == "0ead95ab921b35f178d41fd0665ec07e820828164eb659bab93b4fcde6310620"


def test_options_of_the_provider_that_were_set_make_another_revision():
    first = after_deploy(DESIRED, Observed())
    changed = replace(DESIRED, options={"snapstart": True, "subnet_ids": ["subnet-1"]})

    planned = plan(changed, first)

    assert planned.revision == 2
    (step,) = (step for step in planned.steps if step.kind is StepKind.APPLY)
    assert step.summary.endswith("snapstart, subnet_ids as set")
    assert not plan(changed, after_deploy(changed, first)).changes
    # Back to what was first: that revision is still there.
    assert plan(DESIRED, after_deploy(changed, first)).revision == 1


def test_a_revision_without_options_is_what_it_was_before_there_were_any():
    assert DESIRED.spec(1).digest() == "0ead95ab921b35f178d41fd0665ec07e820828164eb659bab93b4fcde6310620"
    assert DESIRED.spec(1).digest() != replace(DESIRED, options={"vpc": "a"}).spec(1).digest()


def test_an_app_remembers_the_options_of_its_revision():
    spec = replace(DESIRED, options={"concurrency": 4, "zones": ["a", "b"]}).spec(1)
    app = AppSpec(app="iris", spec=spec, front=True, scaling=Scaling())

    read = AppSpec.from_json(app.to_json(), Scaling()).spec

    assert read.options == {"concurrency": 4, "zones": ["a", "b"]}
    assert read.digest() == spec.digest()
