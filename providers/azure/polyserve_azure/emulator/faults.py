"""Failures that are wanted: throttled calls, operations that fail in the end, deployments that do not come through.

`POST /_emulator/faults` with the owner's token takes one as JSON, `DELETE` takes all away; `Emulator.faults` is the same
for whoever has the emulator in the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from polyserve_azure.emulator.errors import ServiceError, bad_request

KINDS = frozenset({"call", "operation", "deployment"})


@dataclass(slots=True, kw_only=True)
class Fault:
    """One failure.

    Attributes:
        match: Regular expression that `METHOD /path` of the call has to match somewhere, without regard to case.
        kind: `call` refuses the call; `operation` lets the long-running operation that it starts fail; `deployment` lets
            the deployment that it publishes fail.
        times: How often; negative for always.
        after: How many calls that match go through before.
        status: HTTP status of a refused call.
        code: Azure's code.
        message: Azure's sentence.
        retry_after: Value of `Retry-After` of a refused call; empty for none.
        late: Whether a refused call is carried out before it is refused, as by an answer that is lost.
    """

    match: str
    kind: str = "call"
    times: int = 1
    after: int = 0
    status: int = 500
    code: str = "InternalServerError"
    message: str = "There was an unexpected error."
    retry_after: str = ""
    late: bool = False

    def error(self) -> ServiceError:
        """Return it as a refusal."""
        headers = {"retry-after": self.retry_after} if self.retry_after else {}
        return ServiceError(self.status, self.code, self.message, headers)


@dataclass(slots=True)
class Faults:
    """All failures that are wanted and have not happened yet."""

    wanted: list[Fault] = field(default_factory=list)

    def add(self, **given: Any) -> None:
        """Want a failure; the arguments are the fields of `Fault`.

        Raises:
            ServiceError: It is no failure.
        """
        try:
            fault = Fault(**given)
            re.compile(fault.match)
        except (TypeError, re.error) as error:
            raise bad_request(f"no fault: {error}") from error
        if fault.kind not in KINDS:
            raise bad_request(f"no fault: kind is {fault.kind!r}, and not one of {', '.join(sorted(KINDS))}")
        self.wanted.append(fault)

    def clear(self) -> None:
        """Want no failure any more."""
        self.wanted.clear()

    def take(self, method: str, path: str, kind: str = "call") -> Fault | None:
        """Return the failure that is wanted for a call, which has happened with that."""
        for fault in self.wanted:
            if fault.kind != kind or not re.search(fault.match, f"{method} {path}", re.IGNORECASE):
                continue
            if fault.after > 0:
                fault.after -= 1
                continue
            if fault.times > 0:
                fault.times -= 1
                if fault.times == 0:
                    self.wanted.remove(fault)
            return fault
        return None
