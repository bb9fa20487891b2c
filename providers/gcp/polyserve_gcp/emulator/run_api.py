"""The Cloud Run Admin API: `google.cloud.run.v2.Services` and `Revisions`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf import json_format

from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.asking import Ask, Handler, admit, split_name
from polyserve_gcp.emulator.errors import ServiceError, denied, invalid
from polyserve_gcp.emulator.identities import Principal
from polyserve_gcp.emulator.masks import replace_fields
from polyserve_gcp.emulator.operations import Operations
from polyserve_gcp.emulator.run_rules import FIXED, LATEST, ONE_REVISION, check_service_id, complete
from polyserve_gcp.emulator.services import Revision, Service, Services

SERVICES, REVISIONS = "google.cloud.run.v2.Services", "google.cloud.run.v2.Revisions"
_OK, _FAILED = run_v2.Condition.State.CONDITION_SUCCEEDED, run_v2.Condition.State.CONDITION_FAILED
_WAITING = run_v2.Condition.State.CONDITION_RECONCILING


class RunApi:
    """Answers the methods of the API.

    Args:
        services: The services.
        operations: What takes time.
        access: Who may do what.
    """

    def __init__(self, services: Services, operations: Operations, access: Access) -> None:
        self._services, self._operations, self._access = services, operations, access

    def handlers(self) -> dict[str, Handler]:
        """Return what answers each method."""
        return {
            f"{SERVICES}/CreateService": self._create,
            f"{SERVICES}/GetService": self._get,
            f"{SERVICES}/ListServices": self._list,
            f"{SERVICES}/UpdateService": self._update,
            f"{SERVICES}/DeleteService": self._delete,
            f"{SERVICES}/GetIamPolicy": self._get_policy,
            f"{SERVICES}/SetIamPolicy": self._set_policy,
            f"{SERVICES}/TestIamPermissions": self._test_permissions,
            f"{REVISIONS}/GetRevision": self._get_revision,
            f"{REVISIONS}/ListRevisions": self._list_revisions,
            f"{REVISIONS}/DeleteRevision": self._delete_revision,
        }

    async def _create(self, ask: Ask) -> Any:
        request = ask.request
        principal = admit(self._access, ask, "run.services.create", request.parent)
        return await self._make(principal, request.parent, request.service_id, request.service, request.validate_only)

    async def _make(self, principal: Principal, parent: str, name: str, given: Any, validate_only: bool) -> Any:
        check_service_id(name)
        full = f"{parent}/services/{name}"
        if given.name and given.name != full:
            raise invalid(f"service.name: must be empty or '{full}'.")
        if self._services.find(full) is not None:
            raise ServiceError("ALREADY_EXISTS", f"Resource '{name}' already exists.")
        blank = run_v2.Service()
        wanted = self._complete(replace_fields(blank, given, (), fixed=FIXED), principal, full)
        self._services.check(None, name, wanted)
        if validate_only:
            return self._operations.finished(
                parent, run_v2.Service(wanted, name=full), run_v2.Service(wanted, name=full)
            )
        service = await self._services.add(full, wanted, principal.email)
        return self._roll_out(service, parent)

    async def _update(self, ask: Ask) -> Any:
        request = ask.request
        given = request.service
        parent, name = split_name(given.name, "services")
        service = self._services.find(given.name)
        if service is None and request.allow_missing:
            principal = admit(self._access, ask, "run.services.create", parent)
            return await self._make(principal, parent, name, given, request.validate_only)
        principal = admit(self._access, ask, "run.services.update", given.name)
        if service is None:
            raise _missing(given.name)
        _check_etag(given.etag, service)
        wanted = replace_fields(service.wanted, given, request.update_mask.paths, fixed=FIXED)
        wanted = self._complete(wanted, principal, service.name, service.wanted)
        self._services.check(service, name, wanted)
        if request.validate_only:
            shown = run_v2.Service(wanted, name=service.name)
            return self._operations.finished(parent, shown, shown)
        self._services.want(service, wanted, principal.email)
        return self._roll_out(service, parent)

    def _roll_out(self, service: Service, parent: str) -> Any:
        wanted = service.wanted
        service.changing += 1

        async def work() -> Any:
            service.changing -= 1
            await self._services.roll_out(service, wanted)
            return show_service(service)

        return self._operations.start(parent, lambda: show_service(service), work)

    def _complete(self, given: Any, principal: Principal, name: str, before: Any = None) -> Any:
        """Return a service with everything filled in, if the caller may have it so."""
        wanted = complete(given, self._access.identities.default_account.email)
        account = wanted.template.service_account
        if before is None or account != before.template.service_account:
            check_account(self._access, principal, account)
        if wanted.invoker_iam_disabled and not (before is not None and before.invoker_iam_disabled):
            self._access.demand(principal, "run.services.setIamPolicy", name)
        return wanted

    async def _get(self, ask: Ask) -> Any:
        admit(self._access, ask, "run.services.get", ask.request.name)
        return show_service(self._found(ask.request.name))

    async def _list(self, ask: Ask) -> Any:
        request = ask.request
        admit(self._access, ask, "run.services.list", request.parent)
        if request.parent.endswith("/-"):
            raise invalid("parent: the location must be named.")
        found = sorted(
            (one for one in self._services if one.name.startswith(f"{request.parent}/services/")),
            key=lambda one: one.name,
        )
        page, token = cut_page(found, request.page_size, request.page_token, 1000)
        return run_v2.ListServicesResponse(services=[show_service(one) for one in page], next_page_token=token)

    async def _delete(self, ask: Ask) -> Any:
        request = ask.request
        admit(self._access, ask, "run.services.delete", request.name)
        service = self._found(request.name)
        _check_etag(request.etag, service)
        parent, _ = split_name(request.name, "services")
        shown = show_service(service)
        if request.validate_only:
            return self._operations.finished(parent, shown, shown)

        async def work() -> Any:
            await self._services.remove(service)
            return shown

        return self._operations.start(parent, lambda: shown, work)

    async def _get_policy(self, ask: Ask) -> Any:
        admit(self._access, ask, "run.services.getIamPolicy", ask.request.resource)
        return show_policy(self._access, self._found(ask.request.resource).name)

    async def _set_policy(self, ask: Ask) -> Any:
        admit(self._access, ask, "run.services.setIamPolicy", ask.request.resource)
        if ask.request.update_mask.paths:
            raise invalid("update_mask: the emulator sets whole policies.")
        service = self._found(ask.request.resource)
        self._access.set_policy(service.name, json_format.MessageToDict(ask.request.policy))
        return show_policy(self._access, service.name)

    async def _test_permissions(self, ask: Ask) -> Any:
        principal = self._access.enter(ask.call, ask.api)
        held = self._access.test(principal, ask.request.permissions, ask.request.resource)
        return iam_policy_pb2.TestIamPermissionsResponse(permissions=held)

    async def _get_revision(self, ask: Ask) -> Any:
        admit(self._access, ask, "run.revisions.get", ask.request.name)
        return show_revision(*self._found_revision(ask.request.name))

    async def _list_revisions(self, ask: Ask) -> Any:
        request = ask.request
        admit(self._access, ask, "run.revisions.list", request.parent)
        service = self._found(request.parent)
        page, token = cut_page(list(reversed(service.revisions.values())), request.page_size, request.page_token, 1000)
        shown = [show_revision(service, one) for one in page]
        return run_v2.ListRevisionsResponse(revisions=shown, next_page_token=token)

    async def _delete_revision(self, ask: Ask) -> Any:
        request = ask.request
        admit(self._access, ask, "run.revisions.delete", request.name)
        service, revision = self._found_revision(request.name)
        shown = show_revision(service, revision)
        if request.etag and request.etag != shown.etag:
            raise _changed(request.name)
        parent, _ = split_name(service.name, "services")
        if request.validate_only:
            return self._operations.finished(parent, shown, shown)

        async def work() -> Any:
            await self._services.remove_revision(service, revision)
            return shown

        return self._operations.start(parent, lambda: shown, work)

    def _found(self, name: str) -> Service:
        split_name(name, "services")
        found = self._services.find(name)
        if found is None:
            raise _missing(name)
        return found

    def _found_revision(self, name: str) -> tuple[Service, Revision]:
        parent, short = split_name(name, "revisions")
        service = self._services.find(parent)
        if service is None or short not in service.revisions:
            raise ServiceError("NOT_FOUND", f"Resource '{short}' of kind 'REVISION' does not exist.")
        return service, service.revisions[short]


def check_account(access: Access, principal: Principal, email: str) -> None:
    """Refuse an account that is not there, or that a caller may not have code run as.

    Args:
        access: Who may do what.
        principal: Who wants it.
        email: The account's address.
    """
    permission = "iam.serviceAccounts.actAs"
    resource = f"projects/{access.identities.project}/serviceAccounts/{email}"
    if access.identities.find(email) is None or not access.allows(principal, permission, resource):
        # One sentence for both, so that nobody learns which accounts there are.
        message = f"Permission 'iam.serviceaccounts.actAs' denied on service account {email} (or it may not exist)."
        raise denied(permission, resource, message)


def show_policy(access: Access, resource: str) -> Any:
    """Return the policy on a resource as a message."""
    return json_format.ParseDict(access.policy(resource).show(), policy_pb2.Policy())


def cut_page(found: Sequence[Any], size: int, token: str, most: int) -> tuple[Sequence[Any], str]:
    """Return a page of a list, and the token of the next; empty for none.

    Raises:
        ServiceError: The token is none, or the size negative.
    """
    if size < 0:
        raise invalid("page_size: must not be negative.")
    if token and not token.isdigit():
        raise invalid("page_token: it is not one of this list.")
    start, size = int(token or 0), min(size or most, most)
    return found[start : start + size], str(start + size) if start + size < len(found) else ""


def show_service(service: Service) -> Any:
    """Return a service as the API does."""
    found = run_v2.Service(service.wanted)
    waiting, at = bool(service.changing), service.updated
    found.name, found.uid, found.etag, found.generation = service.name, service.uid, service.etag, service.generation
    found.create_time, found.update_time = service.created, service.updated
    found.creator, found.last_modifier = service.creator, service.modifier
    found.uri, found.urls, found.reconciling = service.front.url, [service.front.url], bool(service.changing)
    found.terminal_condition = _condition("Ready", service.unready or service.unrouted, waiting=waiting, at=at)
    found.conditions = [
        _condition("RoutesReady", service.unrouted, waiting=waiting, at=at),
        _condition("ConfigurationsReady", service.unready, waiting=waiting, at=at),
    ]
    found.observed_generation = service.generation - 1 if service.changing else service.generation
    if service.created_revision:
        found.latest_created_revision = f"{service.name}/revisions/{service.created_revision}"
    if service.ready_revision:
        found.latest_ready_revision = f"{service.name}/revisions/{service.ready_revision}"
    if not found.traffic:
        found.traffic = [run_v2.TrafficTarget(type_=LATEST, percent=100)]
    found.traffic_statuses = _statuses(service)
    if service.function:
        found.labels["goog-managed-by"] = "cloudfunctions"
    return found


def _statuses(service: Service) -> list[Any]:
    """Return how traffic really goes, which may be other than what is wanted as long as a revision is not ready."""
    if not service.front.routes.weights:
        return []
    routed = {runner.name for runner, _ in service.front.routes.weights}
    found = []
    for target in service.wanted.traffic or [run_v2.TrafficTarget(type_=LATEST, percent=100)]:
        latest = target.type_ == LATEST
        name = service.ready_revision if latest else target.revision
        if target.percent and name not in routed:
            continue
        found.append(
            run_v2.TrafficTargetStatus(
                type_=target.type_, revision="" if latest else name, percent=target.percent, tag=target.tag,
                uri=service.tag_urls.get(target.tag, ""),
            )
        )  # fmt: skip
    if found:
        return found
    return [
        run_v2.TrafficTargetStatus(type_=ONE_REVISION, revision=runner.name, percent=percent)
        for runner, percent in service.front.routes.weights
    ]


def show_revision(service: Service, revision: Revision) -> Any:
    """Return a revision as the API does."""
    template = revision.template
    failing = _condition("Ready", revision.failure, waiting=revision.pending, at=revision.created)
    return run_v2.Revision(
        name=f"{service.name}/revisions/{revision.name}", uid=revision.uid, generation=1, observed_generation=1,
        labels=template.labels, annotations=template.annotations, create_time=revision.created, update_time=revision.created,
        service=service.name, scaling=template.scaling, timeout=template.timeout, service_account=template.service_account,
        max_instance_request_concurrency=template.max_instance_request_concurrency, containers=template.containers,
        execution_environment=template.execution_environment, reconciling=revision.pending, conditions=[failing],
        creator=revision.creator, etag=f'"{revision.uid}"',
    )  # fmt: skip


def _condition(kind: str, failure: str, *, waiting: bool, at: datetime) -> Any:
    state = _WAITING if waiting else _FAILED if failure else _OK
    return run_v2.Condition(type_=kind, state=state, message="" if waiting else failure, last_transition_time=at)


def _check_etag(given: str, service: Service) -> None:
    if given and given != service.etag:
        raise _changed(service.name)


def _changed(name: str) -> ServiceError:
    return ServiceError("ABORTED", f"Conflict for resource '{name}': the etag that was given is not its current one.")


def _missing(name: str) -> ServiceError:
    location = name.split("/")[3]
    short, project = name.rpartition("/")[2], name.split("/")[1]
    return ServiceError(
        "NOT_FOUND",
        f"Resource '{short}' of kind 'SERVICE' in region '{location}' in project '{project}' does not exist.",
    )
