"""The contract of interruptions: whatever is cut short, wherever, the same command finishes it, and destroy leaves nothing.

    class TestFaults(FaultContract): ...
    class TestCrashes(CrashContract): ...

Both take a `harness` fixture. `FaultContract` fails a control call in this process; `CrashContract` kills the process that makes it, so the
harness's provider must be one that another process can make from its name and options.

Every other call is cut short, before it is made and after it was: what was done before the third is what was done after the second, so
no state is left out. A harness whose `every_call` is true has each of them cut short in both ways; the provider in memory does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, Self

import pytest

from polyserve.driver import Capability, FunctionStatus, Phase
from polyserve.errors import InternalError, NotFoundError, PlanRefused
from polyserve.rollout import describe
from polyserve.teardown import destroy
from polyserve.testing.deployments import NAME, World
from polyserve.testing.faults import Faults
from polyserve.testing.harness import Harness
from polyserve.testing.packages import times

OPERATIONS = ("deploy", "update", "canary", "promote", "traffic", "rollback", "scale", "destroy")


def points(harness: Harness) -> range:
    """Return the numbers of the control calls to be cut short at, beyond the last one."""
    return range(1, 200, 1 if getattr(harness, "every_call", False) else 2)


def prepared(harness: Harness, operation: str) -> World:
    """Return a fresh bucket with the state that an operation starts from."""
    world = World(harness, harness.fresh_bucket())
    if operation != "deploy":
        world.deploy(times(2))
    if operation == "promote":
        world.deploy(times(3), canary=50)
    if operation in {"rollback", "traffic"}:
        world.deploy(times(3))
    return world


def act(world: World, operation: str) -> None:
    """Do the operation."""
    if operation == "deploy":
        world.deploy(times(2))
    elif operation == "update":
        world.deploy(times(3))
    elif operation == "canary":
        world.deploy(times(3), canary=50)
    elif operation == "promote":
        world.deployment().promote()
    elif operation == "traffic":
        world.deployment().traffic({1: 50, 2: 50})
    elif operation == "rollback":
        # By number: a process that is killed after its very last call has rolled back, and nobody can tell it from one that has not.
        world.deployment().rollback(to=1)
    elif operation == "scale":
        world.deployment().scale(max_instances=2)
    else:
        destroy(world.target, NAME)


def undone(world: World, operation: str) -> bool:
    """Bring back the state that an operation starts from; returns false where it would have to be made anew.

    What an interruption left behind is found in the end all the same: there must be nothing after the last one.
    """
    if operation == "promote":
        world.deployment().rollback(to=1)
        world.deploy(times(3), canary=50)
    elif operation == "traffic":
        world.deployment().traffic({2: 100})
    elif operation == "rollback":
        world.deployment().rollback(to=2)
    elif operation == "scale":
        world.deployment().scale(max_instances=3)
    else:
        return False
    return True


def converged(world: World, operation: str) -> None:
    """See that the operation has had its effect, once."""
    if operation == "destroy":
        assert list(world.harness.inventory()) == []
        return
    expected: dict[str, Mapping[int, int]] = {
        "deploy": {1: 100},
        "update": {2: 100},
        "canary": {1: 50, 2: 50},
        "promote": {2: 100},
        "traffic": {1: 50, 2: 50},
        "rollback": {1: 100},
        "scale": {1: 100},
    }
    record = world.deployment().record
    assert expected[operation] == world.weights() == record.weights
    assert record.lease is None
    assert [r.state for r in record.revisions] == ["verified"] * len(record.revisions)
    function = world.target.provider.functions.describe(NAME)
    assert [r.number for r in function.revisions] == [r.number for r in record.revisions]
    assert function.scaling == record.scaling
    if operation == "scale":
        assert record.scaling.max_instances == 2
    factors = {1: 2.0, 2: 3.0}
    assert world.answer() in {factors[number] for number in expected[operation]}


def recoverable(world: World, before: FunctionStatus | None) -> None:
    """See that what was cut short left nothing that no record names, and changed nothing that no record tells."""
    after = describe(world.target.provider, NAME)
    try:
        record = world.deployment().record
    except NotFoundError:
        assert after is None
        with suppress(NotFoundError):
            assert [meta.key for meta in world.target.bucket.list("")] == []
        return
    assert record.lease is None or not record.lease.held()
    if after is None:
        return
    assert {r.number for r in after.revisions} <= {r.number for r in record.revisions}
    # The record is written first: the platform is as it was, as the record says, or on its way there, where that takes several calls.
    on_its_way = not after.weights and after.phase is Phase.PROVISIONING
    assert on_its_way or after.weights in (before.weights if before else {}, record.weights)
    assert after.scaling in (before.scaling if before else record.scaling, record.scaling)


def refused(harness: Harness, operation: str) -> bool:
    """Return whether the provider does not have the operation, after seeing that it refuses it."""
    splits = Capability.TRAFFIC_SPLIT in harness.provider().info.capabilities
    if splits or operation not in {"canary", "promote", "traffic"}:
        return False
    world = World(harness, harness.fresh_bucket())
    world.deploy(times(2))
    with pytest.raises(PlanRefused, match="split"):
        world.deploy(times(3), canary=50)
    world.gone()
    return True


def repeat(world: World, operation: str) -> None:
    """Do an operation again after it was cut short."""
    try:
        act(world, operation)
    except NotFoundError:
        # A destroy that was cut short after its last call has nothing left to do.
        assert operation == "destroy"


class FaultContract:
    """Every operation may fail at any control call: the same command must then converge."""

    @pytest.mark.parametrize("operation", OPERATIONS)
    @pytest.mark.parametrize("mode", ["before", "after"])
    def test_an_operation_that_fails_at_any_control_call_converges_when_repeated(
        self, harness: Harness, operation: str, mode: Literal["before", "after"]
    ) -> None:
        if refused(harness, operation):
            return
        world = None
        for at in points(harness):
            world = world or prepared(harness, operation)
            before = describe(world.target.provider, NAME)
            faults = Faults(at=at, mode=mode, only_writes=True)
            last = True
            try:
                act(World(harness, world.bucket, faults), operation)
                assert not faults.reached, f"{operation} succeeded without {faults.seen[at - 1]}"
            except InternalError:
                last = False
                assert faults.reached
                recoverable(world, before)
                repeat(world, operation)
            converged(world, operation)
            if last or not undone(world, operation):
                world.gone()
                world = None
            if last:
                assert at > 2
                return
        pytest.fail(f"{operation} makes over 200 control calls: {faults.seen}")


class CrashContract:
    """Every operation may be killed after any control call: the same command must then converge."""

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_an_operation_whose_process_is_killed_after_any_control_call_converges_when_repeated(
        self, harness: Harness, operation: str
    ) -> None:
        if refused(harness, operation):
            return
        with _Processes(harness) as processes:
            world = None
            for at in points(harness):
                world = world or prepared(harness, operation)
                before = describe(world.target.provider, NAME)
                processes.start(world.bucket, operation, at)
                status, errors = processes.ended()
                assert status in {0, -9}, errors
                if status != 0:
                    recoverable(world, before)
                    repeat(world, operation)
                converged(world, operation)
                if status == 0 or not undone(world, operation):
                    world.gone()
                    world = None
                if status == 0:
                    assert at > 2
                    return
        pytest.fail(f"{operation} makes over 200 control calls")

    def test_of_two_deployers_at_once_one_wins_and_the_other_is_told(self, harness: Harness) -> None:
        bucket = harness.fresh_bucket()
        with _Processes(harness) as processes:
            for operation in ("deploy", "update"):
                processes.start(bucket, operation, 0)
            told = [processes.ended() for _ in range(2)]
        world = World(harness, bucket)
        losers = [errors for status, errors in told if status]
        assert all("ConflictError" in errors for errors in losers), told
        assert len(losers) < 2
        record = world.deployment().record
        assert world.weights() == record.weights
        assert record.lease is None
        world.gone()


class _Processes:
    """Processes that each do one operation, with a provider of their own.

    They are copies of one that has imported everything, so that none takes the time of a start.

    Args:
        harness: What the provider is made as.
    """

    SCRIPT = textwrap.dedent("""
        import json, os, signal, sys, traceback
        from polyserve.errors import PolyserveError
        from polyserve.testing.deployments import World
        from polyserve.testing.interruptions import act
        from polyserve.testing.faults import Faults
        from polyserve.testing.harness import Elsewhere
        name, options = json.loads(sys.argv[1])
        Elsewhere(name, options).provider().close()
        running = {}
        def tell(pid, status):
            with os.fdopen(running.pop(pid), "r") as errors:
                print(json.dumps([os.waitstatus_to_exitcode(status), errors.read()]), flush=True)
        for line in sys.stdin:
            if not line.strip():
                tell(*os.wait())
                continue
            bucket, operation, at = json.loads(line)
            reading, writing = os.pipe()
            pid = os.fork()
            running[pid] = reading
            if pid:
                os.close(writing)
                continue
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(writing, 2)
            faults = Faults(at=at, mode="kill", only_writes=True)
            try:
                act(World(Elsewhere(name, options), bucket, faults), operation)
            except PolyserveError as error:
                os.write(2, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
                os._exit(2)
            os._exit(0)
        """)

    def __init__(self, harness: Harness) -> None:
        arguments = [sys.executable, "-c", self.SCRIPT, json.dumps([harness.name, dict(harness.options)])]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def start(self, bucket: str, operation: str, at: int) -> None:
        """Start an operation that is killed after that control call."""
        self._write(json.dumps([bucket, operation, at]))

    def ended(self) -> tuple[int, str]:
        """Wait until one of them has ended; returns its status and what it complained of."""
        self._write("")
        assert self._process.stdout is not None
        status, errors = json.loads(self._process.stdout.readline())
        return status, errors

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
