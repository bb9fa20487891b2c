"""The contract of deployments: what a provider's store, functions and invoker must do together under the portable core.

    class TestDeployments(DeploymentContract): ...

It takes a `harness` fixture (`polyserve.testing.harness.Harness`). Every test brings a deployment up from
a real package, and ends with an inventory of nothing. Override no test: what a provider cannot do it must
declare, and then the test asserts that it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest

from polyserve.bucket import Bucket
from polyserve.deployment import Deployment
from polyserve.driver import Capability, Provider, Scaling
from polyserve.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PlanRefused,
    UnsupportedError,
    VerificationError,
)
from polyserve.model import ModelPackage
from polyserve.planner import Plan
from polyserve.records import leased, load
from polyserve.rollout import Target, desire, roll_out
from polyserve.teardown import destroy
from polyserve.testing.faults import Faults
from polyserve.testing.harness import Harness
from polyserve.testing.packages import ANSWERS_WRONG, BREAKS_IMPORT, times

NAME = "contract"
ROWS = [[1.0, 2.0], [3.0, 4.0]]


class World:
    """One bucket on one provider, with the verbs that the tests use."""

    def __init__(self, harness: Harness, bucket: str, faults: Faults | None = None) -> None:
        self.harness = harness
        self.bucket = bucket
        real: Provider = harness.provider()
        provider = faults.around(real) if faults else real
        self.target = Target(provider=provider, bucket=Bucket(provider, bucket))

    @property
    def splits(self) -> bool:
        """Whether the provider can split traffic."""
        return Capability.TRAFFIC_SPLIT in self.target.provider.info.capabilities

    def deploy(self, package: ModelPackage, **asked: Any) -> Plan:
        """Roll a package out."""
        desired, bundle = desire(package, self.target, name=NAME, memory_mb=512, **asked)
        return roll_out(self.target, desired, package, bundle)

    def deployment(self) -> Deployment:
        """Return the deployment as another process would find it."""
        return Deployment(self.target, load(self.target.bucket, NAME)[0])

    def answer(self) -> float:
        """Return by which factor the deployment multiplies now: which package answers."""
        with self.deployment().endpoint as endpoint:
            (first, *_), *_ = endpoint.invoke(ROWS)
            return float(first)

    def weights(self) -> Mapping[int, int]:
        """Return the weights as the platform has them."""
        return dict(self.target.provider.functions.describe(NAME).weights)

    def gone(self) -> None:
        """Destroy what there is, and see that nothing is left."""
        with suppress(NotFoundError):
            destroy(self.target, NAME)
        left = list(self.harness.inventory())
        assert left == []


class DeploymentContract:
    """What users of a deployment rely on."""

    @pytest.fixture
    def world(self, harness: Harness) -> Iterator[World]:
        """Give a fresh bucket, and see that nothing is left in the end."""
        world = World(harness, harness.fresh_bucket())
        yield world
        world.gone()

    def test_a_deployed_package_answers_as_it_does_here(self, world: World) -> None:
        planned = world.deploy(times(2))

        assert planned.revision == 1
        assert world.answer() == 2.0
        assert world.weights() == {1: 100}
        status = world.deployment().status()
        assert (status.in_step, status.to_dict()["phase"]) == (True, "ready")
        assert str(status.url).startswith("http")

    def test_the_same_deploy_again_changes_nothing(self, world: World) -> None:
        world.deploy(times(2))
        before = load(world.target.bucket, NAME)

        planned = world.deploy(times(2))

        assert not planned.changes
        assert load(world.target.bucket, NAME) == before

    def test_an_update_takes_the_traffic_and_a_rollback_gives_it_back(self, world: World) -> None:
        world.deploy(times(2))
        world.deploy(times(3))
        assert world.answer() == 3.0

        assert world.deployment().rollback() == 1

        assert world.answer() == 2.0

    def test_a_package_that_had_traffic_before_is_routed_to_and_not_built_again(self, world: World) -> None:
        world.deploy(times(2))
        world.deploy(times(3))

        planned = world.deploy(times(2))

        assert [step.kind.value for step in planned.steps] == ["route"]
        assert world.answer() == 2.0

    def test_a_revision_that_answers_differently_never_gets_traffic(self, world: World) -> None:
        world.deploy(times(2))

        with pytest.raises(VerificationError, match="answers differently"):
            world.deploy(times(3), environment={ANSWERS_WRONG: "1"})

        assert world.answer() == 2.0
        assert world.weights() == {1: 100}
        status = world.deployment().status().to_dict()
        assert [r["state"] for r in status["revisions"]] == ["verified", "failed"]

    def test_a_first_revision_that_answers_differently_gets_no_traffic_either(self, world: World) -> None:
        with pytest.raises(VerificationError):
            world.deploy(times(3), environment={ANSWERS_WRONG: "1"})

        assert world.weights() == {}

    def test_a_package_that_cannot_be_loaded_there_fails_with_the_reason(self, world: World) -> None:
        world.deploy(times(2))

        with pytest.raises((VerificationError, FailedPreconditionError), match=NAME):
            world.deploy(times(3), environment={BREAKS_IMPORT: "1"})

        assert world.answer() == 2.0

    def test_a_canary_has_its_share_and_promotion_gives_it_all(self, world: World) -> None:
        world.deploy(times(2))
        if not world.splits:
            with pytest.raises(PlanRefused, match="split"):
                world.deploy(times(3), canary=50)
            return
        world.deploy(times(3), canary=50)
        assert world.weights() == {1: 50, 2: 50}
        assert {world.answer() for _ in range(40)} == {2.0, 3.0}

        assert world.deployment().promote() == 2

        assert {world.answer() for _ in range(10)} == {3.0}

    def test_a_canary_is_rolled_back_to_the_stable_revision(self, world: World) -> None:
        world.deploy(times(2))
        if not world.splits:
            with pytest.raises(UnsupportedError, match="split"):
                _two_revisions(world).traffic({1: 50, 2: 50})
            return
        world.deploy(times(3), canary=50)

        assert world.deployment().rollback() == 1

        assert world.weights() == {1: 100}

    def test_three_revisions_share_the_traffic_or_are_refused(self, world: World) -> None:
        for factor in (2, 3, 4):
            world.deploy(times(factor))
        info, split = world.target.provider.info, {1: 40, 2: 30, 3: 30}
        if not world.splits or (info.limits.traffic_revisions or 3) < 3:
            with pytest.raises(UnsupportedError, match="split"):
                world.deployment().traffic(split)
            assert world.weights() == {3: 100}
            return

        world.deployment().traffic(split)

        assert world.weights() == split
        assert {world.answer() for _ in range(60)} == {2.0, 3.0, 4.0}

    def test_weights_that_cannot_be_are_refused_and_change_nothing(self, world: World) -> None:
        world.deploy(times(2))
        deployment = world.deployment()

        with pytest.raises(InvalidArgumentError, match="sum to 90"):
            deployment.traffic({1: 90})
        with pytest.raises(NotFoundError, match="no revision 7: it has 1"):
            deployment.traffic({7: 100})
        with pytest.raises(NotFoundError, match="no revision 9"):
            deployment.rollback(to=9)
        with pytest.raises(FailedPreconditionError, match="nothing to roll back to"):
            deployment.rollback()
        with pytest.raises(FailedPreconditionError, match="nothing to promote"):
            deployment.promote()

        assert world.weights() == {1: 100}

    def test_bounds_are_set_and_kept_by_the_next_deploy_that_does_not_name_them(self, world: World) -> None:
        world.deploy(times(2))
        capabilities = world.target.provider.info.capabilities
        deployment = world.deployment()
        if not {Capability.MIN_INSTANCES, Capability.MAX_INSTANCES} <= capabilities:
            with pytest.raises(UnsupportedError):
                deployment.scale(min_instances=1, max_instances=2)
            return

        assert deployment.scale(max_instances=2) == Scaling(min_instances=0, max_instances=2)

        assert world.target.provider.functions.describe(NAME).scaling == Scaling(min_instances=0, max_instances=2)
        world.deploy(times(3), scaling=world.deployment().record.scaling)
        assert world.target.provider.functions.describe(NAME).scaling == Scaling(min_instances=0, max_instances=2)
        with pytest.raises(InvalidArgumentError, match="from 3 to 2"):
            deployment.scale(min_instances=3)

    def test_logs_and_metrics_tell_of_the_calls(self, world: World) -> None:
        world.deploy(times(2))
        for _ in range(3):
            world.answer()

        metrics = world.deployment().metrics()

        # The golden sample was the fourth.
        assert metrics.total.requests == 4
        assert metrics.total.errors == 0
        assert metrics.revisions[1].latency_ms.p50 > 0
        assert any(
            json.loads(e.message)["event"] == "request" for e in world.deployment().logs() if e.message[:1] == "{"
        )

    def test_a_deployment_that_somebody_else_is_changing_is_a_conflict(self, world: World) -> None:
        world.deploy(times(2))

        with leased(world.target.bucket, NAME, "deploy"):
            with pytest.raises(ConflictError):
                world.deploy(times(3))
            with pytest.raises(ConflictError):
                world.deployment().rollback()

        assert world.answer() == 2.0

    def test_destroy_leaves_nothing_and_says_so_when_there_is_nothing(self, world: World) -> None:
        world.deploy(times(2))
        world.deploy(times(3))

        world.deployment().destroy()

        assert list(world.harness.inventory()) == []
        with pytest.raises(NotFoundError):
            destroy(world.target, NAME)

    def test_destroy_leaves_what_is_not_the_deployments(self, world: World) -> None:
        bucket = world.target.bucket
        bucket.put("mine", b"kept")
        bucket.put(f"deployments/{NAME}s", b"kept")
        world.deploy(times(2))

        world.deployment().destroy()

        assert [meta.key for meta in bucket.list("")] == [f"deployments/{NAME}s", "mine"]
        world.harness.drop_bucket(bucket.name)

    def test_a_refused_plan_leaves_nothing_behind(self, world: World) -> None:
        before = list(world.harness.inventory())

        with pytest.raises(PlanRefused, match="canary"):
            world.deploy(times(2), canary=10)

        assert list(world.harness.inventory()) == before

    def test_values_of_the_environment_reach_the_function_and_no_record(self, world: World) -> None:
        world.deploy(times(2), environment={"OFFSET": "0", "MY_SECRET": "swordfish"})

        (meta,) = [m for m in world.target.bucket.list(f"deployments/{NAME}/") if m.key.endswith("record.json")]
        assert b"swordfish" not in world.target.bucket.get(meta.key)
        assert b"MY_SECRET" in world.target.bucket.get(meta.key)


def _two_revisions(world: World) -> Deployment:
    world.deploy(times(3))
    return world.deployment()
