"""Who may read the files of a model that a bundle left in the bucket: the function's own account, and nothing but those files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyserve.driver import Artifact
from polyserve_gcp.google_api import STORAGE, GoogleApi, piece
from polyserve_gcp.keys import encode_key
from polyserve_gcp.settings import GcpSettings

__all__ = ["ModelReaders"]

VIEWER = "roles/storage.objectViewer"
VERSION = 3
"""Version of policies that have conditions: "Policy", IAM's API reference, 2026-11."""


class ModelReaders:
    """Conditional bindings in the policies of buckets, one for each function.

    Args:
        settings: As whom functions run.
        api: Calls Google.
    """

    def __init__(self, settings: GcpSettings, api: GoogleApi) -> None:
        self._settings = settings
        self._api = api

    def allow(self, app: str, models: Sequence[Artifact]) -> None:
        """Let a function read its model."""
        bucket = models[0].bucket
        wanted = {"role": VIEWER, "members": [self._member(bucket)], "condition": _condition(app, models[0])}
        policy = self._policy(bucket)
        bindings = list(policy.get("bindings") or ())
        if wanted in bindings:
            return
        kept = [each for each in bindings if not _is_of(each, app)]
        self._put(bucket, {**policy, "version": VERSION, "bindings": [*kept, wanted]})

    def forget(self, app: str, models: Sequence[Artifact]) -> None:
        """Take that back."""
        bucket = models[0].bucket
        policy = self._policy(bucket)
        bindings = list(policy.get("bindings") or ())
        kept = [each for each in bindings if not _is_of(each, app)]
        if len(kept) < len(bindings):
            self._put(bucket, {**policy, "version": VERSION, "bindings": kept})

    def _member(self, bucket: str) -> str:
        account = self._settings.service_account
        if not account:
            # Functions that name no account run as this one: "Service identity", Cloud Run's documentation, 2026-11.
            about = self._api.call("GET", STORAGE, _path(bucket), query={"fields": "projectNumber"})
            account = f"{about['projectNumber']}-compute@developer.gserviceaccount.com"
        return f"serviceAccount:{account}"

    def _policy(self, bucket: str) -> dict[str, Any]:
        query = {"optionsRequestedPolicyVersion": str(VERSION)}
        return self._api.call("GET", STORAGE, f"{_path(bucket)}/iam", query=query)

    def _put(self, bucket: str, policy: dict[str, Any]) -> None:
        # The etag within makes it the next version of what was read, or a refusal.
        self._api.call("PUT", STORAGE, f"{_path(bucket)}/iam", policy)


def _path(bucket: str) -> str:
    return f"/storage/v1/b/{piece(bucket)}"


def _title(app: str) -> str:
    return f"polyserve {app}"


def _is_of(binding: dict[str, Any], app: str) -> bool:
    return binding["role"] == VIEWER and (binding.get("condition") or {}).get("title") == _title(app)


def _condition(app: str, model: Artifact) -> dict[str, str]:
    prefix = encode_key(model.key).removesuffix(model.sha256)
    place = f"projects/_/buckets/{model.bucket}/objects/{prefix}"
    return {"title": _title(app), "expression": f'resource.name.startsWith("{place}")'}
