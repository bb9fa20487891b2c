"""The project: what it is, who may do what in it, and which APIs are enabled."""

from __future__ import annotations

import re
import secrets
from typing import Any

from polyserve.emulation.http import Answer, Call
from polyserve_gcp.emulator.access import SERVICES, Access
from polyserve_gcp.emulator.errors import ServiceError, denied, invalid
from polyserve_gcp.emulator.paths import Paths, Request
from polyserve_gcp.emulator.policies import Policies

MANAGER = "cloudresourcemanager.googleapis.com"
USAGE = "serviceusage.googleapis.com"
_TYPES = "type.googleapis.com/google.api.serviceusage.v1"


class Projects:
    """Answers calls to `cloudresourcemanager.googleapis.com`, versions 1 and 3.

    Args:
        access: Who may do what.
    """

    def __init__(self, access: Access) -> None:
        self._access, self._policies = access, Policies(access)
        self._resource = f"projects/{access.identities.project}"
        self._paths = Paths(
            MANAGER,
            access,
            {
                f"{method} /{version}/projects/{{project}}{verb}": rule
                for version in ("v1", "v3")
                for method, verb, rule in (
                    ("GET", "", self._get), ("POST", ":getIamPolicy", self._get_policy), ("POST", ":setIamPolicy", self._set_policy),
                    ("POST", ":testIamPermissions", self._test),
                )
            },
        )  # fmt: skip

    async def answer(self, call: Call) -> Answer:
        """Answer one call."""
        return await self._paths.answer(call)

    async def _get(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "resourcemanager.projects.get", self._resource)
        identities = self._access.identities
        if request.call.raw_path.startswith("/v1/"):
            shown = {"projectNumber": identities.number, "lifecycleState": "ACTIVE", "name": identities.project}
        else:
            shown = {"name": f"projects/{identities.number}", "state": "ACTIVE", "displayName": identities.project}
        return {**shown, "projectId": identities.project, "createTime": "2026-11-21T00:00:00Z"}

    async def _get_policy(self, request: Request) -> dict[str, Any]:
        return self._policies.get(
            request.principal, self._resource, "resourcemanager.projects.getIamPolicy", request.body
        )

    async def _set_policy(self, request: Request) -> dict[str, Any]:
        return self._policies.set(
            request.principal, self._resource, "resourcemanager.projects.setIamPolicy", request.body
        )

    async def _test(self, request: Request) -> dict[str, Any]:
        return self._policies.test(request.principal, self._resource, request.body)


class Usage:
    """Answers calls to `serviceusage.googleapis.com`.

    Args:
        access: Who may do what.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._operations: dict[str, dict[str, Any]] = {}
        every = "/v1/projects/{project}/services"
        self._paths = Paths(
            USAGE,
            access,
            {
                f"GET {every}": self._list, f"GET {every}:batchGet": self._list_named, f"POST {every}:batchEnable": self._enable_all,
                f"GET {every}/{{service}}": self._get, f"POST {every}/{{service}}:enable": self._enable,
                f"POST {every}/{{service}}:disable": self._disable, "GET /v1/operations/{operation}": self._get_operation,
            },
        )  # fmt: skip

    async def answer(self, call: Call) -> Answer:
        """Answer one call."""
        return await self._paths.answer(call)

    async def _list(self, request: Request) -> dict[str, Any]:
        self._demand(request, "list")
        wanted = request.call.query.get("filter", "").replace(" ", "").removeprefix("state:")
        found = [self._show(one) for one in SERVICES if wanted in {"", self._state(one)}]
        return {"services": found} if found else {}

    async def _list_named(self, request: Request) -> dict[str, Any]:
        self._demand(request, "get")
        names = re.findall(r"(?:^|&)names=[^&]*?([\w.]+)(?=&|$)", request.call.raw_query)
        return {"services": [self._show(self._known(name)) for name in names]}

    async def _get(self, request: Request) -> dict[str, Any]:
        self._demand(request, "get")
        return self._show(self._known(request.names["service"]))

    async def _enable(self, request: Request) -> dict[str, Any]:
        self._demand(request, "enable")
        service = self._known(request.names["service"])
        self._access.enabled.add(service)
        return self._done({"@type": f"{_TYPES}.EnableServiceResponse", "service": self._show(service)})

    async def _enable_all(self, request: Request) -> dict[str, Any]:
        self._demand(request, "enable")
        names = [self._known(str(name)) for name in request.body.get("serviceIds") or ()]
        if not 1 <= len(names) <= 20:
            raise invalid(f"serviceIds names {len(names)} services, and must name 1 to 20.")
        self._access.enabled.update(names)
        return self._done(
            {"@type": f"{_TYPES}.BatchEnableServicesResponse", "services": [self._show(name) for name in names]}
        )

    async def _disable(self, request: Request) -> dict[str, Any]:
        self._demand(request, "disable")
        service = self._known(request.names["service"])
        self._access.enabled.discard(service)
        return self._done({"@type": f"{_TYPES}.DisableServiceResponse", "service": self._show(service)})

    async def _get_operation(self, request: Request) -> dict[str, Any]:
        found = self._operations.get(request.names["operation"])
        if found is None:
            raise ServiceError("NOT_FOUND", f"Operation operations/{request.names['operation']} was not found.")
        return found

    def _demand(self, request: Request, verb: str) -> None:
        resource = f"projects/{self._access.identities.project}"
        self._access.demand(request.principal, f"serviceusage.services.{verb}", resource)

    def _known(self, service: str) -> str:
        if service not in SERVICES:
            message = f"Not found or permission denied for service(s): {service}."
            raise denied("servicemanagement.services.bind", service, message)
        return service

    def _state(self, service: str) -> str:
        return "ENABLED" if service in self._access.enabled else "DISABLED"

    def _show(self, service: str) -> dict[str, Any]:
        parent = f"projects/{self._access.identities.number}"
        config = {"name": service, "title": SERVICES[service]}
        return {
            "name": f"{parent}/services/{service}",
            "config": config,
            "state": self._state(service),
            "parent": parent,
        }

    def _done(self, response: dict[str, Any]) -> dict[str, Any]:
        name = f"acat.p2-{self._access.identities.number}-{secrets.token_hex(8)}"
        self._operations[name] = {"name": f"operations/{name}", "done": True, "response": response}
        return self._operations[name]
