"""The harness of the Azure provider: the emulator in a process of its own, and Microsoft's SDKs beside the driver.

The oracle knows how keys are written from the documentation of `polyserve_azure.keys` and shares no code with it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from azure.core import exceptions as core
from azure.identity import CredentialUnavailableError
from azure.storage.blob import BlobServiceClient, ContentSettings

from polyserve.driver import ErrorCode, FunctionSpec, Provider
from polyserve.layers.fronting import fronted
from polyserve.testing.emulators import start_emulator
from polyserve.testing.harness import ErrorCase, RawObject, sample_spec
from polyserve_azure.credentials import Credentials
from polyserve_azure.errors import (
    AppError,
    BucketNotEmptyError,
    InvalidKeyError,
    InvocationError,
    PreconditionError,
    ServiceError,
    TokenError,
)
from polyserve_azure.provider import AzureProvider
from polyserve_azure.resources import ResourceManager
from polyserve_azure.settings import AzureSettings
from polyserve_azure.storage import Accounts

BUNDLES = "contract-bundles"
PATIENCE_S = 10.0
BLOB_OWNER = "b7e6dc6d-f1e8-4753-8033-0f276bb0955b"
"""The role Storage Blob Data Owner."""


def open_harness(directory: Path) -> AzureHarness:
    """Give the harness; every provider's module has this."""
    return AzureHarness(directory)


def name_of(key: str) -> str:
    """Return the name that an object of that key has in Blob Storage."""
    dotted = "/".join(piece.replace(".", ".~", 1) if piece.startswith(".") else piece for piece in key.split("/"))
    name = ""
    for at, char in enumerate(dotted):
        following, code = dotted[at + 1 : at + 2], ord(char)
        if code < 32:
            name += "  " + chr(64 + code)
        elif char == " " and (not following or ord(following) <= 32):
            name += "  ~"
        elif char == "\\":
            name += "[\ufffd\uf05c"
        elif 0x7F <= code < 0xA0:
            name += "~\ufffd" + chr(0xF000 + code)
        elif 0xFFFD <= code <= 0xFFFF:
            name += "\ufffd" + str(code - 0xFFFD)
        elif code > 0xFFFF:
            name += "\ufffd" + chr(0x4E00 + (code - 0x10000) // 1024) + chr(0x4E00 + code % 1024)
        else:
            name += char
    return name


def key_of(name: str) -> str:
    """Return the key of an object that has that name in Blob Storage."""
    key, at = "", 0
    while at < len(name):
        if name.startswith("  ", at):
            letter = name[at + 2]
            key += " " if letter == "~" else chr(ord(letter) - 64)
            at += 3
        elif name[at] in "[~" and name.startswith("\ufffd", at + 1) and ord(name[at + 2]) >= 0xF000:
            key += chr(ord(name[at + 2]) - 0xF000)
            at += 3
        elif name[at] == "\ufffd" and name[at + 1] in "012":
            key += chr(0xFFFD + int(name[at + 1]))
            at += 2
        elif name[at] == "\ufffd":
            key += chr(0x10000 + (ord(name[at + 1]) - 0x4E00) * 1024 + ord(name[at + 2]) - 0x4E00)
            at += 3
        else:
            key += name[at]
            at += 1
    return "/".join("." + piece[2:] if piece.startswith(".~") else piece for piece in key.split("/"))


class AzureHarness:
    """The Azure provider over the emulator."""

    name = "azure"
    key_bytes = 1024
    signed_put_headers: Mapping[str, str] = {"x-ms-blob-type": "BlockBlob"}

    def __init__(self, directory: Path) -> None:
        # Operations take no longer than it takes to ask after them.
        self._emulator, options = start_emulator(
            "polyserve_azure.emulator", directory, _variables(), "--settle", "0.002"
        )
        self.options: Mapping[str, Any] = {**options, "patience_s": PATIENCE_S}
        self._settings = AzureSettings(**self.options)
        self._own = AzureProvider(self._settings)
        self._provider = fronted(self._own)
        self._numbers = itertools.count(1)
        token = json.loads(Path(self._settings.token_file).read_text())["access_token"]
        self._http = httpx.Client(headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=60)
        group = f"/subscriptions/{self._settings.subscription_id}/resourceGroups/{self._settings.resource_group}"
        self._group = group
        self._clients: dict[str, BlobServiceClient] = {}

    def _arm(self, method: str, path: str, version: str = "2024-01-01", body: Any = None) -> Any:
        """Ask Resource Manager past the driver."""
        url = path if path.startswith("http") else f"{self._settings.management_url}{path}?api-version={version}"
        reply = self._http.request(method, url, json=body)
        if reply.status_code == 404 or not reply.raise_for_status().content:
            return None
        return reply.json()

    def _all(self, path: str) -> list[Any]:
        found: list[Any] = []
        page = self._arm("GET", path)
        while page is not None:
            found += page["value"]
            page = self._arm("GET", page["nextLink"]) if page.get("nextLink") else None
        return found

    def _accounts(self) -> list[str]:
        return [each["name"] for each in self._all(f"{self._group}/providers/Microsoft.Storage/storageAccounts")]

    def _blobs(self, account: str) -> BlobServiceClient:
        """Return a client of plain azure-storage-blob."""
        path = f"{self._group}/providers/Microsoft.Storage/storageAccounts/{account}"
        endpoint = self._arm("GET", path)["properties"]["primaryEndpoints"]["blob"].rstrip("/")
        key = self._arm("POST", f"{path}/listKeys")["keys"][1]["value"]
        if key not in self._clients:
            self._clients[key] = BlobServiceClient(endpoint, {"account_name": account, "account_key": key})
        return self._clients[key]

    @property
    def _client(self) -> BlobServiceClient:
        (account,) = self._accounts()
        return self._blobs(account)

    def provider(self) -> Provider:
        return self._provider

    def fresh_bucket(self) -> str:
        self._ensure(BUNDLES)
        name = f"contract-{next(self._numbers)}"
        self._client.create_container(name)
        return name

    def _ensure(self, bucket: str) -> None:
        """Make a bucket as the core does: it asks again while the account is being made."""
        for _ in range(100):
            try:
                self._own.ensure_bucket(bucket)
            except AppError as error:
                if error.code is not ErrorCode.UNAVAILABLE:
                    raise
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the storage account is not made")

    def drop_bucket(self, bucket: str) -> None:
        for account in self._accounts():
            client = self._blobs(account)
            with suppress(core.ResourceNotFoundError):
                client.delete_container(bucket)
            if next(iter(client.list_containers()), None) is None:
                self._arm("DELETE", f"{self._group}/providers/Microsoft.Storage/storageAccounts/{account}")
        if not self._all(f"{self._group}/resources"):
            self._arm("DELETE", self._group)

    def raw_put(self, bucket: str, key: str, value: RawObject) -> None:
        about = {"content_settings": ContentSettings(content_type=value.content_type), "metadata": dict(value.metadata)}
        blob = self._client.get_blob_client(bucket, name_of(key))
        blob.upload_blob(value.body, overwrite=True, **about)

    def raw_get(self, bucket: str, key: str) -> RawObject:
        found = self._client.get_blob_client(bucket, name_of(key)).download_blob()
        about = found.properties
        return RawObject(
            body=found.readall(), content_type=str(about.content_settings.content_type), metadata=about.metadata
        )

    def raw_list(self, bucket: str) -> Sequence[str]:
        return [key_of(each.name) for each in self._client.get_container_client(bucket).list_blobs()]

    def inventory(self) -> Sequence[str]:
        found: list[str] = []
        kept = False
        for account in self._accounts():
            client = self._blobs(account)
            containers = [each.name for each in client.list_containers()]
            # Bundles of the functions' own suite stay from test to test, and so does the account that has them.
            kept = kept or BUNDLES in containers
            for container in containers:
                if container == BUNDLES:
                    continue
                blobs = client.get_container_client(container).list_blobs()
                found += [f"container {container}", *(f"blob {container}/{each.name}" for each in blobs)]
        for each in self._all(f"{self._group}/resources"):
            if not (kept and each["type"] == "Microsoft.Storage/storageAccounts"):
                found.append(f"{each['type']} {each['name']}")
        group = self._arm("GET", self._group)
        if not kept and group is not None and group["properties"]["provisioningState"] != "Deleting":
            found.append(f"resource group {self._group}")
        return found

    # --- what the tests of this room need beside -----------------------------------------------------------------------

    @property
    def settings(self) -> AzureSettings:
        return self._settings

    def accounts(self) -> list[str]:
        return self._accounts()

    def account_keys(self) -> list[str]:
        (account,) = self._accounts()
        path = f"{self._group}/providers/Microsoft.Storage/storageAccounts/{account}/listKeys"
        return [each["value"] for each in self._arm("POST", path)["keys"]]

    def shown_access(self) -> str:
        """Return what is printed of the way that the driver has to the account."""
        credentials = Credentials(self._settings)
        manager = ResourceManager(self._settings, credentials)
        with (
            closing(credentials),
            closing(manager),
            closing(Accounts(self._settings, manager, credentials)) as accounts,
        ):
            return f"{accounts.access()!r} {accounts!r} {credentials!r}"

    def site_name(self, app: str) -> str:
        digest = hashlib.sha256(
            f"{self._settings.subscription_id}\0{self._settings.resource_group}".encode()
        ).hexdigest()
        return f"{app}-{digest[:7]}"

    def renew_key(self, app: str) -> None:
        path = f"{self._web('sites', self.site_name(app))}/host/default/functionKeys/default"
        self._arm("PUT", path, body={"properties": {"name": "default", "value": "renewed-" + "x" * 40}})

    def host_key(self, app: str) -> str:
        keys = self._arm("POST", f"{self._web('sites', self.site_name(app))}/host/default/listkeys")
        return str(keys["functionKeys"]["default"])

    def token_for(self, audience: str) -> str:
        """Return a token of a new principal without any role, for one audience."""
        url = f"{self._settings.management_url}/_emulator/principals"
        made = self._http.post(url, json={"roles": []}).raise_for_status().json()
        form = {
            "grant_type": "client_credentials",
            "client_id": made["client_id"],
            "client_secret": made["client_secret"],
        }
        where = f"{self._settings.authority_url}/{self._settings.tenant_id}/oauth2/v2.0/token"
        told = httpx.post(where, data={**form, "scope": f"{audience}/.default"}, trust_env=False)
        return str(told.raise_for_status().json()["access_token"])

    def make_identity(self, name: str) -> str:
        """Make a user-assigned identity; returns its resource identifier."""
        self._arm("PUT", self._identity(name), "2023-01-31", body={"location": self._settings.location})
        return self._identity(name)

    def remove_identity(self, name: str) -> None:
        self._arm("DELETE", self._identity(name), "2023-01-31")

    def let_write_blobs(self, name: str) -> None:
        """Give an identity the role Storage Blob Data Owner on the account."""
        holder = self._arm("GET", self._identity(name), "2023-01-31")["properties"]["principalId"]
        (account,) = self._accounts()
        scope = f"{self._group}/providers/Microsoft.Storage/storageAccounts/{account}"
        role = f"/subscriptions/{self._settings.subscription_id}/providers/Microsoft.Authorization/roleDefinitions/{BLOB_OWNER}"
        given = {"roleDefinitionId": role, "principalId": holder, "principalType": "ServicePrincipal"}
        path = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
        self._arm("PUT", path, "2022-04-01", body={"properties": given})

    def app_settings(self, app: str) -> Mapping[str, str]:
        found = self._arm("POST", f"{self._web('sites', self.site_name(app))}/config/appsettings/list")
        return dict(found["properties"])

    def _identity(self, name: str) -> str:
        return f"{self._group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"

    def make_plan(self, name: str, *, tags: Mapping[str, str]) -> None:
        body = {"location": self._settings.location, "sku": {"name": "FC1"}, "properties": {"reserved": True}}
        self._arm("PUT", self._web("serverfarms", name), body={**body, "tags": dict(tags)})

    def remove_plan(self, name: str) -> None:
        self._arm("DELETE", self._web("serverfarms", name))

    def token_with(self, actions: Sequence[str]) -> str:
        """Return a token of a new principal whose only role has these actions."""
        scope, role = f"/subscriptions/{self._settings.subscription_id}", str(uuid.uuid4())
        given = {
            "roleName": role,
            "type": "CustomRole",
            "assignableScopes": [scope],
            "permissions": [{"actions": list(actions)}],
        }
        path = f"{scope}/providers/Microsoft.Authorization/roleDefinitions/{role}"
        self._arm("PUT", path, "2022-04-01", body={"properties": given})
        url = f"{self._settings.management_url}/_emulator/principals"
        made = self._http.post(url, json={"roles": [{"role": role, "scope": scope}]}).raise_for_status()
        return str(made.json()["access_token"])

    def _web(self, kind: str, name: str) -> str:
        return f"{self._group}/providers/Microsoft.Web/{kind}/{name}"

    def error_cases(self) -> Sequence[ErrorCase]:
        return [*_service_cases(), *_storage_cases(), *_sdk_cases(), *_own_cases()]

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        self._ensure(BUNDLES)
        return sample_spec(self._provider, BUNDLES, name, revision)

    def close(self) -> None:
        self._provider.close()
        self._http.close()
        for client in self._clients.values():
            client.close()
        self._emulator.terminate()
        self._emulator.wait(timeout=30)


def _variables() -> dict[str, str]:
    # npm and pip need the rest.
    of_others = ("AZURE_", "POLYSERVE_CACHE", "POLYSERVE_HOME", "TORCHINDUCTOR_", "XDG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(of_others)}


_SERVICE = {
    ErrorCode.NOT_FOUND: ((404, "ResourceNotFound ResourceGroupNotFound NotFound SubscriptionNotFound ApplicationNotFoundError"),),
    ErrorCode.ALREADY_EXISTS: ((409, "StorageAccountAlreadyTaken RoleAssignmentExists"),),
    ErrorCode.PERMISSION_DENIED: ((403, "AuthorizationFailed LinkedAuthorizationFailed InsufficientAccessError"),),
    ErrorCode.UNAUTHENTICATED: (
        (401, "AuthenticationFailed InvalidAuthenticationToken ExpiredAuthenticationToken InvalidAuthenticationTokenTenant"),
    ),
    ErrorCode.FAILED_PRECONDITION: (
        (409, "ScopeLocked MissingSubscriptionRegistration SkuNotAvailable QuotaExceeded InvalidResourceGroupLocation"),
        (403, "RequestDisallowedByPolicy ReadOnlyDisabledSubscription"),
    ),
    ErrorCode.INVALID_ARGUMENT: (
        (400, "InvalidRequestContent InvalidParameter ContainerNameInvalid AccountNameInvalid BadRequest InvalidTagNameCharacters"),
    ),
    ErrorCode.RESOURCE_EXHAUSTED: ((429, "TooManyRequests SubscriptionRequestsThrottled"),),
    ErrorCode.UNAVAILABLE: (
        (409, "ResourceGroupBeingDeleted StorageAccountOperationInProgress AnotherOperationInProgress"),
        (500, "InternalServerError"),
        (503, "ServiceUnavailable"),
    ),
}  # fmt: skip


def _busy(status: int, code: ErrorCode) -> timedelta | None:
    """Return how long is waited for a resource that is at another change."""
    return timedelta(seconds=0.2) if (status, code) == (409, ErrorCode.UNAVAILABLE) else None


def _service_cases() -> list[ErrorCase]:
    cases = [
        ErrorCase(name=name, error=ServiceError(status, name, "no"), code=code, retry_after=_busy(status, code))
        for code, groups in _SERVICE.items()
        for status, names in groups
        for name in names.split()
    ]
    in_progress = "Another deployment is in progress. Please try again later."
    starting = "Encountered an error (ServiceUnavailable) from host runtime."
    taken = "Website with given name iris already exists."
    shared = "A Flex Consumption plan can have one app only"
    wait = timedelta(seconds=17)
    more: list[tuple[str, int, str, str, ErrorCode]] = [
        ("a deployment in progress", 409, "Conflict", in_progress, ErrorCode.UNAVAILABLE),
        ("a host without keys", 400, "BadRequest", starting, ErrorCode.UNAVAILABLE),
        ("a name that is taken", 409, "Conflict", taken, ErrorCode.ALREADY_EXISTS),
        ("a plan that has an app", 409, "Conflict", shared, ErrorCode.FAILED_PRECONDITION),
        ("another conflict", 409, "Conflict", "changed meanwhile", ErrorCode.CONFLICT),
        ("a status alone", 502, "", "HTTP 502", ErrorCode.UNAVAILABLE),
        ("a name that nobody knows", 404, "Whatever", "no", ErrorCode.NOT_FOUND),
    ]
    cases += [
        ErrorCase(
            name=name, error=ServiceError(status, code, message), code=expected, retry_after=_busy(status, expected)
        )
        for name, status, code, message, expected in more
    ]
    throttled = ServiceError(429, "TooManyRequests", "slower", retry_after=wait)
    return [
        *cases,
        ErrorCase(name="throttled, with a time", error=throttled, code=ErrorCode.RESOURCE_EXHAUSTED, retry_after=wait),
    ]


def storage_error(status: int, code: str, kind: type[core.HttpResponseError], **headers: str) -> core.HttpResponseError:
    """Return an error as azure-storage-blob makes it of an answer."""
    response: Any = SimpleNamespace(status_code=status, reason="no", headers=headers, text=lambda: "")
    error = kind(message=f"no\nErrorCode:{code}", response=response)
    error.error_code = code  # type: ignore[attr-defined]
    return error


def _storage_cases() -> list[ErrorCase]:
    plain = core.HttpResponseError
    made: list[tuple[int, str, type[core.HttpResponseError], ErrorCode]] = [
        (404, "BlobNotFound", core.ResourceNotFoundError, ErrorCode.NOT_FOUND),
        (404, "ContainerNotFound", core.ResourceNotFoundError, ErrorCode.NOT_FOUND),
        (404, "CannotVerifyCopySource", core.ResourceNotFoundError, ErrorCode.NOT_FOUND),
        (409, "BlobAlreadyExists", core.ResourceExistsError, ErrorCode.FAILED_PRECONDITION),
        (412, "ConditionNotMet", core.ResourceModifiedError, ErrorCode.FAILED_PRECONDITION),
        (409, "ContainerAlreadyExists", core.ResourceExistsError, ErrorCode.ALREADY_EXISTS),
        (409, "ContainerBeingDeleted", core.ResourceExistsError, ErrorCode.UNAVAILABLE),
        (412, "LeaseIdMissing", core.ResourceModifiedError, ErrorCode.CONFLICT),
        (403, "AuthorizationPermissionMismatch", core.ClientAuthenticationError, ErrorCode.PERMISSION_DENIED),
        (403, "AuthorizationFailure", core.ClientAuthenticationError, ErrorCode.PERMISSION_DENIED),
        (403, "AuthenticationFailed", core.ClientAuthenticationError, ErrorCode.UNAUTHENTICATED),
        (403, "KeyBasedAuthenticationNotPermitted", core.ClientAuthenticationError, ErrorCode.UNAUTHENTICATED),
        (503, "ServerBusy", plain, ErrorCode.UNAVAILABLE),
        (500, "InternalError", plain, ErrorCode.UNAVAILABLE),
        (500, "OperationTimedOut", plain, ErrorCode.DEADLINE_EXCEEDED),
        (429, "TooManyRequests", plain, ErrorCode.RESOURCE_EXHAUSTED),
        (400, "InvalidResourceName", plain, ErrorCode.INVALID_ARGUMENT),
        (400, "InvalidMetadata", plain, ErrorCode.INVALID_ARGUMENT),
        (413, "RequestBodyTooLarge", plain, ErrorCode.INVALID_ARGUMENT),
        (501, "APINotImplemented", plain, ErrorCode.UNSUPPORTED),
        (404, "", core.ResourceNotFoundError, ErrorCode.NOT_FOUND),
    ]
    busy = storage_error(503, "ServerBusy", plain, **{"retry-after": "2"})
    return [
        *(
            ErrorCase(name=f"storage {code or status}", error=storage_error(status, code, kind), code=expected)
            for status, code, kind, expected in made
        ),
        ErrorCase(name="busy, with a time", error=busy, code=ErrorCode.UNAVAILABLE, retry_after=timedelta(seconds=2)),
    ]


def _sdk_cases() -> list[ErrorCase]:
    made: list[tuple[Exception, ErrorCode]] = [
        (CredentialUnavailableError(message="az login"), ErrorCode.UNAUTHENTICATED),
        (core.ClientAuthenticationError("AADSTS700082: the refresh token has expired"), ErrorCode.UNAUTHENTICATED),
        (core.ServiceRequestError("no route"), ErrorCode.UNAVAILABLE),
        (core.ServiceResponseError("broken"), ErrorCode.UNAVAILABLE),
        (core.ServiceRequestTimeoutError("connect"), ErrorCode.UNAVAILABLE),
        (core.ServiceResponseTimeoutError("read"), ErrorCode.DEADLINE_EXCEEDED),
        (core.IncompleteReadError("cut"), ErrorCode.UNAVAILABLE),
        (httpx.ConnectError("refused"), ErrorCode.UNAVAILABLE),
        (httpx.ConnectTimeout("late"), ErrorCode.UNAVAILABLE),
        (httpx.ReadTimeout("late"), ErrorCode.DEADLINE_EXCEEDED),
        (httpx.RemoteProtocolError("cut"), ErrorCode.UNAVAILABLE),
    ]
    return [ErrorCase(name=type(error).__name__, error=error, code=code) for error, code in made]


def _own_cases() -> list[ErrorCase]:
    asked = timedelta(seconds=1)
    made: list[tuple[str, Exception, ErrorCode, timedelta | None]] = [
        ("a key", InvalidKeyError("key '\\x00'"), ErrorCode.INVALID_ARGUMENT, None),
        ("a version", PreconditionError("object 'k'"), ErrorCode.FAILED_PRECONDITION, None),
        ("a bucket", BucketNotEmptyError("bucket 'b'"), ErrorCode.FAILED_PRECONDITION, None),
        ("no token", TokenError("the token is over"), ErrorCode.UNAUTHENTICATED, None),
        ("an app", AppError(ErrorCode.NOT_FOUND, "no app"), ErrorCode.NOT_FOUND, None),
        ("a call", InvocationError(ErrorCode.UNAVAILABLE, "503", retry_after=asked), ErrorCode.UNAVAILABLE, asked),
    ]
    return [ErrorCase(name=name, error=error, code=code, retry_after=wait) for name, error, code, wait in made]
