"""The endpoint of a group: one model whose parts are deployments of their own, called as if it were one.

A call goes to every part at once where the parts are summed, and from part to part where they are a sequence. Every part says which
package answered; an answer of another package than the group's record names is never used: the record is read anew, since the group
was deployed again meanwhile, and until its parts are all of one version the call is tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from polyserve.driver import ErrorCode, Request, Response
from polyserve.endpoint import Endpoint
from polyserve.errors import NotFoundError, PolyserveError, error_for
from polyserve.records import GroupSpec, load
from polyserve.rollout import Target
from polyserve.runtime import protocol
from polyserve.runtime.combining import SEQUENCE, chosen, combine, handed_on
from polyserve.runtime.messages import RequestError
from polyserve.runtime.signature import Signature
from polyserve.runtime.tensors import Tensor

__all__ = ["GroupEndpoint"]

# The header by which a runtime says which package answered.
_DIGEST = "x-polyserve-digest"
# Of all calls of all the caller's threads together; they are made as they are needed.
_MOST_THREADS = 128


@dataclass(frozen=True, slots=True)
class _Serving:
    """What a group serves, and the endpoints of its parts."""

    spec: GroupSpec
    endpoints: tuple[Endpoint, ...]


class GroupEndpoint(Endpoint):
    """A group, to invoke as any endpoint: `invoke`, `ainvoke`, `map`, `amap`, and `send` of inference requests.

    Args:
        target: The provider, and the bucket of the records.
        name: The group.
        spec: What it serves, as its record says.
        fixed: Whether it serves that and nothing else: how a new version is asked before the record names it.
    """

    def __init__(self, target: Target, name: str, spec: GroupSpec, *, fixed: bool = False) -> None:
        super().__init__(
            target.provider,
            name,
            model=spec.model,
            signature=Signature.from_dict(spec.signature),
            timeout=timedelta(seconds=spec.timeout_s),
        )
        self._target = target
        self._fixed = fixed
        self._serving: _Serving | None = None
        self._first: GroupSpec | None = spec

    def _start(self) -> None:
        super()._start()
        # A fork takes no threads along.
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Close the connections to all parts; calls afterwards are refused."""
        super().close()
        self._forget()
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    # --- one call -------------------------------------------------------------------------------------------------------------------

    def _once(self, request: Request, deadline: float) -> Response:
        serving = self._known()
        inputs, outputs = self._read_request(request, serving)
        if serving.spec.combining["how"] == SEQUENCE:
            for index in range(len(serving.endpoints)):
                ask = self._ask(serving, index, inputs, request)
                inputs = self._answer(serving, index, partial(ask, _left(deadline)))
            return self._response(chosen(inputs, outputs), request)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix=f"group-{self.name}")
        asks = [self._ask(serving, index, inputs, request) for index in range(len(serving.endpoints))]
        futures = [self._threads.submit(ask, _left(deadline)) for ask in asks]
        answers, failure = [], None
        for index, future in enumerate(futures):
            # All are waited for: a call that goes on behind the caller's back would meet the next one.
            try:
                answers.append(self._answer(serving, index, future.result))
            except PolyserveError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return self._response(combine(serving.spec.combining, answers, outputs), request)

    async def _aonce(self, request: Request, deadline: float) -> Response:
        known = self._serving
        # Finding reads records: the loop goes on meanwhile.
        serving: _Serving = await asyncio.to_thread(self._known) if known is None else known
        inputs, outputs = self._read_request(request, serving)
        if serving.spec.combining["how"] == SEQUENCE:
            for index in range(len(serving.endpoints)):
                sent = await self._outcome(serving, index, inputs, request, deadline)
                inputs = self._answer(serving, index, sent)
            return self._response(chosen(inputs, outputs), request)
        outcomes = await asyncio.gather(
            *(self._outcome(serving, index, inputs, request, deadline) for index in range(len(serving.endpoints)))
        )
        answers = [self._answer(serving, index, outcome) for index, outcome in enumerate(outcomes)]
        return self._response(combine(serving.spec.combining, answers, outputs), request)

    async def _outcome(
        self, serving: _Serving, index: int, inputs: Sequence[Tensor], request: Request, deadline: float
    ) -> Callable[[], Response]:
        """Ask a part, and return what gives its response or raises what it raised."""
        endpoint, asked = serving.endpoints[index], self._part_request(serving, index, inputs, request)
        try:
            response = await endpoint.asend(asked, timeout=_left(deadline))
        except PolyserveError as error:
            failure = error

            def fail() -> Response:
                raise failure

            return fail
        return lambda: response

    def _ask(
        self, serving: _Serving, index: int, inputs: Sequence[Tensor], request: Request
    ) -> Callable[[float], Response]:
        endpoint, asked = serving.endpoints[index], self._part_request(serving, index, inputs, request)
        return lambda seconds: endpoint.send(asked, timeout=seconds)

    def _part_request(self, serving: _Serving, index: int, inputs: Sequence[Tensor], request: Request) -> Request:
        endpoint = serving.endpoints[index]
        specs = endpoint.signature.inputs
        tensors = handed_on(inputs, specs) if serving.spec.combining["how"] == SEQUENCE else inputs
        body, headers = protocol.format_request(tensors, binary=True)
        return Request(
            path=f"/v2/models/{endpoint.model}/infer",
            headers={**headers, "x-request-id": request.request_id},
            body=body,
            request_id=request.request_id,
        )

    def _answer(self, serving: _Serving, index: int, result: Callable[[], Response]) -> list[Tensor]:
        """Return a part's answer as tensors, or raise its failure as the group's, naming the part."""
        part = serving.spec.parts[index]
        which = f"part {index + 1} of {len(serving.spec.parts)}, {part.name!r},"
        try:
            response = result()
        except NotFoundError as error:
            self._forget()
            raise self._failed(error, f"{which} is not there: deploy the group again") from error
        except PolyserveError as error:
            raise self._failed(error, f"{which} failed: {error.message}") from error
        served = response.headers.get(_DIGEST, "")
        if not served or not part.package_digest.startswith(served):
            self._forget()
            message = (
                f"{which} serves package {served or 'unknown'} instead of {part.package_digest[:12]}: the group is being deployed, or "
                "its part was by itself; if it stays so, deploy the group again"
            )
            raise self._error(ErrorCode.UNAVAILABLE, message, "")
        try:
            tensors, _ = protocol.parse_response(response.body, response.headers)
        except RequestError as error:
            raise self._error(ErrorCode.INTERNAL, f"{which} gave no answer: {error.message}", "") from error
        return tensors

    def _failed(self, error: PolyserveError, reason: str) -> PolyserveError:
        kind = error_for(error.code)
        return kind(
            f"invoke {self.name!r} failed on {error.provider or self._provider.info.name}: {reason}",
            provider=self._provider.info.name,
            operation="invoke",
            resource=self.name,
            request_id=error.request_id,
            retry_after=error.retry_after,
        )

    def _read_request(self, request: Request, serving: _Serving) -> tuple[list[Tensor], tuple[str, ...] | None]:
        model = serving.spec.model
        if request.path != f"/v2/models/{model}/infer":
            message = f"{request.path} is not /v2/models/{model}/infer: a group answers inference requests; ask its parts for the rest"
            raise self._error(ErrorCode.UNSUPPORTED, message, request.request_id)
        try:
            parsed = protocol.parse_infer(request.body, request.headers)
        except RequestError as error:
            raise self._error(error.code, error.message, request.request_id) from error
        return parsed.inputs, parsed.outputs

    def _response(self, tensors: Sequence[Tensor], request: Request) -> Response:
        body, headers = protocol.format_infer(
            tensors, model=self.model, version="1", request_id=request.request_id, binary=True
        )
        return Response(status=200, headers={**headers, "x-request-id": request.request_id}, body=body)

    # --- its parts ------------------------------------------------------------------------------------------------------------------

    def _known(self) -> _Serving:
        """Return what the group serves: as it was told first, then, where that was wrong, as its record says now."""
        serving = self._serving
        if serving is None:
            spec = self._first or load(self._target.bucket, self.name)[0].group
            if spec is None:
                raise self._error(ErrorCode.UNAVAILABLE, "it has no version that is ready: deploy it again", "")
            serving = _Serving(spec, tuple(self._endpoint(part.name) for part in spec.parts))
            if not self._fixed:
                self._first = None
            self._serving = serving
        return serving

    def _endpoint(self, name: str) -> Endpoint:
        try:
            record, _ = load(self._target.bucket, name)
        except NotFoundError as error:
            raise self._failed(error, f"its part {name!r} is not there: deploy the group again") from error
        revision = record.stable or record.canary
        if revision is None:
            raise self._error(ErrorCode.UNAVAILABLE, f"its part {name!r} has no revision with traffic yet", "")
        return Endpoint(
            self._provider,
            name,
            model=revision.model,
            signature=Signature.from_dict(revision.signature),
            timeout=timedelta(seconds=revision.timeout_s),
        )

    def _forget(self) -> None:
        """Let go of the parts: what they are now is read again."""
        serving, self._serving = self._serving, None
        for endpoint in serving.endpoints if serving is not None else ():
            endpoint.close()


def _left(deadline: float) -> float:
    """Return the seconds until a deadline, and never none: a call with no time left must say so itself."""
    return max(0.001, deadline - time.monotonic())
