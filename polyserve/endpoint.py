"""Where a deployment is invoked: values in, values out, over whatever HTTP call its provider makes of it.

`Endpoint` owns what is the same everywhere: turning values into the Open Inference Protocol and back, connections, deadlines, retries, and
one error tree. A provider's `Invoker` only finds the address, prepares the call and reads the platform's reply. Small calls must stay
cheap: nothing here imports a retry library, a progress bar or an event loop before it is needed.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from polyserve.addresses import CurrentAddress
from polyserve.detours import acarry, carry
from polyserve.driver import Address, ErrorCode, HttpCall, HttpReply, Provider, Request, Response
from polyserve.errors import InvalidArgumentError, PolyserveError, error_for, translating
from polyserve.exchange import decode, encode
from polyserve.failures import attempts, is_stale, reason_of, remembering, retry_after_of
from polyserve.runtime.messages import RequestError
from polyserve.runtime.signature import Signature
from polyserve.transport import Connections

if TYPE_CHECKING:
    from types import TracebackType

    from polyserve.transport_async import LoopConnections

__all__ = ["Endpoint"]

Duration: TypeAlias = timedelta | float


class Endpoint:
    """One deployment, or one revision of it, to invoke. Safe to use from many threads and event loops, and after a fork.

    Args:
        provider: The provider it runs on.
        name: The deployment.
        model: The model's name within the service.
        signature: What it takes and gives.
        revision: One revision, whatever its traffic; by default whatever the traffic decides.
        timeout: Longest time an invocation may take, retries included.
    """

    def __init__(
        self,
        provider: Provider,
        name: str,
        *,
        model: str,
        signature: Signature,
        revision: int | None = None,
        timeout: timedelta,
    ) -> None:
        self.name = name
        self.model = model
        self.signature = signature
        self.revision = revision
        self.timeout = timeout
        self._provider = provider
        self._invoker = provider.invoker
        self._path = f"/v2/models/{model}/infer"
        self._addresses = CurrentAddress(provider, name, revision)
        self._connections = Connections()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopConnections] = weakref.WeakKeyDictionary()
        self._start()
        _ENDPOINTS.add(self)

    def _start(self) -> None:
        """Make what no two processes may have the same: where request ids count from."""
        self._prefix = os.urandom(8).hex()
        self._numbers = count(1)

    def __repr__(self) -> str:
        which = f", revision={self.revision}" if self.revision is not None else ""
        return f"<Endpoint {self.name!r} on {self._provider.info.name!r}{which}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"an Endpoint holds connections and a credential and cannot be pickled: call "
            f"polyserve.connect({self.name!r}, provider={self._provider.info.name!r}) in the other process"
        )

    # --- one call -------------------------------------------------------------------------------------------------------------------

    def invoke(
        self,
        data: object,
        *,
        timeout: Duration | None = None,
        outputs: Sequence[str] | None = None,
        request_id: str | None = None,
    ) -> Any:
        """Send inputs to the model and return its answer.

        numpy arrays and data frames are answered with numpy arrays, lists and scalars with lists, a dict with what the model's own output
        is; where there are several outputs, with a dict of them by name. A call that fails in a way that may pass is
        repeated until `timeout`.

        Args:
            data: The inputs: an array, nested lists, a DataFrame, rows (a list of dicts), or a dict by input name.
            timeout: Longest time it may take, retries included, as timedelta or seconds; the deployment's own by default.
            outputs: Names of the outputs to return; all by default.
            request_id: Names the call in logs and errors; made up by default.

        Raises:
            InvalidArgumentError: The inputs do not fit the model's signature, or the model refused them.
            NotFoundError: There is no such deployment or revision.
            UnauthenticatedError: The credential is not valid.
            PermissionDeniedError: The credential may not do this.
            ResourceExhaustedError: It was throttled until the timeout.
            UnavailableError: Nothing answered until the timeout.
            DeadlineExceededError: It took longer than it may.
            InternalError: The model failed; its log has the reason under the request id.
        """
        request = self._request(data, outputs, request_id)
        return self._value(self.send(request, timeout=timeout), data, request)

    async def ainvoke(
        self,
        data: object,
        *,
        timeout: Duration | None = None,  # noqa: ASYNC109 - a deadline over retries, not the cancellation of one wait
        outputs: Sequence[str] | None = None,
        request_id: str | None = None,
    ) -> Any:
        """Do what `invoke` does, natively asynchronous: many calls in flight on one event loop.

        Raises:
            PolyserveError: As `invoke`.
        """
        request = self._request(data, outputs, request_id)
        return self._value(await self.asend(request, timeout=timeout), data, request)

    def send(self, request: Request, *, timeout: Duration | None = None) -> Response:
        """Send a request of the canonical kind, whatever its path, and return its response.

        Raises:
            PolyserveError: As `invoke`; also for a response of status 400 or more.
        """
        deadline = self._deadline(timeout)
        request = self._identified(request)
        try:
            return self._once(request, deadline)
        except PolyserveError as error:
            if not (error.retryable or is_stale(error)):
                raise
            failure = error
        if is_stale(failure):
            try:
                return self._once(request, deadline)
            except PolyserveError as error:
                failure = error
        if not failure.retryable:
            raise failure
        return self._patiently(request, deadline, failure)

    async def asend(self, request: Request, *, timeout: Duration | None = None) -> Response:  # noqa: ASYNC109 - as above
        """Do what `send` does, natively asynchronous.

        Raises:
            PolyserveError: As `send`.
        """
        deadline = self._deadline(timeout)
        request = self._identified(request)
        try:
            return await self._aonce(request, deadline)
        except PolyserveError as error:
            if not (error.retryable or is_stale(error)):
                raise
            failure = error
        if is_stale(failure):
            try:
                return await self._aonce(request, deadline)
            except PolyserveError as error:
                failure = error
        if not failure.retryable:
            raise failure
        return await self._apatiently(request, deadline, failure)

    def _once(self, request: Request, deadline: float) -> Response:
        address = self._addresses.known() or self._addresses.find()
        call = self._prepare(address, request)
        try:
            reply = carry(self._connections.send, call, deadline)
        except (OSError, ValueError) as error:
            raise self._lost(address, request, error) from error
        return self._read(address, reply, request)

    async def _aonce(self, request: Request, deadline: float) -> Response:
        address = self._addresses.known()
        if address is None:
            # Finding may start a gateway or ask a cloud: the loop goes on meanwhile.
            address = await asyncio.to_thread(self._addresses.find)
        call = self._prepare(address, request)
        try:
            reply = await acarry(self._loop_connections().send, call, deadline)
        except (OSError, ValueError) as error:
            raise self._lost(address, request, error) from error
        return self._read(address, reply, request)

    def _patiently(self, request: Request, deadline: float, failure: PolyserveError) -> Response:
        """Try again with growing pauses; the first attempt only replays the failure there already was."""
        failed = [failure]
        for attempt in attempts(deadline):
            with attempt, remembering(failed, deadline):
                if len(failed) == 1:
                    raise failure
                return self._once(request, deadline)
        raise AssertionError("a retry context ends by returning or raising")

    async def _apatiently(self, request: Request, deadline: float, failure: PolyserveError) -> Response:
        failed = [failure]
        async for attempt in attempts(deadline):
            with attempt, remembering(failed, deadline):
                if len(failed) == 1:
                    raise failure
                return await self._aonce(request, deadline)
        raise AssertionError("a retry context ends by returning or raising")

    # --- requests and their ids ------------------------------------------------------------------------------------------

    def _request(self, data: object, outputs: Sequence[str] | None, request_id: str | None) -> Request:
        if request_id is None:
            request_id = self._new_id()
        try:
            body, headers = encode(data, self.signature, outputs)
        except RequestError as error:
            raise self._error(error.code, error.message, request_id) from error
        headers["x-request-id"] = request_id
        return Request(path=self._path, headers=headers, body=body, request_id=request_id)

    def _value(self, response: Response, data: object, request: Request) -> Any:
        try:
            return decode(response, data, self.signature)
        except RequestError as error:
            message = f"the answer cannot be read: {error.message}"
            raise self._error(ErrorCode.INTERNAL, message, request.request_id) from error

    def _new_id(self) -> str:
        return f"{self._prefix}{next(self._numbers):08x}"

    def _identified(self, request: Request) -> Request:
        """Return the request with an id, in the field and in the header."""
        if request.request_id and "x-request-id" in request.headers:
            return request
        request_id = request.request_id or request.headers.get("x-request-id") or self._new_id()
        return replace(request, headers={**request.headers, "x-request-id": request_id}, request_id=request_id)

    def _deadline(self, timeout: Duration | None) -> float:
        if timeout is None:
            timeout = self.timeout
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
        if not seconds > 0:
            reason = f"timeout must be more than 0 seconds, got {timeout!r}"
            raise self._error(ErrorCode.INVALID_ARGUMENT, reason, "")
        return time.monotonic() + seconds

    # --- what a provider makes of it ------------------------------------------------------------------------------------------------

    def _prepare(self, address: Address, request: Request) -> HttpCall:
        try:
            return self._invoker.prepare(address, request)
        except Exception as error:
            raise self._translated(error, request) from error

    def _read(self, address: Address, reply: HttpReply, request: Request) -> Response:
        try:
            response = self._invoker.parse(address, reply)
        except Exception as error:
            ours = self._translated(error, request)
            ours.retry_after = ours.retry_after or retry_after_of(reply.headers)
            if ours.code is ErrorCode.UNAUTHENTICATED:
                self._addresses.drop(address)
            raise ours from error
        if response.status < 400:
            return response
        code, reason = reason_of(response)
        if code is ErrorCode.UNAUTHENTICATED:
            self._addresses.drop(address)
        raise self._error(
            code, reason, response.headers.get("x-request-id") or request.request_id, retry_after_of(response.headers)
        )

    def _translated(self, error: Exception, request: Request) -> PolyserveError:
        try:
            with translating(self._provider, "invoke", self.name):
                raise error
        except PolyserveError as ours:
            ours.request_id = ours.request_id or request.request_id
            return ours

    def _lost(self, address: Address, request: Request, error: Exception) -> PolyserveError:
        """Make an error of ours of a call that got no answer."""
        if isinstance(error, TimeoutError):
            return self._error(ErrorCode.DEADLINE_EXCEEDED, "no answer within the timeout", request.request_id)
        if isinstance(error, ssl.SSLCertVerificationError):
            message = f"the certificate of the server is not trusted: {error.verify_message}"
            return self._error(ErrorCode.FAILED_PRECONDITION, message, request.request_id)
        if not isinstance(error, OSError):
            return self._error(ErrorCode.INVALID_ARGUMENT, f"the request cannot be sent: {error}", request.request_id)
        # Another gateway, another port, other keys: whoever knows is asked before the next attempt.
        self._addresses.drop(address)
        return self._error(ErrorCode.UNAVAILABLE, str(error) or type(error).__name__, request.request_id)

    def _error(
        self, code: ErrorCode, reason: str, request_id: str, retry_after: timedelta | None = None
    ) -> PolyserveError:
        provider = self._provider.info.name
        return error_for(code)(
            f"invoke {self.name!r} failed on {provider}: {reason}",
            provider=provider,
            operation="invoke",
            resource=self.name,
            request_id=request_id,
            retry_after=retry_after,
        )

    # --- many calls -----------------------------------------------------------------------------------------------------------------

    def map(
        self,
        batches: Iterable[object],
        *,
        concurrency: int = 32,
        progress: bool | None = None,
        timeout: Duration | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Iterator[Any]:
        """Yield the answers to many inputs, in order, with up to `concurrency` calls in flight.

        Memory is bounded: never more than twice `concurrency` inputs are read ahead or answers kept. Each input has its own retries; the
        first that fails for good, or an error of `batches` itself, is raised in its place and ends the iteration. Closing the iterator,
        or Ctrl-C, cancels what is in flight.

        Args:
            batches: The inputs, each as `invoke` takes it. Read in the thread that iterates.
            concurrency: Calls in flight.
            progress: Whether to show a progress bar on standard error; by default where that is a terminal.
            timeout: As `invoke`, for each input.
            outputs: As `invoke`.

        Raises:
            PolyserveError: As `invoke`.
        """
        from polyserve.streams import map_in_thread, tracked

        async def call(data: object) -> Any:
            return await self.ainvoke(data, timeout=timeout, outputs=outputs)

        answers = map_in_thread(call, batches, concurrency=_positive(concurrency))
        return tracked(answers, batches, name=self.name, progress=progress)

    def amap(
        self,
        batches: Iterable[object] | AsyncIterable[object],
        *,
        concurrency: int = 32,
        timeout: Duration | None = None,
        outputs: Sequence[str] | None = None,
    ) -> AsyncIterator[Any]:
        """Do what `map` does on the running event loop; `batches` may be asynchronous.

        Raises:
            PolyserveError: As `invoke`.
        """
        from polyserve.streams import map_in_loop

        async def call(data: object) -> Any:
            return await self.ainvoke(data, timeout=timeout, outputs=outputs)

        return map_in_loop(call, batches, concurrency=_positive(concurrency))

    # --- its life -------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close its connections; calls afterwards are refused. Those of an event loop are closed by `aclose`, or with the loop."""
        self._addresses.close()
        self._connections.close()
        for loop, connections in list(self._loops.items()):
            connections.close_from_outside(loop)

    async def aclose(self) -> None:
        """Close its connections, those of the running event loop included."""
        mine = self._loops.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine.close()
        self.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _loop_connections(self) -> LoopConnections:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            from polyserve.transport_async import LoopConnections

            found = self._loops[loop] = LoopConnections()
        return found

    def _after_fork(self) -> None:
        """Start afresh in a child process: connections and locks are the parent's."""
        self._start()
        self._addresses.after_fork()
        self._connections.forget()
        for connections in self._loops.values():
            connections.forget()
        self._loops = weakref.WeakKeyDictionary()


_ENDPOINTS: weakref.WeakSet[Endpoint] = weakref.WeakSet()


def _after_fork() -> None:
    for endpoint in list(_ENDPOINTS):
        endpoint._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _positive(concurrency: int) -> int:
    if concurrency < 1:
        raise InvalidArgumentError(f"concurrency must be at least 1, got {concurrency!r}", operation="invoke")
    return concurrency
