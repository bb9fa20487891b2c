"""Paths of Google's smaller APIs: which call is meant, and by whom."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError, denied, format_error, invalid
from polyserve_gcp.emulator.identities import CLOUD_PLATFORM, Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call that is let in.

    Attributes:
        call: The HTTP request.
        principal: Who calls.
        names: What the path names, by the names in the rule.
        body: The body, a JSON object.
    """

    call: Call
    principal: Principal
    names: Mapping[str, str]
    body: Mapping[str, Any]


Rule = Callable[[Request], Awaitable[Any]]
"""Answers one call with what is written as JSON, or with an `Answer`."""


class Paths:
    """The calls of one API.

    Args:
        service: Its host, `iam.googleapis.com`.
        access: Who may do what.
        rules: What answers each: `POST /v1/projects/{project}/serviceAccounts`.
        scopes: Of these a caller's token needs one.
    """

    def __init__(
        self, service: str, access: Access, rules: Mapping[str, Rule], scopes: Sequence[str] = (CLOUD_PLATFORM,)
    ) -> None:
        self._service, self._access, self._scopes = service, access, scopes
        self._rules = [
            (method, _pattern(path), rule) for key, rule in rules.items() for method, _, path in [key.partition(" ")]
        ]

    async def answer(self, call: Call) -> Answer:
        """Answer one call."""
        try:
            found = await self._answer(call)
        except ServiceError as error:
            return format_error(error)
        return found if isinstance(found, Answer) else json_answer(200, found)

    async def _answer(self, call: Call) -> Any:
        for method, pattern, rule in self._rules:
            match = pattern.fullmatch(call.raw_path) if method == call.method else None
            if match is None:
                continue
            principal = self._access.enter(call, self._service, scopes=self._scopes)
            names = {name: unquote(value) for name, value in match.groupdict().items()}
            identities = self._access.identities
            if names.get("project", "-") not in {identities.project, identities.number, "-"}:
                raise denied("resourcemanager.projects.get", f"projects/{names['project']}")
            return await rule(Request(call=call, principal=principal, names=names, body=_read_body(call)))
        raise ServiceError("NOT_FOUND", f"The emulator has no '{call.method} {call.path}' at {self._service}.")


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/:]+)", re.escape(path)))


def _read_body(call: Call) -> dict[str, Any]:
    try:
        found = json.loads(call.body or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise invalid("Invalid JSON payload received. Expected an object.")
    return found
