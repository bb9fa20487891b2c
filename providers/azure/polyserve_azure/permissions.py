"""What who deploys must be allowed to do: as a list of actions, and as the definition of a custom role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyserve.driver import FunctionSpec
from polyserve_azure.settings import AzureSettings

__all__ = ["custom_role", "permissions"]

_GROUP = (
    "Microsoft.Resources/subscriptions/resourceGroups/{read,write,delete}",
    "Microsoft.Resources/subscriptions/resourceGroups/resources/read",
)
_STORAGE = (
    "Microsoft.Storage/storageAccounts/{read,write,delete}",
    "Microsoft.Storage/storageAccounts/blobServices/containers/{read,write,delete}",
)
_KEYS = "Microsoft.Storage/storageAccounts/listKeys/action"
_DELEGATE = "Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action"
_BLOBS = tuple(
    f"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/{verb}"
    for verb in ("add/action", "delete", "read", "write")
)
"""What is on data: allowed to who has a token, where the account's key is not used."""
_APPS = (
    "Microsoft.Web/locations/functionAppStacks/read",
    "Microsoft.Web/serverFarms/{Read,Write,Delete}",
    "Microsoft.Web/serverFarms/join/action",
    "Microsoft.Web/sites/{Read,Write,Delete}",
    "Microsoft.Web/sites/config/list/Action",
    "Microsoft.Web/sites/host/listkeys/action",
    "Microsoft.Web/sites/publish/Action",
)
_IDENTITY = ("Microsoft.ManagedIdentity/userAssignedIdentities/{read,assign/action}",)
_CALLERS = ("Microsoft.Web/sites/config/{Read,Write}",)
_LOGS = ("Microsoft.Insights/components/{Read,Write,Delete}",)


def permissions(settings: AzureSettings) -> Sequence[str]:
    """Return the actions that deploying, calling, watching and destroying takes."""
    found = set[str]()
    guarded = _CALLERS if settings.entra_client_id else ()
    identified = _IDENTITY if settings.app_identity else ()
    storage = (*_STORAGE, _DELEGATE) if settings.storage_login == "entra" else (*_STORAGE, _KEYS)
    for pattern in (*_GROUP, *storage, *_APPS, *guarded, *identified, *_LOGS):
        head, brace, rest = pattern.partition("{")
        verbs, _, tail = rest.partition("}")
        found.update(f"{head}{verb}{tail}" for verb in verbs.split(",")) if brace else found.add(head)
    return sorted(found)


def custom_role(spec: FunctionSpec, settings: AzureSettings) -> Mapping[str, Any]:
    """Return the definition of a custom role that has them, as `az role definition create` takes it.

    It is assigned on the subscription: what a region offers is asked there, and there a resource group is made.
    """
    subscription = settings.subscription_id or "<subscription>"
    return {
        "Name": f"polyserve deployer of {spec.name}",
        "IsCustom": True,
        "Description": "Deploys, calls, watches and destroys what polyserve makes.",
        "Actions": list(permissions(settings)),
        "NotActions": [],
        "DataActions": list(_BLOBS) if settings.storage_login == "entra" else [],
        "NotDataActions": [],
        "AssignableScopes": [f"/subscriptions/{subscription}"],
    }
