"""The options of the Azure provider, validated where profiles are read. Credentials are none of them: the SDK finds those."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Guid = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$")]
_IDENTITY = (
    r"^(/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+)?$"
)
Url = Annotated[str, msgspec.Meta(pattern=r"^(https?://[^/\s?#]+[^\s?#]*)?$")]


class AzureSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which subscription, and how apps run there.

    Attributes:
        subscription_id: Subscription; `AZURE_SUBSCRIPTION_ID` where it is empty.
        tenant_id: Microsoft Entra tenant of the credentials; the SDK's own choice where it is empty.
        location: Region, such as `eastus`.
        resource_group: Resource group; made where it is not there.
        storage_account: Storage account that buckets are containers of; made where it is not there. Derived from subscription, group
            and region where it is empty.
        app_prefix: Begins the names of apps, which are the only ones in the world.
        app_suffix: Ends them; derived from subscription and group where it is empty.
        entra_client_id: Application of Microsoft Entra that callers of a deployment show a token for, instead of a key; takes `tenant_id`.
        app_identity: User-assigned identity, by its resource identifier, that apps reach storage with instead of the account's key. It
            takes the role Storage Blob Data Owner on the account.
        storage_login: Whether who deploys reaches objects with the account's `key` or a token of `entra`; the latter takes `app_identity`.
        concurrency: Requests that one instance answers at a time.
        update: How apps change: by `rolling` instances one after the other, which loses no request and is in preview, or all at once.
        patience_s: How long an app that was published may take to answer as what it was asked to be, in seconds.
        storage_sku: Redundancy of a storage account that is made.
        encryption_scope: Scope whose key encrypts objects; the account's own where it is empty.
        token_file: A file with a token, JSON with `access_token` and `expires_on`; the SDK's own chain of credentials where it is empty.
        management_url: Address of Azure Resource Manager.
        app_url_template: Address of an app, with `{name}`; its own host name where it is empty.
        scm_url_template: Address that an app is published at, with `{name}`; its own host name where it is empty.
        insights_url: Address that logs are read at.
        authority_url: Address of Microsoft Entra ID; the SDK's own choice where it is empty.
    """

    subscription_id: Guid = ""
    tenant_id: Guid = ""
    location: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+$")] = "eastus"
    resource_group: Annotated[str, msgspec.Meta(pattern=r"^[-\w.()]{0,89}[-\w()]$")] = "polyserve"
    storage_account: Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9]{3,24})?$")] = ""
    app_prefix: Annotated[str, msgspec.Meta(pattern=r"^([a-z][a-z0-9-]{0,9})?$")] = ""
    app_suffix: Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9]([a-z0-9-]{0,7}[a-z0-9])?)?$")] = ""
    entra_client_id: Guid = ""
    app_identity: Annotated[str, msgspec.Meta(pattern=_IDENTITY)] = ""
    storage_login: Literal["key", "entra"] = "key"
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    update: Literal["rolling", "recreate"] = "rolling"
    patience_s: Annotated[float, msgspec.Meta(ge=1)] = 120.0
    storage_sku: Literal["Standard_LRS", "Standard_ZRS", "Standard_GRS", "Standard_GZRS"] = "Standard_LRS"
    encryption_scope: str = ""
    token_file: str = ""
    management_url: Url = "https://management.azure.com"
    app_url_template: str = ""
    scm_url_template: str = ""
    insights_url: Url = "https://api.applicationinsights.io"
    authority_url: Url = ""

    def __post_init__(self) -> None:
        if self.storage_login == "entra" and not self.app_identity:
            raise ValueError(
                "storage_login is entra, so that apps get no key: name an identity for them in app_identity"
            )
        if self.entra_client_id and not self.tenant_id:
            raise ValueError("entra_client_id is an application of one tenant: name it in tenant_id, too")
