"""A provider in memory that has apps and nothing else, no revisions and no weights: what the layer of fronts is tried on."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from polyserve.driver import (
    Address,
    AppSpec,
    AppStatus,
    ErrorCode,
    FunctionSpec,
    LogEvent,
    Phase,
    Request,
    Response,
    Scaling,
)
from polyserve.runtime.forwarding import Front, Share
from polyserve.runtime.messages import HTTP_STATUS, error_body
from polyserve.testing.memory import MemoryFault, MemoryProvider
from polyserve.testing.memory_functions import MemoryInvoker

__all__ = ["MemoryAppProvider", "MemoryApps"]

FORWARD_SECONDS = 30.0
"""How long a front waits for another app."""


@dataclass(slots=True)
class _App:
    """An app.

    Attributes:
        asked: What it was last asked to be.
        number: How often that has changed; each stands for a function of its own below.
        deployed: Whether that function was made.
        live: The number that answers; 0 before the first is ready.
        front: What answers.
    """

    asked: AppSpec
    number: int
    deployed: bool = False
    live: int = 0
    front: Front | None = None


class MemoryApps:
    """Implements `polyserve.driver.AppPlatform`.

    An app is made in two calls, as where the resource and what it runs are two requests: after the first `put` of something new it is
    incomplete, and it answers as before until the new is ready.
    """

    def __init__(self, provider: MemoryAppProvider) -> None:
        self._provider = provider
        self._apps: dict[str, _App] = {}

    def put(self, app: AppSpec) -> None:
        """Make an app be this, in two calls."""
        known = self._apps.get(app.app)
        if known is None or known.asked.to_json() != app.to_json() or self.get(app.app).phase is Phase.FAILED:
            if known is None:
                known = self._apps[app.app] = _App(asked=app, number=0)
            known.asked, known.number, known.deployed = app, known.number + 1, False
        elif not known.deployed:
            below = replace(app.spec, name=_below(app.app, known.number), scaling=Scaling())
            self._provider.functions.apply(below)
            known.deployed = True

    def get(self, app: str) -> AppStatus:
        """Describe an app; once what it was asked to be is ready, that is what answers."""
        known = self._app(app)
        phase, reason = Phase.PROVISIONING, None
        if known.deployed:
            (made,) = self._provider.functions.describe(_below(app, known.number)).revisions
            phase, reason = made.phase, made.reason
            if phase is Phase.READY and known.live != known.number:
                self._go_live(known)
        return AppStatus(
            app=known.asked,
            phase=phase,
            url=self._provider.invoker.resolve(app).url,
            native_id=f"memory-app:{app}",
            labels=dict(known.asked.spec.labels),
            reason=reason,
            incomplete=not known.deployed,
        )

    def list(self, *, labels: Mapping[str, str]) -> Iterator[AppStatus]:
        """Yield the apps that carry all these labels, by name."""
        found = [name for name, app in sorted(self._apps.items()) if labels.items() <= app.asked.spec.labels.items()]
        return iter([self.get(name) for name in found])

    def scale(self, app: str, scaling: Scaling) -> None:
        """Set the bounds; they are kept and reported."""
        known = self._app(app)
        known.asked = replace(known.asked, scaling=scaling)

    def logs(self, app: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the app wrote, oldest first."""
        known, functions = self._app(app), self._provider.functions
        made = range(1, known.number + known.deployed)
        return heapq.merge(
            *(functions.logs(_below(app, number), since=since) for number in made), key=lambda event: event.at
        )

    def remove(self, app: str) -> None:
        """Delete an app."""
        known = self._app(app)
        for number in range(1, known.number + known.deployed):
            self._provider.functions.delete(_below(app, number))
        if known.front is not None:
            known.front.close()
        del self._apps[app]

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return nothing: there are no settings that could be at odds."""
        return ()

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return nothing: this process may do what it likes with itself."""
        return ()

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return nothing, as `permissions`."""
        return {}

    def answer(self, app: str, request: Request) -> Response:
        """Answer a call of an app: here, or where its forwards say."""
        known = self._apps.get(app)
        if known is not None:
            self.get(app)
        if known is None or known.front is None:
            code = ErrorCode.NOT_FOUND if known is None else ErrorCode.UNAVAILABLE
            headers = {"content-type": "application/json"}
            return Response(status=HTTP_STATUS[code], headers=headers, body=error_body(code, f"no app {app!r}", ""))
        return known.front.handle(request)

    def _go_live(self, known: _App) -> None:
        """Let an app answer as what it was last asked to be."""
        asked, invoker, functions = known.asked, self._provider.invoker, self._provider.functions
        inside = f"/functions/{_below(asked.app, known.number)}/{asked.spec.revision}"
        before = known.front
        known.front = Front(
            _Model(
                revision=asked.spec.revision,
                answer=lambda given: functions.answer(replace(given, path=inside + given.path)),
            ),
            [
                Share(revision=each.revision, percent=each.percent, url=invoker.resolve(each.app).url)
                for each in asked.forwards
            ],
            authorize=lambda _url: invoker.resolve(asked.app).headers,
            timeout=FORWARD_SECONDS,
            sink=lambda _lines: None,
        )
        known.live = known.number
        if before is not None:
            before.close()

    def require(self, app: str) -> None:
        """Refuse an app that is not there.

        Raises:
            MemoryFault: Of code NOT_FOUND.
        """
        if app not in self._apps:
            raise MemoryFault(ErrorCode.NOT_FOUND, f"no app {app!r}")

    def _app(self, app: str) -> _App:
        self.require(app)
        return self._apps[app]


def _below(app: str, number: int) -> str:
    """Return the name of the function that an app is made of."""
    return f"{app}@{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What is behind a front."""

    revision: int
    answer: Callable[[Request], Response]

    def handle(self, request: Request) -> Response:
        """Answer one request."""
        return self.answer(request)


class _AppInvoker(MemoryInvoker):
    """Calls apps over loopback with a bearer token."""

    def __init__(self, provider: MemoryAppProvider) -> None:
        super().__init__(provider)
        self._loopback = provider.loopback
        self._there = provider.apps

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find where an app is called; it has no revisions."""
        self._there.require(name)
        return Address(
            url=f"{self._loopback.url}/apps/{name}", headers={"authorization": f"Bearer {self._loopback.token}"}
        )


class MemoryAppProvider(MemoryProvider):
    """Implements `polyserve.driver.AppProvider` in this process."""

    @cached_property
    def apps(self) -> MemoryApps:
        """The platform of apps."""
        return MemoryApps(self)

    @cached_property
    def invoker(self) -> MemoryInvoker:
        """How apps are called."""
        return _AppInvoker(self)

    def close(self) -> None:
        """Stop everything; apps with what they are made of."""
        for status in list(self.apps.list(labels={})):
            self.apps.remove(status.app.app)
        super().close()

    def answer(self, request: Request) -> Response:
        """Answer a call of an app that came over HTTP."""
        _, _, app, path = request.path.split("/", 3)
        return self.apps.answer(app, replace(request, path=f"/{path}"))
