"""Cloud Run itself as a function platform: a service for each deployment, with revisions and weights of its own, and nothing is built.

The bundle is deployed as it is, upon Google's image of its Python. A revision is what has a tag: by its tag it is called whatever its
traffic, and what has none any more is on its way out. A new service has its first revision's traffic from the first moment; nobody is told
its address before it is routed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from polyserve.driver import LABEL, ErrorCode, FunctionSpec, FunctionStatus, LogEvent, Phase, Scaling
from polyserve_gcp.apps import labels_of, moment
from polyserve_gcp.bundles import Bundles
from polyserve_gcp.errors import AppError, ServiceError
from polyserve_gcp.google_api import RUN, GoogleApi, mask_of, piece
from polyserve_gcp.invoker import Service
from polyserve_gcp.logs import Logs
from polyserve_gcp.names import ROUTED, SPEC, number_of, revision_name, tag_of
from polyserve_gcp.obstacles import obstacles, refuse
from polyserve_gcp.permissions import custom_role, permissions
from polyserve_gcp.reading import ModelReaders
from polyserve_gcp.services import MOST_OF_ONE, Observed, described, scaled, target, template_of
from polyserve_gcp.settings import GcpSettings

__all__ = ["RunPlatform"]

SOON = timedelta(seconds=2)


class RunPlatform:
    """Services of Cloud Run. Implements `polyserve.driver.FunctionPlatform`.

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

    # --- revisions ----------------------------------------------------------------------------------------------------------

    def apply(self, spec: FunctionSpec) -> FunctionStatus:
        """Make a revision, with a tag and without traffic, unless it is there."""
        refuse(spec, self._settings)
        service = self._api.find(RUN, self._path(spec.name))
        if service is None:
            self._create(spec)
            return self.describe(spec.name)
        _check_owner(spec, service)
        found = self._observed(service)
        present = next((each for each in found.revisions() if each.number == spec.revision), None)
        if present is not None and present.spec_digest != spec.digest():
            message = f"revision {spec.revision} of {spec.name!r} exists and is another"
            raise AppError(ErrorCode.ALREADY_EXISTS, message)
        if present is None or present.phase is Phase.FAILED:
            self._add(spec, found)
            return self.describe(spec.name)
        return found.status()

    def _create(self, spec: FunctionSpec) -> None:
        name = revision_name(spec.name, spec.revision)
        body = {
            **described(spec, self._settings),
            "template": self._template(spec, name),
            "traffic": [target(name, 100, tag_of(spec.revision))],
        }
        self._api.call("POST", RUN, self._collection, body, query={"serviceId": spec.name})

    def _add(self, spec: FunctionSpec, found: Observed) -> None:
        name = found.next_name(spec.revision)
        others = self._kept(found, without=spec.revision)
        shares = {each: percent for each, percent in found.shares.items() if number_of(each) in others}
        if not shares:
            # Something has to have it; as long as nothing was routed, nobody knows the address.
            shares = {name: 100}
        traffic = [target(each, percent) for each, percent in sorted(shares.items())]
        tags = {**others, spec.revision: name}
        traffic += [target(each, 0, tag_of(number)) for number, each in sorted(tags.items())]
        service = described(spec, self._settings)
        body = {
            "name": found.service["name"],
            # Bounds belong to the function: a later revision leaves them, and the labels that say so, as they are.
            "ingress": service["ingress"],
            "launchStage": service["launchStage"],
            "template": self._template(spec, name),
            "traffic": traffic,
        }
        mask = mask_of(("ingress", "launch_stage", "template", "traffic"))
        self._api.call("PATCH", RUN, self._path(spec.name), body, query={"updateMask": mask})

    def _template(self, spec: FunctionSpec, name: str) -> dict[str, Any]:
        source = self._bundles.source(spec.artifact)
        made = template_of(spec, self._settings, source=source, name=name, project=self._api.project)
        if spec.models:
            self._readers.allow(spec.name, spec.models)
        return made

    @staticmethod
    def _kept(found: Observed, *, without: int = 0) -> dict[int, str]:
        """Return the tags of the revisions that can have traffic: with one that cannot, Cloud Run routes none of it."""
        failed = {each.number for each in found.revisions() if each.phase is Phase.FAILED}
        return {number: name for number, name in found.tagged.items() if number != without and number not in failed}

    # --- looking ------------------------------------------------------------------------------------------------------------

    def describe(self, name: str) -> FunctionStatus:
        """Describe a function."""
        return self._found(name).status()

    def list(self, *, labels: Mapping[str, str]) -> Iterator[FunctionStatus]:
        """Yield the functions that carry all these labels, by name."""
        wanted = labels.items()
        services = list(self._api.list(RUN, self._collection, "services"))
        for service in sorted(services, key=lambda each: str(each["name"])):
            if _is_ours(service) and wanted <= labels_of(service).items():
                yield self._observed(service).status()

    def _found(self, name: str) -> Observed:
        service = self._api.find(RUN, self._path(name))
        if service is None or not _is_ours(service):
            raise AppError(ErrorCode.NOT_FOUND, f"there is no function {name!r}")
        return self._observed(service)

    def _observed(self, service: Mapping[str, Any]) -> Observed:
        path = f"{self._path(str(service['name']).rpartition('/')[2])}/revisions"
        natives = {str(each["name"]).rpartition("/")[2]: each for each in self._api.list(RUN, path, "revisions")}
        return Observed(service=service, natives=natives)

    def find(self, name: str, revision: int | None) -> Service:
        """Return where a function, or one revision of it, is called. A token is always for the service's own address."""
        found = self._found(name)
        public = bool(found.service.get("invokerIamDisabled"))
        if revision is None:
            if not found.routed:
                raise AppError(ErrorCode.NOT_FOUND, f"function {name!r} has no traffic yet")
            if not found.uri:
                raise AppError(ErrorCode.UNAVAILABLE, f"function {name!r} has no address yet", retry_after=SOON)
            return Service(url=found.uri, audience=found.uri, public=public)
        if revision not in found.tagged:
            raise AppError(ErrorCode.NOT_FOUND, f"{name!r} has no revision {revision}")
        uri = found.tag_uri(revision)
        if not uri:
            message = f"revision {revision} of {name!r} has no address yet"
            raise AppError(ErrorCode.UNAVAILABLE, message, retry_after=SOON)
        return Service(url=uri, audience=found.uri, public=public)

    # --- traffic and bounds -------------------------------------------------------------------------------------------------

    def route(self, name: str, weights: Mapping[int, int]) -> None:
        """Set the percent of traffic by revision."""
        found = self._found(name)
        used = {number: percent for number, percent in weights.items() if percent}
        if sum(used.values()) != 100 or min(used.values()) < 0:
            message = f"weights must be 0 to 100 and add up to 100, not {dict(weights)}"
            raise AppError(ErrorCode.INVALID_ARGUMENT, message)
        for number in weights:
            if number not in found.tagged:
                raise AppError(ErrorCode.FAILED_PRECONDITION, f"{name!r} has no revision {number}")
        public = bool(found.service.get("invokerIamDisabled"))
        if found.weights() == used and public == self._settings.public:
            return
        traffic = [target(found.tagged[number], percent) for number, percent in sorted(used.items())]
        tags = self._kept(found) | {number: found.tagged[number] for number in used}
        traffic += [target(each, 0, tag_of(number)) for number, each in sorted(tags.items())]
        body: dict[str, Any] = {
            "name": found.service["name"],
            "annotations": {**(found.service.get("annotations") or {}), ROUTED: "1"},
            "traffic": traffic,
        }
        fields = ["annotations", "traffic"]
        if public != self._settings.public:
            # Not before it was verified: callers come with the first routing.
            body["invokerIamDisabled"] = self._settings.public
            fields.append("invoker_iam_disabled")
        self._patch(name, body, *fields)

    def scale(self, name: str, scaling: Scaling) -> None:
        """Set the bounds of the service, which its revisions share."""
        found = self._found(name)
        if found.status().scaling == scaling:
            return
        for each in found.shares:
            bound = ((found.natives.get(each) or {}).get("scaling") or {}).get("maxInstanceCount") or MOST_OF_ONE
            if (scaling.max_instances or 0) > int(bound):
                message = (
                    f"revision {number_of(each)} of {name!r} was made for {bound} instances at most, and {scaling.max_instances} are "
                    "asked for: deploy again with that bound"
                )
                raise AppError(ErrorCode.FAILED_PRECONDITION, message)
        body = {"name": found.service["name"], **scaled(found.service.get("labels") or {}, scaling)}
        self._patch(name, body, "labels", "scaling")

    def _patch(self, name: str, body: Mapping[str, Any], *fields: str) -> None:
        self._api.call("PATCH", RUN, self._path(name), body, query={"updateMask": mask_of(fields)})

    # --- everything else ----------------------------------------------------------------------------------------------------

    def logs(self, name: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the function wrote, oldest first; Cloud Logging has it some seconds after."""
        made = moment(self._found(name).service.get("createTime"))
        return self._logs.read(name, since=max(filter(None, (since, made)), default=None), number=number_of)

    def remove_revision(self, name: str, number: int) -> None:
        """Delete one revision that has no traffic. The newest that was made stays, without its tag: Cloud Run keeps that one."""
        found = self._found(name)
        native = found.tagged.get(number)
        if native is None:
            raise AppError(ErrorCode.NOT_FOUND, f"{name!r} has no revision {number}")
        if found.routed and found.shares.get(native):
            message = f"revision {number} of {name!r} has traffic: route it elsewhere first"
            raise AppError(ErrorCode.FAILED_PRECONDITION, message)
        others = self._kept(found, without=number)
        shares = {each: percent for each, percent in found.shares.items() if each != native}
        if not shares and others:
            shares = {others[max(others)]: 100}
        if not shares:
            raise AppError(
                ErrorCode.FAILED_PRECONDITION, f"revision {number} is all that {name!r} has: destroy the deployment"
            )
        traffic = [target(each, percent) for each, percent in sorted(shares.items())]
        traffic += [target(each, 0, tag_of(other)) for other, each in sorted(others.items())]
        self._patch(name, {"name": found.service["name"], "traffic": traffic}, "traffic")
        self._sweep(found, native)

    def _sweep(self, found: Observed, native: str) -> None:
        path = f"{self._path(found.name)}/revisions/{piece(native)}"
        try:
            self._api.call("DELETE", RUN, path)
        except ServiceError as error:
            # Without a tag it is no revision of ours; it goes with the service, or costs nothing.
            if error.status not in {400, 404, 409, 412}:
                raise

    def delete(self, name: str) -> None:
        """Delete a function: the service with its revisions."""
        found = self._found(name)
        models = found.models()
        if models:
            self._readers.forget(name, models)
        self._api.call("DELETE", RUN, self._path(name))

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return why a revision cannot be under these settings."""
        return obstacles(spec, self._settings, split=split)

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return the permissions that the caller must have."""
        return permissions(spec, self._settings)

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the definition of a custom role of who deploys this."""
        return custom_role(spec, self._settings)

    @property
    def _collection(self) -> str:
        return f"/v2/{self._api.location}/services"

    def _path(self, name: str) -> str:
        return f"{self._collection}/{piece(name)}"


def _is_ours(service: Mapping[str, Any]) -> bool:
    labels = service.get("labels") or {}
    template = service.get("template") or {}
    marked = SPEC in (template.get("annotations") or {})
    return marked and LABEL in labels and not service.get("deleteTime")


def _check_owner(spec: FunctionSpec, service: Mapping[str, Any]) -> None:
    if service.get("deleteTime"):
        raise AppError(ErrorCode.UNAVAILABLE, f"service {spec.name!r} is being deleted: try again", retry_after=SOON)
    if not _is_ours(service) or labels_of(service).get(LABEL) != spec.labels.get(LABEL):
        message = f"service {spec.name!r} exists and is not of this deployment: delete it, or choose another name"
        raise AppError(ErrorCode.ALREADY_EXISTS, message)
