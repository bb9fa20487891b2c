"""A call to Resource Manager, read and let in: what every operation takes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_azure.emulator.errors import ServiceError
from polyserve_azure.emulator.principals import Principal
from polyserve_azure.emulator.roles import Roles
from polyserve_azure.emulator.targets import Target

PAGE = 20
"""Resources on one page of a list: few, so that pages are met with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A call, whom it is from, and what it names.

    Attributes:
        call: The request.
        target: What its path names.
        principal: Who asks.
        roles: What he may do.
        url: The emulator's address.
    """

    call: Call
    target: Target
    principal: Principal
    roles: Roles
    url: str

    @property
    def body(self) -> dict[str, Any]:
        """The body, which must be a JSON object.

        Raises:
            ServiceError: It is none.
        """
        try:
            found = json.loads(self.call.body or b"{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServiceError(
                400, "InvalidRequestContent", "The request content was invalid and could not be deserialized."
            )
        return found

    def paged(self, shown: Sequence[Mapping[str, Any]]) -> Answer:
        """Answer with one page of a list."""
        start = int(self.call.query.get("$skiptoken", "0"))
        body: dict[str, Any] = {"value": list(shown[start : start + PAGE])}
        if len(shown) > start + PAGE:
            query = {**self.call.query, "$skiptoken": str(start + PAGE)}
            body["nextLink"] = f"{self.url}{self.call.raw_path}?{urlencode(query)}"
        return json_answer(200, body)


Handler = Callable[[Ask], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Operation:
    """What a call does, and the action that it needs a role for."""

    action: str
    handler: Handler


Table = Mapping[tuple[str, str, bool], Operation]
"""Operations by method, kind of the target, and whether it is a single resource."""


class Part(Protocol):
    """A part of Resource Manager."""

    def table(self) -> Table:
        """Return its operations."""
