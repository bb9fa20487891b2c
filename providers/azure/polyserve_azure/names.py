"""What the native resources of a deployment are called, and what is written on them."""

from __future__ import annotations

import hashlib

from polyserve_azure.credentials import subscription_of
from polyserve_azure.settings import AzureSettings

__all__ = [
    "APP_TAG",
    "ENTRA_TAG",
    "FRONT_TAG",
    "MADE_TAG",
    "MARK_TAG",
    "MAX_TAG",
    "OWN_TAGS",
    "READY_TAG",
    "REVISION_TAG",
    "SPEC_TAG",
    "account_name",
    "package_container",
    "site_name",
]

OWN_TAGS = "polyserve-"
"""Begins the tags that are no labels. Slashes and percent signs, which others use, are not allowed in a tag's name."""
APP_TAG, REVISION_TAG, FRONT_TAG = f"{OWN_TAGS}app", f"{OWN_TAGS}revision", f"{OWN_TAGS}front"
SPEC_TAG, READY_TAG, MADE_TAG = f"{OWN_TAGS}spec", f"{OWN_TAGS}ready", f"{OWN_TAGS}made"
ENTRA_TAG = f"{OWN_TAGS}entra"
"""The application that callers show a token for."""
MARK_TAG = f"{OWN_TAGS}mark"
"""Which description is in a site's settings."""
MAX_TAG = f"{OWN_TAGS}max-instances"
"""Says whether somebody asked for a bound: the platform always has one."""


def site_name(settings: AzureSettings, app: str) -> str:
    """Return the name of an app's site, its plan and its component; the site's is the only one in the world."""
    suffix = settings.app_suffix or _digest(subscription_of(settings), settings.resource_group.lower())[:7]
    return f"{settings.app_prefix}{app}-{suffix}"


def account_name(settings: AzureSettings) -> str:
    """Return the name of the storage account, the only one in the world, too."""
    if settings.storage_account:
        return settings.storage_account
    where = _digest(subscription_of(settings), settings.resource_group.lower(), settings.location)
    return f"polyserve{where[:15]}"


def package_container(site: str) -> str:
    """Return the name of the container that a site keeps its package in; two sites cannot share one."""
    plain = "-".join(filter(None, site.lower().split("-")))
    return f"app-{plain[:48]}-{_digest(site)[:8]}"


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
