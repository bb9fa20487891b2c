"""Policies as callers read, set and test them: the same three calls on the project, its accounts, and its services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.bindings import CONDITIONAL
from polyserve_gcp.emulator.identities import Principal


@dataclass(frozen=True, slots=True)
class Policies:
    """The calls about policies.

    Args:
        access: Who may do what.
    """

    access: Access

    def get(self, principal: Principal, resource: str, permission: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the policy on a resource.

        Args:
            principal: Who asks.
            resource: What it is about.
            permission: What that needs, `run.services.getIamPolicy`.
            body: The body of `getIamPolicy`, which may ask for a version.
        """
        self.access.demand(principal, permission, resource)
        return self.access.policy(resource).show(int((body.get("options") or {}).get("requestedPolicyVersion") or 1))

    def set(self, principal: Principal, resource: str, permission: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Set the policy on a resource, as the body of `setIamPolicy` says.

        Args:
            principal: Who asks.
            resource: What it is about.
            permission: What that needs, `run.services.setIamPolicy`.
            body: The body: `{"policy": ...}`.
        """
        self.access.demand(principal, permission, resource)
        return self.access.set_policy(resource, body.get("policy") or {}).show(CONDITIONAL)

    def test(self, principal: Principal, resource: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the permissions in the body that the caller has."""
        allowed = self.access.test(principal, [str(one) for one in body.get("permissions") or ()], resource)
        return {"permissions": allowed} if allowed else {}
