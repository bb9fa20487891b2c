"""Who may do what: policies on the project and on what is in it, and which APIs are enabled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyserve.emulation.http import Call
from polyserve_gcp.emulator.bindings import Grant, Policy, merge, read_grants
from polyserve_gcp.emulator.errors import ERROR_INFO, HELP, ServiceError, denied, invalid
from polyserve_gcp.emulator.identities import CLOUD_PLATFORM, Identities, Principal
from polyserve_gcp.emulator.roles import Roles

SERVICES: Mapping[str, str] = {
    "artifactregistry.googleapis.com": "Artifact Registry API",
    "cloudbuild.googleapis.com": "Cloud Build API",
    "cloudfunctions.googleapis.com": "Cloud Functions API",
    "cloudresourcemanager.googleapis.com": "Cloud Resource Manager API",
    "iam.googleapis.com": "Identity and Access Management (IAM) API",
    "iamcredentials.googleapis.com": "IAM Service Account Credentials API",
    "logging.googleapis.com": "Cloud Logging API",
    "run.googleapis.com": "Cloud Run Admin API",
    "secretmanager.googleapis.com": "Secret Manager API",
    "serviceusage.googleapis.com": "Service Usage API",
    "storage.googleapis.com": "Google Cloud Storage JSON API",
}
"""The APIs that a project can enable, as far as anything is emulated, and what Google calls them."""
_EVERYBODY = frozenset({"allUsers"})
_KINDS = ("serviceAccount", "user", "group", "domain")


class Access:
    """Decides on every call.

    A resource is named as in Google's own messages: `projects/P`, `projects/P/locations/L/services/S`,
    `projects/P/serviceAccounts/EMAIL`, `projects/_/buckets/B`, `projects/_/buckets/B/objects/O`. A policy holds for what is
    below its resource, and the project's for everything.

    Args:
        identities: Who there is.

    Attributes:
        roles: Which roles there are.
        enabled: The APIs that are enabled; all of `SERVICES` at first.
    """

    def __init__(self, identities: Identities) -> None:
        self.identities, self.roles = identities, Roles()
        self.enabled: set[str] = set(SERVICES)
        self._policies: dict[str, Policy] = {}
        self._project = f"projects/{identities.project}"

    def enter(self, call: Call, service: str, *, scopes: Sequence[str] = (CLOUD_PLATFORM,)) -> Principal:
        """Return who calls an API that is enabled.

        Args:
            call: The request.
            service: The API, `cloudfunctions.googleapis.com`.
            scopes: Of these the caller's token needs one.

        Raises:
            ServiceError: The caller shows no good token (401), the API is disabled (403, `SERVICE_DISABLED`), or the call is to be
                counted for a project that the caller may not use.
        """
        principal = self.identities.read_access_token(call.headers.get("Authorization", ""), service, scopes)
        self.demand_service(service)
        self._demand_billing(
            principal, service, call.headers.get("x-goog-user-project") or call.query.get("userProject", "")
        )
        return principal

    def _demand_billing(self, principal: Principal, service: str, project: str) -> None:
        """Let a caller have a call counted for a project, where it names one."""
        known = {self.identities.project, self.identities.number}
        if not project or (project in known and self.allows(principal, "serviceusage.services.use", self._project)):
            return
        message = (
            f"Caller does not have required permission to use project {project}. Grant the caller the "
            "roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission, by "
            f"visiting https://console.developers.google.com/iam-admin/iam/project?project={project} and then retry. "
            "Propagation of the new permission may take a few minutes."
        )
        metadata = {"service": service, "consumer": f"projects/{project}"}
        info = {"@type": ERROR_INFO, "reason": "USER_PROJECT_DENIED", "domain": "googleapis.com", "metadata": metadata}
        raise ServiceError("PERMISSION_DENIED", message, details=[info], reason="forbidden")

    def demand_service(self, service: str) -> None:
        """Let a call to an API through where that is enabled.

        Raises:
            ServiceError: It is not; the message and its details say where to enable it.
        """
        if service in self.enabled or service not in SERVICES:
            return
        number = self.identities.number
        place = f"https://console.developers.google.com/apis/api/{service}/overview?project={number}"
        message = (
            f"{SERVICES[service]} has not been used in project {number} before or it is disabled. Enable it by visiting {place} "
            "then retry. If you enabled this API recently, wait a few minutes for the action to propagate to our systems and retry."
        )
        metadata = {
            "service": service,
            "consumer": f"projects/{number}",
            "serviceTitle": SERVICES[service],
            "activationUrl": place,
        }
        info = {"@type": ERROR_INFO, "reason": "SERVICE_DISABLED", "domain": "googleapis.com", "metadata": metadata}
        links = [{"description": "Google developers console API activation", "url": place}]
        raise ServiceError(
            "PERMISSION_DENIED", message, details=[info, {"@type": HELP, "links": links}], reason="accessNotConfigured"
        )

    def allows(self, principal: Principal | None, permission: str, resource: str) -> bool:
        """Whether somebody may do something.

        Args:
            principal: Who wants to; `None` for anybody.
            permission: `run.routes.invoke`.
            resource: What it is about.
        """
        members = (
            _EVERYBODY if principal is None else frozenset({"allUsers", "allAuthenticatedUsers", principal.member})
        )
        return any(
            self.roles.allows(grant.role, permission)
            and grant.covers(resource)
            and not members.isdisjoint(self._widen(given))
            for place in self._above(resource)
            for grant, given in self.policy(place).bindings.items()
        )

    def demand(self, principal: Principal | None, permission: str, resource: str, message: str = "") -> None:
        """Let somebody do something.

        Args:
            principal: Who wants to.
            permission: `cloudfunctions.functions.create`.
            resource: What it is about.
            message: What is said otherwise, where the service has a sentence of its own.

        Raises:
            ServiceError: No role allows that (403); it names the permission.
        """
        if not self.allows(principal, permission, resource):
            raise denied(permission, resource, message)

    def policy(self, resource: str) -> Policy:
        """Return the policy on a resource; empty where none was set."""
        return self._policies.get(resource, _EMPTY)

    def set_policy(self, resource: str, given: Mapping[str, Any]) -> Policy:
        """Set the policy on a resource, as a caller wants it.

        Args:
            resource: What it is about.
            given: The policy in JSON.

        Raises:
            ServiceError: It names a role, a member or a condition that is none, or it is made over an old one.
        """
        etag = str(given.get("etag") or "")
        if etag and etag.replace("-", "+").replace("_", "/") != self.policy(resource).etag:
            message = (
                "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff. "
                "The request's ETag did not match the current policy's ETag."
            )
            raise ServiceError("ABORTED", message)
        grants = read_grants(given)
        for one, members in grants:
            if self.roles.find(one.role) is None:
                raise invalid(f"Role {one.role} is not supported for this resource.")
            for member in members:
                self._check_member(member)
        self._policies[resource] = merge(grants)
        return self._policies[resource]

    def put_policy(self, resource: str, bindings: Mapping[str, Iterable[str]]) -> Policy:
        """Set the policy on a resource without asking."""
        self._policies[resource] = merge((Grant(role), members) for role, members in bindings.items())
        return self._policies[resource]

    def grant(self, role: str, member: str, resource: str = "") -> None:
        """Give somebody a role.

        Args:
            role: `roles/run.invoker`.
            member: `serviceAccount:x@p.iam.gserviceaccount.com`.
            resource: Where; the whole project unless given.
        """
        place = resource or self._project
        self._policies[place] = merge([*self.policy(place).bindings.items(), (Grant(role), [member])])

    def revoke(self, role: str, member: str, resource: str = "") -> None:
        """Take a role from somebody."""
        place = resource or self._project
        kept = {
            one: members - {member} if one == Grant(role) else members
            for one, members in self.policy(place).bindings.items()
        }
        self._policies[place] = merge(kept.items())

    def forget(self, resource: str) -> None:
        """Forget the policy on a resource that is gone, and those below it."""
        for place in [place for place in self._policies if f"{place}/".startswith(f"{resource}/")]:
            del self._policies[place]

    def test(self, principal: Principal | None, permissions: Iterable[str], resource: str) -> list[str]:
        """Return those permissions that somebody has: what `testIamPermissions` answers."""
        return [permission for permission in permissions if self.allows(principal, permission, resource)]

    def _above(self, resource: str) -> Iterable[str]:
        parts = resource.split("/")
        yield self._project
        for length in range(2, len(parts) + 1, 2):
            place = "/".join(parts[:length])
            if place != self._project:
                yield place

    def _widen(self, members: frozenset[str]) -> frozenset[str]:
        """Return members with those of a project's basic roles, for which policies on buckets have names."""
        found = members
        for kind in ("Owner", "Editor", "Viewer"):
            if f"project{kind}:{self.identities.project}" in members:
                found |= self.policy(self._project).members(f"roles/{kind.lower()}")
        return found

    def _check_member(self, member: str) -> None:
        kind, _, name = member.partition(":")
        if member in {"allUsers", "allAuthenticatedUsers"} or member.startswith("deleted:"):
            return
        if kind in {"projectOwner", "projectEditor", "projectViewer"} and name == self.identities.project:
            return
        if kind not in _KINDS or not name:
            raise invalid(
                f"Invalid value for member: {member}. It must be of the form serviceAccount:EMAIL, user:EMAIL or alike."
            )
        if kind == "serviceAccount" and self.identities.find(name) is None:
            raise invalid(f"Service account {name} does not exist.")
        if kind == "user" and self.identities.find(name) is None:
            raise invalid(f"User {name} does not exist.")


_EMPTY = Policy()
