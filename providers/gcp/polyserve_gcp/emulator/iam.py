"""The IAM API: service accounts, and roles of the project's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from polyserve.emulation.http import Answer, Call
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.accounts import Accounts
from polyserve_gcp.emulator.errors import ServiceError, invalid
from polyserve_gcp.emulator.paths import Paths, Request
from polyserve_gcp.emulator.roles import Role

SERVICE = "iam.googleapis.com"
_ROLE_ID = re.compile(r"[a-zA-Z0-9_.]{3,64}")
_PERMISSION = re.compile(r"[a-z]+(\.[a-zA-Z]+){2}")


class Iam:
    """Answers calls to `iam.googleapis.com`.

    Args:
        access: Who may do what.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._project = f"projects/{access.identities.project}"
        every = "/v1/projects/{project}/roles"
        one = f"{every}/{{role}}"
        self._paths = Paths(
            SERVICE,
            access,
            {
                **Accounts(access).rules(), "GET /v1/roles": self._list_predefined, "GET /v1/roles/{role}": self._get_predefined,
                f"GET {every}": self._list, f"POST {every}": self._create, f"GET {one}": self._get, f"PATCH {one}": self._patch,
                f"DELETE {one}": self._delete, f"POST {one}:undelete": self._undelete,
            },
        )  # fmt: skip

    async def answer(self, call: Call) -> Answer:
        """Answer one call."""
        return await self._paths.answer(call)

    async def _list_predefined(self, request: Request) -> dict[str, Any]:
        found = [role for role in self._access.roles.defined.values() if role.name.startswith("roles/")]
        return {"roles": [_show(role, whole=request.call.query.get("view") == "FULL") for role in found]}

    async def _get_predefined(self, request: Request) -> dict[str, Any]:
        return _show(self._find(f"roles/{request.names['role']}"))

    async def _list(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "iam.roles.list", self._project)
        deleted = request.call.query.get("showDeleted") == "true"
        every = self._access.roles.defined.values()
        found = [role for role in every if role.name.startswith("projects/") and (deleted or not role.deleted)]
        whole = request.call.query.get("view") == "FULL"
        return {"roles": [_show(role, whole=whole) for role in found]} if found else {}

    async def _create(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "iam.roles.create", self._project)
        name = str(request.body.get("roleId") or "")
        if not _ROLE_ID.fullmatch(name):
            raise invalid(f"The role ID '{name}' must be 3 to 64 letters, digits, underscores and periods.")
        place = f"{self._project}/roles/{name}"
        if place in self._access.roles.defined:
            raise ServiceError("ALREADY_EXISTS", f"A role named {name} in {self._project} already exists.")
        made = Role(name=place, permissions=())
        _take(made, request.body.get("role") or {}, ("title", "description", "includedPermissions", "stage"))
        self._access.roles.defined[place] = made
        return _show(made)

    async def _get(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "iam.roles.get", self._project)
        return _show(self._own(request))

    async def _patch(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "iam.roles.update", self._project)
        found, mask = self._own(request), request.call.query.get("updateMask", "")
        names = mask.split(",") if mask else tuple(request.body)
        _take(found, request.body, tuple(name for name in names if name != "etag"))
        return _show(found)

    async def _delete(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "iam.roles.delete", self._project)
        found = self._own(request)
        found.deleted = True
        return _show(found)

    async def _undelete(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "iam.roles.undelete", self._project)
        found = self._own(request)
        found.deleted = False
        return _show(found)

    def _own(self, request: Request) -> Role:
        return self._find(f"{self._project}/roles/{request.names['role']}")

    def _find(self, name: str) -> Role:
        found = self._access.roles.find(name)
        if found is None:
            raise ServiceError("NOT_FOUND", f"The role named {name} was not found.")
        return found


def _take(role: Role, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Change what a body says of a role."""
    if "includedPermissions" in names or "included_permissions" in names:
        permissions = [str(one) for one in given.get("includedPermissions") or ()]
        wrong = next((one for one in permissions if not _PERMISSION.fullmatch(one)), None)
        if wrong is not None:
            raise invalid(f"Permission {wrong} is not valid.")
        role.permissions = permissions
    role.title = str(given.get("title") or "") if "title" in names else role.title
    role.description = str(given.get("description") or "") if "description" in names else role.description
    role.stage = str(given.get("stage") or "GA") if "stage" in names else role.stage


def _show(role: Role, *, whole: bool = True) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": role.name, "title": role.title, "stage": role.stage, "etag": "AA=="}
    more: dict[str, Any] = {"description": role.description, "deleted": role.deleted}
    if whole:
        more["includedPermissions"] = list(role.permissions)
    return shown | {name: value for name, value in more.items() if value}
