"""How a function on Lambda is called: by its function URL, an HTTP API, or Lambda's Invoke API. Each is one signed HTTP call.

A body that is too large for an event is put into S3 first, and an answer that is too large is fetched from there.
"""

from __future__ import annotations

import binascii
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from polyserve.driver import Address, Detour, ErrorCode, HttpCall, HttpReply, Request, Response
from polyserve_aws.clients import Clients
from polyserve_aws.errors import CODES, InvocationError, RevisionError
from polyserve_aws.names import ALIAS, function_name
from polyserve_aws.observing import api_url, http_api_url, versions_of
from polyserve_aws.settings import AwsSettings
from polyserve_aws.signing import Signer

__all__ = ["LambdaInvoker", "Way"]

EVENT_BYTES = 6 * 1024 * 1024 - 16_384
"""Largest body in an event, once it is base64: Lambda's 6 MB less headers and braces. Lambda's quotas, 2026-11."""
ANSWER_TYPE = "application/x-polyserve-answer"
"""Media type of an answer that the entrypoint put into S3."""

_CLAIM_BYTES = 500
"""An answer of the Invoke API that says where the answer is has fewer bytes than this."""
_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TEXT = ("text/", "application/json")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Way:
    """What `prepare` and `parse` need to know beside the address.

    Attributes:
        signer: Signs for Lambda, or for the HTTP API.
        host: Host and port.
        path: Path before that of the request; the whole path of the Invoke API.
        query: Query string of the Invoke API.
        direct: Whether it is the Invoke API.
        public: Whether nobody has to sign.
        storage: Signs for S3.
        payloads: Where S3 has what is too large for an event: base URL, and path.
        gateway: Whether it is an HTTP API of API Gateway.
    """

    signer: Signer
    host: str
    path: str
    query: str
    direct: bool
    public: bool
    storage: Signer
    payloads: tuple[str, str]
    gateway: bool = False

    def stored(self, method: str, name: str, body: bytes | memoryview = b"") -> HttpCall:
        """Return the call that writes, reads or deletes what is too large for an event."""
        base, path = self.payloads[0], self.payloads[1] + name
        headers = self.storage.headers(method, base.partition("://")[2], path, "", body)
        return HttpCall(method=method, url=base + path, headers=headers, body=body)

    def follow(self, reply: HttpReply) -> HttpCall | None:
        """Return the call that fetches an answer which was too large for an event."""
        name = reply.headers.get("x-polyserve-answer")
        if name is None and self.direct and len(reply.body) < _CLAIM_BYTES and b'"x-polyserve-answer"' in reply.body:
            name = json.loads(reply.body)["headers"].get("x-polyserve-answer")
        # It comes from a function: nothing but a name of an object beside ours.
        if name is None or not _NAME.fullmatch(name):
            return None
        got, gone = self.stored("GET", name), self.stored("DELETE", name)
        return HttpCall(method="GET", url=got.url, headers=got.headers, body=b"", detour=Detour(after=(gone,)))


class LambdaInvoker:
    """Calls functions of Lambda. Implements `polyserve.driver.Invoker`.

    Args:
        clients: The SDK's clients.
        settings: Which of the ways is taken.
    """

    def __init__(self, clients: Clients, settings: AwsSettings) -> None:
        self._clients = clients
        self._settings = settings

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find a function's URL or HTTP API, or one version of it for the Invoke API: a version has no address of its own."""
        lambda_, function = self._clients.get("lambda"), function_name(name)
        if revision is None:
            qualifier = ALIAS
        else:
            version = versions_of(lambda_, function).get(revision)
            if version is None:
                raise RevisionError(ErrorCode.NOT_FOUND, f"{name!r} has no revision {revision}")
            qualifier = version.name
        where = {"FunctionName": function, "Qualifier": qualifier}
        direct = revision is not None or self._settings.invoke == "api"
        gateway = not direct and self._settings.invoke == "http-api"
        credentials, expires_at = self._credentials()
        if gateway:
            described = lambda_.get_function(**where)
            config, public = described["Configuration"], self._settings.public
            url = http_api_url(self._clients, described.get("Tags", {})) or ""
            if not url:
                message = f"{name!r} has no HTTP API: deploy it with invoke='http-api', or call it by its URL"
                raise RevisionError(ErrorCode.NOT_FOUND, message)
        elif direct:
            config = lambda_.get_function_configuration(**where)
            url, public = api_url(lambda_, function), False
        else:
            config = lambda_.get_function_configuration(**where)
            found = lambda_.get_function_url_config(**where)
            url, public = found["FunctionUrl"].rstrip("/"), found["AuthType"] == "NONE"
        parts = urlsplit(url)
        signer = Signer(*credentials, region=lambda_.meta.region_name, service="execute-api" if gateway else "lambda")
        way = Way(
            signer=signer,
            host=parts.netloc,
            path=f"{parts.path}/invocations" if direct else parts.path,
            query=f"Qualifier={qualifier}" if direct else "",
            direct=direct,
            public=public,
            storage=signer.for_service("s3"),
            payloads=self._payloads(config),
            gateway=gateway,
        )
        return Address(url=url, expires_at=expires_at, context=way)

    def _credentials(self) -> tuple[tuple[str, str, str | None], datetime | None]:
        """Return the SDK's credentials as they are now, and when they end."""
        credentials = self._clients.session.get_credentials()
        if credentials is None:
            from botocore.exceptions import NoCredentialsError

            raise NoCredentialsError
        frozen = credentials.get_frozen_credentials()
        # Only those that are refreshed have it; the SDK has no public name for it.
        expires_at = getattr(credentials, "_expiry_time", None)
        return (frozen.access_key, frozen.secret_key, frozen.token), expires_at

    def _payloads(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return the base URL of S3 and the path below which payloads are."""
        place = config.get("Environment", {}).get("Variables", {}).get("POLYSERVE_PAYLOADS", "")
        bucket, _, prefix = place.partition("/")
        endpoint = self._clients.get("s3").meta.endpoint_url.rstrip("/")
        return endpoint, f"/{bucket}/{quote(prefix, safe='/-_.~')}"

    def prepare(self, address: Address, request: Request) -> HttpCall:
        """Sign the request, or the event that it becomes."""
        way = address.context
        assert isinstance(way, Way)
        headers = dict(request.headers)
        if request.request_id:
            headers["x-request-id"] = request.request_id
        body, detour = request.body, Detour(follow=way.follow)
        if len(body) * 4 // 3 > EVENT_BYTES and not _fits_as_text(way, headers, body):
            if way.payloads[1] == "//":
                message = (
                    "the request is too large for an event, and the function's environment, which says where to put it instead, cannot "
                    "be read: the caller may lack the permission kms:Decrypt for its key"
                )
                raise InvocationError(ErrorCode.PERMISSION_DENIED, message)
            name = str(uuid.uuid4())
            headers["x-polyserve-body"] = name
            gone = way.stored("DELETE", name)
            detour = Detour(before=way.stored("PUT", name, body), follow=way.follow, after=(gone,))
            body = b""
        if way.direct:
            return self._direct(way, request, headers, body, detour)
        path = way.path + request.path
        if not way.public:
            headers |= way.signer.headers(request.method, way.host, path, "", body)
        return HttpCall(
            method=request.method, url=address.url + request.path, headers=headers, body=body, detour=detour
        )

    @staticmethod
    def _direct(
        way: Way, request: Request, headers: Mapping[str, str], body: bytes | memoryview, detour: Detour
    ) -> HttpCall:
        head = json.dumps(
            {"polyserve": 1, "method": request.method, "path": request.path, "headers": headers}, separators=(",", ":")
        )
        event = b'%s,"body":"%s"}' % (head[:-1].encode(), binascii.b2a_base64(body, newline=False))
        signed = way.signer.headers("POST", way.host, way.path, way.query, event)
        signed["content-type"] = "application/json"
        scheme = way.payloads[0].partition("://")[0]
        url = f"{scheme}://{way.host}{way.path}?{way.query}"
        return HttpCall(method="POST", url=url, headers=signed, body=event, detour=detour)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        """Read the function's answer out of Lambda's, or out of the object that it was put into."""
        way = address.context
        assert isinstance(way, Way)
        headers = reply.headers
        if headers.get("content-type") == ANSWER_TYPE:
            return _unpacked(reply.body)
        if way.direct:
            if reply.status >= 300 or "x-amz-function-error" in headers:
                raise _failure(reply)
            told = json.loads(reply.body)
            return Response(status=told["status"], headers=told["headers"], body=binascii.a2b_base64(told["body"]))
        if reply.status >= 400 and "x-request-id" not in headers:
            # Every answer of the function has one: this is Lambda's own, or API Gateway's.
            raise _gateway_failure(reply) if way.gateway else _failure(reply)
        return Response(status=reply.status, headers=headers, body=reply.body)


def _fits_as_text(way: Way, headers: Mapping[str, str], body: bytes | memoryview) -> bool:
    """Return whether a function URL passes a body on as it is; what is escaped in it is counted."""
    if way.direct or not headers.get("content-type", "").startswith(_TEXT):
        return False
    raw = bytes(body)
    return len(raw) + raw.count(b'"') + raw.count(b"\\") + raw.count(b"\n") < EVENT_BYTES


def _unpacked(stored: bytes) -> Response:
    head, _, body = stored.partition(b"\n")
    told = json.loads(head)
    return Response(status=told["status"], headers=told["headers"], body=body)


_BY_ERROR_TYPE: Mapping[str, ErrorCode] = {
    "Sandbox.Timedout": ErrorCode.DEADLINE_EXCEEDED,
    "Function.ResponseSizeTooLarge": ErrorCode.INVALID_ARGUMENT,
}
_STUCK = re.compile(r"exit status 70\b")


_BY_GATEWAY: Mapping[int, tuple[ErrorCode, str]] = {
    # It tells its callers a word or two: "Troubleshooting issues with HTTP API Lambda integrations", developer guide, 2026-11.
    403: (
        ErrorCode.PERMISSION_DENIED,
        "Forbidden (the caller may lack the permission execute-api:Invoke, or its credentials have ended)",
    ),
    404: (ErrorCode.UNAVAILABLE, "the HTTP API has no route yet: one that was just made takes some seconds"),
    413: (ErrorCode.INVALID_ARGUMENT, "the request is larger than API Gateway takes"),
    429: (ErrorCode.RESOURCE_EXHAUSTED, "API Gateway takes no more calls for the moment"),
    500: (
        ErrorCode.INTERNAL,
        "the function ended without an answer, out of memory for one, or the HTTP API may not call it: its log says why",
    ),
    503: (ErrorCode.UNAVAILABLE, "the function did not take the call within API Gateway's 30 seconds"),
}


def _gateway_failure(reply: HttpReply) -> InvocationError:
    """Return the error that an answer of API Gateway itself is."""
    fallback = ErrorCode.UNAVAILABLE if reply.status >= 500 else ErrorCode.INVALID_ARGUMENT
    code, reason = _BY_GATEWAY.get(reply.status, (fallback, reply.body[:200].decode("utf-8", "replace")))
    return InvocationError(code, f"HTTP {reply.status} of API Gateway: {reason}")


def _failure(reply: HttpReply) -> InvocationError:
    """Return the error that an answer of Lambda itself is."""
    try:
        told = json.loads(reply.body)
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        told = {}
    asked = reply.headers.get("retry-after", "")
    wait = timedelta(seconds=float(asked)) if re.fullmatch(r"\d+(\.\d+)?", asked) else None
    if "x-amz-function-error" in reply.headers:
        return _crash(told, wait)
    name = reply.headers.get("x-amzn-errortype", str(told.get("Type") or told.get("__type") or "")).partition(":")[0]
    reason = told.get("message") or told.get("Message") or told.get("Reason") or f"HTTP {reply.status}"
    code = (
        CODES.get(name)
        or CODES.get(str(reply.status))
        or (ErrorCode.UNAVAILABLE if reply.status >= 500 else ErrorCode.INVALID_ARGUMENT)
    )
    if reply.status == 502 and name not in CODES:
        # What a function URL says of an environment that ended without an answer; another attempt would end like it.
        code, reason = (
            ErrorCode.INTERNAL,
            "the function ended without an answer, out of memory for one: its log says why",
        )
    if reply.status == 403 and code is ErrorCode.PERMISSION_DENIED and "perform" not in str(reason):
        reason = f"{reason} (the caller may lack the permission lambda:InvokeFunctionUrl or lambda:InvokeFunction)"
    if reply.status == 403 and re.search(r"signature|security token|expired", str(reason), re.I):
        code = ErrorCode.UNAUTHENTICATED
    return InvocationError(code, f"{name + ': ' if name else ''}{reason}", retry_after=wait)


def _crash(told: Mapping[str, Any], wait: timedelta | None) -> InvocationError:
    """Return the error that an environment's end is."""
    kind, reason = str(told.get("errorType", "")), str(told.get("errorMessage", "the function failed"))
    if _STUCK.search(reason):
        # The entrypoint gave itself up: an earlier request never ended.
        return InvocationError(ErrorCode.UNAVAILABLE, reason, retry_after=wait)
    if "Task timed out" in reason:
        return InvocationError(ErrorCode.DEADLINE_EXCEEDED, reason)
    if "signal: killed" in reason:
        reason += " (out of memory is the usual reason: give the function more with --memory)"
    return InvocationError(_BY_ERROR_TYPE.get(kind, ErrorCode.INTERNAL), f"{kind}: {reason}" if kind else reason)
