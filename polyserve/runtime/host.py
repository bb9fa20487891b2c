"""The host: loads a model package once, answers many requests. The same bytes on every cloud.

    Request -> route -> parse -> match the signature -> model.predict -> format -> Response, and one line in the log

`handle` answers one request; `handle_many` answers those that have arrived together, joining compatible ones into one `predict` where the
package is proven row-wise. Both go through the same steps, so an answer does not tell which way it took. Knows no HTTP server and no cloud:
entrypoints and `server` hand it canonical requests.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING

from polyserve.runtime import calls, loading, logs, protocol, values
from polyserve.runtime.calls import Call
from polyserve.runtime.loading import LoadError
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response
from polyserve.runtime.routes import MethodError, Routes
from polyserve.runtime.signature import TensorSpec, match
from polyserve.runtime.tensors import Tensor, concatenate

if TYPE_CHECKING:
    from polyserve.runtime.loaders import Model
    from polyserve.runtime.manifest import Manifest
    from polyserve.runtime.remote import Remote

__all__ = ["REQUEST_BYTES", "Host", "LoadError"]

REQUEST_BYTES = 64 * 1024 * 1024
"""Largest request body, unless the deployment says otherwise."""


class Host:
    """Serves one model package.

    Args:
        root: The package's directory.
        revision: The deployment's revision that this is; the protocol's model version.
        request_bytes: Largest request body, in bytes, before and after decompression.
        sink: Takes the log's lines; standard output unless given.
        remote: How to get the files of the package that its bundle left in the bucket, where there are any.
    """

    def __init__(
        self,
        root: Path,
        *,
        revision: int = 0,
        request_bytes: int = REQUEST_BYTES,
        sink: logs.Sink | None = None,
        remote: Remote | None = None,
    ) -> None:
        self.root = root
        self.revision = revision
        self.request_bytes = request_bytes
        self.digest = ""
        """The package's tree digest; empty until it is loaded."""
        self.ready = False
        """Whether the model is loaded."""
        self._sink = sink or logs.standard_output
        self._remote = remote
        self._loading = threading.Lock()
        self._cold = True
        self._version = str(revision)
        self._routes = Routes(self._version)
        self._table = self._routes.table
        self._failure = "the model is not loaded yet; try again"
        # What follows is known once the package is loaded.
        self._manifest: Manifest | None = None
        self._model: Model
        self._name = ""
        self._short_digest = ""
        self._row_wise = False
        self._kind = ""
        self._specs: tuple[TensorSpec, ...] = ()
        self._output_specs: tuple[TensorSpec, ...] = ()
        self._output_names: frozenset[str] = frozenset()

    @property
    def manifest(self) -> Manifest:
        """The package's manifest.

        Raises:
            LoadError: The package is not loaded.
        """
        if self._manifest is None:
            raise LoadError(self._failure)
        return self._manifest

    def load(self) -> None:
        """Load the model, once, whichever thread comes first: verify every file, check the interpreter, import, load.

        Nothing of the package runs before all of its files are what the manifest says.

        Raises:
            LoadError: It must not or cannot be served; a later call tries again.
        """
        with self._loading:
            if self.ready:
                return
            try:
                loaded = loading.load(self.root, self._remote)
            except LoadError as error:
                self._failure = f"the model cannot be loaded: {error}"
                self._log(self._trace_line("", "".join(traceback.format_exception(error))))
                raise
            manifest = loaded.manifest
            self._manifest = manifest
            self._model = loaded.model
            self._name = manifest.name
            self.digest = manifest.digest
            self._short_digest = self.digest[: calls.SHOWN_DIGITS]
            self._row_wise = manifest.row_wise
            self._kind = manifest.signature.input_kind
            self._specs = manifest.signature.inputs
            self._output_specs = manifest.signature.outputs
            self._output_names = frozenset(spec.name for spec in self._output_specs)
            self._routes = Routes(self._version, manifest)
            self._table = self._routes.table
            # Last: whoever sees it must find all of the above.
            self.ready = True
        start = {
            "event": "start",
            "at": round(time(), 6),
            "revision": self.revision,
            "digest": self._short_digest,
            "import_ms": round(loaded.import_ms, 3),
            "load_ms": round(loaded.load_ms, 3),
            "pid": os.getpid(),
        }
        if loaded.fetch_ms:
            start |= {"fetch_ms": round(loaded.fetch_ms, 3), "fetched_bytes": loaded.fetched_bytes}
        self._log(logs.format_line(start))

    # --- answering ------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Answer one request; thread-safe. Never raises for what a caller, a model or the log's sink does."""
        call = Call(request, perf_counter())
        if self._open(call):
            self._predict(call)
        return self._close([call])[0]

    def handle_many(self, requests: Sequence[Request]) -> list[Response]:
        """Answer requests that have arrived together, in their order; thread-safe.

        Inference requests for the same outputs, with the same trailing shapes, are answered by one `predict` where the package is
        row-wise. Should that fail, each is tried alone, so that a bad row hurts only its own request.
        """
        started = perf_counter()
        together = [Call(request, started) for request in requests]
        groups: dict[object, list[Call]] = {}
        for call in together:
            if self._open(call):
                groups.setdefault(self._batch_key(call), []).append(call)
        for group in groups.values():
            if len(group) == 1 or not self._predict_together(group):
                for call in group:
                    self._predict(call)
        return self._close(together)

    def _close(self, over: Sequence[Call]) -> list[Response]:
        """Return the answers, and log them in one piece."""
        if self._cold:
            self._warm_up(over)
        now, at = perf_counter(), f"{time():.6f}"
        responses: list[Response] = []
        lines: list[str] = []
        for call in over:
            response, line = calls.close(call, revision=self._version, digest=self.digest, now=now, at=at)
            responses.append(response)
            lines.append(line)
            if call.trace:
                lines.append(self._trace_line(call.request_id, call.trace))
        self._log("".join(lines))
        return responses

    def _warm_up(self, over: Sequence[Call]) -> None:
        """Mark the first calls that reach the model: whoever sent them waited for the instance to start."""
        for call in over:
            if call.batch:
                call.cold = True
                self._cold = False

    def _open(self, call: Call) -> bool:
        """Read a request as far as to its tensors; tell whether the model is to be asked."""
        request = call.request
        path = request.path
        try:
            if path == "/v2/health/ready" and not self.ready:
                call.route = "ready"
                raise RequestError(ErrorCode.UNAVAILABLE, self._failure)
            route = self._table.get(path) or self._routes.find(path)
            call.route, method, call.body = route
            if request.method != method:
                raise MethodError(path, request.method, method)
            return method == "POST" and self._open_inference(call)
        except RequestError as error:
            calls.fail(call, error)
        except Exception as error:
            self._fail_internally(call, error)
        return False

    def _open_inference(self, call: Call) -> bool:
        request = call.request
        body = request.body
        if len(body) > self.request_bytes or "content-encoding" in request.headers:
            body = calls.readable(request, self.request_bytes)
        specs = self._specs
        inputs: Sequence[Tensor]
        if call.route == "infer":
            call.wire = wire = protocol.parse_infer(body, request.headers)
            inputs = match(wire.inputs, specs) if specs else wire.inputs
            outputs = wire.outputs
            if outputs is not None:
                self._check_outputs(outputs)
                call.outputs = outputs
        else:
            inputs = values.to_tensors(protocol.parse_rows(body), specs, self._kind if specs else None)
        call.inputs = inputs
        shape = inputs[0].shape
        call.rows = rows = shape[0] if shape else 1
        if self._row_wise:
            if len(inputs) > 1:
                _check_rows(inputs)
            if rows == 0 and self._answer_nothing(call):
                return False
        return True

    def _check_outputs(self, wanted: Sequence[str]) -> None:
        known = self._output_names
        if not known or known.issuperset(wanted):
            return
        unknown = next(name for name in wanted if name not in known)
        expected = ", ".join(spec.name for spec in self._output_specs)
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"there is no output {unknown[:80]!r}; expected {expected}")

    def _answer_nothing(self, call: Call) -> bool:
        """Answer no rows with no rows, which many models refuse; tell whether that could be done without the model."""
        specs = self._output_specs
        if not specs or any(spec.shape[:1] != (-1,) or -1 in spec.shape[1:] for spec in specs):
            return False
        nothing = [Tensor(spec.name, spec.datatype, (0, *spec.shape[1:]), b"", spec.parameters) for spec in specs]
        self._finish(call, nothing)
        return True

    def _batch_key(self, call: Call) -> object:
        """Return what calls must have in common to share one predict; the call itself where it can share none."""
        if not self._row_wise or not self._specs:
            return call
        inputs = call.inputs
        if len(inputs) == 1:
            shape = inputs[0].shape
            return (call.outputs, shape[1:]) if shape else call
        if not all(tensor.shape for tensor in inputs):
            return call
        return (call.outputs, *[tensor.shape[1:] for tensor in inputs])

    def _predict(self, call: Call) -> None:
        """Ask the model for one call's answer."""
        call.batch = 1
        started = perf_counter()
        try:
            try:
                tensors = self._model.predict(call.inputs, call.outputs)
            finally:
                call.predict_ms = (perf_counter() - started) * 1e3
            self._finish(call, tensors)
        except RequestError as error:
            calls.fail(call, error)
        except (Exception, SystemExit) as error:
            # SystemExit: a model that calls sys.exit() must not take its instance along.
            self._fail_internally(call, error)

    def _predict_together(self, group: Sequence[Call]) -> bool:
        """Answer calls by one predict; tell whether that went well, else each is to be tried alone."""
        started = perf_counter()
        counts = [call.rows for call in group]
        try:
            columns = zip(*[call.inputs for call in group], strict=True)
            tensors = self._model.predict([concatenate(column) for column in columns], group[0].outputs)
            # An answer of another length raises here: such a model is not as row-wise as its sample was.
            parts = [tensor.split(counts) for tensor in tensors]
        except (Exception, SystemExit):
            return False
        predict_ms = (perf_counter() - started) * 1e3
        for call, *own in zip(group, *parts, strict=True):
            call.batch = len(group)
            call.predict_ms = predict_ms
            try:
                self._finish(call, own)
            except RequestError as error:
                calls.fail(call, error)
            except Exception as error:
                self._fail_internally(call, error)
        return True

    def _finish(self, call: Call, tensors: Sequence[Tensor]) -> None:
        """Write the body of an answer."""
        if call.outputs is not None:
            by_name = {tensor.name: tensor for tensor in tensors}
            tensors = [by_name[name] for name in call.outputs]
        wire = call.wire
        if wire is None:
            call.body = protocol.format_rows(tensors)
            return
        call.body, headers = protocol.format_infer(
            tensors, model=self._name, version=self._version, request_id=wire.id, binary=wire.binary_outputs
        )
        call.content = headers["content-type"]
        if len(headers) > 1:
            call.extra = headers

    # --- failing and logging --------------------------------------------------------------------------------------

    def _fail_internally(self, call: Call, error: BaseException) -> None:
        """Answer an error of the model, or of our own: the caller learns its type, the log its traceback."""
        call.trace = "".join(traceback.format_exception(error))
        message = (
            f"the model raised {type(error).__name__}; the log has its traceback under request id {call.request_id}"
        )
        calls.fail(call, RequestError(ErrorCode.INTERNAL, message))

    def _trace_line(self, request_id: str, trace: str) -> str:
        return logs.format_line(
            {
                "event": "traceback",
                "at": round(time(), 6),
                "request_id": request_id,
                "revision": self.revision,
                "digest": self._short_digest,
                "traceback": trace,
            }
        )

    def _log(self, lines: str) -> None:
        try:
            self._sink(lines.encode())
        except Exception:
            # A log that cannot be written (a closed pipe, a full disk) is no reason to withhold an answer, and nowhere is left to say so.
            return


def _check_rows(inputs: Sequence[Tensor]) -> None:
    if len({tensor.shape[0] for tensor in inputs if tensor.shape}) > 1:
        told = ", ".join(f"{tensor.name!r} has {tensor.rows}" for tensor in inputs)
        raise RequestError(
            ErrorCode.INVALID_ARGUMENT, f"expected inputs of the same number of rows, got others: {told}"
        )
