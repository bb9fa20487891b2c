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
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from random import getrandbits
from time import perf_counter, time
from typing import TYPE_CHECKING
from urllib.parse import unquote

from polyserve.runtime import environment, logs, loaders, protocol, values
from polyserve.runtime import manifest as manifests
from polyserve.runtime.messages import ErrorCode, Request, RequestError, Response, error_body
from polyserve.runtime.signature import match
from polyserve.runtime.tensors import Tensor, concatenate

if TYPE_CHECKING:
    from polyserve.runtime.loaders import Model
    from polyserve.runtime.manifest import Manifest

__all__ = ["Host", "LoadError"]

REQUEST_BYTES = 64 * 1024 * 1024
"""Largest request body, unless the deployment says otherwise."""

_LONGEST_ID = 128
_JSON = "application/json"


class LoadError(Exception):
    """A package that must not be served: it is not what its manifest says, or this interpreter is not what it was locked to."""


class _Call:
    """One request on its way through the host."""

    __slots__ = (
        "batch", "body", "code", "cold", "content", "error", "extra", "inputs", "outputs", "plain", "predict_ms", "request", "request_id",
        "route", "rows", "started", "status", "tensors", "trace", "wire",
    )  # fmt: skip

    def __init__(self, request: Request, started: float) -> None:
        self.request = request
        self.started = started
        self.route = "unknown"
        self.status = 200
        self.code = ""
        self.cold = False
        self.error = ""
        self.body = b""
        self.content = _JSON
        self.extra: Mapping[str, str] | None = None
        self.inputs: list[Tensor] | None = None
        self.outputs: tuple[str, ...] | None = None
        self.tensors: list[Tensor] | None = None
        self.wire: protocol.InferRequest | None = None
        self.rows = 0
        self.batch = 0
        self.predict_ms = 0.0
        self.trace = ""


class Host:
    """Serves one model package.

    Args:
        root: The package's directory.
        revision: The deployment's revision that this is; the protocol's model version.
        request_bytes: Largest request body, in bytes, before and after decompression.
        sink: Takes the log's lines; standard output unless given.
    """

    def __init__(
        self, root: Path, *, revision: int = 0, request_bytes: int = REQUEST_BYTES, sink: logs.Sink | None = None
    ) -> None:
        self.root = root
        self.revision = revision
        self.request_bytes = request_bytes
        self.digest = ""
        """The package's tree digest; empty until it is loaded."""
        self.ready = False
        """Whether the model is loaded."""
        self._sink = sink or logs.standard_output
        self._lock = threading.Lock()
        self._cold = True
        self._version = str(revision)
        self._manifest: Manifest | None = None
        self._model: Model | None = None
        self._failure = "the model is not loaded yet; try again"
        self._routes: dict[str, tuple[str, str, bytes]] = self._fixed_routes()

    @property
    def manifest(self) -> Manifest:
        """The package's manifest.

        Raises:
            LoadError: The package is not loaded.
        """
        if self._manifest is None:
            raise LoadError(self._failure)
        return self._manifest

    # --- loading --------------------------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the model, once, whichever thread comes first: verify every file, check the interpreter, import, load.

        Nothing of the package runs before all of its files are what the manifest says.

        Raises:
            LoadError: It must not or cannot be served; a later call tries again.
        """
        with self._lock:
            if self.ready:
                return
            try:
                self._load()
            except LoadError as error:
                self._failure = f"the model cannot be loaded: {error}"
                raise

    def _load(self) -> None:
        try:
            manifest = manifests.read(self.root)
            manifests.verify(self.root, manifest)
        except manifests.ManifestError as error:
            raise LoadError(f"the package is not whole: {error}; deploy it again") from error
        skew = list(environment.mismatches(manifest.python, manifest.requirements))
        if skew:
            raise LoadError(
                f"{'; '.join(skew)}: deploy with these versions, or package the model again under this interpreter"
            )
        started = perf_counter()
        try:
            import_module(f"{loaders.__name__}.{manifest.flavor}")
            imported = perf_counter()
            model = loaders.load(self.root, manifest)
        except Exception as error:
            self._sink(logs.format_line(self._trace_event("", traceback.format_exc())).encode())
            raise LoadError(f"loading model {manifest.name!r} failed: {type(error).__name__}: {error}") from error
        loaded = perf_counter()
        self._manifest = manifest
        self._model = model
        self.digest = manifest.digest
        self._routes = self._fixed_routes() | self._model_routes(manifest)
        self.ready = True
        start = {
            "event": "start",
            "at": round(time(), 6),
            "revision": self.revision,
            "digest": self.digest[:12],
            "import_ms": round((imported - started) * 1e3, 3),
            "load_ms": round((loaded - imported) * 1e3, 3),
            "pid": os.getpid(),
        }
        logs.write(self._sink, [start])

    def _fixed_routes(self) -> dict[str, tuple[str, str, bytes]]:
        from polyserve import __version__

        server = {"name": "polyserve", "version": __version__, "extensions": ["binary_tensor_data"]}
        return {
            "/v2": ("server", "GET", protocol.encode_json(server)),
            "/v2/health/live": ("live", "GET", b'{"live":true}'),
            "/v2/health/ready": ("ready", "GET", b'{"ready":true}'),
        }

    def _model_routes(self, manifest: Manifest) -> dict[str, tuple[str, str, bytes]]:
        form = manifest.loader.get("format")
        metadata = {
            "name": manifest.name,
            "versions": [self._version],
            "platform": f"{manifest.flavor}_{form}" if form else manifest.flavor,
            "inputs": [spec.to_dict() for spec in manifest.signature.inputs],
            "outputs": [spec.to_dict() for spec in manifest.signature.outputs],
            "parameters": {"digest": self.digest, "row_wise": manifest.row_wise},
        }
        ready = {"name": manifest.name, "ready": True}
        routes = {"/invocations": ("invocations", "POST", b"")}
        for path in (f"/v2/models/{manifest.name}", f"/v2/models/{manifest.name}/versions/{self._version}"):
            routes[path] = ("metadata", "GET", protocol.encode_json(metadata))
            routes[f"{path}/ready"] = ("ready", "GET", protocol.encode_json(ready))
            routes[f"{path}/infer"] = ("infer", "POST", b"")
        return routes

    # --- answering ------------------------------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Answer one request. Never raises for what a caller or a model does."""
        call = _Call(request, perf_counter())
        if self._open(call):
            self._predict(call)
        if self._cold:
            self._warm_up([call])
        response, line = self._close(call)
        self._sink(line.encode())
        return response

    def handle_many(self, requests: Sequence[Request]) -> list[Response]:
        """Answer requests that have arrived together, in their order.

        Inference requests for the same outputs, with the same trailing shapes, are answered by one `predict` where the package is row-wise.
        Should that fail, each is tried alone, so that a bad row hurts only its own request.
        """
        started = perf_counter()
        calls = [_Call(request, started) for request in requests]
        groups: dict[object, list[_Call]] = {}
        for call in calls:
            if self._open(call):
                groups.setdefault(self._batch_key(call), []).append(call)
        for group in groups.values():
            if len(group) == 1 or not self._predict_together(group):
                for call in group:
                    self._predict(call)
        if self._cold:
            self._warm_up(calls)
        answers = [self._close(call) for call in calls]
        self._sink("".join([line for _, line in answers]).encode())
        return [response for response, _ in answers]

    def _warm_up(self, calls: Sequence[_Call]) -> None:
        """Mark the first calls that reach the model: whoever sent them waited for the instance to start."""
        for call in calls:
            if call.batch:
                call.cold = True
                self._cold = False

    def _open(self, call: _Call) -> bool:
        """Read a request as far as to its tensors; tell whether the model is to be asked."""
        request = call.request
        call.request_id = _request_id(request)
        try:
            route = self._routes.get(request.path) or self._find_route(request.path)
            call.route, method, body = route
            if request.method != method:
                raise _MethodError(request.method, method, request.path)
            if method == "GET":
                if call.route == "ready" and not self.ready:
                    raise RequestError(ErrorCode.UNAVAILABLE, self._failure)
                call.body = body
                return False
            return self._open_inference(call)
        except RequestError as error:
            _fail(call, error.code, error.message, error.status)
            if isinstance(error, _MethodError):
                call.extra = {"allow": error.allowed}
        except Exception as error:
            self._fail_internally(call, error)
        return False

    def _open_inference(self, call: _Call) -> bool:
        request = call.request
        body = self._readable(request)
        signature = self.manifest.signature
        specs = signature.inputs
        if call.route == "infer":
            call.wire = wire = protocol.parse_infer(body, request.headers)
            inputs = match(wire.inputs, specs) if specs else wire.inputs
            call.outputs = wire.outputs
            if wire.outputs is not None:
                self._check_outputs(wire.outputs)
        else:
            inputs = values.to_tensors(protocol.parse_rows(body), specs, signature.input_kind if specs else None)
        call.inputs = inputs
        shape = inputs[0].shape
        call.rows = shape[0] if shape else 1
        if len(inputs) > 1 and self.manifest.row_wise:
            _check_rows(inputs)
        if call.rows == 0 and self.manifest.row_wise:
            call.tensors = self._nothing(call.outputs)
            if call.tensors is not None:
                self._finish(call)
                return False
        return True

    def _readable(self, request: Request) -> bytes | memoryview:
        """Return a request's body within the limit, decompressed."""
        body = request.body
        limit = self.request_bytes
        if len(body) > limit:
            raise _too_large(len(body), limit)
        coding = request.headers.get("content-encoding")
        if coding is None or coding == "identity":
            return body
        if coding not in {"gzip", "deflate"}:
            message = f"content-encoding: expected gzip, deflate or identity, got {coding[:40]!r}"
            raise RequestError(ErrorCode.INVALID_ARGUMENT, message, status=415)
        inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            plain = inflate.decompress(body, limit + 1)
        except zlib.error as error:
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, f"expected a body of {coding}, got what cannot be read: {error}"
            ) from error
        if len(plain) > limit:
            raise _too_large(len(plain), limit)
        if not inflate.eof:
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"expected a body of {coding}, got one that is cut short")
        return plain

    def _find_route(self, path: str) -> tuple[str, str, bytes]:
        """Find a path that is spelled unusually, or raise what says why there is none."""
        route = self._routes.get(unquote(path).rstrip("/"))
        if route is not None:
            return route
        if self._manifest is None:
            raise RequestError(ErrorCode.UNAVAILABLE, self._failure)
        name = self._manifest.name
        parts = unquote(path).split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
            if parts[3] != name:
                raise RequestError(ErrorCode.NOT_FOUND, f"there is no model {parts[3][:80]!r} here; this is {name!r}")
            if len(parts) > 5 and parts[4] == "versions" and parts[5] != self._version:
                message = f"there is no version {parts[5][:80]!r} of model {name!r} here; this is {self._version!r}"
                raise RequestError(ErrorCode.NOT_FOUND, message)
        message = f"there is no route {path[:200]!r}; try /v2/models/{name}, /v2/models/{name}/infer or /invocations"
        raise RequestError(ErrorCode.NOT_FOUND, message)

    def _check_outputs(self, wanted: tuple[str, ...]) -> None:
        known = [spec.name for spec in self.manifest.signature.outputs]
        for name in wanted:
            if known and name not in known:
                raise RequestError(
                    ErrorCode.INVALID_ARGUMENT, f"there is no output {name[:80]!r}; expected {', '.join(known)}"
                )

    def _nothing(self, outputs: tuple[str, ...] | None) -> list[Tensor] | None:
        """Return the answer to no rows at all, which many models refuse; `None` where only the model knows it."""
        specs = self.manifest.signature.outputs
        if not specs or any(not spec.shape or spec.shape[0] != -1 or -1 in spec.shape[1:] for spec in specs):
            return None
        nothing = [Tensor(spec.name, spec.datatype, (0, *spec.shape[1:]), b"", spec.parameters) for spec in specs]
        return _in_order(nothing, outputs)

    def _batch_key(self, call: _Call) -> object:
        """Return what calls must have in common to share one predict; something of its own where nothing can be shared."""
        inputs = call.inputs or ()
        if not self.manifest.row_wise or not self.manifest.signature.inputs or not all([t.shape for t in inputs]):
            return call
        return (call.outputs, *[tensor.shape[1:] for tensor in inputs])

    def _predict(self, call: _Call) -> None:
        """Ask the model for one call's answer."""
        started = perf_counter()
        call.batch = 1
        try:
            model = self._model
            assert model is not None
            assert call.inputs is not None
            tensors = model.predict(call.inputs, call.outputs)
            call.predict_ms = (perf_counter() - started) * 1e3
            call.tensors = tensors if call.outputs is None else _in_order(tensors, call.outputs)
            self._finish(call)
        except RequestError as error:
            _fail(call, error.code, error.message, error.status)
        except (Exception, SystemExit) as error:
            # A model that calls sys.exit() must not take its instance along.
            self._fail_internally(call, error)
        if not call.predict_ms:
            call.predict_ms = (perf_counter() - started) * 1e3

    def _predict_together(self, group: Sequence[_Call]) -> bool:
        """Answer calls by one predict; tell whether that went well, else each is to be tried alone."""
        started = perf_counter()
        counts = [call.rows for call in group]
        first = group[0]
        model = self._model
        assert model is not None
        assert first.inputs is not None
        try:
            columns = zip(*[call.inputs or () for call in group], strict=True)
            tensors = model.predict([concatenate(column) for column in columns], first.outputs)
            if first.outputs is not None:
                tensors = _in_order(tensors, first.outputs)
            # An answer of another length raises here: such a model is not as row-wise as its sample was.
            parts = [tensor.split(counts) for tensor in tensors]
        except (Exception, SystemExit):
            return False
        predict_ms = (perf_counter() - started) * 1e3
        for index, call in enumerate(group):
            call.batch = len(group)
            call.predict_ms = predict_ms
            call.tensors = [part[index] for part in parts]
            try:
                self._finish(call)
            except RequestError as error:
                _fail(call, error.code, error.message, error.status)
            except Exception as error:
                self._fail_internally(call, error)
        return True

    def _finish(self, call: _Call) -> None:
        """Write the body of an answer."""
        assert call.tensors is not None
        wire = call.wire
        if wire is None:
            call.body = protocol.format_rows(call.tensors)
            return
        call.body, headers = protocol.format_infer(
            call.tensors,
            model=self.manifest.name,
            version=self._version,
            request_id=wire.id,
            binary=wire.binary_outputs,
        )
        if len(headers) > 1:
            call.content = headers["content-type"]
            call.extra = headers

    def _close(self, call: _Call) -> tuple[Response, str]:
        """Return the answer, and the log's lines about it."""
        request = call.request
        arrived = request.received or call.started
        queue_ms = (call.started - arrived) * 1e3
        ms = (perf_counter() - arrived) * 1e3
        if call.code:
            call.body = error_body(ErrorCode(call.code), call.error, call.request_id)
        headers = {
            "content-type": call.content,
            "x-request-id": call.request_id,
            "x-polyserve-revision": self._version,
            "x-polyserve-digest": self.digest,
            "x-polyserve-cold": "1" if call.cold else "0",
            "server-timing": f"queue;dur={queue_ms:.3f}, predict;dur={call.predict_ms:.3f}, total;dur={ms:.3f}",
        }
        if call.extra is not None:
            headers |= call.extra
        line = logs.request_line(
            at=time(),
            request_id=call.request_id,
            route=call.route,
            status=call.status,
            code=call.code,
            ms=ms,
            queue_ms=queue_ms,
            predict_ms=call.predict_ms,
            rows=call.rows,
            batch=call.batch,
            cold=call.cold,
            revision=self.revision,
            digest=self.digest[:12],
            bytes_in=len(request.body),
            bytes_out=len(call.body),
            error=call.error,
        )
        if call.trace:
            line += logs.format_line(self._trace_event(call.request_id, call.trace))
        return Response(status=call.status, headers=headers, body=call.body), line

    def _fail_internally(self, call: _Call, error: BaseException) -> None:
        call.trace = "".join(traceback.format_exception(error))
        message = (
            f"the model raised {type(error).__name__}; the log has its traceback under request id {call.request_id}"
        )
        _fail(call, ErrorCode.INTERNAL, message, 500)

    def _trace_event(self, request_id: str, trace: str) -> dict[str, object]:
        return {
            "event": "traceback",
            "at": round(time(), 6),
            "request_id": request_id,
            "revision": self.revision,
            "traceback": trace,
        }


class _MethodError(RequestError):
    """A route that has another method."""

    def __init__(self, method: str, allowed: str, path: str) -> None:
        super().__init__(ErrorCode.UNSUPPORTED, f"{path} answers {allowed}, got {method[:20]}", status=405)
        self.allowed = allowed


def _request_id(request: Request) -> str:
    """Return the request's id; one of our own where it has none that is safe in a header and in the log."""
    request_id = request.request_id or request.headers.get("x-request-id", "")
    if (
        request_id
        and len(request_id) <= _LONGEST_ID
        and request_id.isascii()
        and request_id.isprintable()
        and '"' not in request_id
        and "\\" not in request_id
    ):
        return request_id
    return f"{getrandbits(128):032x}"


def _fail(call: _Call, code: ErrorCode, message: str, status: int) -> None:
    call.code = code.value
    call.error = message
    call.status = status
    call.content = _JSON
    call.extra = None


def _too_large(size: int, limit: int) -> RequestError:
    message = f"the body has at least {size} bytes, and this deployment takes {limit}: send fewer rows at a time"
    return RequestError(ErrorCode.INVALID_ARGUMENT, message, status=413)


def _check_rows(inputs: Sequence[Tensor]) -> None:
    lengths = {tensor.shape[0] for tensor in inputs if tensor.shape}
    if len(lengths) > 1:
        told = ", ".join(f"{tensor.name!r} has {tensor.rows}" for tensor in inputs)
        raise RequestError(
            ErrorCode.INVALID_ARGUMENT, f"expected inputs of the same number of rows, got others: {told}"
        )


def _in_order(tensors: Sequence[Tensor], outputs: tuple[str, ...] | None) -> list[Tensor]:
    """Return the tensors that were asked for, in the order they were asked for."""
    if outputs is None:
        return list(tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    return [by_name[name] for name in outputs]
