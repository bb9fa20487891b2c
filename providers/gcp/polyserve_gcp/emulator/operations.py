"""Long-running operations: accepted at once, done after a while, asked after by name."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import empty_pb2
from google.rpc import code_pb2, status_pb2

from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.asking import Ask, Handler, admit
from polyserve_gcp.emulator.errors import ServiceError, invalid, missing
from polyserve_gcp.emulator.methods import FUNCTIONS, OPERATIONS, plain

WAIT_S = 30.0
"""How long `WaitOperation` waits where it is not told."""
_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        message: What is told of it.
        describe: Returns its metadata now.
        done: Set at its end.
    """

    message: Any
    describe: Callable[[], Any]
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Operations:
    """All operations of both APIs.

    Args:
        settle_s: How long an operation takes at least, in seconds.
        access: Who may ask after them.
    """

    def __init__(self, settle_s: float, access: Access) -> None:
        self._settle_s, self._access = settle_s, access
        self._all: dict[str, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, location: str, describe: Callable[[], Any], work: Callable[[], Awaitable[Any]]) -> Any:
        """Start an operation; returns what is told of it at first.

        Args:
            location: Where it is: `projects/p/locations/l`.
            describe: Returns its metadata, as a message.
            work: Does it, and returns the response message.
        """
        made = Operation(operations_pb2.Operation(name=f"{location}/operations/{uuid.uuid4()}"), describe)
        made.message.metadata.Pack(plain(describe()))
        self._all[made.message.name] = made
        first = operations_pb2.Operation()
        first.CopyFrom(made.message)
        task = asyncio.get_running_loop().create_task(self._run(made, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return first

    def finished(self, location: str, metadata: Any, response: Any) -> Any:
        """Return an operation that was over before it began: what is only validated is."""
        made = operations_pb2.Operation(name=f"{location}/operations/{uuid.uuid4()}", done=True)
        made.metadata.Pack(plain(metadata))
        made.response.Pack(plain(response))
        kept = Operation(made, lambda: metadata)
        kept.done.set()
        self._all[made.name] = kept
        return made

    async def close(self) -> None:
        """Give up on all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def handlers(self) -> dict[str, Handler]:
        """Return what answers the methods of `google.longrunning.Operations`."""
        return {
            f"{OPERATIONS}/GetOperation": self._get,
            f"{OPERATIONS}/ListOperations": self._list,
            f"{OPERATIONS}/WaitOperation": self._wait,
            f"{OPERATIONS}/DeleteOperation": self._delete,
        }

    async def _run(self, made: Operation, work: Callable[[], Awaitable[Any]]) -> None:
        message = made.message
        try:
            await asyncio.sleep(self._settle_s)
            message.response.Pack(plain(await work()))
        except ServiceError as error:
            message.error.CopyFrom(status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message))
        except Exception as error:  # whatever it is, an operation has an end
            _LOG.exception("the emulator failed in %s", message.name)
            message.error.CopyFrom(status_pb2.Status(code=code_pb2.INTERNAL, message=f"the emulator failed: {error!r}"))
        finally:
            message.metadata.Pack(plain(made.describe()))
            message.done = True
            made.done.set()

    def _found(self, ask: Ask, verb: str) -> Operation:
        api = "cloudfunctions" if ask.api == FUNCTIONS else "run"
        admit(self._access, ask, f"{api}.operations.{verb}", ask.request.name)
        found = self._all.get(ask.request.name)
        if found is None:
            raise missing(f"Operation {ask.request.name}")
        return found

    async def _get(self, ask: Ask) -> Any:
        return self._found(ask, "get").message

    async def _wait(self, ask: Ask) -> Any:
        found = self._found(ask, "get")
        limit = ask.request.timeout.ToTimedelta().total_seconds() if ask.request.HasField("timeout") else WAIT_S
        try:
            async with asyncio.timeout(limit):
                await found.done.wait()
        except TimeoutError:
            pass
        return found.message

    async def _delete(self, ask: Ask) -> Any:
        found = self._found(ask, "delete")
        if not found.done.is_set():
            raise ServiceError("FAILED_PRECONDITION", f"Operation {ask.request.name} is not done.")
        del self._all[ask.request.name]
        return empty_pb2.Empty()

    async def _list(self, ask: Ask) -> Any:
        name = ask.request.name.removesuffix("/operations")
        api = "cloudfunctions" if ask.api == FUNCTIONS else "run"
        admit(self._access, ask, f"{api}.operations.list", name)
        if ask.request.filter:
            raise invalid("filter: the emulator lists all operations of a location only")
        found = [one.message for key, one in self._all.items() if key.startswith(f"{name}/operations/")]
        start, size = int(ask.request.page_token or 0), ask.request.page_size or 100
        more = str(start + size) if start + size < len(found) else ""
        return operations_pb2.ListOperationsResponse(operations=found[start : start + size], next_page_token=more)
