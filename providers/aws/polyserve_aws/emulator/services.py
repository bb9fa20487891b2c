"""moto's part: S3, IAM, STS, KMS, ECR, CloudWatch Logs and the control plane of API Gateway, behind plain functions.

moto serves them as one WSGI application. Requests reach it after `access.py` let them through, on worker threads; its
own checks stay off. The other functions here read what moto keeps, so that no other module but `identities.py` knows
moto's classes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from moto.apigatewayv2.models import apigatewayv2_backends
from moto.awslambda.models import LambdaBackend
from moto.core.request import (
    PRESERVED_HEADER_NAMES_ENVIRON_KEY,
    environ_key_for_header,
    should_preserve_original_header_name,
)
from moto.ecr.models import ecr_backends
from moto.kms.models import kms_backends
from moto.logs.models import logs_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.exceptions import S3ClientError
from moto.s3.models import s3_backends

from polyserve.emulation.http import Answer, Call
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.identities import ACCOUNT, PARTITION

LOG_EVENT_LIMIT = 256 * 1024 - 26
"""Largest event of a log, in bytes: what is longer is cut (CloudWatch Logs quotas, read 2026-11-20)."""


class Services:
    """moto, as a function from a request to an answer. Call it on any thread."""

    def __init__(self) -> None:
        # It logs each request as if it were a web server that somebody watches.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._lock = threading.Lock()
        self._application = DomainDispatcherApplication(create_backend_app)

    def answer(self, call: Call) -> Answer:
        """Answer one request."""
        _check_digests(call)
        if call.method in {"GET", "HEAD"} and _is_plain_read(call):
            # Under one lock: nobody may put another object there between what is told of it and its bytes.
            with self._lock:
                head = self._ask(replace(call, method="HEAD"))
                if head.status in {200, 206}:
                    return _read_object(call, head)
            if call.method == "HEAD":
                return head
        if call.method == "PUT" and "partNumber" in call.query:
            return self._ask(call)  # the parts of an upload have nothing to do with each other
        return self._alone(call)

    def _alone(self, call: Call) -> Answer:
        # moto looks and writes without a lock between: of two conditional writes at once, both would win.
        with self._lock:
            return self._ask(call)

    def _ask(self, call: Call) -> Answer:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: object = None) -> Callable[[bytes], object]:
            started.append((status, headers))
            return bytes

        chunks: Iterable[bytes] = self._application(_environment(call), start_response)
        body = b"".join(chunks)
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
        status, headers = started[0]
        return Answer(int(status.split(" ", 1)[0]), dict(headers), body)


def _check_digests(call: Call) -> None:
    """Refuse an upload that is not what its sender says it is; moto takes his word.

    Raises:
        ServiceError: A digest of the body is another.
    """
    if call.method not in {"PUT", "POST"} or call.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        return
    digests: dict[str, Callable[[], bytes]] = {
        "content-md5": lambda: hashlib.md5(call.body, usedforsecurity=False).digest(),
        "x-amz-checksum-crc32": lambda: zlib.crc32(call.body).to_bytes(4, "big"),
        "x-amz-checksum-sha1": lambda: hashlib.sha1(call.body, usedforsecurity=False).digest(),
        "x-amz-checksum-sha256": lambda: hashlib.sha256(call.body).digest(),
    }
    # A checksum beside the list of parts is that of the whole object.
    whole = "uploadId" in call.query and call.method == "POST"
    for name, digest in digests.items():
        given = call.headers.get(name)
        if given and not whole and base64.b64encode(digest()).decode() != given:
            message = f"The {name.removeprefix('x-amz-checksum-').upper()} you specified did not match the calculated checksum."
            raise ServiceError(400, "BadDigest", message)


def _is_plain_read(call: Call) -> bool:
    """Whether a request reads an object, or a part of it, and nothing else.

    moto reads the whole object for every range of it: 32 ranges of 8 MB made 8 GB of a download of 256 MB. It answers
    a HEAD with the same header fields, so the bytes are taken from where it keeps them.
    """
    if "/s3/aws4_request" not in call.headers.get("Authorization", "") and "/s3/aws4_request" not in call.query.get(
        "X-Amz-Credential", ""
    ):
        return False
    names = {name for name in call.query if name not in {"versionId", "x-id"} and not name.startswith("X-Amz-")}
    return not names and call.path.count("/") > 1 and not call.path.endswith("/")


def _read_object(call: Call, head: Answer) -> Answer:
    """Return what a HEAD told of, with the bytes themselves."""
    fields = {name.lower(): value for name, value in head.headers.items()}
    length, first = int(fields["content-length"]), 0
    bucket, _, name = call.path.removeprefix("/").partition("/")
    key = s3_backends[ACCOUNT][PARTITION].get_object(bucket, name, version_id=call.query.get("versionId"))
    checksums = [field for field in fields if field.startswith("x-amz-checksum-")]
    if head.status == 206:
        first = int(fields["content-range"].removeprefix("bytes ").partition("-")[0])
        for field in checksums:
            del fields[field]  # they are the whole object's
    elif checksums and key.checksum_type == "COMPOSITE":
        # The checksum of the parts' checksums: moto's GET says so, its HEAD does not.
        fields[f"x-amz-checksum-{key.checksum_algorithm.lower()}"] = f"{key.checksum_value}-{key.checksum_parts}"
        fields["x-amz-checksum-type"] = "COMPOSITE"
    if call.method == "HEAD":
        return Answer(head.status, fields)
    with key.lock:
        key._value_buffer.seek(first)
        return Answer(head.status, fields, bytes(key._value_buffer.read(length)))


def _environment(call: Call) -> dict[str, Any]:
    """Return a request as PEP 3333 wants it, with what moto's own server adds."""
    names: dict[str, str] = {}
    environment: dict[str, Any] = {
        "REQUEST_METHOD": call.method,
        "SCRIPT_NAME": "",
        # PEP 3333 has strings of bytes here, whatever the encoding of the path was.
        "PATH_INFO": call.path.encode().decode("latin-1"),
        "QUERY_STRING": call.raw_query,
        "RAW_URI": call.target,
        "REQUEST_URI": call.target,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": (call.headers.get("Host", "").rpartition(":")[2] or "80"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": call.peer,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(call.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in call.headers.items():
        key = environ_key_for_header(name)
        if key == "HTTP_TRANSFER_ENCODING":
            continue  # the body is here in one piece
        environment[key] = f"{environment[key]},{value}" if key in environment else value
        if should_preserve_original_header_name(name):
            names[key] = name
    if call.method == "PUT" and environment.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        # moto would look for a form in it and store nothing. The object's content type is wrong now, its bytes are right.
        environment["CONTENT_TYPE"] = "binary/octet-stream"
    environment["CONTENT_LENGTH"] = str(len(call.body))
    environment[PRESERVED_HEADER_NAMES_ENVIRON_KEY] = names
    return environment


def bucket_policy(bucket: str) -> str:
    """Return the policy of a bucket; empty where there is none."""
    found = s3_backends[ACCOUNT][PARTITION].buckets.get(bucket)
    document = getattr(found, "policy", None) or ""
    return document.decode() if isinstance(document, bytes) else str(document)


def read_object(bucket: str, key: str, version: str | None) -> bytes:
    """Return the bytes of an object, for Lambda, which takes code from S3.

    Raises:
        ServiceError: There is no such bucket or no such key; in Lambda's words.
    """
    code, text = "NoSuchKey", "The specified key does not exist."
    try:
        found = s3_backends[ACCOUNT][PARTITION].get_object(bucket, key, version_id=version)
    except S3ClientError as error:
        found = None
        if getattr(error, "error_type", "") == "NoSuchBucket" or bucket not in s3_backends[ACCOUNT][PARTITION].buckets:
            code, text = "NoSuchBucket", "The specified bucket does not exist"
    if found is None:
        message = f"Error occurred while GetObject. S3 Error Code: {code}. S3 Error Message: {text}"
        raise ServiceError(400, "InvalidParameterValueException", message)
    return bytes(found.value)


def write_log(region: str, group: str, stream: str, events: list[tuple[int, str]], *, make_group: bool) -> None:
    """Append events to a log stream, which is made where it is missing.

    Args:
        region: Where the log group is.
        group: Its name.
        stream: The stream's name.
        events: Milliseconds since 1970, and the text.
        make_group: Whether a missing group may be made; where not, the events are lost, as on AWS.
    """
    backend = logs_backends[ACCOUNT][region]
    if group not in backend.groups:
        if not make_group:
            return
        backend.ensure_log_group(group)
    backend.ensure_log_stream(group, stream)
    for batch in _batches(events):
        backend.put_log_events(group, stream, batch)


def _batches(events: list[tuple[int, str]]) -> Iterator[list[dict[str, Any]]]:
    """Yield events as PutLogEvents takes them: in the order of time, and not too many or too much at once.

    What a process printed is dated when it was read, a record of its logger when it was written: the order in which they
    came is true, so that no event is dated before the one that came before it.
    """
    batch: list[dict[str, Any]] = []
    size, latest = 0, 0
    for at, text in events:
        latest = max(latest, at)
        message = (
            text if len(text) <= LOG_EVENT_LIMIT // 4 else text.encode()[:LOG_EVENT_LIMIT].decode("utf-8", "ignore")
        )
        weight = len(message.encode()) + 26
        if batch and (size + weight > 2**20 or len(batch) == 10_000):
            yield batch
            batch, size = [], 0
        batch.append({"timestamp": latest, "message": message})
        size += weight
    if batch:
        yield batch


def find_api(api_id: str) -> tuple[str, Any] | None:
    """Return the region of an HTTP API and moto's record of it; `None` where there is none."""
    for region, backend in list(apigatewayv2_backends[ACCOUNT].items()):
        if api_id in backend.apis:
            return region, backend.apis[api_id]
    return None


def list_apis() -> list[tuple[str, str]]:
    """Return the region and the identifier of every HTTP API."""
    return [
        (region, api) for region, backend in list(apigatewayv2_backends[ACCOUNT].items()) for api in list(backend.apis)
    ]


def state_of_key(arn: str) -> str:
    """Return the state of a key of KMS, such as `Enabled`; empty where there is none."""
    _, _, service, region, account, name = (arn.split(":", 5) + [""] * 6)[:6]
    if service != "kms" or account != ACCOUNT:
        return ""
    found = kms_backends[ACCOUNT][region].keys.get(name.removeprefix("key/"))
    return "" if found is None else str(found.key_state)


def repositories(region: str) -> dict[str, Any]:
    """Return moto's records of the image repositories of a region, by name."""
    found: dict[str, Any] = ecr_backends[ACCOUNT][region].repositories
    return found


def put_image(region: str, repository: str, manifest: str, *, tag: str | None, digest: str, media_type: str) -> None:
    """Register an image that was pushed."""
    ecr_backends[ACCOUNT][region].put_image(repository, manifest, tag or "", media_type, digest)


class _Function:
    """What moto's services get for a function: something that takes events."""

    def __init__(self, name: str, send: Callable[[str, bytes], None]) -> None:
        self._name, self._send = name, send

    def invoke(self, body: str, _request_headers: object, _response_headers: object) -> bytes:
        """Take an event for the real function."""
        self._send(self._name, body.encode())
        return b""


def send_events_to(send: Callable[[str, bytes], None]) -> Callable[[], None]:
    """Let moto's services (S3 notifications, log subscriptions) reach real functions; returns what undoes it.

    The seam is private to moto: `LambdaBackend.get_function(name)` and the `invoke(body, headers, headers)` of what it
    returns. `tests/providers/aws/test_emulator_seams.py` holds moto to it.
    """
    before = LambdaBackend.get_function

    def get_function(_: LambdaBackend, function_name_or_arn: str, qualifier: str | None = None) -> _Function:
        name = function_name_or_arn + (f":{qualifier}" if qualifier else "")
        return _Function(name, send)

    setattr(LambdaBackend, "get_function", get_function)  # noqa: B010 - a method of somebody else's class, on purpose
    return lambda: setattr(LambdaBackend, "get_function", before)


def reset() -> None:
    """Empty what moto holds: it keeps its state in its modules, and a second emulator in one process starts anew."""
    from moto.iam.models import iam_backends
    from moto.sts.models import sts_backends

    every = (apigatewayv2_backends, ecr_backends, kms_backends, logs_backends, s3_backends, iam_backends, sts_backends)
    for backends in every:
        backends.reset()
