"""What runs inside an instance: Microsoft's engine for Python functions, and the wire to the emulator.

This is not imported but run, in an interpreter that sees the app, the engine and the standard library, and nothing of the
environment that the emulator itself is installed in.

The engine is driven through the requests that the real host sends over gRPC: init, metadata, invocation. It is given its
message classes by whoever drives it, so plain Python objects do as well as protobuf's; with `OFFICIAL` in the environment
the official protobuf messages are used, each serialised and read again, as on the wire.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import socket
import struct
import sys
import traceback
import types
from typing import Any, ClassVar

OFFICIAL = "_EMULATOR_MESSAGES"
"""Variable with the directory of the official messages."""
FRAME = struct.Struct(">IQ")
"""Length of a frame's header, and of its body."""
_MAPS = frozenset(
    [
        *("headers", "params", "query", "nullable_headers", "nullable_params", "nullable_query"),
        *("capabilities", "trigger_metadata", "attributes"),
    ]
)
"""Fields that are maps."""
_PARTS = frozenset(["trace_context", "retry_context", "exception", "body", "rawBody"])
_CLASSES = """
WorkerInitRequest WorkerInitResponse FunctionsMetadataRequest FunctionMetadataResponse FunctionLoadResponse
InvocationRequest InvocationResponse RpcFunctionMetadata RpcException RpcHttp RpcRetryOptions WorkerMetadata
NullableString NullableBool NullableDouble NullableTimestamp FunctionEnvironmentReloadResponse StreamingMessage
"""


class Message:
    """Behaves like a protobuf message as far as the engine looks."""

    _groups: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "TypedData":
            raise AttributeError(name)
        return {} if name in _MAPS else Message() if name in _PARTS else ""

    def WhichOneof(self, group: str) -> str | None:  # noqa: N802 - protobuf's name
        """Return which field of a group is set."""
        return next((name for name in self._groups.get(group, ()) if name in self.__dict__), None)

    def HasField(self, name: str) -> bool:  # noqa: N802 - protobuf's name
        """Whether a field is set."""
        return name in self.__dict__


def plain_messages() -> Any:
    """Return message classes without protobuf."""
    found = types.SimpleNamespace()
    for name in _CLASSES.split():
        setattr(found, name, type(name, (Message,), {}))
    found.StatusResult = type("StatusResult", (Message,), {"Failure": 0, "Success": 1, "Cancelled": 2})
    found.BindingInfo = type("BindingInfo", (Message,), {"out": 1, "inout": 2, "undefined": 0, "in": 0})
    data = {"data": ("string", "json", "bytes", "stream", "http", "int", "double")}
    found.TypedData = type("TypedData", (Message,), {"_groups": data})
    found.ParameterBinding = type(
        "ParameterBinding", (Message,), {"_groups": {"rpc_data": ("data", "rpc_shared_memory")}}
    )
    same_site = types.SimpleNamespace(**{"None": 0, "Lax": 1, "Strict": 2, "ExplicitNone": 3})
    found.RpcHttpCookie = type("RpcHttpCookie", (Message,), {"SameSite": same_site})
    return found


def official_messages(directory: str) -> Any:
    """Return the protobuf classes of FunctionRpc, under a package name of our own."""
    package = types.ModuleType("functionrpc")
    package.__path__ = [directory]  # not its __init__, which wants gRPC
    sys.modules["functionrpc"] = package
    found = types.SimpleNamespace()
    for name in ("FunctionRpc_pb2", "shared.NullableTypes_pb2"):
        module = __import__(f"functionrpc.{name}", fromlist=["*"])
        for part in dir(module):
            if not part.startswith("_"):
                setattr(found, part, getattr(module, part))
    return found


class Wire:
    """Frames to and from the emulator."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._loop = asyncio.get_running_loop()

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return the next frame."""
        head, body = FRAME.unpack(await self._reader.readexactly(FRAME.size))
        header: dict[str, Any] = json.loads(await self._reader.readexactly(head))
        return header, await self._reader.readexactly(body)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame; from any thread."""
        data = json.dumps(header).encode()
        frame = FRAME.pack(len(data), len(body)) + data + body
        try:
            self._loop.call_soon_threadsafe(self._writer.write, frame)
        except RuntimeError:
            return  # the loop is closed: the instance ends

    async def close(self) -> None:
        """Send what is left, and hang up."""
        await asyncio.sleep(0)
        self._writer.close()
        await self._writer.wait_closed()


class Records(logging.Handler):
    """Sends what the app logs to the emulator, as the real worker sends it to the host."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; the engine's own are for its makers."""
        if record.name.startswith("azure.functions") and record.levelno < logging.WARNING:
            return
        self._wire.send({"log": self.format(record), "level": record.levelno})


class Worker:
    """The engine, and the functions that it found."""

    def __init__(self, wire: Wire, engine: Any) -> None:
        self._wire, self._engine = wire, engine
        directory = os.environ.get(OFFICIAL)
        self._official = bool(directory)
        self._messages = official_messages(directory) if directory else plain_messages()

    async def _ask(self, verb: Any, **content: Any) -> Any:
        messages = self._messages
        message = messages.StreamingMessage(request_id="emulator", **content)
        if self._official:
            message = messages.StreamingMessage.FromString(message.SerializeToString())
        request = types.SimpleNamespace(name="", request=message, properties={"host": "127.0.0.1", "protos": messages})
        answer = await verb(request)
        return type(answer).FromString(answer.SerializeToString()) if self._official else answer

    async def start(self, root: str) -> bool:
        """Have the app indexed, and say what came of it; whether there is something to serve."""
        messages = self._messages
        init = messages.WorkerInitRequest(host_version="4.1042.0", function_app_directory=root)
        answer = await self._ask(self._engine.worker_init_request, worker_init_request=init)
        if answer.result.status != messages.StatusResult.Success:
            failure = answer.result.exception
            self._wire.send({"failed": failure.message, "trace": failure.stack_trace})
            return False
        request = messages.FunctionsMetadataRequest(function_app_directory=root)
        answer = await self._ask(self._engine.functions_metadata_request, functions_metadata_request=request)
        functions = [
            {"name": one.name, "id": one.function_id, "bindings": [json.loads(text) for text in one.raw_bindings]}
            for one in answer.function_metadata_results or ()
        ]
        self._wire.send({"ready": functions})
        return True

    async def invoke(self, header: dict[str, Any], body: bytes) -> None:
        """Have a function answer an HTTP request."""
        messages = self._messages
        content = {"body": messages.TypedData(bytes=body)} if body else {}
        names = {name: header[name] for name in ("method", "url", "headers", "query", "params")}
        http = messages.RpcHttp(**names, **content)
        given = messages.ParameterBinding(name=header["binding"], data=messages.TypedData(http=http))
        request = messages.InvocationRequest(
            invocation_id=header["invocation"], function_id=header["function"], input_data=[given]
        )
        try:
            answer = await self._ask(self._engine.invocation_request, invocation_request=request)
            if answer.result.status == messages.StatusResult.Success:
                self._wire.send(*self._describe(header["id"], answer))
                return
            failure = answer.result.exception
            message, trace = failure.message, failure.stack_trace
        except Exception as error:
            message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        self._wire.send({"id": header["id"], "error": message, "trace": trace})

    def _describe(self, number: int, answer: Any) -> tuple[dict[str, Any], bytes]:
        value = answer.return_value
        if not value or not value.WhichOneof("data"):
            return {"id": number, "status": 204, "headers": {}}, b""
        if value.WhichOneof("data") != "http":
            return {"id": number, "status": 200, "headers": {"Content-Type": "text/plain; charset=utf-8"}}, _bytes(
                value
            )
        http = value.http
        cookies = [_cookie(one) for one in http.cookies or ()]
        header = {
            "id": number,
            "status": int(http.status_code or 200),
            "headers": dict(http.headers),
            "cookies": cookies,
        }
        return header, _bytes(http.body)


def _bytes(data: Any) -> bytes:
    kind = data.WhichOneof("data") if data else None
    found = getattr(data, kind) if kind else b""
    return found if isinstance(found, bytes) else str(found).encode()


def _cookie(cookie: Any) -> str:
    text = f"{cookie.name}={cookie.value}"
    for name, field in (("domain", "domain"), ("path", "path")):
        value = getattr(getattr(cookie, field), "value", "")
        text += f"; {name}={value}" if value else ""
    return (
        text
        + ("; secure" if getattr(cookie.secure, "value", False) else "")
        + ("; httponly" if getattr(cookie.http_only, "value", False) else "")
    )


async def serve(descriptor: int, root: str) -> None:
    """Serve invocations until the emulator hangs up."""
    wire = Wire(*await asyncio.open_connection(sock=socket.socket(fileno=descriptor), limit=2**20))
    logging.getLogger().addHandler(Records(wire))
    logging.getLogger().setLevel(logging.INFO)
    try:
        engine = importlib.import_module("azure_functions_runtime")
    except Exception as error:
        # What the app brings along comes first, and can hide a part of the engine.
        wire.send({"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()})
        await wire.close()
        return
    engine.start_threadpool_executor()
    worker = Worker(wire, engine)
    if not await worker.start(root):
        await wire.close()
        return
    running: set[asyncio.Task[None]] = set()
    while True:
        try:
            header, body = await wire.receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            os._exit(0)
        task = asyncio.ensure_future(worker.invoke(header, body))
        running.add(task)
        task.add_done_callback(running.discard)


def main() -> None:
    """Serve the app that the arguments name: descriptor of the wire, directory of the app, directory of the engine."""
    descriptor, root, *engine = sys.argv[1:]
    # The order on Azure: the app, what it brings along, then what the worker itself comes with.
    sys.path[:] = [
        root,
        os.path.join(root, ".python_packages", "lib", "site-packages"),
        *filter(None, sys.path),
        *engine,
    ]
    os.chdir(root)
    asyncio.run(serve(int(descriptor), root))


if __name__ == "__main__":
    main()
