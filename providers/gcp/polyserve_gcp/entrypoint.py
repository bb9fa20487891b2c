"""A function on Google Cloud: load the model when an instance starts, answer whatever it is asked.

This file travels in the bundle as `main.py`. Cloud Run functions run it under functions-framework, whose target is `answer`, or
`answer_async` on one loop. Cloud Run runs it as a program, which serves by itself. What the function is to be is in the environment
variable `POLYSERVE_APP`.

Models answer on threads, so that a caller is told in time that it takes too long. Standard library and `polyserve.runtime` only.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import http.client
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlencode, urlsplit

ROOT = Path(__file__).resolve().parent
if (ROOT / "package").is_dir():
    # The framework puts the source behind its own dependencies; the model's were chosen with it and come first.
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(ROOT))]

from polyserve.runtime.forwarding import Front, shares_of  # noqa: E402
from polyserve.runtime.host import Host, LoadError  # noqa: E402
from polyserve.runtime.messages import ErrorCode, Request, Response, error_body  # noqa: E402
from polyserve.runtime.remote import Remote  # noqa: E402

GRACE_S = 20.0
"""How long a model that took too long may still take before the instance is given up, with whatever else it is doing."""
STUCK = 70
"""Exit code of an instance that was given up; the platform starts another one."""
EARLY_S = 300.0
"""How long before its end a token is asked for anew: Google's metadata server has a new one by then."""
MOST_THREADS = 1000


class Identity:
    """The function's own service account, as the metadata server tells it. Tokens are kept in memory. Safe to use from many threads."""

    def __init__(self) -> None:
        self._host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
        self._known: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def access_token(self) -> str:
        """Return a token for Google's APIs."""
        return self._token(
            "token", lambda told: (json.loads(told)["access_token"], float(json.loads(told)["expires_in"]))
        )

    def id_token(self, audience: str) -> str:
        """Return a token for a service at a URL."""
        path = f"identity?{urlencode({'audience': audience, 'format': 'full'})}"
        return self._token(path, lambda told: (told, _end_of(told) - time.time()))

    def _token(self, path: str, read: Callable[[str], tuple[str, float]]) -> str:
        with self._lock:
            value, ends = self._known.get(path, ("", 0.0))
            if ends > time.monotonic() + EARLY_S:
                return value
            try:
                fresh, lasts = read(self._ask(path))
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                if ends > time.monotonic():
                    return value
                raise OSError(f"the metadata server gives no token: {error}") from error
            self._known[path] = (fresh, time.monotonic() + lasts)
            return fresh

    def _ask(self, path: str) -> str:
        connection = http.client.HTTPConnection(self._host, timeout=10)
        with contextlib.closing(connection):
            where = f"/computeMetadata/v1/instance/service-accounts/default/{path}"
            connection.request("GET", where, headers={"metadata-flavor": "Google"})
            answer = connection.getresponse()
            told = answer.read().decode()
            if answer.status != 200:
                raise OSError(f"the metadata server answers {answer.status}")
            return told


def _end_of(token: str) -> float:
    """Return when a signed token ends, in seconds since 1970."""
    claims = token.split(".")[1]
    return float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])


class Bucket:
    """Objects below one prefix, by plain HTTP.

    Args:
        endpoint: Address of Cloud Storage.
        bucket: The bucket.
        prefix: The prefix.
        identity: Who asks.
    """

    def __init__(self, endpoint: str, bucket: str, prefix: str, identity: Identity) -> None:
        self._endpoint, self._bucket, self._prefix, self._identity = endpoint, bucket, prefix, identity

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading."""
        where = urlsplit(self._endpoint)
        path = f"{where.path.rstrip('/')}/storage/v1/b/{quote(self._bucket, safe='')}/o/{quote(self._prefix + name, safe='')}?alt=media"
        kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        connection = kind(where.netloc, timeout=60)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {self._identity.access_token()}"})
            answer = connection.getresponse()
            if answer.status >= 300:
                raise OSError(f"Cloud Storage answers {answer.status}: {_reason(answer.read(4000))}")
        except BaseException:
            connection.close()
            raise
        return cast("BinaryIO", answer)


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace") or "no reason given"


class Service:
    """The model of this instance, the front before it, and the threads that it answers on.

    Args:
        root: Where the bundle is.
        environment: The function's environment variables.
    """

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        text = environment["POLYSERVE_APP"]
        self.spec: Mapping[str, Any] = json.loads(text)["spec"]
        self.revision = int(self.spec["revision"])
        self.timeout_s = float(self.spec["timeout"])
        self.request_bytes = int(self.spec["request_bytes"])
        identity = Identity()
        self.host = Host(
            root / "package",
            revision=self.revision,
            request_bytes=self.request_bytes,
            remote=_remote(self.spec, environment, identity),
        )
        urls: Mapping[str, str] = json.loads(environment.get("POLYSERVE_FORWARDS") or "{}")
        self._shares = shares_of(text, urls)
        self._front = Front(
            self.host,
            self._shares,
            authorize=lambda url: {"authorization": f"Bearer {identity.id_token(url)}"},
            timeout=self.timeout_s,
        )
        self._failure = ""
        self._loading = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[tuple[Request, asyncio.Future[Response]]] = []
        self._busy = False
        self._threads = min(int(environment.get("POLYSERVE_CONCURRENCY") or 16), MOST_THREADS)

    def load(self) -> bool:
        """Load the model unless it is, and return whether it is. Why it is not was logged, and callers are told."""
        if self.host.ready:
            return True
        with self._loading:
            try:
                self.host.load()
            except LoadError as error:
                self._failure = f"the model cannot be loaded: {error}"
                return False
            # What was loaded lives as long as the instance: the collector need not look at it.
            gc.collect()
            gc.freeze()
            return True

    def answer(self, request: Request) -> Response:
        """Answer a request, within the function's time."""
        work = self._submit(request)
        try:
            return work.result(self.timeout_s)
        except LateError:
            timer = threading.Timer(GRACE_S, _give_up, (work,))
            timer.daemon = True
            timer.start()
            return self._late(request)

    async def answer_async(self, request: Request) -> Response:
        """Answer a request on a loop; inferences that came in while the model was busy are answered together."""
        loop = asyncio.get_running_loop()
        batched = not self._shares and request.method == "POST"
        if batched:
            answered: asyncio.Future[Response] = loop.create_future()
            self._waiting.append((request, answered))
            if not self._busy:
                self._busy = True
                loop.call_soon(self._take)
        else:
            answered = asyncio.wrap_future(self._submit(request))
        try:
            return await asyncio.wait_for(asyncio.shield(answered), self.timeout_s)
        except TimeoutError:
            loop.call_later(GRACE_S, _give_up, answered)
            return self._late(request)

    def _take(self) -> None:
        """Give all that is waiting to the model at once."""
        loop = asyncio.get_running_loop()
        taken, self._waiting = self._waiting, []
        work = self._threads_of_its_own().submit(self._work_together, [request for request, _ in taken])
        done = asyncio.wrap_future(work)

        def give(finished: asyncio.Future[list[Response]]) -> None:
            self._busy = bool(self._waiting)
            if self._busy:
                loop.call_soon(self._take)
            error = finished.exception()
            for at, (_, answered) in enumerate(taken):
                if answered.done():
                    continue
                if error is not None:
                    answered.set_exception(error)
                else:
                    answered.set_result(finished.result()[at])

        done.add_done_callback(give)

    def _threads_of_its_own(self) -> ThreadPoolExecutor:
        # Not before a worker was forked: threads stay behind in the parent.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="polyserve-model")
        return self._pool

    def _submit(self, request: Request) -> Future[Response]:
        return self._threads_of_its_own().submit(self._work, request)

    def _work(self, request: Request) -> Response:
        if not self.load():
            return self._refusal(request, ErrorCode.INTERNAL, self._failure, 500)
        return self._front.handle(request)

    def _work_together(self, requests: list[Request]) -> list[Response]:
        if not self.load():
            return [self._refusal(request, ErrorCode.INTERNAL, self._failure, 500) for request in requests]
        return self.host.handle_many(requests)

    def _late(self, request: Request) -> Response:
        message = f"the model took longer than its timeout of {self.timeout_s:g} s"
        return self._refusal(request, ErrorCode.DEADLINE_EXCEEDED, message, 504)

    def _refusal(self, request: Request, code: ErrorCode, message: str, status: int) -> Response:
        headers = {
            "content-type": "application/json",
            "x-request-id": request.request_id,
            "x-polyserve-revision": str(self.revision),
        }
        return Response(status=status, headers=headers, body=error_body(code, message, request.request_id))


def _remote(spec: Mapping[str, Any], environment: Mapping[str, str], identity: Identity) -> Remote | None:
    if not spec["models"]:
        return None
    first = spec["models"][0]
    endpoint = environment.get("POLYSERVE_STORAGE") or "https://storage.googleapis.com"
    bucket = Bucket(endpoint, first["bucket"], first["key"].removesuffix(first["sha256"]), identity)
    # Of the instance's memory, as all that is written to disk there.
    return Remote(fetch=bucket.open, into=Path(tempfile.gettempdir()) / "polyserve-models")


def _give_up(work: Future[Response] | asyncio.Future[Response]) -> None:
    """End the instance if a model that took too long has not come to its end: a thread cannot be stopped."""
    if not work.done():
        print("a predict does not return: this instance gives up", flush=True)  # noqa: T201
        os._exit(STUCK)


# --- under functions-framework -----------------------------------------------------------------------------------------------


def answer(request: Any) -> tuple[bytes, int, dict[str, str]]:
    """Answer one HTTP request.

    Args:
        request: Flask's request.
    """
    environ = request.environ
    headers = {name.lower(): value for name, value in request.headers.items()}
    # Past Flask, which may have a limit of its own.
    length = environ.get("CONTENT_LENGTH")
    body = (
        environ["wsgi.input"].read(*([int(length)] if length else []))
        if length or "transfer-encoding" in headers
        else b""
    )
    path = urlsplit(environ.get("RAW_URI") or environ.get("REQUEST_URI") or request.path).path
    response = _service().answer(_request(request.method, path, headers, body))
    return bytes(response.body), response.status, dict(response.headers)


async def answer_async(request: Any) -> Any:
    """Answer one HTTP request on a loop.

    Args:
        request: Starlette's request.
    """
    headers = {name.lower(): value for name, value in request.headers.items()}
    path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or request.url.path
    response = await _service().answer_async(_request(request.method, path, headers, await request.body()))
    return _Answer(response)


class _Answer:
    """A response as an ASGI application, which is what Starlette's are, too.

    Args:
        response: What is answered.
    """

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, given = bytes(self._response.body), self._response.headers
        headers = {name.lower(): value for name, value in given.items()} | {"content-length": str(len(body))}
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self._response.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


def _request(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Request:
    return Request(
        method=method,
        path=path or "/",
        headers=headers,
        body=body,
        request_id=headers.get("x-request-id") or uuid.uuid4().hex,
        received=time.perf_counter(),
    )


_known: list[Service] = []
_making = threading.Lock()


def _service() -> Service:
    """Return the service of this process, made by whoever asks first."""
    if not _known:
        with _making:
            if not _known:
                _known.append(Service(ROOT, os.environ))
    return _known[0]


def _begin() -> None:
    """Load the model in a worker that was just forked, on a thread, so that the first caller need not wait for all of it."""
    if not _known:
        threading.Thread(target=lambda: _service().load(), name="polyserve-load", daemon=True).start()


# --- as a program of its own, on Cloud Run -----------------------------------------------------------------------------------


def _serve() -> int:
    from polyserve.runtime.server import Server

    service = Service(ROOT, os.environ)
    try:
        service.host.load()
    except LoadError as error:
        print(f"the model cannot be loaded: {error}", flush=True)  # noqa: T201
        return 1
    gc.collect()
    gc.freeze()
    door = socket.create_server((os.environ.get("HOST") or "0.0.0.0", int(os.environ["PORT"])), backlog=1024)  # noqa: S104
    door.setblocking(False)

    async def run() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        # Cloud Run has looked at the caller's token already.
        server = Server(service.host, token=None, timeout=service.timeout_s, request_bytes=service.request_bytes)
        server.add_listener(door)
        await ended.wait()
        # Of the ten seconds that Cloud Run gives.
        await server.drain(9.0)

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    try:
        code = _serve()
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # A model's own threads would keep the interpreter from ending.
    os._exit(code)
elif "POLYSERVE_APP" in os.environ and "FUNCTION_TARGET" in os.environ:
    os.register_at_fork(after_in_child=_begin)
