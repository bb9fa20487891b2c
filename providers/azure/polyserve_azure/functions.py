"""Functions on Flex Consumption as a platform of apps: each app is a plan, a component for its log, a site and a published package.

Making one takes several calls, each of which must have settled before the next: plan, site, package. `put` does the next of them and
returns; `AppStatus.incomplete` says that there is another one. The plan is there first and goes last, so it has the tags by which an app
is found, whatever else there is of it; the site's settings have what it is asked to be. Once the app answered as that, the plan's tags
say so, and nobody has to wake it up to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from polyserve.driver import (
    LABEL,
    AppSpec,
    AppStatus,
    Artifact,
    ErrorCode,
    FunctionSpec,
    LogEvent,
    Phase,
    Scaling,
)
from polyserve_azure.blob import AzureStore
from polyserve_azure.callers import NOBODY, Callers
from polyserve_azure.errors import AppError, ServiceError, classify
from polyserve_azure.hosts import KEY_HEADER, app_url, host_key, scm_url
from polyserve_azure.logs import Logs
from polyserve_azure.names import (
    APP_TAG,
    ENTRA_TAG,
    FRONT_TAG,
    MARK_TAG,
    MAX_TAG,
    READY_TAG,
    REVISION_TAG,
    SPEC_TAG,
    package_container,
    site_name,
)
from polyserve_azure.obstacles import obstacles
from polyserve_azure.permissions import custom_role, permissions
from polyserve_azure.publish import Deployment, Publisher, moment, publish_mark
from polyserve_azure.readiness import Readiness, mark_of, probe
from polyserve_azure.resources import ResourceManager, Types
from polyserve_azure.settings import AzureSettings
from polyserve_azure.sites import described, hosting, reached, scale_of, scaling_of, settings_of
from polyserve_azure.storage import Accounts

__all__ = ["FlexPlatform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun(FunctionSpec):
    """A spec of which no more than the digest is known: the app was begun, and its site is not there yet."""

    recorded: str

    def digest(self) -> str:
        return self.recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """How far an app is.

    Attributes:
        phase: Where it is in its life.
        reason: Why it failed, if it did.
        incomplete: Whether there is something to do.
        publish: Whether that is to publish the package.
        ready: Whether that is to note that it is ready.
        guard: Whether that is to say who may call it.
    """

    phase: Phase = Phase.PROVISIONING
    reason: str | None = None
    incomplete: bool = False
    publish: bool = False
    ready: bool = False
    guard: bool = False


class FlexPlatform:
    """Function apps. Implements `polyserve.driver.AppPlatform`.

    Args:
        settings: How apps run.
        manager: Calls Azure.
        accounts: The storage account that bundles and packages are in.
        callers: Who may call apps.
    """

    def __init__(self, settings: AzureSettings, manager: ResourceManager, accounts: Accounts, callers: Callers) -> None:
        self._settings = settings
        self._manager = manager
        self._accounts = accounts
        self._callers = callers
        self._logs = Logs(settings, manager)
        self._publisher = Publisher(manager)
        # Of the hosts that were seen to have one; asked for anew once it is refused.
        self._keys: dict[str, str] = {}
        # Descriptions by their marks, which sites have in their tags: it takes a call for each site to read its settings.
        self._texts: dict[str, str] = {}

    # --- making -------------------------------------------------------------------------------------------------------------

    def put(self, app: AppSpec) -> None:
        """Do the next thing that makes an app be this, if there is one to do."""
        if told := obstacles(app.spec):
            raise AppError(ErrorCode.INVALID_ARGUMENT, "; ".join(told))
        name = site_name(self._settings, app.app)
        plan = self._manager.find(Types.PLAN, name)
        if plan is not None:
            _check_owner(app, name, plan)
        if plan is None or plan["properties"].get("provisioningState") == "Failed":
            self._check_bundle(app.spec.artifact)
            self._check_region(app.spec)
            plan = self._put_plan(name, _tags(app))
        if plan["properties"].get("provisioningState", "Succeeded") != "Succeeded":
            return
        site = self._manager.find(Types.SITE, name)
        if site is None:
            self._check_bundle(app.spec.artifact)
            self._put_site(app, name, plan, before={})
            return
        _check_owner(app, name, site)
        given = self._manager.post(Types.SITE, name, "config", "appsettings", "list")["properties"]
        if given.get("POLYSERVE_APP") != app.to_json():
            self._check_bundle(app.spec.artifact)
            settled = plan["tags"].get(READY_TAG) == mark_of(given.get("POLYSERVE_APP", ""))
            before = {**given, "settled": "1" if settled else ""}
            self._put_site(app, name, plan, before=before, site=site)
            return
        progress = self._progress(app, plan, site)
        if progress.guard:
            self._callers.settle(name, site["tags"])
        elif progress.publish:
            store = AzureStore(self._accounts, self._settings, app.spec.artifact.bucket)
            self._publisher.publish(scm_url(self._settings, site), store, app.spec.artifact)
        elif progress.ready:
            self._put_plan(name, {**plan["tags"], READY_TAG: mark_of(app.to_json())})

    def _put_plan(self, name: str, tags: Mapping[str, str]) -> dict[str, Any]:
        body = {
            "location": self._settings.location,
            "kind": "functionapp",
            "sku": {"name": "FC1", "tier": "FlexConsumption"},
            "tags": dict(tags),
            "properties": {"reserved": True},
        }
        return self._manager.put(Types.PLAN, name, body).body

    def _put_site(
        self,
        app: AppSpec,
        name: str,
        plan: Mapping[str, Any],
        *,
        before: Mapping[str, str],
        site: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the site, or change what it is asked to be; the package that it has stays until another one is published."""
        access, container = self._accounts.access(), package_container(name)
        if not before:
            self._keys.pop(name, None)
            self._accounts.ensure_container(container)
        tags = _tags(app) | self._callers.tags(front=app.front, site=site) | {MARK_TAG: mark_of(app.to_json())}
        if site is not None and tags.get(ENTRA_TAG, NOBODY) != NOBODY:
            # First, so that it is never open to everybody: the package that is there is about to want no key.
            self._callers.settle(name, tags)
        others = self._others(app, before)
        values = settings_of(
            app,
            self._settings,
            reached(access, self._client_of(self._settings.app_identity)),
            logs=self._logs.ensure(name, _tags(app)),
            callers="entra" if tags.get(ENTRA_TAG, NOBODY) != NOBODY else "",
            others=others,
            before=before,
        )
        place = f"{access.endpoint}/{container}"
        body = described(app, self._settings, str(plan["id"]), place=place, values=values, tags=tags)
        self._manager.put(Types.SITE, name, body)

    def _client_of(self, identity: str) -> str:
        """Return the identifier of an identity's client; empty where there is no identity."""
        if not identity:
            return ""
        return str(self._manager.call("GET", identity, Types.IDENTITY[1]).body["properties"]["clientId"])

    def _others(self, app: AppSpec, before: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Return address and key of each app that requests are passed on to, now or until this one is ready."""
        found: dict[str, Mapping[str, str]] = {}
        for forward in app.forwards:
            name = site_name(self._settings, forward.app)
            site = self._manager.find(Types.SITE, name)
            if site is None:
                message = f"app {forward.app!r}, which is to get {forward.percent} % of the requests, is not there"
                raise AppError(ErrorCode.FAILED_PRECONDITION, message)
            found[forward.app] = {"url": app_url(self._settings, site), "key": host_key(self._manager, name)}
        return found

    def _check_bundle(self, artifact: Artifact) -> None:
        """Refuse a bundle that is not there or is another, before anything is made."""
        meta = AzureStore(self._accounts, self._settings, artifact.bucket).head(artifact.key)
        told = meta.metadata.get("sha256", artifact.sha256)
        if told != artifact.sha256 or meta.size != artifact.size:
            message = f"bundle {artifact.key!r} has sha256 {told[:12]} and not {artifact.sha256[:12]}: upload it again"
            raise AppError(ErrorCode.FAILED_PRECONDITION, message)

    def _check_region(self, spec: FunctionSpec) -> None:
        """Refuse what the region does not offer."""
        location = self._settings.location
        group, _, _ = self._manager.group_path().rpartition("/resourceGroups/")
        path = f"{group}/providers/{Types.STACKS[0]}/{location}/functionAppStacks"
        answer = self._manager.call("GET", path, Types.STACKS[1], stack="python", sku="FC1").body
        offered = hosting(answer)
        if not offered:
            message = f"region {location!r} has no Flex Consumption: choose another location"
            raise AppError(ErrorCode.FAILED_PRECONDITION, message)
        if spec.python not in offered:
            versions = ", ".join(sorted(offered))
            message = (
                f"region {location!r} has no Python {spec.python}, but {versions}: package the model under one of them"
            )
            raise AppError(ErrorCode.FAILED_PRECONDITION, message)
        if spec.memory_mb not in offered[spec.python]:
            choices = ", ".join(map(str, sorted(offered[spec.python])))
            message = f"memory_mb is {spec.memory_mb}, and region {location!r} has {choices}: choose one of them"
            raise AppError(ErrorCode.INVALID_ARGUMENT, message)

    # --- looking ------------------------------------------------------------------------------------------------------------

    def get(self, app: str) -> AppStatus:
        """Describe an app."""
        name = site_name(self._settings, app)
        plan = self._manager.find(Types.PLAN, name)
        if plan is None or _app_of(plan) != app:
            raise AppError(ErrorCode.NOT_FOUND, f"there is no app {app!r}")
        return self._status(plan, self._manager.find(Types.SITE, name))

    def list(self, *, labels: Mapping[str, str]) -> Iterator[AppStatus]:
        """Yield the apps that carry all these labels, by name."""
        wanted = labels.items()
        plans = [plan for plan in self._manager.list(Types.PLAN) if _app_of(plan) and wanted <= _labels(plan).items()]
        if not plans:
            return
        sites = {str(site["name"]): site for site in self._manager.list(Types.SITE)}
        for plan in sorted(plans, key=_app_of):
            yield self._status(plan, sites.get(str(plan["name"])))

    def _status(self, plan: Mapping[str, Any], site: Mapping[str, Any] | None) -> AppStatus:
        text = "" if site is None else self._text(site)
        if site is None or not text:
            return _begun(plan)
        app = AppSpec.from_json(text, scaling_of(site))
        progress = self._progress(app, plan, site)
        return AppStatus(
            app=app,
            phase=progress.phase,
            url=app_url(self._settings, site),
            native_id=str(site["id"]),
            labels=_labels(plan),
            reason=progress.reason,
            incomplete=progress.incomplete,
        )

    def _text(self, site: Mapping[str, Any]) -> str:
        """Return the description in a site's settings; empty where it is being deleted."""
        mark = (site.get("tags") or {}).get(MARK_TAG, "")
        if mark not in self._texts:
            try:
                given = self._manager.post(Types.SITE, str(site["name"]), "config", "appsettings", "list")
            except ServiceError as error:
                if error.status != 404:
                    raise
                return ""
            text: str = given["properties"].get("POLYSERVE_APP", "")
            if mark_of(text) != mark:
                return text
            self._texts[mark] = text
        return self._texts[mark]

    def _progress(self, app: AppSpec, plan: Mapping[str, Any], site: Mapping[str, Any]) -> _Progress:
        if (plan.get("tags") or {}).get(READY_TAG) == mark_of(app.to_json()):
            return _Progress(phase=Phase.READY)
        try:
            key = self._key(str(site["name"]))
        except (AppError, ServiceError) as error:
            if classify(error) is not ErrorCode.UNAVAILABLE:
                raise
            # The host of a site that was just made: nothing can be done before it has keys.
            return _Progress()
        if not self._callers.settled(site):
            return _Progress(incomplete=True, guard=True)
        deployment = self._publisher.latest(scm_url(self._settings, site))
        if deployment is None or deployment.mark != publish_mark(app.spec.artifact):
            busy = deployment is not None and deployment.running
            return _Progress(incomplete=not busy, publish=not busy)
        if deployment.running or deployment.failed:
            failed = _Progress(phase=Phase.FAILED, reason=deployment.reason, publish=True)
            return failed if deployment.failed else _Progress()
        return self._looked_at(app, site, key, deployment)

    def _key(self, site: str) -> str:
        if site not in self._keys:
            self._keys[site] = host_key(self._manager, site)
        return self._keys[site]

    def _looked_at(self, app: AppSpec, site: Mapping[str, Any], key: str, deployment: Deployment) -> _Progress:
        """Return what an app shows itself, whose package was published."""
        shown = {KEY_HEADER: key} if ENTRA_TAG not in site["tags"] else self._callers.headers(site)
        seen = probe(self._manager.client, app_url(self._settings, site), shown, app)
        if seen.refused:
            self._keys.pop(str(site["name"]), None)
        if seen.verdict is Readiness.READY:
            return _Progress(incomplete=True, ready=True)
        since = max(filter(None, (deployment.ended_at, _changed_at(site))), default=None)
        patient = since is None or datetime.now(UTC) - since < timedelta(seconds=self._settings.patience_s)
        if seen.verdict is Readiness.WAITING and patient:
            return _Progress()
        return _Progress(phase=Phase.FAILED, reason=seen.reason, publish=True)

    # --- everything else ----------------------------------------------------------------------------------------------------

    def scale(self, app: str, scaling: Scaling) -> None:
        """Set the bounds in place."""
        site = self._manager.find(Types.SITE, site_name(self._settings, app))
        if site is None or _app_of(site) != app:
            self._missing_site(app)
            return
        config = dict(site["properties"]["functionAppConfig"])
        memory = int(config["scaleAndConcurrency"]["instanceMemoryMB"])
        config["scaleAndConcurrency"] = scale_of(memory, scaling, self._settings)
        tags = {key: value for key, value in site["tags"].items() if key != MAX_TAG} | _max_tag(scaling)
        path = self._manager.path(Types.SITE, str(site["name"]))
        body = {"tags": tags, "properties": {"functionAppConfig": config}}
        self._manager.call("PATCH", path, Types.SITE[1], body)

    def _missing_site(self, app: str) -> None:
        status = self.get(app)
        # The bounds of an app that was only begun are those of the next `put`.
        assert status.incomplete

    def logs(self, app: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the app wrote, oldest first; Azure has it some minutes after."""
        name = site_name(self._settings, app)
        plan = self._manager.find(Types.PLAN, name)
        if plan is None or _app_of(plan) != app:
            raise AppError(ErrorCode.NOT_FOUND, f"there is no app {app!r}")
        return self._logs.read(name, since=since)

    def remove(self, app: str) -> None:
        """Delete an app: site, log, package and, last, the plan by which it is found."""
        name = site_name(self._settings, app)
        plan, site = self._manager.find(Types.PLAN, name), self._manager.find(Types.SITE, name)
        if not any(found is not None and _app_of(found) == app for found in (plan, site)):
            raise AppError(ErrorCode.NOT_FOUND, f"there is no app {app!r}")
        if site is not None and _app_of(site) == app:
            self._manager.delete(Types.SITE, name, deleteEmptyServerFarm="false")
        self._logs.delete(name)
        self._accounts.delete_container(package_container(name))
        self._manager.delete(Types.PLAN, name)

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return why a revision cannot be."""
        return obstacles(spec)

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return the actions that the caller must be allowed."""
        return permissions(self._settings)

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the definition of a custom role of who deploys this."""
        return custom_role(spec, self._settings)


_OWN = frozenset({APP_TAG, ENTRA_TAG, FRONT_TAG, MARK_TAG, MAX_TAG, READY_TAG, REVISION_TAG, SPEC_TAG})


def _tags(app: AppSpec) -> dict[str, str]:
    return {
        **app.spec.labels,
        APP_TAG: app.app,
        REVISION_TAG: str(app.spec.revision),
        FRONT_TAG: "1" if app.front else "0",
        SPEC_TAG: app.spec.digest(),
        **_max_tag(app.scaling),
    }


def _max_tag(scaling: Scaling) -> dict[str, str]:
    return {} if scaling.max_instances is None else {MAX_TAG: str(scaling.max_instances)}


def _labels(resource: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in (resource.get("tags") or {}).items() if key not in _OWN}


def _app_of(resource: Mapping[str, Any]) -> str:
    return str((resource.get("tags") or {}).get(APP_TAG, ""))


def _check_owner(app: AppSpec, name: str, found: Mapping[str, Any]) -> None:
    if _app_of(found) != app.app or _labels(found).get(LABEL) != app.spec.labels.get(LABEL):
        message = f"{name!r} exists and is not of this deployment: delete it, or choose another name or app_suffix"
        raise AppError(ErrorCode.ALREADY_EXISTS, message)


def _changed_at(site: Mapping[str, Any]) -> datetime | None:
    return moment(site["properties"].get("lastModifiedTimeUtc"))


def _begun(plan: Mapping[str, Any]) -> AppStatus:
    tags, labels = plan["tags"], _labels(plan)
    bound = tags.get(MAX_TAG)
    scaling = Scaling(max_instances=int(bound) if bound else None)
    spec = _Begun(
        name=labels.get(LABEL, ""),
        revision=int(tags.get(REVISION_TAG, "0")),
        artifact=Artifact(bucket="", key="", sha256="", size=0),
        package_digest="",
        entrypoint="",
        python="",
        architecture="",
        requirements=(),
        memory_mb=0,
        timeout=timedelta(0),
        environment={},
        request_bytes=0,
        scaling=scaling,
        labels=labels,
        recorded=tags.get(SPEC_TAG, ""),
    )
    app = AppSpec(app=_app_of(plan), spec=spec, front=tags.get(FRONT_TAG) == "1", scaling=scaling)
    settled = plan["properties"].get("provisioningState", "Succeeded") in {"Succeeded", "Failed"}
    return AppStatus(
        app=app, phase=Phase.PROVISIONING, url=None, native_id=str(plan["id"]), labels=labels, incomplete=settled
    )
