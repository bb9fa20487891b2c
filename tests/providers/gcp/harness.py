"""The harness of the Google Cloud provider: the emulator in a process of its own, and Google's clients beside the driver.

The oracle knows how keys are written from the documentation of `polyserve_gcp.keys` and shares no code with it.
"""

from __future__ import annotations

import base64
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google.auth.exceptions as auth
import grpc
import httpx
import requests
from google.api_core import exceptions as core
from google.auth.transport.requests import Request
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials as Token

from polyserve.driver import ErrorCode, FunctionSpec, Provider
from polyserve.layers.fronting import fronted
from polyserve.layers.retrying import retrying
from polyserve.testing.emulators import start_emulator
from polyserve.testing.harness import ErrorCase, RawObject, sample_spec
from polyserve_gcp.errors import (
    AppError,
    BucketNotEmptyError,
    InvalidKeyError,
    InvocationError,
    PreconditionError,
    ServiceError,
    TokenError,
    refusal,
)
from polyserve_gcp.provider import provider
from polyserve_gcp.settings import GcpSettings

BUNDLES = "polyserve-contract-bundles"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def open_harness(directory: Path, **changed: Any) -> GcpHarness:
    """Give the harness; every provider's module has this. Settings that are given change the emulator's own."""
    return GcpHarness(directory, changed)


def name_of(key: str) -> str:
    """Return the name that an object of that key has in Cloud Storage."""
    dotted = "/".join(f".~{piece[1:]}" if piece.startswith(".") else piece for piece in key.split("/"))
    name = ""
    for at, char in enumerate(dotted):
        following = dotted[at + 1 : at + 2]
        if ord(char) < 32:
            name += "  " + chr(64 + ord(char))
        elif char == " " and (not following or ord(following) <= 32):
            name += "  ~"
        else:
            name += char
    return name


def key_of(name: str) -> str:
    """Return the key of an object that has that name in Cloud Storage."""
    key, at = "", 0
    while at < len(name):
        if name.startswith("  ", at) and at + 2 < len(name):
            letter = name[at + 2]
            key += " " if letter == "~" else chr(ord(letter) - 64)
            at += 3
        else:
            key += name[at]
            at += 1
    return "/".join("." + piece[2:] if piece.startswith(".~") else piece for piece in key.split("/"))


class GcpHarness:
    """The Google Cloud provider over the emulator."""

    name = "gcp"
    key_bytes = 1024
    signed_put_headers: Mapping[str, str] = {}

    def __init__(self, directory: Path, changed: Mapping[str, Any]) -> None:
        self._emulator, options = start_emulator("polyserve_gcp.emulator", directory, _variables(), "--settle", "0")
        self.options: Mapping[str, Any] = {**options, "retry_s": 0.05, **changed}
        self.settings = GcpSettings(**self.options)
        self._provider = retrying(fronted(provider(self.settings)))
        self._numbers = itertools.count(1)
        self.token = token_of(self.settings)
        self._http = httpx.Client(headers={"authorization": f"Bearer {self.token}"}, trust_env=False, timeout=60)
        url = self.settings.address("storage.googleapis.com")
        self._client = storage.Client(self.settings.project, Token(self.token), client_options={"api_endpoint": url})

    def provider(self) -> Provider:
        return self._provider

    def fresh_bucket(self) -> str:
        name = f"polyserve-contract-{next(self._numbers)}"
        self._client.create_bucket(name)
        return name

    def drop_bucket(self, bucket: str) -> None:
        with suppress(core.NotFound):
            for blob in self._client.list_blobs(bucket):
                blob.delete()
            self._client.bucket(bucket).delete()

    def raw_put(self, bucket: str, key: str, value: RawObject) -> None:
        blob = self._client.bucket(bucket).blob(name_of(key))
        blob.metadata = dict(value.metadata)
        blob.upload_from_string(value.body, content_type=value.content_type)

    def raw_get(self, bucket: str, key: str) -> RawObject:
        blob = self._client.bucket(bucket).blob(name_of(key))
        body = blob.download_as_bytes(raw_download=True)
        blob.reload()
        return RawObject(body=body, content_type=str(blob.content_type), metadata=dict(blob.metadata or {}))

    def raw_list(self, bucket: str) -> Sequence[str]:
        return [key_of(blob.name) for blob in self._client.list_blobs(bucket)]

    def inventory(self) -> Sequence[str]:
        found = [f"{kind} {name}" for kind in ("function", "service") for name in self.native(kind)]
        for bucket in self._client.list_buckets():
            if bucket.name == BUNDLES:
                # Bundles of the functions' own suite stay from test to test; who may read them does not.
                bindings = bucket.get_iam_policy(requested_policy_version=3).bindings
                found += [f"binding {each['condition']['title']}" for each in bindings if each.get("condition")]
            elif bucket.name.startswith("polyserve-"):
                blobs = self._client.list_blobs(bucket.name)
                found += [f"bucket {bucket.name}", *(f"object {bucket.name}/{blob.name}" for blob in blobs)]
        return found

    def error_cases(self) -> Sequence[ErrorCase]:
        return [*_service_cases(), *_told_cases(), *_sdk_cases(), *_own_cases()]

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        self._provider.ensure_bucket(BUNDLES)
        return sample_spec(self._provider, BUNDLES, name, revision)

    def close(self) -> None:
        self._provider.close()
        self._http.close()
        self._client.close()
        self._emulator.terminate()
        self._emulator.wait(timeout=30)

    # --- what the tests of this room need beside -----------------------------------------------------------------------

    def native(self, kind: str) -> list[str]:
        """Return the names of all functions, or services, past the driver; those that are being deleted are waited for."""
        host = "cloudfunctions.googleapis.com" if kind == "function" else "run.googleapis.com"
        for _ in range(500):
            found = self.call("GET", host, f"/v2/{self.location}/{kind}s").get(f"{kind}s", ())
            if not any(each.get("state") == "DELETING" or each.get("deleteTime") for each in found):
                break
            time.sleep(0.02)
        return [str(each["name"]).rpartition("/")[2] for each in found]

    def settled(self) -> None:
        """Wait until no function is being changed."""
        for _ in range(500):
            found = self.call("GET", "cloudfunctions.googleapis.com", f"/v2/{self.location}/functions")
            if not any(each.get("state") == "DEPLOYING" for each in found.get("functions", ())):
                return
            time.sleep(0.02)

    @property
    def location(self) -> str:
        return f"projects/{self.settings.project}/locations/{self.settings.region}"

    def call(self, method: str, host: str, path: str, body: Any = None, **query: str) -> Any:
        """Ask one of Google's APIs past the driver."""
        reply = self._http.request(method, f"{self.settings.address(host)}{path}", json=body, params=query)
        assert reply.is_success, reply.text
        return reply.json()

    def account(self, name: str, *, permissions: Sequence[str] = (), roles: Sequence[str] = ()) -> GcpSettings:
        """Return settings of a new service account that has these permissions, by a role of its own, and these roles."""
        project, host = f"projects/{self.settings.project}", "iam.googleapis.com"
        made = self.call("POST", host, f"/v1/{project}/serviceAccounts", {"accountId": name})
        granted = list(roles)
        if permissions:
            role = {"title": name, "includedPermissions": list(permissions), "stage": "GA"}
            body = {"roleId": name.replace("-", "_"), "role": role}
            granted.append(self.call("POST", host, f"/v1/{project}/roles", body)["name"])
        manager, where = "cloudresourcemanager.googleapis.com", f"/v1/{project}"
        policy = self.call("POST", manager, f"{where}:getIamPolicy", {})
        member = f"serviceAccount:{made['email']}"
        policy["bindings"] = [*policy.get("bindings", ()), *({"role": role, "members": [member]} for role in granted)]
        self.call("POST", manager, f"{where}:setIamPolicy", {"policy": policy})
        key = self.call("POST", host, f"/v1/{made['name']}/keys", {})
        file = Path(self.settings.credentials_file).with_name(f"{name}.json")
        file.write_bytes(base64.b64decode(key["privateKeyData"]))
        return GcpSettings(**{**self.options, "credentials_file": str(file)})


def token_of(settings: GcpSettings) -> str:
    """Return an access token of the account whose key the settings have, made by google-auth."""
    made = service_account.Credentials.from_service_account_file(settings.credentials_file, scopes=[SCOPE])
    made.refresh(Request())
    return str(made.token)


def _variables() -> dict[str, str]:
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "POLYSERVE_EMULATORS")
    return {name: os.environ[name] for name in names if name in os.environ}


_SERVICE: Mapping[ErrorCode, Sequence[tuple[int, str, str]]] = {
    ErrorCode.NOT_FOUND: [(404, "NOT_FOUND", "Resource 'x' was not found")],
    ErrorCode.ALREADY_EXISTS: [
        (409, "ALREADY_EXISTS", "Could not create Cloud Run service x. A Cloud Run service with this name already exists.")
    ],
    ErrorCode.PERMISSION_DENIED: [
        (403, "PERMISSION_DENIED", "Permission 'cloudfunctions.functions.create' denied on 'projects/p/locations/l/functions/x'")
    ],
    ErrorCode.UNAUTHENTICATED: [(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")],
    ErrorCode.FAILED_PRECONDITION: [
        (400, "FAILED_PRECONDITION", "Revision 'x' is not ready and cannot serve traffic."),
        (403, "PERMISSION_DENIED", "This API method requires billing to be enabled."),
        (409, "", "The bucket you tried to delete is not empty."),
        (412, "", "At least one of the pre-conditions you specified did not hold."),
    ],
    ErrorCode.INVALID_ARGUMENT: [
        (400, "INVALID_ARGUMENT", "runtime: unsupported"),
        (400, "OUT_OF_RANGE", "page_size"),
        (413, "", "Request too large"),
    ],
    ErrorCode.RESOURCE_EXHAUSTED: [
        (429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Write requests'"),
        (403, "", "Rate Limit Exceeded"),
    ],
    ErrorCode.UNAVAILABLE: [
        (409, "ABORTED", "unable to queue the operation"),
        (409, "", "The operation is in progress."),
        (500, "INTERNAL", "Internal error encountered."),
        (503, "UNAVAILABLE", "The service is currently unavailable."),
        (502, "", "HTTP 502"),
        (499, "CANCELLED", "The operation was cancelled."),
    ],
    ErrorCode.DEADLINE_EXCEEDED: [(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.")],
    ErrorCode.UNSUPPORTED: [(501, "UNIMPLEMENTED", "Operation is not implemented")],
    ErrorCode.CONFLICT: [(409, "", "changed meanwhile")],
}  # fmt: skip


def _service_cases() -> Iterator[ErrorCase]:
    for code, cases in _SERVICE.items():
        for status, name, message in cases:
            busy = (status, code) == (409, ErrorCode.UNAVAILABLE)
            yield ErrorCase(
                name=f"{status} {name or message}",
                error=ServiceError(status, name, message),
                code=code,
                retry_after=timedelta(seconds=0.2) if busy else None,
            )


def _told_cases() -> Iterator[ErrorCase]:
    """Errors as they are read from answers: what Google hides in the details is in the sentence, and decides."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "SERVICE_DISABLED",
        "domain": "googleapis.com",
    }
    disabled = {"service": "run.googleapis.com", "consumer": "projects/123"}
    body = {"code": 403, "status": "PERMISSION_DENIED", "message": "no", "details": [{**info, "metadata": disabled}]}
    yield ErrorCase(
        name="an API that is not enabled", error=refusal(403, {"error": body}), code=ErrorCode.FAILED_PRECONDITION
    )
    wait = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.5s"}
    body = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slower", "details": [wait]}
    yield ErrorCase(
        name="throttled, with a time",
        error=refusal(429, {"error": body}),
        code=ErrorCode.RESOURCE_EXHAUSTED,
        retry_after=timedelta(seconds=3.5),
    )
    yield ErrorCase(
        name="busy, with a header",
        error=refusal(503, {}, retry="7"),
        code=ErrorCode.UNAVAILABLE,
        retry_after=timedelta(seconds=7),
    )


class _RpcError(grpc.RpcError):
    """An error as grpc raises it: its code is a method."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


def _sdk_cases() -> Iterator[ErrorCase]:
    answer: Any = SimpleNamespace(status_code=503, headers={"retry-after": "2"})
    busy = core.ServiceUnavailable("busy", response=answer)
    yield ErrorCase(
        name="storage busy, with a time", error=busy, code=ErrorCode.UNAVAILABLE, retry_after=timedelta(seconds=2)
    )
    made: list[tuple[Exception, ErrorCode]] = [
        (core.NotFound("GET /b/x: not found"), ErrorCode.NOT_FOUND),
        (core.Forbidden("x does not have storage.objects.get access"), ErrorCode.PERMISSION_DENIED),
        (core.Unauthorized("Anonymous caller"), ErrorCode.UNAUTHENTICATED),
        (core.PreconditionFailed("conditionNotMet"), ErrorCode.FAILED_PRECONDITION),
        (core.Conflict("The bucket you tried to delete is not empty."), ErrorCode.FAILED_PRECONDITION),
        (core.Conflict("Your previous request to create the named bucket succeeded and you already own it."), ErrorCode.ALREADY_EXISTS),
        (core.AlreadyExists("Resource 'x' already exists"), ErrorCode.ALREADY_EXISTS),
        (core.Aborted("unable to queue the operation"), ErrorCode.UNAVAILABLE),
        (core.TooManyRequests("slower"), ErrorCode.RESOURCE_EXHAUSTED),
        (core.InternalServerError("backendError"), ErrorCode.UNAVAILABLE),
        (core.GatewayTimeout("late"), ErrorCode.DEADLINE_EXCEEDED),
        (core.BadRequest("Invalid bucket name"), ErrorCode.INVALID_ARGUMENT),
        (core.RequestRangeNotSatisfiable("range"), ErrorCode.INVALID_ARGUMENT),
        (core.MethodNotImplemented("no"), ErrorCode.UNSUPPORTED),
        (core.RetryError("timeout of 120 s", core.ServiceUnavailable("busy")), ErrorCode.UNAVAILABLE),
        (DataCorruption(None, "checksum mismatch"), ErrorCode.UNAVAILABLE),
        (auth.DefaultCredentialsError("no credentials"), ErrorCode.UNAUTHENTICATED),
        (auth.RefreshError("invalid_grant"), ErrorCode.UNAUTHENTICATED),
        (auth.RefreshError("503", retryable=True), ErrorCode.UNAVAILABLE),
        (auth.TransportError("no route"), ErrorCode.UNAVAILABLE),
        (requests.exceptions.ConnectTimeout("late"), ErrorCode.UNAVAILABLE),
        (requests.exceptions.ReadTimeout("late"), ErrorCode.DEADLINE_EXCEEDED),
        (requests.exceptions.ConnectionError("refused"), ErrorCode.UNAVAILABLE),
        (requests.exceptions.ChunkedEncodingError("cut"), ErrorCode.UNAVAILABLE),
        (httpx.ConnectError("refused"), ErrorCode.UNAVAILABLE),
        (httpx.ConnectTimeout("late"), ErrorCode.UNAVAILABLE),
        (httpx.ReadTimeout("late"), ErrorCode.DEADLINE_EXCEEDED),
        (httpx.RemoteProtocolError("cut"), ErrorCode.UNAVAILABLE),
        (_RpcError(grpc.StatusCode.NOT_FOUND), ErrorCode.NOT_FOUND),
        (_RpcError(grpc.StatusCode.PERMISSION_DENIED), ErrorCode.PERMISSION_DENIED),
        (_RpcError(grpc.StatusCode.UNAVAILABLE), ErrorCode.UNAVAILABLE),
        (_RpcError(grpc.StatusCode.DEADLINE_EXCEEDED), ErrorCode.DEADLINE_EXCEEDED),
    ]  # fmt: skip
    for number, (error, code) in enumerate(made):
        yield ErrorCase(name=f"{number} {type(error).__name__}", error=error, code=code)


def _own_cases() -> Iterator[ErrorCase]:
    asked = timedelta(seconds=1)
    made: list[tuple[str, Exception, ErrorCode, timedelta | None]] = [
        ("a key", InvalidKeyError("key '\\x00'"), ErrorCode.INVALID_ARGUMENT, None),
        ("a version", PreconditionError("object 'k'"), ErrorCode.FAILED_PRECONDITION, None),
        ("a bucket", BucketNotEmptyError("bucket 'b'"), ErrorCode.FAILED_PRECONDITION, None),
        ("no token", TokenError("the token is over"), ErrorCode.UNAUTHENTICATED, None),
        ("an app", AppError(ErrorCode.NOT_FOUND, "no app"), ErrorCode.NOT_FOUND, None),
        ("a call", InvocationError(ErrorCode.UNAVAILABLE, "503", retry_after=asked), ErrorCode.UNAVAILABLE, asked),
    ]
    for name, error, code, wait in made:
        yield ErrorCase(name=name, error=error, code=code, retry_after=wait)
