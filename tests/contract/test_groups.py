"""A partitioned model is deployed as a group: asked as one, changed as one, cut short anywhere and finished, destroyed without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

import polyserve
from polyserve.bucket import Bucket
from polyserve.deployment import Deployment
from polyserve.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PlanRefused,
    UnavailableError,
    UnsupportedError,
    VerificationError,
)
from polyserve.group import GroupEndpoint
from polyserve.grouping import roll_out_group
from polyserve.model.partition import parts_of
from polyserve.records import load, names
from polyserve.rollout import Target, desire, roll_out
from polyserve.teardown import destroy
from polyserve.testing.faults import Faults
from polyserve.testing.memory_harness import MemoryHarness

NAME = "forest"
ROWS, LABELS = load_iris(return_X_y=True)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A forest, and what it is in parts."""

    model: RandomForestClassifier
    package: polyserve.ModelPackage


def grown(seed: int, parts: int) -> Whole:
    model = RandomForestClassifier(6, random_state=seed).fit(ROWS, LABELS)
    package = polyserve.package(
        model, name=NAME, sample=ROWS[::40], methods=["predict", "predict_proba"], compile="off"
    )
    return Whole(model=model, package=polyserve.partition(package, parts=parts, data=ROWS).package)


@pytest.fixture
def forest(one_cache) -> Whole:
    return grown(0, 3)


@pytest.fixture
def other(one_cache) -> Whole:
    return grown(1, 2)


class Groups:
    """One bucket on one provider, with the verbs that the tests use."""

    def __init__(self, harness: MemoryHarness, bucket: str, faults: Faults | None = None) -> None:
        self.harness = harness
        provider = faults.around(harness.provider()) if faults else harness.provider()
        self.target = Target(provider=provider, bucket=Bucket(provider, bucket))

    def deploy_one(self, package: polyserve.ModelPackage, name: str) -> None:
        desired, bundle = desire(package, self.target, name=name, memory_mb=256)
        roll_out(self.target, desired, package, bundle)

    def deploy(self, whole: Whole, **asked: object) -> Deployment:
        def deploy_part(part, name, renew) -> None:
            self.deploy_one(part, name)

        record = roll_out_group(self.target, whole.package, name=NAME, timeout_s=10.0, deploy_part=deploy_part, **asked)
        return Deployment(self.target, record)

    def found(self) -> Deployment:
        """Return the group as another process would find it."""
        return Deployment(self.target, load(self.target.bucket, NAME)[0])

    def names(self) -> list[str]:
        return names(self.target.bucket)

    def left(self) -> list[str]:
        return list(self.harness.inventory())


@pytest.fixture
def harness() -> Iterator[MemoryHarness]:
    harness = MemoryHarness()
    yield harness
    assert list(harness.inventory()) == []
    harness.close()


@pytest.fixture
def groups(harness) -> Iterator[Groups]:
    groups = Groups(harness, harness.fresh_bucket())
    yield groups
    try:
        destroy(groups.target, NAME)
    except NotFoundError:
        harness.drop_bucket(groups.target.bucket.name)


def test_a_group_answers_as_the_whole_model_does(groups, forest):
    groups.deploy(forest)

    with groups.found() as found:
        answer = found.invoke(ROWS)

    assert answer["predict"].tolist() == forest.model.predict(ROWS).tolist()
    assert answer["predict"].dtype == forest.model.predict(ROWS).dtype
    assert np.array_equal(answer["predict_proba"], forest.model.predict_proba(ROWS))


def test_it_is_asked_like_any_endpoint_with_lists_by_output_in_a_loop_from_many_threads_and_in_batches(groups, forest):
    expected = forest.model.predict(ROWS[:20]).tolist()
    with groups.deploy(forest) as group:
        assert group.invoke(ROWS[:20].tolist(), outputs=["predict"]) == {"predict": expected}
        assert asyncio.run(group.ainvoke(ROWS[:20]))["predict"].tolist() == expected
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda row: group.invoke(ROWS[row : row + 1])["predict"][0], range(20)))
        assert answers == expected
        batches = group.map([ROWS[row : row + 5] for row in range(0, 20, 5)], progress=False)
        assert [label for batch in batches for label in batch["predict"].tolist()] == expected


def test_the_record_of_a_group_names_its_parts_and_each_is_an_ordinary_deployment(groups, forest):
    with groups.deploy(forest) as group:
        status = group.status()

    parts = [f"{NAME}-part-{number}" for number in (1, 2, 3)]
    assert groups.names() == [NAME, *parts]
    assert [part.record.name for part in status.parts] == parts
    assert (status.phase, status.in_step, status.url) == ("ready", True, None)
    assert [entry.action for entry in status.record.history] == ["deploy"]
    for part, package in zip(status.parts, parts_of(forest.package), strict=True):
        assert part.record.stable.package_digest == package.digest


def test_the_same_deploy_again_makes_no_revision_and_no_history(groups, forest):
    groups.deploy(forest)
    before = [load(groups.target.bucket, name)[0].revisions for name in groups.names()]

    again = groups.deploy(forest)

    assert [load(groups.target.bucket, name)[0].revisions for name in groups.names()] == before
    assert len(again.history()) == 1


def test_another_version_takes_its_place_and_the_parts_that_it_has_no_use_for_go(groups, forest, other):
    groups.deploy(forest)
    with groups.found() as old:
        old.invoke(ROWS[:1])
        groups.deploy(other)

        assert groups.names() == [NAME, f"{NAME}-part-1", f"{NAME}-part-2"]
        # Who was connected before the switch finds the new parts by himself.
        assert np.array_equal(old.invoke(ROWS)["predict_proba"], other.model.predict_proba(ROWS))


def test_answers_of_two_versions_are_never_put_together(groups, forest, other):
    with groups.deploy(forest) as group:
        groups.deploy_one(parts_of(other.package)[0], f"{NAME}-part-1")

        with pytest.raises(
            UnavailableError, match=r"part 1 of 3, 'forest-part-1', serves package .* deploy the group again"
        ):
            group.invoke(ROWS[:1], timeout=1.0)
        status = group.status()
        assert (status.phase, status.in_step) == ("failed", False)

        groups.deploy(forest)
        assert group.invoke(ROWS[:1])["predict"].tolist() == forest.model.predict(ROWS[:1]).tolist()


def test_a_part_that_is_missing_is_one_clear_error_and_the_same_deploy_mends_it(groups, forest):
    with groups.deploy(forest) as group:
        destroy(groups.target, f"{NAME}-part-2")

        for ask in (lambda: group.invoke(ROWS[:1], timeout=1), lambda: asyncio.run(group.ainvoke(ROWS[:1], timeout=1))):
            with pytest.raises(NotFoundError, match=r"'forest-part-2'.*is not there: deploy the group again"):
                ask()

        groups.deploy(forest)
        assert len(group.invoke(ROWS)["predict"]) == len(ROWS)


def test_what_a_part_refuses_is_the_callers_error_with_the_parts_name(groups, forest):
    with groups.deploy(forest) as group:
        with pytest.raises(InvalidArgumentError, match=r"expected shape \[-1, 4\]"):
            group.invoke(ROWS[:, :3])
        with pytest.raises(InvalidArgumentError, match=r"part 1 of 3, 'forest-part-1', failed: .*infinity"):
            group.invoke(np.full((1, 4), np.inf))


def test_what_is_about_one_deployment_is_refused_for_a_group(groups, forest):
    with groups.deploy(forest) as group:
        for verb in (group.promote, group.rollback, lambda: group.scale(max_instances=2), lambda: list(group.logs())):
            with pytest.raises(UnsupportedError, match=r"is a group of 3 parts.*name a part, from 'forest-part-1'"):
                verb()


def test_a_group_has_no_canary(groups, forest):
    with pytest.raises(UnsupportedError, match="a group has no canary"):
        groups.deploy(forest, canary=10)

    assert groups.names() == []


def test_a_group_and_a_deployment_do_not_take_each_others_name(groups, forest):
    part = parts_of(forest.package)[0]
    groups.deploy_one(part, NAME)
    with pytest.raises(FailedPreconditionError, match="'forest' is a deployment and no group"):
        groups.deploy(forest)
    destroy(groups.target, NAME)

    groups.target.provider.ensure_bucket(groups.target.bucket.name)
    groups.deploy_one(part, f"{NAME}-part-3")
    with pytest.raises(FailedPreconditionError, match="'forest-part-3' is a deployment that belongs to no group"):
        groups.deploy(forest)
    destroy(groups.target, f"{NAME}-part-3")

    groups.target.provider.ensure_bucket(groups.target.bucket.name)
    groups.deploy(forest)
    with pytest.raises(PlanRefused, match="'forest' is a group of 3 parts"):
        groups.deploy_one(part, NAME)


def test_parts_that_answer_otherwise_than_the_whole_are_not_switched_to(groups, forest, other, monkeypatch):
    groups.deploy(other)
    monkeypatch.setattr(GroupEndpoint, "_response", lambda self, tensors, request: _shifted(self, tensors, request))

    with pytest.raises(VerificationError, match="together answer the sample differently"):
        groups.deploy(forest)

    assert groups.found().record.group.package_digest == other.package.digest


def _shifted(endpoint, tensors, request, real=GroupEndpoint._response):
    from polyserve.runtime.tensors import Tensor

    return real(endpoint, [Tensor.from_numpy(tensor.name, tensor.numpy() + 1) for tensor in tensors], request)


@pytest.mark.parametrize(("operation", "mode"), [("deploy", "after"), ("update", "before"), ("destroy", "after")])
def test_what_is_cut_short_is_finished_by_the_same_command(harness, forest, other, operation, mode):
    # Every sixth write: those of the parts are cut short one by one in the suite of interruptions.
    for at in range(1, 200, 6):
        bucket = harness.fresh_bucket()
        groups = Groups(harness, bucket)
        if operation != "deploy":
            groups.deploy(other)
        faults = Faults(at=at, mode=mode, only_writes=True)
        faulty = Groups(harness, bucket, faults)
        cut = False
        try:
            destroy(faulty.target, NAME) if operation == "destroy" else faulty.deploy(forest)
        except InternalError:
            cut = True
        if operation != "destroy":
            with groups.deploy(forest) as group:
                assert group.invoke(ROWS[:4])["predict"].tolist() == forest.model.predict(ROWS[:4]).tolist()
                assert group.status().in_step
            assert groups.names() == [NAME, *(f"{NAME}-part-{number}" for number in (1, 2, 3))]
        try:
            destroy(groups.target, NAME)
        except NotFoundError:
            assert operation == "destroy"
        assert groups.left() == []
        if not cut:
            assert at > 5
            return
    pytest.fail(f"{operation} makes over 200 writes: {faults.seen}")
