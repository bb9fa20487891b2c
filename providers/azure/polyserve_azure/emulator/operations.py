"""Long-running operations: accepted at once, done after a while, asked after by the address in the answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_azure.emulator.errors import ServiceError, format_error
from polyserve_azure.emulator.faults import Faults


@dataclass(slots=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        identifier: Its identifier.
        location: Address of its result.
        error: How it failed, once it has.
        result: What it ended with, once it has: a status and a body.
        done: Set at its end.
    """

    identifier: str
    location: str
    error: ServiceError | None = None
    result: tuple[int, Any] = (200, None)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Operations:
    """All operations.

    Args:
        faults: Failures that are wanted.
        settle_s: How long an operation takes.
        url: Returns the emulator's address.
    """

    def __init__(self, faults: Faults, settle_s: float, url: Callable[[], str]) -> None:
        self._faults, self._settle_s, self._url = faults, settle_s, url
        self._all: dict[str, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        call: Call,
        subscription: str,
        finish: Callable[[], Awaitable[tuple[int, Any]]],
        failed: Callable[[], None] = lambda: None,
    ) -> dict[str, str]:
        """Start an operation; returns the header fields that say where to ask after it.

        Args:
            call: The call that wants it.
            subscription: Subscription that it belongs to.
            finish: Does it, and returns the status and the body of the last answer.
            failed: Notes that it failed.
        """
        base = f"{self._url()}/subscriptions/{subscription}/providers/Microsoft.Web/locations/eastus"
        query = urlencode({"api-version": call.query.get("api-version", "")})
        identifier = str(uuid.uuid4())
        made = self._all[identifier] = Operation(identifier, f"{base}/operationResults/{identifier}?{query}")
        fault = self._faults.take(call.method, call.path, "operation")

        async def run() -> None:
            try:
                await asyncio.sleep(self._settle_s)
                if fault is not None:
                    raise fault.error()
                made.result = await finish()
            except ServiceError as error:
                made.error = error
                failed()
            except Exception as error:  # whatever it is, an operation has an end
                made.error = ServiceError(500, "InternalServerError", f"the emulator failed: {error}")
                failed()
            finally:
                made.done.set()

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {
            "azure-asyncoperation": f"{base}/operations/{identifier}?{query}",
            "location": made.location,
            "retry-after": "0",
        }

    def status(self, identifier: str) -> Answer:
        """Answer how far an operation is, as `Azure-AsyncOperation` does."""
        found = self._found(identifier)
        if not found.done.is_set():
            return json_answer(200, {"id": identifier, "name": identifier, "status": "InProgress"}, retry_after="0")
        if found.error is not None:
            error = {"code": found.error.code, "message": found.error.message}
            return json_answer(200, {"id": identifier, "name": identifier, "status": "Failed", "error": error})
        return json_answer(200, {"id": identifier, "name": identifier, "status": "Succeeded"})

    def result(self, identifier: str) -> Answer:
        """Answer what came of an operation, as `Location` does: 202 until it is done."""
        found = self._found(identifier)
        if not found.done.is_set():
            return Answer(202, {"location": found.location, "retry-after": "0"})
        if found.error is not None:
            return format_error(found.error)
        status, body = found.result
        return Answer(status) if body is None else json_answer(status, body)

    async def close(self) -> None:
        """Give up on all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _found(self, identifier: str) -> Operation:
        found = self._all.get(identifier)
        if found is None:
            raise ServiceError(404, "NotFound", f"The operation '{identifier}' was not found.")
        return found
