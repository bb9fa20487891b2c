"""Revisions, weights and canaries on platforms that have none of them: front and canary.

    callers -> front app `iris`          runs the revision with most of the traffic
                 |  a share, by request id
                 v
               app `iris-r3`             runs revision 3: made without traffic, called by itself to be verified, then a canary

Every revision is an app of its own, which costs nothing while nobody calls it. One more app, the front, has the deployment's address. It
runs the bundle of the heaviest revision, so that the usual request takes no further hop, and passes the shares of the others on
(`polyserve.runtime.forwarding`). Routing is one `put` of the front: promoting and rolling back publish another bundle to it, and what it
ran before answers until that is ready.

    provider = fronted(registry.load("azure", settings))
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from polyserve.driver import (
    LABEL,
    Address,
    AppProvider,
    AppSpec,
    AppStatus,
    ErrorCode,
    Forward,
    FunctionPlatform,
    FunctionSpec,
    FunctionStatus,
    HttpCall,
    HttpReply,
    Invoker,
    LogEvent,
    Phase,
    Provider,
    Request,
    Response,
    RevisionStatus,
    Scaling,
)
from polyserve.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PolyserveError,
)
from polyserve.layers.forwarding import ForwardingCloud

__all__ = ["fronted"]


def fronted(provider: Provider | AppProvider) -> Provider:
    """Return a provider whose functions have revisions: the one that is given, or a front over its apps."""
    if hasattr(provider, "apps"):
        return FrontedProvider(cast("AppProvider", provider))
    return provider


class FrontedProvider(ForwardingCloud):
    """Implements `polyserve.driver.Provider` over a provider of apps.

    Args:
        provider: The provider below.
    """

    _provider: AppProvider

    def __init__(self, provider: AppProvider) -> None:
        super().__init__(provider)

    @property
    def functions(self) -> FunctionPlatform:
        """Return the functions that the apps make up."""
        return FrontedPlatform(self._provider)

    @property
    def invoker(self) -> Invoker:
        """Return how functions are called: by their front, or by the app of a revision."""
        return _FrontedInvoker(self._provider)

    def classify(self, error: Exception) -> ErrorCode:
        """Sort an error of the drivers below, or one of this layer."""
        return error.code if isinstance(error, PolyserveError) else super().classify(error)


class FrontedPlatform:
    """Implements `polyserve.driver.FunctionPlatform` over apps.

    Args:
        provider: The provider of the apps.
    """

    def __init__(self, provider: AppProvider) -> None:
        self._provider = provider
        self._apps = provider.apps

    def apply(self, spec: FunctionSpec) -> FunctionStatus:
        """Make the app of a revision; it has no traffic."""
        function = _Function.of(self._apps.list(labels={LABEL: spec.name}))
        app = revision_app(spec.name, spec.revision)
        known = function.revisions.get(spec.revision)
        if known is None:
            self._refuse_strangers(app, spec.name)
        elif known.app.spec.digest() != spec.digest():
            message = f"revision {spec.revision} of {spec.name!r} exists and is another"
            raise AlreadyExistsError(message, provider=self._provider.info.name, operation="apply", resource=spec.name)
        if known is None or known.incomplete or known.phase is Phase.FAILED:
            # Bounds belong to the function: a later revision leaves them as they are. Where a front holds them, its revisions need
            # no instance of their own.
            scaling = function.scaling if function.revisions else spec.scaling
            if function.front is not None:
                scaling = replace(scaling, min_instances=0)
            self._apps.put(AppSpec(app=app, spec=replace(spec, scaling=scaling), front=False, scaling=scaling))
        return self.describe(spec.name)

    def _refuse_strangers(self, app: str, name: str) -> None:
        """Refuse to take over an app that belongs to another deployment, such as `iris-r2` to a deployment of that name."""
        try:
            owner = self._apps.get(app).labels.get(LABEL)
        except Exception as error:
            if self._provider.classify(error) is not ErrorCode.NOT_FOUND:
                raise
            return
        if owner != name:
            message = f"{app!r} belongs to deployment {owner!r}: give this one another name"
            raise AlreadyExistsError(message, provider=self._provider.info.name, operation="apply", resource=name)

    def describe(self, name: str) -> FunctionStatus:
        """Describe a function by its apps."""
        return self._function(name).status(name)

    def list(self, *, labels: Mapping[str, str]) -> Iterator[FunctionStatus]:
        """Yield the functions whose apps carry all these labels, by name."""
        found: dict[str, list[AppStatus]] = {}
        for app in self._apps.list(labels=labels):
            if LABEL in app.labels:
                found.setdefault(app.labels[LABEL], []).append(app)
        return (_Function.of(apps).status(name) for name, apps in sorted(found.items()))

    def route(self, name: str, weights: Mapping[int, int]) -> None:
        """Make the front run the heaviest revision and pass the shares of the others on."""
        function = self._function(name)
        used = {number: percent for number, percent in sorted(weights.items()) if percent}
        where: dict[str, Any] = {"provider": self._provider.info.name, "operation": "route", "resource": name}
        for number in used:
            if number not in function.revisions:
                raise FailedPreconditionError(f"{name!r} has no revision {number}", **where)
        if sum(used.values()) != 100 or min(used.values()) < 0:
            raise InvalidArgumentError(f"weights {dict(weights)} do not sum to 100", **where)
        heaviest = max(used, key=lambda number: (used[number], number == function.front_revision, -number))
        front = AppSpec(
            app=name,
            spec=function.revisions[heaviest].app.spec,
            forwards=tuple(
                Forward(revision=number, percent=percent, app=revision_app(name, number))
                for number, percent in used.items()
                if number != heaviest
            ),
            front=True,
            scaling=function.scaling,
        )
        present = function.front
        if present is None:
            self._refuse_strangers(name, name)
        settled = present is not None and present.phase is not Phase.FAILED and not present.incomplete
        if present is None or not settled or present.app.to_json() != front.to_json():
            self._apps.put(front)
        if present is None and function.scaling.min_instances:
            # From now on the front holds what is kept warm.
            for status in function.revisions.values():
                self._apps.scale(status.app.app, replace(function.scaling, min_instances=0))

    def scale(self, name: str, scaling: Scaling) -> None:
        """Set the bounds of the front, or of the revisions while there is none."""
        function = self._function(name)
        if function.front is not None:
            self._apps.scale(name, scaling)
            return
        for status in function.revisions.values():
            self._apps.scale(status.app.app, scaling)

    def logs(self, name: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what all apps wrote, oldest first."""
        apps = self._function(name).apps
        streams = [self._told(app, since) for app in apps]
        return heapq.merge(*streams, key=lambda event: event.at)

    def _told(self, status: AppStatus, since: datetime | None) -> Iterator[LogEvent]:
        for event in self._apps.logs(status.app.app, since=since):
            # A front runs one revision after another; the lines of the runtime say which one wrote them.
            number = event.revision or _revision_in(event.message) or status.app.spec.revision
            yield replace(event, revision=number)

    def remove_revision(self, name: str, number: int) -> None:
        """Delete the app of one revision that has no traffic."""
        function = self._function(name)
        where: dict[str, Any] = {"provider": self._provider.info.name, "operation": "remove", "resource": name}
        if number not in function.revisions:
            raise NotFoundError(f"{name!r} has no revision {number}", **where)
        if number in function.asked:
            raise FailedPreconditionError(f"revision {number} of {name!r} has traffic", **where)
        self._apps.remove(revision_app(name, number))

    def delete(self, name: str) -> None:
        """Delete the front, then the revisions."""
        function = self._function(name)
        for status in sorted(function.apps, key=lambda app: not app.app.front):
            self._apps.remove(status.app.app)

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return what is in the way of a revision."""
        return self._apps.obstacles(spec, split=split)

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return what the caller must be allowed to do to deploy this."""
        return self._apps.permissions(spec)

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the same as the provider's own policy document."""
        return self._apps.policy(spec)

    def _function(self, name: str) -> _Function:
        function = _Function.of(self._apps.list(labels={LABEL: name}))
        if not function.apps:
            message = f"no function {name!r}"
            raise NotFoundError(message, provider=self._provider.info.name, operation="describe", resource=name)
        return function


class _Function:
    """What a function's apps say together."""

    def __init__(self, apps: Sequence[AppStatus]) -> None:
        self.apps = apps
        self.front = next((app for app in apps if app.app.front), None)
        self.revisions = {
            app.app.spec.revision: app
            for app in sorted(apps, key=lambda app: app.app.spec.revision)
            if not app.app.front
        }

    @classmethod
    def of(cls, apps: Iterator[AppStatus] | Sequence[AppStatus]) -> _Function:
        """Return the function of some apps."""
        return cls(list(apps))

    @property
    def front_revision(self) -> int:
        """The revision that the front runs; 0 where there is no front."""
        return self.front.app.spec.revision if self.front else 0

    @property
    def asked(self) -> dict[int, int]:
        """The weights that the front was last asked for."""
        if self.front is None:
            return {}
        shares = {forward.revision: forward.percent for forward in self.front.app.forwards}
        return dict(sorted({**shares, self.front_revision: 100 - sum(shares.values())}.items()))

    @property
    def scaling(self) -> Scaling:
        """The function's bounds."""
        holder = self.front or next(reversed(self.revisions.values()), None)
        return holder.app.scaling if holder else Scaling()

    def status(self, name: str) -> FunctionStatus:
        """Return all of it as one function's status."""
        front, newest = self.front, next(reversed(self.revisions.values()), None)
        shown = front or newest
        assert shown is not None
        settled = front is not None and front.phase is Phase.READY and not front.incomplete
        return FunctionStatus(
            name=name,
            phase=Phase.READY if front is None else front.phase,
            url=front.url if front else None,
            revisions=tuple(_revision(status) for status in self.revisions.values()),
            weights=self.asked if settled else {},
            scaling=self.scaling,
            labels=shown.labels,
            native_id=shown.native_id,
            reason=front.reason if front else None,
            incomplete=front is not None and front.incomplete,
        )


class _FrontedInvoker:
    """Implements `polyserve.driver.Invoker`: a function is called at its front, a revision at its own app."""

    def __init__(self, provider: AppProvider) -> None:
        self._below = provider.invoker

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find where the front, or the app of a revision, is called."""
        return self._below.resolve(name if revision is None else revision_app(name, revision))

    def prepare(self, address: Address, request: Request) -> HttpCall:
        """Turn a request into the platform's HTTP call."""
        return self._below.prepare(address, request)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        """Turn the platform's HTTP reply into the response of the function."""
        return self._below.parse(address, reply)


def revision_app(name: str, number: int) -> str:
    """Return the name of the app that runs one revision of a function."""
    return f"{name}-r{number}"


def _revision(status: AppStatus) -> RevisionStatus:
    spec = status.app.spec
    return RevisionStatus(
        number=spec.revision,
        spec_digest=spec.digest(),
        phase=status.phase,
        reason=status.reason,
        instances=status.instances,
        incomplete=status.incomplete,
    )


def _revision_in(line: str) -> int:
    """Return the revision that a line of the runtime names; 0 for a line of anybody else."""
    if not line.startswith("{"):
        return 0
    try:
        number = json.loads(line).get("revision", 0)
    except ValueError:
        return 0
    return number if isinstance(number, int) else 0
