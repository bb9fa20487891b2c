"""The functions of the provider in memory: each revision is a `Host` on the package in its bundle, loaded on a thread of its own."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from polyserve.driver import (
    Address,
    Capability,
    ErrorCode,
    FunctionSpec,
    FunctionStatus,
    HttpCall,
    HttpReply,
    LogEvent,
    Phase,
    Request,
    Response,
    RevisionStatus,
    Scaling,
)
from polyserve.runtime.host import Host
from polyserve.runtime.messages import HTTP_STATUS, error_body
from polyserve.runtime.remote import Remote
from polyserve.testing.memory import MemoryFault

if TYPE_CHECKING:
    from polyserve.testing.memory import MemoryProvider

__all__ = ["MemoryInvoker", "MemoryPlatform", "MemorySettings"]


class MemorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of the provider in memory: none."""


@dataclass(slots=True)
class _Revision:
    spec: FunctionSpec
    phase: Phase = Phase.PROVISIONING
    reason: str | None = None
    host: Host | None = None
    root: Path | None = None
    loading: threading.Thread | None = None

    def status(self) -> RevisionStatus:
        return RevisionStatus(
            number=self.spec.revision, spec_digest=self.spec.digest(), phase=self.phase, reason=self.reason
        )


@dataclass(slots=True)
class _Function:
    name: str
    scaling: Scaling
    labels: Mapping[str, str]
    revisions: dict[int, _Revision] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    events: list[LogEvent] = field(default_factory=list)


class MemoryPlatform:
    """Functions on threads. Implements `polyserve.driver.FunctionPlatform`.

    There is one environment for all of this process: the variables of a spec are there while its model loads or answers, and revisions that
    have any do so one at a time. So do all that load, since modules are this process's, too. Memory is not limited.
    """

    def __init__(self, provider: MemoryProvider) -> None:
        self._provider = provider
        self._functions: dict[str, _Function] = {}
        self._lock = threading.RLock()

    def apply(self, spec: FunctionSpec) -> FunctionStatus:
        """Make a revision exist; its package is fetched, checked and loaded on a thread."""
        for capability, used in (
            (Capability.MIN_INSTANCES, spec.scaling.min_instances > 0),
            (Capability.MAX_INSTANCES, spec.scaling.max_instances is not None),
        ):
            if used:
                self._provider.require(capability)
        with self._lock:
            function = self._functions.setdefault(spec.name, _Function(spec.name, spec.scaling, dict(spec.labels)))
            known = function.revisions.get(spec.revision)
            if known is not None and known.spec.digest() != spec.digest():
                message = f"revision {spec.revision} of {spec.name!r} exists and is another"
                raise MemoryFault(ErrorCode.ALREADY_EXISTS, message)
            if known is None or known.phase is Phase.FAILED:
                if known is not None:
                    _discard(known)
                revision = _Revision(spec)
                function.revisions[spec.revision] = revision
                revision.loading = threading.Thread(target=self._load, args=(function, revision), daemon=True)
                revision.loading.start()
            return self._status(function)

    def _load(self, function: _Function, revision: _Revision) -> None:
        spec = revision.spec
        root = Path(tempfile.mkdtemp(prefix="polyserve-memory-"))
        revision.root = root
        try:
            _, body = self._provider.store(spec.artifact.bucket).get(spec.artifact.key)
            content = body.read()
            if hashlib.sha256(content).hexdigest() != spec.artifact.sha256:
                raise MemoryFault(
                    ErrorCode.FAILED_PRECONDITION, "the bundle is not the one of the spec: its sha256 differs"
                )
            with zipfile.ZipFile(io.BytesIO(content)) as bundle:
                # The rest is the runtime, of which this process has its own.
                bundle.extractall(root / "bundle", [name for name in bundle.namelist() if name.startswith("package/")])
            host = Host(
                root / "bundle" / "package",
                revision=spec.revision,
                request_bytes=spec.request_bytes,
                sink=lambda lines: self._note(function, spec.revision, lines),
                remote=self._remote(spec, root),
            )
            with _IMPORTING, _environment(spec.environment):
                try:
                    host.load()
                finally:
                    _forget_modules(root)
        except Exception as error:
            revision.reason = str(error) or type(error).__name__
            revision.phase = Phase.FAILED
            self._note(function, spec.revision, revision.reason.encode())
        else:
            revision.host = host
            revision.phase = Phase.READY

    def _remote(self, spec: FunctionSpec, root: Path) -> Remote | None:
        """Return how a revision gets the files of its model that the bundle left out, if it did."""
        keys = {model.sha256: model for model in spec.models}

        def fetch(sha256: str) -> BinaryIO:
            return self._provider.store(keys[sha256].bucket).get(keys[sha256].key)[1]

        return Remote(fetch=fetch, into=root / "models") if keys else None

    @staticmethod
    def _note(function: _Function, number: int, lines: bytes) -> None:
        now = datetime.now(UTC)
        for line in lines.decode(errors="replace").splitlines():
            function.events.append(LogEvent(at=now, message=line, revision=number, instance="memory"))

    def describe(self, name: str) -> FunctionStatus:
        """Describe a function."""
        with self._lock:
            return self._status(self._function(name))

    def list(self, *, labels: Mapping[str, str]) -> Iterator[FunctionStatus]:
        """Yield the functions that carry all these labels, by name."""
        with self._lock:
            found = [
                self._status(function)
                for _, function in sorted(self._functions.items())
                if labels.items() <= function.labels.items()
            ]
        return iter(found)

    def route(self, name: str, weights: Mapping[int, int]) -> None:
        """Set the percent of traffic by revision."""
        with self._lock:
            function = self._function(name)
            unknown = sorted(weights.keys() - function.revisions.keys())
            if unknown:
                raise MemoryFault(ErrorCode.FAILED_PRECONDITION, f"{name!r} has no revision {unknown[0]}")
            if sum(weights.values()) != 100 or min(weights.values()) < 0:
                raise MemoryFault(ErrorCode.INVALID_ARGUMENT, f"weights {dict(weights)} do not sum to 100")
            used = {number: percent for number, percent in weights.items() if percent}
            if len(used) > 1:
                self._provider.require(Capability.TRAFFIC_SPLIT)
            function.weights = dict(sorted(used.items()))

    def scale(self, name: str, scaling: Scaling) -> None:
        """Set the instances' bounds. They are kept and reported: a thread for each call is all there is."""
        if scaling.min_instances:
            self._provider.require(Capability.MIN_INSTANCES)
        if scaling.max_instances is not None:
            self._provider.require(Capability.MAX_INSTANCES)
        with self._lock:
            self._function(name).scaling = scaling

    def logs(self, name: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the function wrote, oldest first."""
        with self._lock:
            events = list(self._function(name).events)
        return (event for event in events if since is None or event.at >= since)

    def remove_revision(self, name: str, number: int) -> None:
        """Delete one revision that has no traffic."""
        with self._lock:
            function = self._function(name)
            if number not in function.revisions:
                raise MemoryFault(ErrorCode.NOT_FOUND, f"{name!r} has no revision {number}")
            if function.weights.get(number):
                raise MemoryFault(ErrorCode.FAILED_PRECONDITION, f"revision {number} of {name!r} has traffic")
            revision = function.revisions.pop(number)
        _discard(revision)

    def delete(self, name: str) -> None:
        """Delete a function with its revisions and logs."""
        with self._lock:
            function = self._function(name)
            del self._functions[name]
        for revision in function.revisions.values():
            _discard(revision)

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return nothing: there are no settings that could be at odds."""
        return ()

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return nothing: this process may do what it likes with itself."""
        return ()

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return nothing, for the same reason."""
        return {}

    def close(self) -> None:
        """Forget all functions."""
        for name in list(self._functions):
            self.delete(name)

    def address(self, name: str, revision: int | None) -> str:
        """Return the path below which a function, or one revision, is called."""
        with self._lock:
            function = self._function(name)
            if revision is not None and revision not in function.revisions:
                raise MemoryFault(ErrorCode.NOT_FOUND, f"{name!r} has no revision {revision}")
        return f"/functions/{name}/{revision or 'traffic'}"

    def answer(self, request: Request) -> Response:
        """Answer a call that came over HTTP: `/functions/<name>/<revision or "traffic">/...`."""
        _, _, name, which, path = request.path.split("/", 4)
        with self._lock:
            function = self._functions.get(name)
            number = 0
            if function is not None:
                number = _pick(function.weights, request) if which == "traffic" else int(which)
            revision = function.revisions.get(number) if function is not None else None
        if revision is None:
            return _refuse(request, ErrorCode.NOT_FOUND, f"{name!r} has nothing that takes this call")
        if revision.host is None:
            return _refuse(request, ErrorCode.UNAVAILABLE, f"revision {number} of {name!r} is {revision.phase.value}")
        return _within(revision.host, replace(request, path="/" + path), revision.spec)

    def _function(self, name: str) -> _Function:
        if name not in self._functions:
            raise MemoryFault(ErrorCode.NOT_FOUND, f"no function {name!r}")
        return self._functions[name]

    def _status(self, function: _Function) -> FunctionStatus:
        return FunctionStatus(
            name=function.name,
            phase=Phase.READY,
            url=f"{self._provider.loopback.url}/functions/{function.name}/traffic",
            revisions=tuple(revision.status() for _, revision in sorted(function.revisions.items())),
            weights=dict(function.weights),
            scaling=function.scaling,
            labels=dict(function.labels),
            native_id=f"memory:{function.name}",
        )


class MemoryInvoker:
    """Calls over loopback with a bearer token. Implements `polyserve.driver.Invoker`."""

    def __init__(self, provider: MemoryProvider) -> None:
        self._provider = provider

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find where a function, or one revision of it, is called."""
        path = self._provider.functions.address(name, revision)
        loopback = self._provider.loopback
        return Address(url=f"{loopback.url}{path}", headers={"authorization": f"Bearer {loopback.token}"})

    def prepare(self, address: Address, request: Request) -> HttpCall:
        """Add the function's URL and the token."""
        headers = {**request.headers, **address.headers}
        if request.request_id:
            headers["x-request-id"] = request.request_id
        return HttpCall(method=request.method, url=address.url + request.path, headers=headers, body=request.body)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        """Take the reply as it is."""
        return Response(status=reply.status, headers=reply.headers, body=reply.body)


def _pick(weights: Mapping[int, int], request: Request) -> int:
    """Return the revision for a request, the same one whenever the same request id comes."""
    request_id = request.headers.get("x-request-id")
    point = zlib.crc32(request_id.encode()) % 100 if request_id else random.randrange(100)
    for number, percent in weights.items():
        if point < percent:
            return number
        point -= percent
    return 0


_ENVIRONMENT = threading.Lock()
_IMPORTING = threading.Lock()


def _forget_modules(root: Path) -> None:
    """Forget the modules that were imported from a package: another revision may bring others of the same names."""
    for name, module in list(sys.modules.items()):
        # Not getattr: some modules import what is asked for.
        file = getattr(module, "__dict__", {}).get("__file__")
        if file and Path(file).is_relative_to(root):
            del sys.modules[name]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, if there are any to set."""
    if not variables:
        yield
        return
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _within(host: Host, request: Request, spec: FunctionSpec) -> Response:
    """Answer within the time of the spec; what takes longer goes on unheard."""
    answers: list[Response] = []
    seconds = spec.timeout.total_seconds()

    def answer() -> None:
        with _environment(spec.environment):
            answers.append(host.handle(request))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        return _refuse(request, ErrorCode.DEADLINE_EXCEEDED, f"the model took longer than its timeout of {seconds:g} s")
    return answers[0]


def _refuse(request: Request, code: ErrorCode, message: str) -> Response:
    request_id = request.headers.get("x-request-id", "")
    headers = {"content-type": "application/json", "x-request-id": request_id}
    return Response(status=HTTP_STATUS[code], headers=headers, body=error_body(code, message, request_id))


def _discard(revision: _Revision) -> None:
    if revision.loading is not None:
        revision.loading.join()
    if revision.root is not None:
        shutil.rmtree(revision.root, ignore_errors=True)
