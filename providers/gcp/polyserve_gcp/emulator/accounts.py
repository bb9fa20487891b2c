"""The IAM API, as far as it is about service accounts: themselves, their keys, and who may use them."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

from polyserve.emulation.http import Answer
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError, denied, invalid, missing
from polyserve_gcp.emulator.identities import Principal
from polyserve_gcp.emulator.keys import Key
from polyserve_gcp.emulator.paths import Request, Rule
from polyserve_gcp.emulator.policies import Policies

_ACCOUNT_ID = re.compile(r"[a-z](?:[-a-z0-9]{4,28}[a-z0-9])")
_KEYS_MOST = 10


class Accounts:
    """The operations on service accounts.

    Args:
        access: Who may do what.
    """

    def __init__(self, access: Access) -> None:
        self._access, self._identities = access, access.identities
        self._policies = Policies(access)

    def rules(self) -> dict[str, Rule]:
        """Return the operations by their paths."""
        every = "/v1/projects/{project}/serviceAccounts"
        one = f"{every}/{{account}}"
        return {
            f"GET {every}": self._list, f"POST {every}": self._create, f"GET {one}": self._get, f"DELETE {one}": self._delete,
            f"PATCH {one}": self._patch, f"POST {one}:enable": self._enable, f"POST {one}:disable": self._disable,
            f"POST {one}:getIamPolicy": self._get_policy, f"POST {one}:setIamPolicy": self._set_policy,
            f"POST {one}:testIamPermissions": self._test, f"GET {one}/keys": self._list_keys,
            f"POST {one}/keys": self._create_key, f"DELETE {one}/keys/{{key}}": self._delete_key,
        }  # fmt: skip

    async def _list(self, request: Request) -> dict[str, Any]:
        self._access.demand(request.principal, "iam.serviceAccounts.list", f"projects/{self._identities.project}")
        found = self._identities.accounts()
        return {"accounts": [self._show(one) for one in found]} if found else {}

    async def _create(self, request: Request) -> dict[str, Any]:
        project = f"projects/{self._identities.project}"
        self._access.demand(request.principal, "iam.serviceAccounts.create", project)
        name, given = str(request.body.get("accountId") or ""), request.body.get("serviceAccount") or {}
        if not _ACCOUNT_ID.fullmatch(name):
            raise invalid(
                f"Invalid accountId '{name}': 6 to 30 lowercase letters, digits and hyphens, with a letter at the start."
            )
        if self._identities.find(f"{name}@{self._identities.project}.iam.gserviceaccount.com") is not None:
            raise ServiceError("ALREADY_EXISTS", f"Service account {name} already exists within project {project}.")
        made = self._identities.add_service_account(
            name, display_name=str(given.get("displayName") or ""), description=str(given.get("description") or "")
        )
        return self._show(made)

    async def _get(self, request: Request) -> dict[str, Any]:
        return self._show(self._find(request, "iam.serviceAccounts.get"))

    async def _delete(self, request: Request) -> dict[str, Any]:
        found = self._find(request, "iam.serviceAccounts.delete")
        self._identities.remove(found)
        self._access.forget(self._resource(found))
        return {}

    async def _patch(self, request: Request) -> dict[str, Any]:
        found = self._find(request, "iam.serviceAccounts.update")
        given = request.body.get("serviceAccount") or {}
        mask = str(request.body.get("updateMask") or "").split(",")
        if "displayName" in mask or "display_name" in mask:
            found.display_name = str(given.get("displayName") or "")
        if "description" in mask:
            found.description = str(given.get("description") or "")
        return self._show(found)

    async def _enable(self, request: Request) -> dict[str, Any]:
        self._find(request, "iam.serviceAccounts.enable").disabled = False
        return {}

    async def _disable(self, request: Request) -> dict[str, Any]:
        self._find(request, "iam.serviceAccounts.disable").disabled = True
        return {}

    async def _get_policy(self, request: Request) -> dict[str, Any]:
        found = self._find(request, "iam.serviceAccounts.getIamPolicy")
        return self._policies.get(
            request.principal, self._resource(found), "iam.serviceAccounts.getIamPolicy", request.body
        )

    async def _set_policy(self, request: Request) -> dict[str, Any]:
        permission = "iam.serviceAccounts.setIamPolicy"
        found = self._find(request, permission)
        return self._policies.set(request.principal, self._resource(found), permission, request.body)

    async def _test(self, request: Request) -> dict[str, Any]:
        found = self._identities.find(request.names["account"])
        if found is None:
            raise missing(f"Service account {request.names['account']}")
        return self._policies.test(request.principal, self._resource(found), request.body)

    async def _list_keys(self, request: Request) -> dict[str, Any]:
        found = self._find(request, "iam.serviceAccountKeys.list")
        return {"keys": [self._show_key(found, key) for key in found.keys.values()]} if found.keys else {}

    async def _create_key(self, request: Request) -> dict[str, Any]:
        found = self._find(request, "iam.serviceAccountKeys.create")
        if sum(key.user_managed for key in found.keys.values()) >= _KEYS_MOST:
            message = f"The service account has {_KEYS_MOST} keys already, which is the most."
            raise ServiceError("FAILED_PRECONDITION", message)
        content = await asyncio.to_thread(self._identities.add_key, found)
        text = base64.b64encode(json.dumps(content).encode()).decode()
        shown = self._show_key(found, found.keys[content["private_key_id"]])
        return {**shown, "privateKeyType": "TYPE_GOOGLE_CREDENTIALS_FILE", "privateKeyData": text}

    async def _delete_key(self, request: Request) -> Answer | dict[str, Any]:
        found = self._find(request, "iam.serviceAccountKeys.delete")
        key = found.keys.get(request.names["key"])
        if key is None or not key.user_managed:
            raise missing(f"Service account key {request.names['key']}")
        del found.keys[key.identifier]
        return {}

    def _find(self, request: Request, permission: str) -> Principal:
        """Return the account that a call names, where the caller may do what it wants with it."""
        name = request.names["account"]
        found = self._identities.find(name)
        resource = self._resource(found) if found else f"projects/{self._identities.project}/serviceAccounts/{name}"
        if not self._access.allows(request.principal, permission, resource):
            raise denied(permission, resource, f"Permission '{permission}' denied on resource (or it may not exist).")
        if found is None or found.person:
            raise ServiceError("NOT_FOUND", f"Unknown service account: {name}")
        return found

    def _resource(self, account: Principal) -> str:
        return f"projects/{self._identities.project}/serviceAccounts/{account.email}"

    def _show(self, account: Principal) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "name": self._resource(account), "projectId": self._identities.project, "uniqueId": account.unique_id,
            "email": account.email, "oauth2ClientId": account.unique_id, "etag": "MDEwMjE5MjA=",
        }  # fmt: skip
        more = {"displayName": account.display_name, "description": account.description, "disabled": account.disabled}
        return shown | {name: value for name, value in more.items() if value}

    def _show_key(self, account: Principal, key: Key) -> dict[str, Any]:
        return {
            "name": f"{self._resource(account)}/keys/{key.identifier}", "validAfterTime": key.made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "validBeforeTime": "9999-12-31T23:59:59Z", "keyAlgorithm": "KEY_ALG_RSA_2048", "keyOrigin": "GOOGLE_PROVIDED",
            "keyType": "USER_MANAGED" if key.user_managed else "SYSTEM_MANAGED",
        }  # fmt: skip
