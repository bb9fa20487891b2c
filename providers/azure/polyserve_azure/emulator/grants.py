"""Role assignments and role definitions, as Resource Manager has them."""

from __future__ import annotations

import re
import uuid
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_azure.emulator.asking import Ask, Operation, Table
from polyserve_azure.emulator.errors import ServiceError
from polyserve_azure.emulator.principals import Principals
from polyserve_azure.emulator.roles import Assignment, Role, Roles

ASSIGNMENTS = "Microsoft.Authorization/roleAssignments"
DEFINITIONS = "Microsoft.Authorization/roleDefinitions"


class Grants:
    """The operations on role assignments and definitions.

    Args:
        roles: Who may do what.
        principals: Who there is.
    """

    def __init__(self, roles: Roles, principals: Principals) -> None:
        self._roles, self._principals = roles, principals

    def table(self) -> Table:
        """Return the operations."""
        low, definitions = ASSIGNMENTS.lower(), DEFINITIONS.lower()
        return {
            ("GET", low, False): Operation(f"{ASSIGNMENTS}/read", self.list_assignments),
            ("GET", low, True): Operation(f"{ASSIGNMENTS}/read", self.get_assignment),
            ("PUT", low, True): Operation(f"{ASSIGNMENTS}/write", self.put_assignment),
            ("DELETE", low, True): Operation(f"{ASSIGNMENTS}/delete", self.delete_assignment),
            ("GET", definitions, False): Operation(f"{DEFINITIONS}/read", self.list_definitions),
            ("GET", definitions, True): Operation(f"{DEFINITIONS}/read", self.get_definition),
            ("PUT", definitions, True): Operation(f"{DEFINITIONS}/write", self.put_definition),
            ("DELETE", definitions, True): Operation(f"{DEFINITIONS}/delete", self.delete_definition),
        }

    async def list_assignments(self, ask: Ask) -> Answer:
        """List the assignments that hold at a scope or below it."""
        wanted = re.search(
            r"(?:principalId eq|assignedTo\()\s*'([^']*)'", ask.call.query.get("$filter", ""), re.IGNORECASE
        )
        scope = f"{ask.target.scope.lower()}/"
        found = [
            one
            for one in self._roles.assignments.values()
            if (f"{one.scope.lower()}/".startswith(scope) or scope.startswith(f"{one.scope.lower()}/"))
            and (wanted is None or one.principal == wanted[1])
        ]
        return ask.paged([_show_assignment(one, ask.target.subscription) for one in found])

    async def get_assignment(self, ask: Ask) -> Answer:
        """Describe an assignment."""
        found = self._roles.assignments.get(ask.target.key)
        if found is None:
            raise ServiceError(404, "RoleAssignmentNotFound", f"The role assignment '{ask.target.name}' is not found.")
        return json_answer(200, _show_assignment(found, ask.target.subscription))

    async def put_assignment(self, ask: Ask) -> Answer:
        """Give a principal a role."""
        given, name = dict(ask.body.get("properties") or {}), ask.target.name
        if not _is_guid(name):
            message = f"The role assignment ID '{name}' is not valid. The role assignment ID must be a GUID."
            raise ServiceError(400, "InvalidRoleAssignmentId", message)
        role = str(given.get("roleDefinitionId", "")).rpartition("/")[2].lower()
        if role not in self._roles.definitions:
            raise ServiceError(
                404, "RoleDefinitionDoesNotExist", f"The specified role definition with ID '{role}' does not exist."
            )
        principal = str(given.get("principalId", ""))
        if self._principals.find(principal) is None:
            message = (
                f"Principal {principal.replace('-', '')} does not exist in the directory {self._principals.tenant}. Check that "
                "you have the correct principal ID. If you are creating this principal and then immediately assigning a "
                "role, this error might be related to a replication delay. In this case, set the role assignment "
                "principalType property to a value, such as ServicePrincipal, User, or Group."
            )
            raise ServiceError(400, "PrincipalNotFound", message)
        made = Assignment(
            path=ask.target.path, name=name, scope=ask.target.scope, role=role, principal=principal,
            principal_type=str(given.get("principalType") or "ServicePrincipal"),
        )  # fmt: skip
        found = self._roles.assignments.get(ask.target.key)
        if found is not None and (found.role, found.principal) != (role, principal):
            message = "Tenant ID, application ID, principal ID, and scope are not allowed to be updated."
            raise ServiceError(400, "RoleAssignmentUpdateNotPermitted", message)
        same = (made.scope.lower(), role, principal)
        if any((one.scope.lower(), one.role, one.principal) == same for one in self._roles.assignments.values()):
            raise ServiceError(409, "RoleAssignmentExists", "The role assignment already exists.")
        self._roles.assignments[ask.target.key] = made
        return json_answer(201, _show_assignment(made, ask.target.subscription))

    async def delete_assignment(self, ask: Ask) -> Answer:
        """Take a role away."""
        found = self._roles.assignments.pop(ask.target.key, None)
        return Answer(204) if found is None else json_answer(200, _show_assignment(found, ask.target.subscription))

    async def list_definitions(self, ask: Ask) -> Answer:
        """List role definitions, or the one of a name."""
        wanted = re.search(r"roleName eq '([^']*)'", ask.call.query.get("$filter", ""), re.IGNORECASE)
        found = [
            one for one in self._roles.definitions.values() if wanted is None or one.name.lower() == wanted[1].lower()
        ]
        return ask.paged([_show_definition(one, ask.target.subscription) for one in found])

    async def get_definition(self, ask: Ask) -> Answer:
        """Describe a role definition."""
        return json_answer(200, _show_definition(self._definition(ask), ask.target.subscription))

    async def put_definition(self, ask: Ask) -> Answer:
        """Make a custom role, or change it."""
        given, name = dict(ask.body.get("properties") or {}), ask.target.name.lower()
        found = self._roles.definitions.get(name)
        if not _is_guid(name):
            raise ServiceError(400, "InvalidRoleDefinitionId", f"The role definition ID '{name}' must be a GUID.")
        if found is not None and found.built_in:
            raise ServiceError(400, "RoleDefinitionUpdateNotPermitted", "Built-in roles cannot be changed.")
        scopes, permissions = given.get("assignableScopes") or (), given.get("permissions") or ()
        if not scopes or not given.get("roleName") or not permissions:
            message = "A role definition needs roleName, permissions and assignableScopes."
            raise ServiceError(400, "RoleDefinitionInvalid", message)
        if any(one.name == given["roleName"] and one.identifier != name for one in self._roles.definitions.values()):
            message = f"A custom role with the same name already exists in this directory: '{given['roleName']}'."
            raise ServiceError(409, "RoleDefinitionWithSameNameExists", message)

        def all_of(part: str) -> list[str]:
            return [str(action) for permission in permissions for action in permission.get(part) or ()]

        made = self._roles.definitions[name] = Role(
            identifier=name, name=str(given["roleName"]), description=str(given.get("description") or ""),
            actions=all_of("actions"), not_actions=all_of("notActions"), data_actions=all_of("dataActions"),
            not_data_actions=all_of("notDataActions"), built_in=False, scopes=list(scopes),
        )  # fmt: skip
        return json_answer(201, _show_definition(made, ask.target.subscription))

    async def delete_definition(self, ask: Ask) -> Answer:
        """Delete a custom role that nobody has."""
        found = self._definition(ask)
        if found.built_in or any(one.role == found.identifier for one in self._roles.assignments.values()):
            message = "There are existing role assignments referencing role, or it is built in."
            raise ServiceError(400, "RoleDefinitionHasAssignments", message)
        del self._roles.definitions[found.identifier]
        return json_answer(200, _show_definition(found, ask.target.subscription))

    def _definition(self, ask: Ask) -> Role:
        found = self._roles.definitions.get(ask.target.name.lower())
        if found is None:
            message = f"The specified role definition with ID '{ask.target.name}' does not exist."
            raise ServiceError(404, "RoleDefinitionDoesNotExist", message)
        return found


def _is_guid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return len(text) == 36


def _definition_path(role: str, subscription: str) -> str:
    return f"/subscriptions/{subscription}/providers/{DEFINITIONS}/{role}"


def _show_assignment(one: Assignment, subscription: str) -> dict[str, Any]:
    properties = {
        "roleDefinitionId": _definition_path(one.role, subscription), "principalId": one.principal,
        "principalType": one.principal_type, "scope": one.scope,
    }  # fmt: skip
    return {"id": one.path, "name": one.name, "type": ASSIGNMENTS, "properties": properties}


def _show_definition(one: Role, subscription: str) -> dict[str, Any]:
    permission = {
        "actions": list(one.actions), "notActions": list(one.not_actions), "dataActions": list(one.data_actions),
        "notDataActions": list(one.not_data_actions),
    }  # fmt: skip
    properties = {
        "roleName": one.name, "type": "BuiltInRole" if one.built_in else "CustomRole", "description": one.description,
        "assignableScopes": list(one.scopes), "permissions": [permission],
    }  # fmt: skip
    return {
        "id": _definition_path(one.identifier, subscription), "name": one.identifier, "type": DEFINITIONS, "properties": properties,
    }  # fmt: skip
