"""A function on Lambda: load the model when the environment starts, answer one event at a time.

This file travels in the bundle as `polyserve_entrypoint.py`; Lambda calls `handler`. It takes what polyserve's own client sends through the
Invoke API, and what a function URL or an HTTP API makes of an HTTP request (payload format 2.0). Bodies that are too large for an event are
in S3, beside the bundle, and so are files of the model that the bundle left there.

The model answers on a thread of its own, so that a caller is told in time that it takes too long. Standard library and `polyserve.runtime`
only; the environment's own credentials sign what is read and written.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import hmac
import http.client
import json
import os
import queue
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlsplit

from polyserve.runtime.host import REQUEST_BYTES, Host, LoadError
from polyserve.runtime.messages import ErrorCode, Request, Response, error_body
from polyserve.runtime.remote import Remote

EVENT_BYTES = 6 * 1024 * 1024 - 16_384
"""Largest answer that goes into an event: Lambda's 6 MB less headers and braces. Lambda's quotas, 2026-11."""
MARGIN_S = 0.3
"""How long before Lambda would end the environment an answer is given."""
GRACE_S = 1.0
"""How long the next event waits for a model that took too long, before its caller is asked to try again."""
PATIENCE = 3
"""Events that found the model still busy, after which the environment is given up."""
STUCK = 70
"""Exit code of an environment that was given up: polyserve's client knows it and asks another one."""
ANSWER_TYPE = "application/x-polyserve-answer"
"""Media type of an answer in S3: a line of JSON with status and headers, then the body."""


class Bucket:
    """Objects in S3, by plain HTTP.

    Args:
        environment: The environment's variables: region, credentials, and another endpoint where there is one.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._region = environment.get("AWS_REGION", "us-east-1")
        self._endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""

    def get(self, place: str) -> BinaryIO:
        """Open the object at `bucket/key`."""
        return cast("BinaryIO", self._send("GET", place, b""))

    def put(self, place: str, body: bytes, content_type: str) -> None:
        """Write the object at `bucket/key`."""
        self._send("PUT", place, body, content_type).close()

    def _send(self, method: str, place: str, body: bytes, content_type: str = "") -> http.client.HTTPResponse:
        bucket, _, key = place.partition("/")
        path = f"/{quote(key, safe='/-_.~')}"
        if self._endpoint:
            where = urlsplit(self._endpoint)
            secure, host, path = where.scheme == "https", where.netloc, f"/{bucket}{path}"
        else:
            suffix = ".cn" if self._region.startswith("cn-") else ""
            secure, host = True, f"{bucket}.s3.{self._region}.amazonaws.com{suffix}"
        connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(host, timeout=60)
        headers = self._signed(method, host, path, body)
        if content_type:
            headers["content-type"] = content_type
        try:
            connection.request(method, path, body=body or None, headers=headers)
            answer = connection.getresponse()
            if answer.status >= 300:
                raise OSError(f"S3 answers {answer.status} to {method} s3://{place}: {_reason(answer.read(2000))}")
        except BaseException:
            connection.close()
            raise
        return answer

    def _signed(self, method: str, host: str, path: str, body: bytes) -> dict[str, str]:
        """Return the headers of a call, signed by AWS's version 4."""
        access_key, secret, token = self._credentials()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = {"host": host, "x-amz-content-sha256": hashlib.sha256(body).hexdigest(), "x-amz-date": stamp}
        if token:
            headers["x-amz-security-token"] = token
        names = ";".join(headers)
        fields = "".join(f"{name}:{value}\n" for name, value in headers.items())
        request = f"{method}\n{path}\n\n{fields}\n{names}\n{headers['x-amz-content-sha256']}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        signing = f"AWS4{secret}".encode()
        for piece in scope.split("/"):
            signing = hmac.digest(signing, piece.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(signing, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return headers

    def _credentials(self) -> tuple[str, str, str]:
        given = self._environment
        if "AWS_ACCESS_KEY_ID" in given:
            return given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"], given.get("AWS_SESSION_TOKEN", "")
        # Environments that start from a snapshot are told anew: "Lambda SnapStart security", 2026-11.
        where = urlsplit(given["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
        connection = http.client.HTTPConnection(where.netloc, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", where.path, headers={"authorization": given["AWS_CONTAINER_AUTHORIZATION_TOKEN"]})
            told = json.loads(connection.getresponse().read())
        return told["AccessKeyId"], told["SecretAccessKey"], told.get("Token", "")


def _reason(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    return text.partition("<Message>")[2].partition("</Message>")[0] or text[:200] or "no reason given"


class Service:
    """The model of this environment, and the thread that it answers on.

    Args:
        root: Where the bundle is.
        environment: The environment's variables.
    """

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.bucket = Bucket(environment)
        self.payloads = environment.get("POLYSERVE_PAYLOADS", "")
        self.host = Host(
            root / "package",
            revision=int(environment.get("POLYSERVE_REVISION", "0")),
            request_bytes=int(environment.get("POLYSERVE_REQUEST_BYTES", REQUEST_BYTES)),
            remote=self._remote(environment.get("POLYSERVE_MODELS", "")),
        )
        self._timeout_s = float(environment.get("POLYSERVE_TIMEOUT_S", "900"))
        self._todo: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._busy = False
        self._waited = 0
        self._failure = ""
        threading.Thread(target=self._work, name="polyserve-model", daemon=True).start()

    def _remote(self, place: str) -> Remote | None:
        if not place:
            return None
        # `/tmp` on Lambda: the one directory that can be written to.
        into = Path(tempfile.gettempdir()) / "polyserve-models"
        return Remote(fetch=lambda sha256: self.bucket.get(place + sha256), into=into)

    def load(self) -> bool:
        """Load the model unless it is, and return whether it is. Why it is not was logged, and callers are told."""
        if self.host.ready:
            return True
        try:
            self.host.load()
        except LoadError as error:
            self._failure = f"the model cannot be loaded: {error}"
            return False
        # What was loaded lives as long as the environment: the collector need not look at it.
        gc.collect()
        gc.freeze()
        return True

    def _work(self) -> None:
        while True:
            self._done.put(self.host.handle(self._todo.get()))

    def answer(self, request: Request, seconds: float) -> Response:
        """Answer a request, within a time."""
        if self._busy and not self._free_again():
            return _refusal(
                request, ErrorCode.UNAVAILABLE, "an earlier request still keeps the model busy; try again", 503
            )
        if not self.load():
            return _refusal(request, ErrorCode.INTERNAL, self._failure, 500)
        seconds = max(min(seconds, self._timeout_s), 0.001)
        self._busy = True
        self._todo.put(request)
        try:
            response = self._done.get(timeout=seconds)
        except queue.Empty:
            message = f"the model took longer than its timeout of {self._timeout_s:g} s"
            return _refusal(request, ErrorCode.DEADLINE_EXCEEDED, message, 504)
        self._busy = False
        return response

    def _free_again(self) -> bool:
        """Return whether a model that took too long has come to its end; ends this environment if it seems that it never does."""
        try:
            self._done.get(timeout=GRACE_S)
        except queue.Empty:
            self._waited += 1
            if self._waited > PATIENCE:
                sys.stdout.flush()
                os._exit(STUCK)
            return False
        self._busy, self._waited = False, 0
        return True


def _refusal(request: Request, code: ErrorCode, message: str, status: int) -> Response:
    headers = {"content-type": "application/json", "x-request-id": request.request_id}
    return Response(status=status, headers=headers, body=error_body(code, message, request.request_id))


def handler(event: Mapping[str, Any], context: Any) -> Mapping[str, Any]:
    """Answer an event of Lambda.

    Args:
        event: A direct invocation by polyserve's client, or an HTTP request in payload format 2.0.
        context: Knows how much time is left.

    Raises:
        ValueError: The event is neither.
    """
    direct = "polyserve" in event
    if not direct and "requestContext" not in event:
        raise ValueError("the event is neither polyserve's own nor an HTTP request in payload format 2.0")
    request = _direct_request(event) if direct else _http_request(event)
    answered = _direct_answer if direct else _http_answer
    left = context.get_remaining_time_in_millis() / 1000 - MARGIN_S
    try:
        if "x-polyserve-body" in request.headers:
            request = _fetched(request)
        return answered(SERVICE.answer(request, left))
    except OSError as error:
        # S3: what was to be read or written there is too large for an event.
        return answered(_refusal(request, ErrorCode.UNAVAILABLE, str(error), 503))
    except ValueError as error:
        return answered(_refusal(request, ErrorCode.INVALID_ARGUMENT, str(error), 400))


def _direct_request(event: Mapping[str, Any]) -> Request:
    headers = event["headers"]
    return Request(
        method=event["method"],
        path=event["path"],
        headers=headers,
        body=base64.b64decode(event["body"]),
        request_id=headers.get("x-request-id", ""),
        received=time.perf_counter(),
    )


def _http_request(event: Mapping[str, Any]) -> Request:
    called = event["requestContext"]["http"]
    path, stage = event["rawPath"], event["requestContext"].get("stage", "$default")
    if stage != "$default":
        path = path.removeprefix(f"/{stage}")
    text = event.get("body") or ""
    headers = {name.lower(): value for name, value in event.get("headers", {}).items()}
    return Request(
        method=called["method"],
        path=path or "/",
        headers=headers,
        body=base64.b64decode(text) if event.get("isBase64Encoded") else text.encode(),
        request_id=headers.get("x-request-id", ""),
        received=time.perf_counter(),
    )


def _fetched(request: Request) -> Request:
    """Return the request with its body, which was too large for the event."""
    name = str(request.headers["x-polyserve-body"])
    # A name beside ours, never a path: callers may not choose what this function reads.
    with contextlib.closing(SERVICE.bucket.get(SERVICE.payloads + str(uuid.UUID(name)))) as body:
        content = body.read()
    return Request(
        method=request.method,
        path=request.path,
        headers=request.headers,
        body=content,
        request_id=request.request_id,
        received=request.received,
    )


def _stored(response: Response) -> str:
    """Put an answer that is too large for an event into S3, and return its name there."""
    head = json.dumps({"status": response.status, "headers": dict(response.headers)}, separators=(",", ":"))
    name = str(uuid.uuid4())
    SERVICE.bucket.put(SERVICE.payloads + name, head.encode() + b"\n" + response.body, ANSWER_TYPE)
    return name


def _direct_answer(response: Response) -> Mapping[str, Any]:
    if len(response.body) * 4 // 3 > EVENT_BYTES:
        return {"status": response.status, "headers": {"x-polyserve-answer": _stored(response)}, "body": ""}
    body = base64.b64encode(response.body).decode("ascii")
    return {"status": response.status, "headers": dict(response.headers), "body": body}


def _http_answer(response: Response) -> Mapping[str, Any]:
    headers = dict(response.headers)
    # As text where that is shorter: escapes double a body at most in what polyserve answers.
    if (
        headers.get("content-type", "").startswith(("application/json", "text/"))
        and len(response.body) * 2 < EVENT_BYTES
    ):
        with contextlib.suppress(UnicodeDecodeError):
            return {"statusCode": response.status, "headers": headers, "body": response.body.decode()}
    if len(response.body) * 4 // 3 > EVENT_BYTES:
        headers = {"content-type": ANSWER_TYPE, "x-polyserve-answer": _stored(response)}
        return {"statusCode": response.status, "headers": headers, "body": ""}
    body = base64.b64encode(response.body).decode("ascii")
    return {"statusCode": response.status, "headers": headers, "body": body, "isBase64Encoded": True}


def _start() -> Service:
    """Load the model while Lambda starts the environment, which costs the first caller nothing."""
    service = Service(Path(__file__).resolve().parent, os.environ)
    service.load()
    return service


SERVICE: Service
if "LAMBDA_TASK_ROOT" in os.environ:
    SERVICE = _start()
