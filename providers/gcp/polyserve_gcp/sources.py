"""Where credentials come from: Google's own chain, which is a file, the file of `gcloud`, or the metadata server of a machine of Google's.

Unlike the SDK, nobody here asks a link-local address to find out whether there is a metadata server: the machine itself says so.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyserve_gcp.errors import TokenError
from polyserve_gcp.settings import GcpSettings

__all__ = ["METADATA_HOST", "SCOPE", "Source", "find_source", "on_google"]

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
METADATA_HOST = "metadata.google.internal"
LIFE_S = 3600

Kind = Literal["key", "user", "federated", "metadata"]

# What Cloud Run sets (https://cloud.google.com/run/docs/container-contract, read 2026-11); App Engine and Cloud Run jobs say so, too.
_RUN_VARIABLES = ("K_SERVICE", "CLOUD_RUN_JOB", "GAE_SERVICE")
_DMI = Path("/sys/class/dmi/id/product_name")
_PRINCIPAL = re.compile(r"/serviceAccounts/([^/:]+):generateAccessToken$")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Source:
    """Who calls, and as whom. Holds a credential: never printed, recorded or logged.

    Attributes:
        kind: What it is: the key of a service account, a person, somebody that another cloud knows, or the machine.
        native: The SDK's credentials of the caller.
        origin: Where they were found, for people.
        principal: Service account that is impersonated; empty where nobody is.
        delegates: Service accounts between the two, each of which may impersonate the next.
        life_s: How long a token of the impersonated one lives.
        project: Project that they name; empty where they name none.
        token_uri: Where a key gets its tokens.
    """

    kind: Kind
    native: Any
    origin: str
    principal: str = ""
    delegates: tuple[str, ...] = ()
    life_s: int = LIFE_S
    project: str = ""
    token_uri: str = ""

    def __repr__(self) -> str:
        return f"<Source {self.kind} from {self.origin}>"


def find_source(settings: GcpSettings) -> Source:
    """Find the credentials: the settings' file, `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's file, the metadata server.

    Raises:
        TokenError: There are none, or a file has none.
    """
    named = settings.credentials_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    kept = gcloud_directory() / "application_default_credentials.json"
    if named:
        found = _of_file(Path(named).expanduser())
    elif kept.is_file():
        found = _of_file(kept)
    elif on_google(settings):
        from google.auth.compute_engine import Credentials

        # Its domain is asked for where it is not given, by a client that knows nothing of other addresses.
        native = Credentials(scopes=[SCOPE], universe_domain="googleapis.com")
        found = Source(kind="metadata", native=native, origin="the metadata server")
    else:
        message = (
            "no credentials of Google Cloud were found: run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, or give credentials_file"
        )
        raise TokenError(message)
    return _as(found, settings.impersonate) if settings.impersonate else found


def on_google(settings: GcpSettings) -> bool:
    """Return whether there is a metadata server: the machine, its environment or the settings say so."""
    if METADATA_HOST in settings.endpoints:
        return True
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return False
    if os.environ.get("GCE_METADATA_HOST") or any(os.environ.get(name) for name in _RUN_VARIABLES):
        return True
    try:
        # What the SDK looks at, too, once nothing has answered it.
        return _DMI.read_text(encoding="utf-8", errors="replace").strip().startswith("Google")
    except OSError:
        return False


def gcloud_directory() -> Path:
    """Return where gcloud keeps its files."""
    given = os.environ.get("CLOUDSDK_CONFIG")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or os.environ.get("SYSTEMDRIVE", "C:") + "\\") / "gcloud"
    return Path.home() / ".config" / "gcloud"


def _as(source: Source, principal: str) -> Source:
    """Return a source that goes on to be somebody else."""
    between = (*source.delegates, source.principal) if source.principal else ()
    return Source(
        kind=source.kind,
        native=source.native,
        origin=source.origin,
        principal=principal,
        delegates=between,
        life_s=source.life_s,
        project=source.project or _project_of(principal),
        token_uri=source.token_uri,
    )


def _project_of(account: str) -> str:
    """Return the project that a service account's name has in it."""
    found = re.fullmatch(r"[^@]+@([a-z0-9-]+)\.iam\.gserviceaccount\.com", account)
    return found[1] if found else ""


def _of_file(path: Path) -> Source:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return _of_info(info, repr(str(path)))
    except TokenError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Not the content: it has a secret in it.
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise TokenError(f"{str(path)!r} has no credentials of Google Cloud: {reason}") from None


def _of_info(info: Mapping[str, Any], origin: str) -> Source:
    kind = info["type"]
    domain = info.get("universe_domain") or "googleapis.com"
    if domain != "googleapis.com":
        raise TokenError(
            f"{origin} has credentials of {domain}: polyserve calls Google's own cloud, googleapis.com, alone"
        )
    if kind == "service_account":
        from google.oauth2.service_account import Credentials as KeyCredentials

        native = KeyCredentials.from_service_account_info(info, scopes=[SCOPE])
        return Source(
            kind="key",
            native=native,
            origin=origin,
            project=str(info.get("project_id") or ""),
            token_uri=str(info["token_uri"]),
        )
    if kind == "authorized_user":
        from google.oauth2.credentials import Credentials as UserCredentials

        # What a person allowed is in the token that it is renewed with.
        return Source(kind="user", native=UserCredentials.from_authorized_user_info(info), origin=origin)
    if kind == "external_account_authorized_user":
        from google.auth import external_account_authorized_user

        person = external_account_authorized_user.Credentials.from_info(info, scopes=[SCOPE])
        return Source(kind="user", native=person, origin=origin)
    if kind == "external_account":
        return _federated(info, origin)
    if kind == "impersonated_service_account":
        source = _of_info(info["source_credentials"], origin)
        delegates = tuple(str(each).rpartition("/")[2] for each in info.get("delegates") or ())
        principal = _principal_of(info["service_account_impersonation_url"])
        return Source(
            kind=source.kind,
            native=source.native,
            origin=origin,
            principal=principal,
            delegates=delegates,
            project=source.project or _project_of(principal),
            token_uri=source.token_uri,
        )
    raise TokenError(f"{origin} has credentials of type {kind!r}, which polyserve does not know")


def _federated(info: Mapping[str, Any], origin: str) -> Source:
    """Return what another cloud or an identity provider vouches for; the service account that it becomes is impersonated here."""
    alone = {name: value for name, value in info.items() if name != "service_account_impersonation_url"}
    place = info.get("credential_source") or {}
    if info.get("subject_token_type") == "urn:ietf:params:aws:token-type:aws4_request":
        module = "aws"
    else:
        module = "pluggable" if "executable" in place else "identity_pool"
    kind = importlib.import_module(f"google.auth.{module}").Credentials
    url = info.get("service_account_impersonation_url")
    principal = _principal_of(url) if url else ""
    lives = (info.get("service_account_impersonation") or {}).get("token_lifetime_seconds")
    return Source(
        kind="federated",
        native=kind.from_info(alone, scopes=[SCOPE]),
        origin=origin,
        principal=principal,
        life_s=int(lives or LIFE_S),
        project=_project_of(principal),
    )


def _principal_of(url: str) -> str:
    found = _PRINCIPAL.search(url)
    if found is None:
        raise ValueError(url)
    return found[1]
