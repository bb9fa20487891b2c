"""Policies as values: who has which role on one resource, and on which of what is below it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyserve_gcp.emulator.errors import invalid

CONDITIONAL = 3
"""Version of a policy that has conditions ("IAM Conditions", read 2026-11-21)."""
_STARTS_WITH = re.compile(r"""\s*resource\.name\.startsWith\(\s*(["'])([^"'\\]*)\1\s*\)\s*""")
_BASIC = frozenset({"roles/owner", "roles/editor", "roles/viewer"})


@dataclass(frozen=True, slots=True)
class Condition:
    """What a binding is limited to: resources whose names start with something.

    Attributes:
        title: What it is called.
        expression: What was written.
        prefix: What names start with.
        description: What it is for.
    """

    title: str
    expression: str
    prefix: str
    description: str = ""

    def show(self) -> dict[str, str]:
        """Return it as Google's APIs do."""
        shown = {"title": self.title, "expression": self.expression}
        return shown | ({"description": self.description} if self.description else {})


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, and what it is limited to."""

    role: str
    condition: Condition | None = None

    def covers(self, resource: str) -> bool:
        """Whether it is about a resource."""
        return self.condition is None or resource.startswith(self.condition.prefix)


@dataclass(frozen=True, slots=True)
class Policy:
    """Who has which role on one resource.

    Attributes:
        bindings: The members of each grant.
    """

    bindings: Mapping[Grant, frozenset[str]] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        """What changes whenever it does."""
        text = json.dumps(self.show_bindings(CONDITIONAL), sort_keys=True)
        return base64.b64encode(hashlib.sha256(text.encode()).digest()[:6]).decode()

    def members(self, role: str) -> frozenset[str]:
        """Return who has a role without a condition."""
        return self.bindings.get(Grant(role), frozenset())

    def show(self, version: int = 1) -> dict[str, Any]:
        """Return it as Google's APIs do.

        Args:
            version: The version that was asked for: in those before 3 a role with a condition has another name instead.
        """
        bindings = self.show_bindings(version)
        conditional = version >= CONDITIONAL and any(grant.condition for grant in self.bindings)
        shown: dict[str, Any] = {"version": CONDITIONAL if conditional else 1, "etag": self.etag}
        return shown | ({"bindings": bindings} if bindings else {})

    def show_bindings(self, version: int) -> list[dict[str, Any]]:
        """Return its bindings as Google's APIs do."""
        return sorted(
            (_show(grant, members, version) for grant, members in self.bindings.items() if members),
            key=lambda one: (one["role"], json.dumps(one.get("condition", {}))),
        )


def read_grants(given: Mapping[str, Any]) -> list[tuple[Grant, list[str]]]:
    """Return the bindings of a policy in JSON, which nobody has believed yet.

    Raises:
        ServiceError: A condition is none that the emulator has, or is where none may be.
    """
    found = []
    for binding in given.get("bindings") or ():
        role, condition = str(binding.get("role", "")), binding.get("condition") or None
        members = [str(member) for member in binding.get("members") or ()]
        if condition is None:
            found.append((Grant(role), members))
            continue
        if int(given.get("version") or 0) < CONDITIONAL:
            raise invalid(f"A policy with conditional role bindings must have the version {CONDITIONAL}.")
        if role in _BASIC or not {"allUsers", "allAuthenticatedUsers"}.isdisjoint(members):
            raise invalid(f"Conditions cannot be set on basic roles or for everybody: {role}.")
        found.append((Grant(role, _read_condition(condition)), members))
    return found


def merge(bindings: Iterable[tuple[Grant, Iterable[str]]]) -> Policy:
    """Return a policy of bindings, of which several may be about the same."""
    merged: dict[Grant, frozenset[str]] = {}
    for grant, members in bindings:
        merged[grant] = merged.get(grant, frozenset()) | frozenset(members)
    return Policy({grant: members for grant, members in merged.items() if members})


def _read_condition(given: Mapping[str, Any]) -> Condition:
    expression, title = str(given.get("expression") or ""), str(given.get("title") or "")
    match = _STARTS_WITH.fullmatch(expression)
    if not title:
        raise invalid("A condition must have a title.")
    if match is None:
        message = (
            f"The emulator knows conditions of the form resource.name.startsWith(\"...\") only, and not '{expression}': "
            "use that, or try it on a real project."
        )
        raise invalid(message)
    return Condition(title, expression, match[2], str(given.get("description") or ""))


def _show(grant: Grant, members: frozenset[str], version: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": grant.role, "members": sorted(members)}
    if grant.condition is None:
        return shown
    if version >= CONDITIONAL:
        return shown | {"condition": grant.condition.show()}
    mark = hashlib.sha256(f"{grant.condition.title}{grant.condition.expression}".encode()).hexdigest()[:20]
    return shown | {"role": f"{grant.role}_withcond_{mark}"}
