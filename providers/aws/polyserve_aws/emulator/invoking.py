"""Invocations: by the Invoke API at once, later as an event, as a stream, and for moto's own services."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import msgspec

from polyserve.emulation.http import Answer
from polyserve_aws.emulator.asking import Ask
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.fleet import Fleet, Outcome
from polyserve_aws.emulator.functions import Function, Functions, Reference
from polyserve_aws.emulator.surroundings import check_readable

REQUEST_LIMIT = 6 * 1024 * 1024
"""Largest event of a synchronous invocation, in bytes (Lambda quotas, read 2026-11-20)."""
EVENT_LIMIT = 1024 * 1024
"""Largest event of an asynchronous invocation, in bytes."""
RETRY_PAUSE_S = 0.2
"""Pause before an asynchronous event is tried again. AWS waits one minute, then two."""
_LOG_TAIL = 4096
_CHUNK = 65536


class Invoking:
    """The operations that run functions.

    Args:
        functions: All functions.
        fleet: Their execution environments.
    """

    def __init__(self, functions: Functions, fleet: Fleet) -> None:
        self._functions, self._fleet = functions, fleet

    def operations(self) -> Mapping[str, Callable[[Ask], Awaitable[Answer]]]:
        """Return the operations by name."""
        return {"Invoke": self.invoke, "InvokeWithResponseStream": self.invoke_stream}

    async def invoke(self, ask: Ask) -> Answer:
        """Invoke a function and return its answer, or take the event for later."""
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        headers = ask.call.headers
        kind = headers.get("X-Amz-Invocation-Type", "RequestResponse")
        payload = _check_payload(ask.call.body, REQUEST_LIMIT if kind != "Event" else EVENT_LIMIT)
        function.resolve(reference.qualifier)  # an unknown qualifier is refused before anything else happens
        if kind == "DryRun":
            return Answer(204)
        if kind == "Event":
            self._check_active(function, reference)
            self._fleet.spawn(self._later(function, reference, payload))
            return Answer(202)
        if kind != "RequestResponse":
            raise ServiceError(400, "InvalidRequestContentException", f"Invocation type {kind} is none.")
        outcome = await self.run(
            function, reference.qualifier, payload, _client_context(headers.get("X-Amz-Client-Context", ""))
        )
        fields = {
            "content-type": "application/json",
            "x-amz-executed-version": outcome.version,
            "x-amzn-requestid": outcome.request_id,
        }
        if outcome.error:
            fields["x-amz-function-error"] = outcome.error
        if headers.get("X-Amz-Log-Type") == "Tail":
            fields["x-amz-log-result"] = base64.b64encode(outcome.log.encode()[-_LOG_TAIL:]).decode()
        return Answer(200, fields, outcome.payload)

    async def run(self, function: Function, qualifier: str, payload: bytes, client_context: str = "") -> Outcome:
        """Run a function once.

        Args:
            function: Which one.
            qualifier: Version or alias that was asked for; empty for none.
            payload: The event, as JSON.
            client_context: The caller's context, as JSON.

        Raises:
            ServiceError: It is not ready, or there is no concurrency left.
        """
        version = function.resolve(qualifier)
        if version.pending:
            message = (
                "The operation cannot be performed at this time. "
                "The function is currently in the following state: Pending"
            )
            raise ServiceError(409, "ResourceConflictException", message)
        check_readable(version.serving.settings)
        return await self._fleet.invoke(
            version.serving, payload, function.arn(qualifier), reserved=function.reserved, client_context=client_context
        )

    def send(self, name: str, payload: bytes) -> None:
        """Take an event for the function that a name or an ARN leads to; an event for nobody is lost, as on AWS."""
        with contextlib.suppress(ServiceError):
            reference = self._functions.read(name, "us-east-1")
            self._fleet.spawn(self._later(self._functions.find(reference), reference, payload))

    async def invoke_stream(self, ask: Ask) -> Answer:
        """Invoke a function and return its answer as an event stream.

        The answer is cut into pieces when it is complete: Lambda's managed Python runtimes do not stream either.
        """
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        payload = _check_payload(ask.call.body, REQUEST_LIMIT)
        outcome = await self.run(function, reference.qualifier, payload)
        fields = {"content-type": "application/vnd.amazon.eventstream", "x-amz-executed-version": outcome.version}
        fields["x-amzn-requestid"] = outcome.request_id
        return Answer(200, fields, stream=_frames(outcome))

    async def _later(self, function: Function, reference: Reference, payload: bytes) -> None:
        config = function.event_config.get(reference.qualifier) or function.event_config.get("") or {}
        for _ in range(int(config.get("MaximumRetryAttempts", 2)) + 1):
            try:
                outcome = await self.run(function, reference.qualifier, payload)
            except ServiceError:
                outcome = None  # throttled, or being made: it waits in the queue
            if outcome is not None and not outcome.error:
                return
            await asyncio.sleep(RETRY_PAUSE_S)

    def _check_active(self, function: Function, reference: Reference) -> None:
        if function.resolve(reference.qualifier).pending:
            message = (
                "The operation cannot be performed at this time. "
                "The function is currently in the following state: Pending"
            )
            raise ServiceError(409, "ResourceConflictException", message)


def _check_payload(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        message = f"Request must be smaller than {limit} bytes for the InvokeFunction operation"
        raise ServiceError(413, "RequestTooLargeException", message)
    if not body:
        return b"{}"
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        message = f"Could not parse request body into json: Could not parse payload into json: {error}"
        raise ServiceError(400, "InvalidRequestContentException", message) from error
    return body


def _client_context(header: str) -> str:
    if not header:
        return ""
    try:
        return base64.b64decode(header, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        message = "Client context must be a valid Base64-encoded JSON object."
        raise ServiceError(400, "InvalidRequestContentException", message) from None


async def _frames(outcome: Outcome) -> AsyncIterator[bytes]:
    if outcome.error:
        details = {"ErrorCode": outcome.error, "ErrorDetails": outcome.payload.decode("utf-8", "replace")}
        yield _frame("InvokeComplete", msgspec.json.encode(details), "application/json")
        return
    for start in range(0, len(outcome.payload), _CHUNK):
        yield _frame("PayloadChunk", outcome.payload[start : start + _CHUNK], "application/octet-stream")
    yield _frame("InvokeComplete", b"{}", "application/json")


def _frame(event: str, payload: bytes, content_type: str) -> bytes:
    """Return one message of the event stream encoding (Smithy, "Amazon Event Stream specification")."""
    headers = b""
    for name, value in ((":event-type", event), (":content-type", content_type), (":message-type", "event")):
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    prelude += struct.pack(">I", binascii.crc32(prelude))
    message = prelude + headers + payload
    return message + struct.pack(">I", binascii.crc32(message))
