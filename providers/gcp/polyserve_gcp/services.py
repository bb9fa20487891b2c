"""What a service of Cloud Run is made of: its resource in the Cloud Run Admin API, from a revision and back. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyserve.driver import AppSpec, Artifact, FunctionSpec, FunctionStatus, Phase, RevisionStatus, Scaling
from polyserve_gcp.apps import labels_of, secret_of
from polyserve_gcp.names import MAX_LABEL, ROUTED, SPEC, attempt_of, number_of, revision_name, tag_of
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.sizes import concurrency_of, cpu_of, seconds_of

__all__ = ["MOST_OF_ONE", "Observed", "described", "scaled", "target", "template_of"]

MOST_OF_ONE = 100
"""Instances of a revision where nobody asks for more: "Maximum instances", Cloud Run's documentation, 2026-11."""
REVISION = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"
_STACKS = {"3.11": "google-22", "3.12": "google-22", "3.13": "google-22"}
_INGRESS = {
    "all": "INGRESS_TRAFFIC_ALL",
    "internal": "INGRESS_TRAFFIC_INTERNAL_ONLY",
    "internal-and-load-balancer": "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER",
}
_EGRESS = {"private": "PRIVATE_RANGES_ONLY", "all": "ALL_TRAFFIC"}
_PHASES = {"CONDITION_SUCCEEDED": Phase.READY, "CONDITION_FAILED": Phase.FAILED}


def described(spec: FunctionSpec, settings: GcpSettings) -> dict[str, Any]:
    """Return what a service has beside its revisions, as the API takes it."""
    return {
        "labels": {**spec.labels, **_max_label(spec.scaling)},
        "ingress": _INGRESS[settings.ingress],
        # A source without a build was in preview when this was written; what is generally available is allowed in it, too.
        "launchStage": "BETA",
        "scaling": _service_scaling(spec.scaling),
    }


def template_of(
    spec: FunctionSpec, settings: GcpSettings, *, source: Mapping[str, str], name: str, project: str
) -> dict[str, Any]:
    """Return the template of a revision, as the API takes it.

    Args:
        spec: The revision.
        settings: How functions run.
        source: Where its bundle is: bucket, object and generation.
        name: What it is called there.
        project: The project.
    """
    cpu = cpu_of(settings, spec.memory_mb)
    stack = _STACKS.get(spec.python, "google-24")
    runtime = f"python{spec.python.replace('.', '')}"
    container = {
        "image": "scratch",
        "baseImageUri": f"{settings.region}-docker.pkg.dev/serverless-runtimes/{stack}/runtimes/{runtime}",
        "sourceCode": {"cloudStorageSource": dict(source)},
        "command": ["python3"],
        "args": ["main.py"],
        "env": [*_variables(spec, settings), *_sealed(settings, project)],
        "ports": [{"name": "http1", "containerPort": 8080}],
        "resources": {
            "limits": {"cpu": f"{cpu:g}" if cpu >= 1 else f"{cpu * 1000:.0f}m", "memory": f"{spec.memory_mb}Mi"},
            "cpuIdle": True,
            # Twice the processors while it starts.
            "startupCpuBoost": True,
        },
    }
    found: dict[str, Any] = {
        "revision": name,
        "labels": dict(spec.labels),
        "annotations": {SPEC: spec.digest()},
        "scaling": {"maxInstanceCount": max(MOST_OF_ONE, spec.scaling.max_instances or 0)},
        "timeout": f"{seconds_of(spec.timeout.total_seconds())}s",
        "maxInstanceRequestConcurrency": concurrency_of(settings, cpu),
        "containers": [container],
    }
    if settings.service_account:
        found["serviceAccount"] = settings.service_account
    if settings.kms_key:
        found["encryptionKey"] = settings.kms_key
    if settings.vpc_connector:
        found["vpcAccess"] = {"connector": settings.vpc_connector, "egress": _EGRESS[settings.egress]}
    elif settings.network or settings.subnetwork:
        place = {"network": settings.network, "subnetwork": settings.subnetwork}
        interface = {name: value for name, value in place.items() if value}
        found["vpcAccess"] = {"networkInterfaces": [interface], "egress": _EGRESS[settings.egress]}
    return found


def _variables(spec: FunctionSpec, settings: GcpSettings) -> Iterator[dict[str, str]]:
    app = AppSpec(app=spec.name, spec=spec, front=False, scaling=spec.scaling)
    values = {**spec.environment, "POLYSERVE_APP": app.to_json()}
    if spec.models:
        values["POLYSERVE_STORAGE"] = settings.address("storage.googleapis.com")
    for name, value in sorted(values.items()):
        yield {"name": name, "value": value}


def _sealed(settings: GcpSettings, project: str) -> Iterator[dict[str, Any]]:
    for name, value in sorted(settings.sealed.items()):
        told = secret_of(value, project)
        place = (
            told["secret"] if told["projectId"] == project else f"projects/{told['projectId']}/secrets/{told['secret']}"
        )
        yield {"name": name, "valueSource": {"secretKeyRef": {"secret": place, "version": told["version"]}}}


def target(revision: str, percent: int, tag: str = "") -> dict[str, Any]:
    """Return a share of the traffic, as the API takes it."""
    found: dict[str, Any] = {"type": REVISION, "revision": revision}
    return found | ({"percent": percent} if percent else {}) | ({"tag": tag} if tag else {})


def scaled(labels: Mapping[str, str], scaling: Scaling) -> dict[str, Any]:
    """Return labels and bounds of a service, as the API takes them."""
    kept = {key: value for key, value in labels.items() if key != MAX_LABEL}
    return {"labels": {**kept, **_max_label(scaling)}, "scaling": _service_scaling(scaling)}


def _service_scaling(scaling: Scaling) -> dict[str, int]:
    found = {"minInstanceCount": scaling.min_instances}
    return found if scaling.max_instances is None else found | {"maxInstanceCount": scaling.max_instances}


def _max_label(scaling: Scaling) -> dict[str, str]:
    return {} if scaling.max_instances is None else {MAX_LABEL: str(scaling.max_instances)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A service and its revisions, as Cloud Run has them.

    Attributes:
        service: The service.
        natives: Its revisions by their native name.
    """

    service: Mapping[str, Any]
    natives: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The deployment."""
        return str(self.service["name"]).rpartition("/")[2]

    @property
    def uri(self) -> str:
        """The service's address."""
        return str(self.service.get("uri") or "").rstrip("/")

    @property
    def routed(self) -> bool:
        """Whether it was ever asked where its traffic is to go."""
        return ROUTED in (self.service.get("annotations") or {})

    @property
    def tagged(self) -> dict[int, str]:
        """Native name of each revision that there is: what has lost its tag is on its way out."""
        found = {
            number_of(each["revision"]): str(each["revision"])
            for each in self.service.get("traffic") or ()
            if each.get("tag") and each.get("revision") and each["tag"] == tag_of(number_of(each["revision"]))
        }
        return dict(sorted(found.items()))

    @property
    def shares(self) -> dict[str, int]:
        """Percent of the traffic that was asked for, by native name."""
        found: dict[str, int] = {}
        for each in self.service.get("traffic") or ():
            if each.get("revision") and each.get("percent"):
                found[each["revision"]] = found.get(each["revision"], 0) + int(each["percent"])
        return found

    def tag_uri(self, number: int) -> str:
        """Return where one revision is called; empty while that is not settled."""
        for each in self.service.get("trafficStatuses") or ():
            if each.get("tag") == tag_of(number) and each.get("revision") == self.tagged.get(number):
                return str(each.get("uri") or "").rstrip("/")
        return ""

    def next_name(self, number: int) -> str:
        """Return a name for a revision that no revision ever had."""
        taken = [attempt_of(name) for name in self.natives if number_of(name) == number]
        return revision_name(self.name, number, max(taken, default=0) + 1)

    def weights(self) -> dict[int, int]:
        """Return the percent of the traffic by revision; empty before the first routing, and while one is not settled."""
        if not self.routed:
            return {}
        found: dict[int, int] = {}
        for each in self.service.get("trafficStatuses") or ():
            number = number_of(str(each.get("revision") or ""))
            if each.get("percent"):
                found[number] = found.get(number, 0) + int(each["percent"])
        asked = {number_of(name): percent for name, percent in self.shares.items()}
        return dict(sorted(found.items())) if found == asked else {}

    def revisions(self) -> tuple[RevisionStatus, ...]:
        """Return the revisions, oldest first."""
        return tuple(self._revision(number, name) for number, name in self.tagged.items())

    def _revision(self, number: int, name: str) -> RevisionStatus:
        native = self.natives.get(name, {})
        phase, reason = self._phase(number, native)
        return RevisionStatus(
            number=number,
            spec_digest=str((native.get("annotations") or {}).get(SPEC) or self._asked_digest(name)),
            phase=phase,
            reason=reason,
        )

    def _asked_digest(self, name: str) -> str:
        """Return the digest of a revision that is not made yet: that of the template."""
        template = self.service.get("template") or {}
        return str((template.get("annotations") or {}).get(SPEC) or "") if template.get("revision") == name else ""

    def _phase(self, number: int, native: Mapping[str, Any]) -> tuple[Phase, str | None]:
        ready = _condition(native.get("conditions") or (), "Ready")
        phase = _PHASES.get(str(ready.get("state")), Phase.PROVISIONING)
        if phase is Phase.FAILED:
            return phase, str(ready.get("message") or "Cloud Run gives no reason: look at the log")
        if phase is Phase.READY and self.tag_uri(number):
            return phase, None
        # Neither made nor reachable, and nobody is at it: the service says why.
        said = self.service.get("terminalCondition") or {}
        if not self.service.get("reconciling") and said.get("state") == "CONDITION_FAILED":
            return Phase.FAILED, str(said.get("message") or "Cloud Run gives no reason: look at the log")
        return Phase.PROVISIONING, None

    def models(self) -> tuple[Artifact, ...]:
        """Return the files of models that its revisions read from the bucket."""
        told = (
            each.get("value") or ""
            for native in self.natives.values()
            for container in native.get("containers") or ()
            for each in container.get("env") or ()
            if each.get("name") == "POLYSERVE_APP"
        )
        return tuple(model for text in told for model in AppSpec.from_json(text, Scaling()).spec.models)

    def status(self) -> FunctionStatus:
        """Return all of it in the core's words."""
        service = self.service
        revisions = self.revisions()
        ready = any(revision.phase is Phase.READY for revision in revisions)
        said = service.get("terminalCondition") or {}
        state = _PHASES.get(str(said.get("state")), Phase.PROVISIONING)
        phase = Phase.READY if ready else state
        weights = self.weights()
        failed = self.routed and not weights and not service.get("reconciling") and state is Phase.FAILED
        scaling = service.get("scaling") or {}
        asked_for = (service.get("labels") or {}).get(MAX_LABEL)
        return FunctionStatus(
            name=self.name,
            phase=Phase.FAILED if failed else phase,
            url=self.uri or None if self.routed else None,
            revisions=revisions,
            weights=weights,
            scaling=Scaling(
                min_instances=int(scaling.get("minInstanceCount") or 0),
                max_instances=int(asked_for) if asked_for else None,
            ),
            labels=labels_of(service),
            native_id=str(service["name"]),
            reason=str(said.get("message") or "") or None if failed or phase is Phase.FAILED else None,
        )


def _condition(conditions: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    return next((each for each in conditions if each.get("type") == kind), {})
