"""Records are written conditionally and under a lease: two writers cannot both win."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from polyserve import records
from polyserve.driver import ObjectMeta
from polyserve.errors import ConflictError, FailedPreconditionError, NotFoundError
from polyserve.records import DeploymentRecord, Lease, leased, load, names, record_key


class Dictionary:
    """A bucket in a dictionary: the oracle of these tests, conditions and all."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, bytes]] = {}
        self.writes = 0

    def put(self, key: str, data: bytes, /, *, content_type: str, if_absent: bool = False, if_match: str | None = None):
        there = self.objects.get(key)
        if (if_absent and there) or (if_match is not None and (there is None or there[0] != if_match)):
            raise FailedPreconditionError("condition does not hold")
        self.writes += 1
        self.objects[key] = (str(self.writes), data)
        return self._meta(key)

    @contextmanager
    def open(self, key: str, /):
        if key not in self.objects:
            raise NotFoundError(key)
        reader = io.BytesIO(self.objects[key][1])
        yield SimpleNamespace(meta=self._meta(key), read=reader.read)

    def delete(self, key: str, /, *, missing_ok: bool = False) -> None:
        self.objects.pop(key, None)

    def list(self, prefix: str, /) -> Iterator[ObjectMeta]:
        return (self._meta(key) for key in sorted(self.objects) if key.startswith(prefix))

    def _meta(self, key: str) -> ObjectMeta:
        version, data = self.objects[key]
        return ObjectMeta(
            key=key,
            size=len(data),
            modified_at=datetime.now(UTC),
            content_type="application/json",
            metadata={},
            version=version,
        )


# Above the largest process number that Linux and macOS give.
NO_PROCESS = 1 << 23
NEW = DeploymentRecord(name="iris", provider="local")


@pytest.fixture
def bucket() -> Dictionary:
    return Dictionary()


def test_a_record_reads_back_as_it_was_written(bucket):
    with leased(bucket, "iris", "deploy", new=NEW) as ledger:
        ledger.save(replace(ledger.record, weights={1: 90, 2: 10}).noted("canary", revision=2))

    record, _ = load(bucket, "iris")

    assert record.weights == {1: 90, 2: 10}
    assert record.history[-1].action == "canary"
    assert record.lease is None


def test_a_second_operation_meets_the_first_ones_lease_and_is_told_who_holds_it(bucket):
    with (
        leased(bucket, "iris", "deploy", new=NEW),
        pytest.raises(ConflictError, match=f"deploy by process {os.getpid()}"),
    ):
        with leased(bucket, "iris", "rollback"):
            pytest.fail("two at once")


def test_whoever_read_an_older_version_loses(bucket):
    with (
        pytest.raises(ConflictError, match="polyserve status iris"),
        leased(bucket, "iris", "deploy", new=NEW) as ledger,
    ):
        bucket.put(record_key("iris"), b"{}", content_type="application/json")
        ledger.save(ledger.record)


def test_two_who_create_the_same_deployment_do_not_both_win(bucket):
    with leased(bucket, "iris", "deploy", new=NEW):
        pass
    late = records.Ledger(bucket, NEW, "")

    with pytest.raises(ConflictError):
        late.save(NEW)


def test_the_lease_of_a_process_that_died_on_this_machine_is_taken_over_at_once(bucket):
    with leased(bucket, "iris", "deploy", new=NEW) as ledger:
        mine = ledger.record.lease
    dead = replace(mine, pid=NO_PROCESS, holder="somebody", expires_at=mine.expires_at + 1000)
    _leave(bucket, dead)

    with leased(bucket, "iris", "deploy") as ledger:
        assert ledger.record.lease.pid == os.getpid()


def test_the_lease_of_a_living_process_is_respected_until_its_time_is_over(bucket):
    with leased(bucket, "iris", "deploy", new=NEW) as ledger:
        mine = ledger.record.lease
    parent = os.getppid()
    alive = replace(mine, pid=parent, process_started=records._process_started(parent), holder="parent")
    _leave(bucket, alive)

    with pytest.raises(ConflictError), leased(bucket, "iris", "deploy"):
        pytest.fail("two at once")
    _leave(bucket, replace(alive, expires_at=0.0))
    with leased(bucket, "iris", "deploy") as ledger:
        assert ledger.record.lease.holder != "parent"


def test_a_process_number_that_was_given_away_again_does_not_keep_a_lease(bucket):
    with leased(bucket, "iris", "deploy", new=NEW) as ledger:
        mine = ledger.record.lease
    _leave(bucket, replace(mine, pid=os.getppid(), process_started="another time", holder="somebody"))

    with leased(bucket, "iris", "deploy"):
        pass


def test_the_lease_of_another_machine_counts_until_its_time_is_over(bucket):
    with leased(bucket, "iris", "deploy", new=NEW) as ledger:
        mine = ledger.record.lease
    _leave(bucket, replace(mine, host="elsewhere", holder="somebody"))

    with pytest.raises(ConflictError, match="on elsewhere"), leased(bucket, "iris", "deploy"):
        pytest.fail("two at once")


def test_a_failed_operation_gives_its_lease_back_and_says_that_it_is_unfinished(bucket):
    with pytest.raises(ZeroDivisionError), leased(bucket, "iris", "deploy", new=NEW):
        raise ZeroDivisionError

    record, _ = load(bucket, "iris")

    assert record.lease is None
    assert record.unfinished.operation == "deploy"


def test_an_operation_that_was_cut_short_after_its_decision_is_told_so_and_any_other_is_not(bucket):
    with pytest.raises(ZeroDivisionError), leased(bucket, "iris", "rollback", new=NEW) as ledger:
        ledger.save(ledger.record.routed({1: 100}, action="rollback", revision=1))
        raise ZeroDivisionError

    with leased(bucket, "iris", "rollback") as ledger:
        assert ledger.decided.revision == 1
    with leased(bucket, "iris", "rollback") as ledger:
        assert ledger.decided is None


def test_an_operation_that_was_cut_short_before_its_decision_decides_anew(bucket):
    with leased(bucket, "iris", "rollback", new=NEW) as ledger:
        ledger.save(ledger.record.routed({1: 100}, action="rollback", revision=1))
    with pytest.raises(ZeroDivisionError), leased(bucket, "iris", "rollback"):
        raise ZeroDivisionError

    with leased(bucket, "iris", "rollback") as ledger:
        assert ledger.decided is None


def test_a_record_of_a_newer_polyserve_is_refused_by_name_of_its_schema(bucket):
    bucket.put(record_key("iris"), json.dumps({"schema": 2}).encode(), content_type="application/json")

    with pytest.raises(FailedPreconditionError, match="schema 2, this polyserve knows 1"):
        load(bucket, "iris")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"schema":1,"name":7,"provider":"local"}'])
def test_a_damaged_record_is_refused_by_name_of_its_object(bucket, data):
    bucket.put(record_key("iris"), data, content_type="application/json")

    with pytest.raises(FailedPreconditionError, match=r"deployments/iris/record.json|schema None"):
        load(bucket, "iris")


def test_only_records_count_as_deployments(bucket):
    for key in (record_key("b"), record_key("a"), "deployments/a/bundles/record.json", "other/record.json"):
        bucket.put(key, b"", content_type="x")

    assert names(bucket) == ["a", "b"]


def test_the_lineage_moves_on_with_deploys_and_back_with_rollbacks():
    record = NEW
    for number in (1, 2, 3):
        record = record.routed({number: 100}, action="deploy", revision=number)
    assert record.lineage == (1, 2, 3)
    record = record.routed({2: 90, 4: 10}, action="canary", revision=4)
    assert record.lineage == (1, 2, 3)
    record = record.routed({2: 100}, action="rollback", revision=2)
    assert record.lineage == (1, 2)


def test_a_long_history_keeps_its_newest_entries():
    record = NEW
    for number in range(records.HISTORY + 10):
        record = record.noted("scale", revision=number)

    assert len(record.history) == records.HISTORY
    assert record.history[-1].revision == records.HISTORY + 9


def _leave(bucket: Dictionary, lease: Lease) -> None:
    """Put a record that somebody holds."""
    import msgspec

    record, _ = load(bucket, "iris")
    bucket.put(record_key("iris"), msgspec.json.encode(replace(record, lease=lease)), content_type="application/json")
