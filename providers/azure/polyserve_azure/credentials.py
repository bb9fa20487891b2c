"""Who calls Azure: the SDK's own chain of credentials, or a token from a file. Tokens are kept in memory alone."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyserve_azure.errors import TokenError
from polyserve_azure.settings import AzureSettings

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

__all__ = ["Credentials", "FileToken"]

EARLY_S = 120.0
"""How long before its end a token is asked for anew."""


class FileToken:
    """A token from a file: what a build server or an emulator writes. Implements azure-core's `TokenCredential`.

    Args:
        path: JSON with `access_token` and, in seconds since 1970, `expires_on`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_token(self, *scopes: str, **_: Any) -> Any:
        """Return the token, whatever it is for.

        Raises:
            TokenError: The file has none, or one that is over.
        """
        from azure.core.credentials import AccessToken

        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            token, ends = str(told["access_token"]), int(told["expires_on"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Not the content: it may be a secret in another form.
            raise TokenError(f"{str(self._path)!r} has no token: {type(error).__name__}") from None
        if ends <= time.time():
            raise TokenError(f"the token in {str(self._path)!r} is over: write a new one")
        return AccessToken(token, ends)


class Credentials:
    """Tokens by what they are for. Safe to use from many threads.

    Args:
        settings: Where they come from.
    """

    def __init__(self, settings: AzureSettings) -> None:
        self._settings = settings
        self._native: TokenCredential | None = None
        self._tokens: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    @property
    def native(self) -> TokenCredential:
        """The SDK's credential."""
        if self._native is None:
            settings = self._settings
            if settings.token_file:
                self._native = FileToken(Path(settings.token_file))
            else:
                from azure.identity import DefaultAzureCredential

                where = {"authority": settings.authority_url} if settings.authority_url else {}
                if settings.tenant_id:
                    for name in ("interactive_browser", "shared_cache", "visual_studio_code"):
                        where[f"{name}_tenant_id"] = settings.tenant_id
                self._native = DefaultAzureCredential(**where)
        return self._native

    def token(self, resource: str) -> str:
        """Return a token for a resource, such as `https://management.azure.com`."""
        with self._lock:
            known = self._tokens.get(resource)
            if known is not None and known[1] > time.time() + EARLY_S:
                return known[0]
            found = self.native.get_token(f"{resource.rstrip('/')}/.default")
            self._tokens[resource] = (found.token, float(found.expires_on))
            return found.token

    def forget(self) -> None:
        """Ask for every token anew: one was refused."""
        with self._lock:
            self._tokens.clear()

    def close(self) -> None:
        """Close the SDK's connections."""
        self.forget()
        closing = getattr(self._native, "close", None)
        if closing is not None:
            closing()
        self._native = None


def subscription_of(settings: AzureSettings) -> str:
    """Return the subscription.

    Raises:
        TokenError: None is named.
    """
    found = settings.subscription_id or os.environ.get("AZURE_SUBSCRIPTION_ID", "")
    if not found:
        raise TokenError("no subscription is named: give subscription_id, or set AZURE_SUBSCRIPTION_ID")
    return found
