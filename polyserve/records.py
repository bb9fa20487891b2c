"""Deployment records: what polyserve knows of a deployment, one JSON object in the deployment's own bucket.

There is no other state: any process with access to the bucket can go on where another stopped. Every write
is conditional on the version that was read, so two deployers cannot corrupt one deployment: one wins, the
other gets `ConflictError`. A lease inside the record says who is changing it; it ends by itself when its
process is gone or its time is over. Knows no platform; secrets never get here (of environment variables
only the names).
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from polyserve.driver import Artifact, ObjectMeta, Scaling
from polyserve.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    PolyserveError,
)

SCHEMA = 1
ROOT = "deployments/"
LEASE_TIME = timedelta(minutes=5)
"""How long a lease is believed without a renewal, where its process cannot be looked at (another machine)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One immutable (package digest, function settings) pair.

    Attributes:
        number: From 1; never used twice.
        package_digest: Tree digest of the model package.
        spec_digest: Digest of the function's whole specification.
        artifact: The bundle in the bucket.
        model: Name of the model in the protocol's paths.
        signature: Inputs and outputs, as `runtime.signature.Signature.to_dict` gives them.
        python: Python minor version.
        memory_mb: Memory of one instance, in MiB.
        timeout_s: Longest time one request may take, in seconds.
        environment: Names of the environment variables; values are never recorded.
        state: `pending` until its golden sample was answered, then `verified`; `failed` says why in `reason`.
        created_at: Unix time.
    """

    number: int
    package_digest: str
    spec_digest: str
    artifact: Artifact
    model: str
    signature: dict[str, Any]
    python: str
    memory_mb: int
    timeout_s: float
    environment: tuple[str, ...]
    state: Literal["pending", "verified", "failed"]
    created_at: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPart:
    """One part of a group: the name of its deployment, and the tree digest of the package that it must serve."""

    name: str
    package_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """A partitioned model, served by a deployment for each of its parts.

    Attributes:
        package_digest: Tree digest of the partitioned package.
        model: The whole model's name.
        signature: What goes in and out of the whole.
        combining: How the parts' answers become the whole one's, as `runtime.combining` reads it.
        parts: The parts, in order.
        timeout_s: Longest time one request may take, in seconds.
    """

    package_digest: str
    model: str
    signature: dict[str, Any]
    combining: dict[str, Any]
    parts: tuple[GroupPart, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One thing that was done: the verb, the revision it was about (0: none) and the weights after it."""

    at: float
    action: str
    revision: int = 0
    weights: dict[int, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who is changing the deployment, since when and until when (Unix time) unless renewed."""

    holder: str
    operation: str
    host: str
    pid: int
    process_started: str
    began_at: float
    expires_at: float

    def held(self) -> bool:
        """Return whether the holder may still be at work: its time counts, and on this machine its process is looked at too."""
        if self.holder in _active:
            return True
        if time.time() >= self.expires_at:
            return False
        if self.host != _host():
            return True
        # Not this process (then it would be in _active), and not another one that was given the same number later.
        return self.pid != os.getpid() and _process_started(self.pid) == self.process_started != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    """One deployment: its revisions, the weights it should have, and how it came to them.

    Attributes:
        name: The deployment's name.
        provider: The provider it is on.
        revisions: Oldest first.
        weights: Percent of the traffic by revision number; what should be, the platform is made to follow.
        lineage: Revisions that had all the traffic, in order; a rollback goes back along it. The last one is the stable revision.
        scaling: Bounds of the number of instances.
        history: What was done, oldest first; the newest `HISTORY` entries.
        group: Where the deployment is a group, what it serves; it has no revisions then, its parts have. `None` before the first is ready.
        next_group: What the group is being made to serve, and every part that a destroy must find.
        phase: `deleting` once a destroy has begun: it can only be finished.
        lease: Who is changing it now.
        unfinished: The lease of an operation that failed on its way, so that the same command can finish it.
        generation: Counts the writes.
    """

    schema: int = SCHEMA
    name: str
    provider: str
    revisions: tuple[Revision, ...] = ()
    weights: dict[int, int] = field(default_factory=dict)
    lineage: tuple[int, ...] = ()
    scaling: Scaling = field(default_factory=Scaling)
    history: tuple[HistoryEntry, ...] = ()
    group: GroupSpec | None = None
    next_group: GroupSpec | None = None
    phase: Literal["active", "deleting"] = "active"
    lease: Lease | None = None
    unfinished: Lease | None = None
    generation: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0

    def revision(self, number: int) -> Revision | None:
        """Return the revision of that number, or `None`."""
        return next((r for r in self.revisions if r.number == number), None)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the deployments that a group is made of, those of a version that is on its way included; none for any other."""
        specs = [spec for spec in (self.group, self.next_group) if spec is not None]
        return tuple(dict.fromkeys(part.name for spec in specs for part in spec.parts))

    @property
    def stable(self) -> Revision | None:
        """The revision that last had all the traffic, or `None` before the first."""
        return self.revision(self.lineage[-1]) if self.lineage else None

    @property
    def canary(self) -> Revision | None:
        """The newest revision that has a share of the traffic beside the stable one, or `None`."""
        beside = [n for n, percent in self.weights.items() if percent and (not self.lineage or n != self.lineage[-1])]
        return self.revision(max(beside)) if beside else None

    @property
    def next_number(self) -> int:
        """The number of a revision that does not exist yet."""
        return max((r.number for r in self.revisions), default=0) + 1

    def with_revision(self, revision: Revision) -> DeploymentRecord:
        """Return a record where this revision replaces the one of its number, or is added."""
        others = tuple(r for r in self.revisions if r.number != revision.number)
        return replace(self, revisions=tuple(sorted((*others, revision), key=lambda r: r.number)))

    def routed(self, weights: Mapping[int, int], *, action: str, revision: int, note: str = "") -> DeploymentRecord:
        """Return a record with these weights, the lineage moved on (or, for a rollback, back) and the deed in the history."""
        weights = {number: percent for number, percent in sorted(weights.items()) if percent}
        lineage = self.lineage
        if len(weights) == 1:
            (only,) = weights
            if action == "rollback" and only in lineage:
                lineage = lineage[: len(lineage) - lineage[::-1].index(only)]
            elif lineage[-1:] != (only,):
                lineage = (*lineage, only)[-HISTORY:]
        return replace(self, weights=weights, lineage=lineage).noted(action, revision=revision, note=note)

    def noted(self, action: str, *, revision: int = 0, note: str = "") -> DeploymentRecord:
        """Return a record with one more entry in its history."""
        entry = HistoryEntry(at=time.time(), action=action, revision=revision, weights=dict(self.weights), note=note)
        return replace(self, history=(*self.history, entry)[-HISTORY:])


HISTORY = 200
"""How many entries of history a record keeps."""


class Reader(Protocol):
    """An open object."""

    @property
    def meta(self) -> ObjectMeta:
        """Describe the object."""
        ...

    def read(self) -> bytes:
        """Read the rest of it."""
        ...


class Objects(Protocol):
    """What records need of a `Bucket`, which stands above them."""

    def put(
        self, key: str, data: bytes, *, content_type: str, if_absent: bool = False, if_match: str | None = None
    ) -> ObjectMeta:
        """Write an object."""
        ...

    def open(self, key: str) -> AbstractContextManager[Reader]:
        """Open an object for reading."""
        ...

    def delete(self, key: str, *, missing_ok: bool = False) -> None:
        """Delete an object."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectMeta]:
        """List objects."""
        ...


def prefix(name: str) -> str:
    """Return where in the bucket everything of one deployment is."""
    return f"{ROOT}{name}/"


def record_key(name: str) -> str:
    """Return where in the bucket the record of one deployment is."""
    return f"{prefix(name)}record.json"


def load(bucket: Objects, name: str) -> tuple[DeploymentRecord, str]:
    """Read a deployment's record and its version.

    Raises:
        NotFoundError: No such deployment.
        FailedPreconditionError: The record was written by a newer polyserve, or is damaged.
    """
    with bucket.open(record_key(name)) as reader:
        meta, data = reader.meta, reader.read()
    try:
        schema = msgspec.json.decode(data).get("schema")
        if schema != SCHEMA:
            message = f"the record of {name!r} has schema {schema}, this polyserve knows {SCHEMA}: use the newer polyserve that wrote it"
            raise FailedPreconditionError(message, operation="read record", resource=name)
        return msgspec.json.decode(data, type=DeploymentRecord), meta.version
    except (msgspec.DecodeError, AttributeError) as error:
        message = f"the record of {name!r} is damaged ({error}): look at object {record_key(name)!r}"
        raise FailedPreconditionError(message, operation="read record", resource=name) from error


def names(bucket: Objects) -> list[str]:
    """Return the names of all deployments that have a record, sorted."""
    ends = "/record.json"
    found = (meta.key.removeprefix(ROOT) for meta in bucket.list(ROOT) if meta.key.endswith(ends))
    return sorted(key.removesuffix(ends) for key in found if key.count("/") == 1)


class Ledger:
    """A record that is held under a lease: the only way a record is written.

    Args:
        bucket: Where the record is.
        record: The record as last written.
        version: Its version.
        decided: The last entry of the history when an operation of the same verb was cut short after it had written what should be:
            there is nothing new to decide then, only to make the platform follow.
    """

    def __init__(
        self, bucket: Objects, record: DeploymentRecord, version: str, *, decided: HistoryEntry | None = None
    ) -> None:
        self._bucket = bucket
        self.record = record
        self._version = version
        self.decided = decided

    def save(self, record: DeploymentRecord) -> None:
        """Write the record, lease kept and renewed.

        Raises:
            ConflictError: Somebody else wrote it since it was read.
        """
        lease = record.lease and replace(record.lease, expires_at=time.time() + LEASE_TIME.total_seconds())
        self._write(replace(record, lease=lease))

    def renew(self) -> None:
        """Write the record again where half of the lease is over, so that long work keeps it."""
        lease = self.record.lease
        if lease is not None and lease.expires_at - time.time() < LEASE_TIME.total_seconds() / 2:
            self.save(self.record)

    def release(self) -> None:
        """Give the lease back: the operation is done."""
        self._write(replace(self.record, lease=None, unfinished=None))

    def abandon(self) -> None:
        """Give the lease back after a failure; a lease that cannot be given back ends with its process or its time."""
        try:
            self._write(replace(self.record, lease=None, unfinished=self.record.lease))
        except PolyserveError:
            return  # the caller must see its own error, not this one

    def delete(self) -> None:
        """Delete the record: the last step of destroy."""
        self._bucket.delete(record_key(self.record.name), missing_ok=True)
        self.record = replace(self.record, lease=None)

    def _write(self, record: DeploymentRecord) -> None:
        now = time.time()
        record = replace(
            record, generation=self.record.generation + 1, updated_at=now, created_at=record.created_at or now
        )
        condition: dict[str, Any] = {"if_match": self._version} if self._version else {"if_absent": True}
        data = msgspec.json.format(msgspec.json.encode(record), indent=1)
        try:
            meta = self._bucket.put(record_key(record.name), data, content_type="application/json", **condition)
        except (FailedPreconditionError, AlreadyExistsError, NotFoundError) as error:
            message = (
                f"deployment {record.name!r} was changed by somebody else meanwhile: "
                f"look with `polyserve status {record.name}`, then repeat"
            )
            raise ConflictError(message, operation="write record", resource=record.name) from error
        self.record, self._version = record, meta.version


@contextmanager
def leased(bucket: Objects, name: str, operation: str, *, new: DeploymentRecord | None = None) -> Iterator[Ledger]:
    """Hold a deployment's record for one operation.

    Args:
        bucket: Where the record is.
        name: The deployment.
        operation: The verb, for whoever finds the lease.
        new: The record to begin with where there is none.

    Raises:
        ConflictError: Somebody else holds it, or wrote it first; the message says who and until when.
        NotFoundError: There is no record and no `new`.
    """
    try:
        record, version = load(bucket, name)
    except NotFoundError:
        if new is None:
            raise
        record, version = new, ""
    if record.lease is not None and record.lease.held():
        until = datetime.fromtimestamp(record.lease.expires_at, UTC).strftime("%H:%M:%S UTC")
        message = (
            f"deployment {name!r} is being changed: {record.lease.operation} by process {record.lease.pid} on {record.lease.host}, "
            f"lease until {until} unless renewed: repeat after that"
        )
        raise ConflictError(message, operation=operation, resource=name)
    before = record.lease or record.unfinished
    if before is not None and before.operation != operation:
        before = None
    last = record.history[-1] if record.history else None
    decided = last if before and last and last.action == operation and last.at >= before.began_at else None
    now = time.time()
    lease = Lease(
        holder=uuid.uuid4().hex,
        operation=operation,
        host=_host(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()),
        began_at=before.began_at if before else now,
        expires_at=now,
    )
    _active.add(lease.holder)
    try:
        ledger = Ledger(bucket, record, version, decided=decided)
        ledger.save(replace(record, lease=lease, unfinished=before))
        try:
            yield ledger
            if ledger.record.lease is not None:
                ledger.release()
        except BaseException:
            ledger.abandon()
            raise
    finally:
        _active.discard(lease.holder)


_active: set[str] = set()
"""Holders of the leases that this process is working under."""


def _host() -> str:
    # The name alone would let two machines of one name break each other's leases.
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip()[:8]}" if boot.exists() else socket.gethostname()


def _process_started(pid: int) -> str:
    """Return when a process started, as its system tells it; empty where it does not run."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        # After the command's name, which may hold spaces and brackets, field 22 of the whole is field 20.
        return stat.read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return "running"  # no /proc (macOS): the number alone has to do
