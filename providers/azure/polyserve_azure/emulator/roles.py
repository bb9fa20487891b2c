"""Role-based access control: role definitions, who has which where, and the refusal of those who have none.

The built-in roles have Azure's own identifiers and permissions ("Azure built-in roles", read 2026-11-21), as far as they
name what is emulated.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

from polyserve_azure.emulator.errors import ServiceError
from polyserve_azure.emulator.principals import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One role definition."""

    identifier: str
    name: str
    actions: Sequence[str] = ()
    not_actions: Sequence[str] = ()
    data_actions: Sequence[str] = ()
    not_data_actions: Sequence[str] = ()
    built_in: bool = True
    scopes: Sequence[str] = ("/",)
    description: str = ""

    def allows(self, action: str, *, data: bool) -> bool:
        """Whether it allows an action on resources, or on the data in them."""
        given, taken = (self.data_actions, self.not_data_actions) if data else (self.actions, self.not_actions)
        return _any(given, action) and not _any(taken, action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Who has which role where."""

    path: str
    name: str
    scope: str
    role: str
    principal: str
    principal_type: str = "ServicePrincipal"


_BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"
_CONTAINERS = "Microsoft.Storage/storageAccounts/blobServices/containers"
_DELEGATE = "Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action"
_GROUPS = ("Microsoft.Resources/deployments/*", "Microsoft.Resources/subscriptions/resourceGroups/read")
BUILT_IN = (
    Role(identifier="8e3af657-a8ff-443c-a75c-2fe8c4bcb635", name="Owner", actions=["*"]),
    Role(
        identifier="b24988ac-6180-42a0-ab88-20f7382dd24c", name="Contributor", actions=["*"],
        not_actions=[
            "Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write", "Microsoft.Authorization/elevateAccess/Action",
        ],
    ),
    Role(identifier="acdd72a7-3385-48ef-bd42-f606fba81ae7", name="Reader", actions=["*/read"]),
    Role(
        identifier="18d7d88d-d35e-4fb5-a5c3-7773c20a72d9", name="User Access Administrator",
        actions=["*/read", "Microsoft.Authorization/*"],
    ),
    Role(
        identifier="de139f84-1756-47ae-9be6-808fbbe84772", name="Website Contributor",
        actions=[
            "Microsoft.Authorization/*/read", "Microsoft.Insights/components/*", *_GROUPS, "Microsoft.Web/certificates/*",
            "Microsoft.Web/listSitesAssignedToHostName/read", "Microsoft.Web/serverFarms/join/action",
            "Microsoft.Web/serverFarms/read", "Microsoft.Web/sites/*",
        ],
    ),
    Role(
        identifier="17d1049b-9a84-46fb-8f53-869881c3d3ab", name="Storage Account Contributor",
        actions=["Microsoft.Authorization/*/read", *_GROUPS, "Microsoft.Storage/storageAccounts/*"],
    ),
    Role(
        identifier="e40ec5ca-96e0-45a2-b4ff-59039f2c2b59", name="Managed Identity Contributor",
        actions=["Microsoft.ManagedIdentity/userAssignedIdentities/*", "Microsoft.Authorization/*/read", *_GROUPS],
    ),
    Role(
        identifier="f1a07417-d97a-45cb-824c-7a7467783830", name="Managed Identity Operator",
        actions=[
            "Microsoft.ManagedIdentity/userAssignedIdentities/*/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/*/assign/action", "Microsoft.Authorization/*/read", *_GROUPS,
        ],
    ),
    Role(
        identifier="b7e6dc6d-f1e8-4753-8033-0f276bb0955b", name="Storage Blob Data Owner",
        actions=[f"{_CONTAINERS}/*", _DELEGATE], data_actions=[f"{_BLOBS}/*"],
    ),
    Role(
        identifier="ba92f5b4-2d11-453d-a403-e96b0029c9fe", name="Storage Blob Data Contributor",
        actions=[f"{_CONTAINERS}/{verb}" for verb in ("delete", "read", "write")] + [_DELEGATE],
        data_actions=[f"{_BLOBS}/{verb}" for verb in ("delete", "read", "write", "move/action", "add/action")],
    ),
    Role(
        identifier="2a2b9908-6ea1-4ae2-8e65-a410df84e7d1", name="Storage Blob Data Reader",
        actions=[f"{_CONTAINERS}/read", _DELEGATE], data_actions=[f"{_BLOBS}/read"],
    ),
    Role(
        identifier="43d0d8ad-25c7-4714-9337-8ba259a9fe05", name="Monitoring Reader", actions=["*/read"],
    ),
)  # fmt: skip
OWNER = BUILT_IN[0].identifier


@dataclass(slots=True)
class Roles:
    """Which roles there are, and who has them."""

    definitions: dict[str, Role] = field(default_factory=lambda: {role.identifier: role for role in BUILT_IN})
    assignments: dict[str, Assignment] = field(default_factory=dict)

    def assign(self, principal: str, role: str, scope: str, *, name: str) -> None:
        """Give a principal a role, without asking who may."""
        path = f"{scope.rstrip('/')}/providers/Microsoft.Authorization/roleAssignments/{name}"
        self.assignments[path.lower()] = Assignment(path=path, name=name, scope=scope, role=role, principal=principal)

    def forget(self, scope: str) -> None:
        """Forget what was assigned at a resource that is gone, and below it."""
        below = f"{scope.lower()}/"
        for key in [key for key, one in self.assignments.items() if f"{one.scope.lower()}/".startswith(below)]:
            del self.assignments[key]

    def allow(self, principal: Principal, action: str, scope: str, *, data: bool = False) -> bool:
        """Whether a principal may do something.

        Args:
            principal: Who wants to.
            action: `Microsoft.Web/sites/write`.
            scope: Identifier of the resource.
            data: Whether it is an action on data, which roles name apart.
        """
        below = f"{scope.lower().rstrip('/')}/"
        return any(
            one.principal == principal.object_id
            and below.startswith(f"{one.scope.lower().rstrip('/')}/")
            and one.role in self.definitions
            and self.definitions[one.role].allows(action, data=data)
            for one in self.assignments.values()
        )

    def demand(self, principal: Principal, action: str, scope: str) -> None:
        """Let a principal do something.

        Raises:
            ServiceError: No role of it allows that.
        """
        if not self.allow(principal, action, scope):
            message = (
                f"The client '{principal.client_id}' with object id '{principal.object_id}' does not have authorization to "
                f"perform action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, "
                "please refresh your credentials."
            )
            raise ServiceError(403, "AuthorizationFailed", message)

    def demand_linked(self, principal: Principal, action: str, scope: str, linked: str) -> None:
        """Let a principal use one resource in another, which it has the right to change.

        Raises:
            ServiceError: No role of it allows that.
        """
        if not self.allow(principal, action, linked):
            message = (
                f"The client '{principal.client_id}' with object id '{principal.object_id}' has permission to perform action "
                f"on scope '{scope}'; however, it does not have permission to perform action(s) '{action}' on the linked "
                f"scope(s) '{linked}' (respectively) or the linked scope(s) are invalid."
            )
            raise ServiceError(403, "LinkedAuthorizationFailed", message)


def _any(patterns: Sequence[str], action: str) -> bool:
    return any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)
