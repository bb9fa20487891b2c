"""What runs inside an instance: Microsoft's engine for Python functions, and the wire to the emulator.

This is not imported but run, in an interpreter that sees the app, the engine and the standard library, and nothing of the
environment that the emulator itself is installed in. It starts as a placeholder, before there is an app: see `instances`.

The engine is driven through the requests that the real host sends over gRPC: init, metadata, invocation. It is given its
message classes by whoever drives it, so plain Python objects do as well as protobuf's; with `OFFICIAL` in the environment
the official protobuf messages are used, each serialised and read again, as on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import socket
import struct
import sys
import time
import traceback
import types
from typing import Any, ClassVar

OFFICIAL = "_EMULATOR_MESSAGES"
"""Variable with the directory of the official messages."""
ENGINE = "azure_functions_runtime"
PRELOADED = (
    "array ast base64 concurrent.futures.thread decimal email.utils fractions hashlib hmac http.client importlib.metadata random secrets "
    "ssl statistics tempfile urllib.parse uuid zipfile azure.functions"
)
"""What apps import anyway, and the library that they are written with."""
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


async def serve(connection: socket.socket, root: str) -> None:
    """Serve invocations until the emulator hangs up."""
    wire = Wire(*await asyncio.open_connection(sock=connection, limit=2**20))
    logging.getLogger().addHandler(Records(wire))
    logging.getLogger().setLevel(logging.INFO)
    try:
        engine = importlib.import_module(ENGINE)
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


def _become(wire: socket.socket, output: int) -> str:
    """Become the instance that the first frame says; returns the directory of its app."""
    head, _ = FRAME.unpack(_exactly(wire, FRAME.size))
    told = json.loads(_exactly(wire, head))
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(told["variables"])
    time.tzset()
    root: str = told["root"]
    own = [root, os.path.join(root, ".python_packages", "lib", "site-packages")]
    engine = told["engine"]
    # The order on Azure: the app, what it brings along, then what the worker itself comes with.
    sys.path[:] = [*own, *(place for place in sys.path if place and place not in engine), *engine]
    importlib.invalidate_caches()
    _give_way(own, engine)
    os.chdir(root)
    return root


def _give_way(own: list[str], engine: list[str]) -> None:
    """Forget what was imported of the engine where the app brings something else of that name."""
    loaded = {name: found for name, found in sys.modules.items() if _place(found, engine)}
    if any(_differs(own, name, _place(found, engine)) for name, found in loaded.items()):
        for name in loaded:
            del sys.modules[name]


def _place(module: types.ModuleType, engine: list[str]) -> str:
    """Return where below a directory of the engine a module is; empty where it is not."""
    path = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
    return next((path[len(place) + 1 :] for place in engine if path.startswith(place + os.sep)), "")


def _differs(own: list[str], name: str, place: str) -> bool:
    """Return whether an app brings another module of that name than the one that is loaded."""
    *parents, last = name.split(".")
    for directory in own:
        below = os.path.join(directory, *parents)
        if not os.path.isdir(below):
            continue
        package = os.path.join(below, last)
        theirs = os.path.join(directory, place)
        if os.path.isdir(theirs):
            # A part of a namespace package, unless it is none in the app.
            if os.path.exists(os.path.join(theirs, "__init__.py")):
                return True
        elif os.path.exists(theirs):
            ours = sys.modules[name].__file__ or ""
            if theirs.endswith(".so"):
                # Symbols may have been stripped of one of them: what is compared is which release they are of.
                top = parents[0] if parents else last
                return _release(directory, top) != _release(ours.removesuffix(os.sep + place), top)
            with open(theirs, "rb") as one, open(ours, "rb") as other:
                return one.read() != other.read()
        elif os.path.isdir(package) or os.path.exists(f"{package}.py"):
            return True
    return False


def _release(directory: str, top: str) -> str:
    """Return the name of the metadata of what is installed under a name, which has its version; empty where there is none."""
    found = (name for name in os.listdir(directory) if name.endswith(".dist-info"))
    return next((name for name in found if name.partition("-")[0].lower() == top.lower()), "")


def _exactly(wire: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = wire.recv(size - len(found))
        if not part:
            # Nobody needs this instance any more.
            os._exit(0)
        found += part
    return found


def prepare(*engine: str) -> None:
    """Import what every instance needs; a part of the engine that is missing is said where it is missed."""
    sys.path += engine
    for name in (*PRELOADED.split(), ENGINE):
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def become(descriptors: list[int], *_: str) -> None:
    """Become an instance: serve the app that is told on the wire, the first descriptor; the other is what it writes to."""
    wire, output = socket.socket(fileno=descriptors[0]), descriptors[1]
    root = _become(wire, output)
    asyncio.run(serve(wire, root))
