"""Cloud Run functions as a platform of apps: each app is a function of the Cloud Functions API, version 2.

Making one is one call: the function's environment has what it is asked to be, its labels are how it is found. Cloud Build builds it and a
Cloud Run service of its name runs it; who may call it is that service's policy. What a function ran before answers until the new one is
ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from polyserve.driver import LABEL, AppSpec, AppStatus, Artifact, ErrorCode, FunctionSpec, LogEvent, Phase, Scaling
from polyserve_gcp import apps
from polyserve_gcp.bundles import Bundles
from polyserve_gcp.errors import AppError
from polyserve_gcp.google_api import FUNCTIONS, RUN, GoogleApi, mask_of, piece
from polyserve_gcp.invoker import Service
from polyserve_gcp.logs import Logs
from polyserve_gcp.names import MAX_LABEL, READY_LABEL
from polyserve_gcp.obstacles import obstacles, refuse
from polyserve_gcp.permissions import custom_role, permissions
from polyserve_gcp.reading import ModelReaders
from polyserve_gcp.settings import GcpSettings

__all__ = ["INVOKER", "FunctionsPlatform"]

INVOKER = "roles/run.invoker"
EVERYBODY = "allUsers"


class FunctionsPlatform:
    """Functions. Implements `polyserve.driver.AppPlatform`.

    Args:
        settings: How functions run.
        api: Calls Google.
        bundles: Looks for bundles.
        readers: Lets functions read models.
        logs: Reads what they wrote.
    """

    def __init__(
        self, settings: GcpSettings, api: GoogleApi, bundles: Bundles, readers: ModelReaders, logs: Logs
    ) -> None:
        self._settings = settings
        self._api = api
        self._bundles = bundles
        self._readers = readers
        self._logs = logs

    # --- making -------------------------------------------------------------------------------------------------------------

    def put(self, app: AppSpec) -> None:
        """Make a function be this, unless it is."""
        refuse(app.spec, self._settings, split=bool(app.forwards))
        found = self._api.find(FUNCTIONS, self._path(app.app))
        if found is None:
            self._create(app)
            return
        self._check_owner(app, found)
        if found.get("state") == "DEPLOYING":
            # A front that becomes something else is incomplete: it is put again until it takes this.
            if apps.asked(found) != app.to_json() and not (app.front and apps.phase_of(found) is Phase.PROVISIONING):
                raise self._busy(app.app, "changed")
            return
        if apps.phase_of(found) is Phase.READY and apps.asked(found) == app.to_json():
            if self._settings.public:
                self._open(app, found, public=True)
            return
        self._update(app, found)

    def _create(self, app: AppSpec) -> None:
        body = self._described(app)
        self._api.call("POST", FUNCTIONS, self._collection, body, query={"functionId": app.app})

    def _update(self, app: AppSpec, found: Mapping[str, Any]) -> None:
        before = AppSpec.from_json(apps.asked(found), Scaling()).spec
        fields = [*apps.SERVICE]
        if apps.phase_of(found) is not Phase.READY or _built_of(before) != _built_of(app.spec):
            # What was built once need not be built again for another environment.
            fields += apps.BUILD
        body = {**self._described(app), "name": str(found["name"])}
        if not self._settings.public:
            self._open(app, found, public=False)
        self._api.call("PATCH", FUNCTIONS, self._path(app.app), body, query={"updateMask": mask_of(fields)})

    def _described(self, app: AppSpec) -> dict[str, Any]:
        source = self._bundles.source(app.spec.artifact)
        others = self._others(app)
        if app.spec.models:
            self._readers.allow(app.app, app.spec.models)
        return apps.described(app, self._settings, source=source, forwards=others, project=self._api.project)

    def _others(self, app: AppSpec) -> Mapping[str, str]:
        """Return the address of each app that requests are passed on to, and let this one call it."""
        found: dict[str, str] = {}
        for forward in app.forwards:
            function = self._api.find(FUNCTIONS, self._path(forward.app))
            uri = self._uri(function) if function is not None else ""
            if function is None or not uri:
                message = f"app {forward.app!r}, which is to get {forward.percent} % of the requests, is not there"
                raise AppError(ErrorCode.FAILED_PRECONDITION, message)
            config = function["serviceConfig"]
            runs_as = self._settings.service_account or str(config["serviceAccountEmail"])
            self._api.bind(RUN, f"/v2/{config['service']}", INVOKER, frozenset({f"serviceAccount:{runs_as}"}))
            found[forward.app] = uri
        return found

    def _open(self, app: AppSpec, found: Mapping[str, Any], *, public: bool) -> None:
        """Let everybody in at a front, or nobody any more but those who have the role by name."""
        service = (found.get("serviceConfig") or {}).get("service")
        if app.front and service:
            change = self._api.bind if public else self._api.unbind
            change(RUN, f"/v2/{service}", INVOKER, frozenset({EVERYBODY}))

    # --- looking ------------------------------------------------------------------------------------------------------------

    def get(self, app: str) -> AppStatus:
        """Describe a function."""
        return self._status(self._found(app))

    def list(self, *, labels: Mapping[str, str]) -> Iterator[AppStatus]:
        """Yield the functions that carry all these labels, by name."""
        wanted = labels.items()
        found = [each for each in self._all() if apps.app_of(each) and wanted <= apps.labels_of(each).items()]
        for function in sorted(found, key=apps.app_of):
            yield self._status(function)

    def _all(self) -> Iterator[dict[str, Any]]:
        return self._api.list(FUNCTIONS, self._collection, "functions")

    def _status(self, function: Mapping[str, Any]) -> AppStatus:
        app = AppSpec.from_json(apps.asked(function), apps.scaling_of(function))
        phase = apps.phase_of(function)
        return AppStatus(
            app=app,
            phase=phase,
            url=self._uri(function) or None,
            native_id=str(function["name"]),
            labels=apps.labels_of(function),
            reason=apps.reason_of(function),
            incomplete=app.front and self._is_incomplete(function, phase),
        )

    def _is_incomplete(self, function: Mapping[str, Any], phase: Phase) -> bool:
        if phase is Phase.READY:
            return self._settings.public and not self._is_open(function)
        return phase is Phase.PROVISIONING

    def _is_open(self, function: Mapping[str, Any]) -> bool:
        policy = self._api.policy(RUN, f"/v2/{function['serviceConfig']['service']}")
        return any(
            each["role"] == INVOKER and EVERYBODY in each["members"] and not each.get("condition")
            for each in policy.get("bindings") or ()
        )

    def _found(self, app: str) -> dict[str, Any]:
        found = self._api.find(FUNCTIONS, self._path(app))
        if found is None or apps.app_of(found) != app:
            raise AppError(ErrorCode.NOT_FOUND, f"there is no app {app!r}")
        return found

    def find(self, name: str, revision: int | None) -> Service:
        """Return where a function is called; its revision is another function to this platform."""
        found = self._found(name)
        uri = self._uri(found)
        if not uri:
            raise AppError(ErrorCode.UNAVAILABLE, f"app {name!r} has no address yet", retry_after=timedelta(seconds=1))
        return Service(url=uri, audience=uri)

    @staticmethod
    def _uri(function: Mapping[str, Any]) -> str:
        return str((function.get("serviceConfig") or {}).get("uri") or "").rstrip("/")

    # --- everything else ----------------------------------------------------------------------------------------------------

    def scale(self, app: str, scaling: Scaling) -> None:
        """Set the bounds in place: what is built already is started with them."""
        found = self._found(app)
        if apps.scaling_of(found) == scaling:
            return
        if found.get("state") == "DEPLOYING":
            raise self._busy(app, "changed")
        labels = {key: value for key, value in found["labels"].items() if key != MAX_LABEL}
        labels |= apps.max_label(scaling)
        if apps.phase_of(found) is Phase.READY:
            labels[READY_LABEL] = apps.mark_of(apps.asked(found))
        body = {"name": found["name"], "labels": labels, "serviceConfig": apps.scale_of(scaling)}
        fields = ("labels", "service_config.min_instance_count", "service_config.max_instance_count")
        self._api.call("PATCH", FUNCTIONS, self._path(app), body, query={"updateMask": mask_of(fields)})

    def logs(self, app: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the function wrote, oldest first; Cloud Logging has it some seconds after."""
        made = apps.moment(self._found(app).get("createTime"))
        return self._logs.read(app, since=max(filter(None, (since, made)), default=None))

    def remove(self, app: str) -> None:
        """Delete a function; its service, its image and its revisions go with it."""
        found = self._found(app)
        if found.get("state") == "DEPLOYING":
            raise self._busy(app, "changed")
        spec = AppSpec.from_json(apps.asked(found), Scaling()).spec
        if spec.models:
            self._readers.forget(app, spec.models)
        self._api.call("DELETE", FUNCTIONS, self._path(app))

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return why a revision cannot be under these settings."""
        return obstacles(spec, self._settings, split=split)

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return the permissions that the caller must have."""
        return permissions(spec, self._settings)

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the definition of a custom role of who deploys this."""
        return custom_role(spec, self._settings)

    def _check_owner(self, app: AppSpec, found: Mapping[str, Any]) -> None:
        if found.get("state") == "DELETING":
            raise self._busy(app.app, "deleted")
        if apps.app_of(found) != app.app or apps.labels_of(found).get(LABEL) != app.spec.labels.get(LABEL):
            message = f"function {app.app!r} exists and is not of this deployment: delete it, or choose another name"
            raise AppError(ErrorCode.ALREADY_EXISTS, message)

    def _busy(self, app: str, verb: str) -> AppError:
        message = f"function {app!r} is being {verb}: try again"
        return AppError(ErrorCode.UNAVAILABLE, message, retry_after=timedelta(seconds=self._settings.retry_s))

    @property
    def _collection(self) -> str:
        return f"/v2/{self._api.location}/functions"

    def _path(self, app: str) -> str:
        return f"{self._collection}/{piece(app)}"


def _built_of(spec: FunctionSpec) -> tuple[Artifact, str, Any]:
    return spec.artifact, spec.python, dict(spec.options)
