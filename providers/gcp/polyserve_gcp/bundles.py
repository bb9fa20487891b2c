"""Bundles as the platforms take them: an object in the deployment's bucket, pinned to the generation that was looked at."""

from __future__ import annotations

from collections.abc import Callable

from polyserve.driver import Artifact, ErrorCode, ObjectStore
from polyserve_gcp.errors import AppError
from polyserve_gcp.keys import encode_key

__all__ = ["Bundles"]


class Bundles:
    """Bundles in buckets.

    Args:
        store: Gives the store of a bucket.
    """

    def __init__(self, store: Callable[[str], ObjectStore]) -> None:
        self._store = store

    def source(self, artifact: Artifact) -> dict[str, str]:
        """Return where a bundle is; refuses one that is not there or is another, before anything is made.

        Raises:
            AppError: It is another.
        """
        meta = self._store(artifact.bucket).head(artifact.key)
        told = meta.metadata.get("sha256", artifact.sha256)
        if told != artifact.sha256 or meta.size != artifact.size:
            message = f"bundle {artifact.key!r} has sha256 {told[:12]} and not {artifact.sha256[:12]}: upload it again"
            raise AppError(ErrorCode.FAILED_PRECONDITION, message)
        return {"bucket": artifact.bucket, "object": encode_key(artifact.key), "generation": meta.version}
