"""The APIs over gRPC, all on one port: which service is called, the method says itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2, json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2
from multidict import CIMultiDict, CIMultiDictProxy

from polyserve.emulation.http import Call
from polyserve_gcp.emulator.asking import Ask, Handler
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.methods import FUNCTIONS, OPERATIONS, Method, methods, plain

_THREADS = 8
_DETAILS = error_details_pb2.DESCRIPTOR.package
"""Named, so that the messages of errors' details are known where they are read from JSON."""


class GrpcDoor:
    """Answers gRPC calls, without TLS.

    Args:
        handlers: What answers each method, by `Method.key`; on the loop that opens this.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._server: Any = None
        self._running: set[Future[Any]] = set()

    def open(self, loop: asyncio.AbstractEventLoop) -> str:
        """Start listening; returns the address as gRPC takes it."""
        # Not grpc.aio: it can have one loop in a process, and a client in the same process may have its own.
        self._server = grpc.server(ThreadPoolExecutor(_THREADS, "gcp-grpc"), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(service, {one.name: self._serve(loop, one) for one in group})
                for service, group in _by_service().items()
            )
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            stopped = self._server.stop(None)
            for one in list(self._running):
                one.cancel()  # nobody would ever tell its thread
            stopped.wait()
            self._server = None

    def _serve(self, loop: asyncio.AbstractEventLoop, method: Method) -> Any:
        handler = self._handlers.get(method.key)

        def answer(request: Any, context: Any) -> Any:
            call = _call(method, context)
            try:
                if handler is None:
                    raise ServiceError("UNIMPLEMENTED", f"The emulator has no {method.key}.")
                ask = Ask(request=method.wrap(request), call=call, api=method.api)
                running = asyncio.run_coroutine_threadsafe(_wait(handler, ask), loop)
                self._running.add(running)
                running.add_done_callback(self._running.discard)
                return running.result()
            except ServiceError as error:
                _abort(context, error)
            except CancelledError:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the emulator ends")

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=method.request.FromString,
            response_serializer=lambda found: plain(found).SerializeToString(),
        )


async def _wait(handler: Handler, ask: Ask) -> Any:
    return await handler(ask)


def _by_service() -> dict[str, list[Method]]:
    found: dict[str, list[Method]] = {}
    for method in methods():
        if method.service == OPERATIONS and method.api == FUNCTIONS:
            continue  # one service for both APIs; Cloud Run's has more methods
        found.setdefault(method.service, []).append(method)
    return found


def _call(method: Method, context: Any) -> Call:
    fields = CIMultiDict((name, value) for name, value in context.invocation_metadata() if isinstance(value, str))
    return Call(method="POST", target=f"/{method.key}", headers=CIMultiDictProxy(fields), body=b"")


def _abort(context: Any, error: ServiceError) -> None:
    """Refuse a call as gRPC does, with the details where Google's clients look for them."""
    details = []
    for one in error.details:
        packed = any_pb2.Any()
        json_format.ParseDict(dict(one), packed)
        details.append(packed)
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message, details=details)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode[error.code], error.message)
