"""Who may call an app: whoever has the key of its host, or, where that is asked for, whoever shows a token of Microsoft Entra.

With `entra_client_id`, App Service authentication stands before the front and lets nobody through without a token for that application;
the function behind it wants no key then. The rules are there before a package is, or before the package that is there stops wanting a
key. The apps of revisions keep their keys, which fronts and who deploys have. What a site wants is in its tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyserve_azure.credentials import Credentials
from polyserve_azure.hosts import KEY_HEADER, host_key
from polyserve_azure.names import ENTRA_TAG
from polyserve_azure.resources import ResourceManager, Types
from polyserve_azure.settings import AzureSettings

__all__ = ["NOBODY", "Callers"]

NOBODY = "none"
"""The tag of a site that wanted tokens before and wants keys again."""
_RULES = ("config", "authsettingsV2")


class Callers:
    """The rules for callers, and what to show to them.

    Args:
        settings: Whether tokens are wanted.
        manager: Calls Azure.
        credentials: Who calls.
    """

    def __init__(self, settings: AzureSettings, manager: ResourceManager, credentials: Credentials) -> None:
        self._settings, self._manager, self._credentials = settings, manager, credentials

    def tags(self, *, front: bool, site: Mapping[str, Any] | None) -> dict[str, str]:
        """Return the tag of a site that is to be made or changed.

        Args:
            front: Whether it is a front.
            site: The site so far, if there is one.
        """
        if front and self._settings.entra_client_id:
            return {ENTRA_TAG: self._settings.entra_client_id}
        return {ENTRA_TAG: NOBODY} if site is not None and ENTRA_TAG in (site.get("tags") or {}) else {}

    def settled(self, site: Mapping[str, Any]) -> bool:
        """Return whether the rules of a site are what its tags say."""
        wanted = _tag(site)
        if not wanted:
            return True
        found = self._manager.find(Types.SITE, str(site["name"]), *_RULES) or {}
        return _shape(found.get("properties") or {}) == _shape(self._rules(wanted))

    def settle(self, name: str, tags: Mapping[str, str]) -> None:
        """Make the rules of a site what tags say."""
        self._manager.put(Types.SITE, name, {"properties": self._rules(tags[ENTRA_TAG])}, *_RULES)

    def headers(self, site: Mapping[str, Any]) -> dict[str, str]:
        """Return what a caller of a site shows: a token, or the key of its host."""
        wanted = _tag(site)
        if wanted in {"", NOBODY}:
            return {KEY_HEADER: host_key(self._manager, str(site["name"]))}
        return {"authorization": f"Bearer {self._credentials.token(f'api://{wanted}')}"}

    def _rules(self, wanted: str) -> dict[str, Any]:
        if wanted == NOBODY:
            return {"platform": {"enabled": False}}
        issuer = f"https://login.microsoftonline.com/{self._settings.tenant_id}/v2.0"
        entra = {
            "enabled": True,
            "registration": {"clientId": wanted, "openIdIssuer": issuer},
            # A token of version 2.0 names the application itself.
            "validation": {"allowedAudiences": [f"api://{wanted}", wanted]},
        }
        return {
            "platform": {"enabled": True},
            "globalValidation": {"requireAuthentication": True, "unauthenticatedClientAction": "Return401"},
            "identityProviders": {"azureActiveDirectory": entra},
        }


def _tag(site: Mapping[str, Any]) -> str:
    return str((site.get("tags") or {}).get(ENTRA_TAG, ""))


def _shape(rules: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what counts of rules: the service answers with much more than it was told."""
    on = bool((rules.get("platform") or {}).get("enabled"))
    validation = rules.get("globalValidation") or {}
    entra = (rules.get("identityProviders") or {}).get("azureActiveDirectory") or {}
    client = (entra.get("registration") or {}).get("clientId")
    return (on, validation.get("unauthenticatedClientAction"), client) if on else (on,)
