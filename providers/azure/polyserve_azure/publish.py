"""Publishing: a bundle goes to an app's SCM site, which keeps it and starts it. A 202 says that it was taken, and no more."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

from polyserve.driver import Artifact, ErrorCode, ObjectStore
from polyserve_azure.errors import AppError, ServiceError
from polyserve_azure.resources import MANAGEMENT, ResourceManager

__all__ = ["Deployment", "Publisher", "moment", "publish_mark"]

IN_MEMORY = 64 << 20
_CHUNK = 1 << 20
_RUNNING = frozenset({0, 1, 2})
_SUCCESS = 4
"""Statuses as the Azure CLI reads them: pending, building, deploying; 3 failed, 4 success, 5 conflict, 6 partial, -1 cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The last package that was published to an app.

    Attributes:
        mark: What published it, as it said itself.
        running: Whether it is under way.
        failed: Whether it came to nothing.
        reason: Why, if it did.
        ended_at: When it came to its end.
    """

    mark: str
    running: bool
    failed: bool
    reason: str
    ended_at: datetime | None


class Publisher:
    """The SCM sites of apps.

    Args:
        manager: Calls Azure.
    """

    def __init__(self, manager: ResourceManager) -> None:
        self._manager = manager

    def latest(self, url: str) -> Deployment | None:
        """Return the last deployment of the app whose SCM site is at a URL; `None` where there is none."""
        try:
            reply = self._manager.send("GET", f"{url}/api/deployments/latest", MANAGEMENT)
        except ServiceError as error:
            if error.status == 404:
                return None
            raise
        told = reply.json()
        status = int(told.get("status", 0))
        failed = status not in _RUNNING and status != _SUCCESS
        reason = str(told.get("status_text") or told.get("message") or f"deployment status {status}") if failed else ""
        return Deployment(
            mark=str(told.get("deployer") or ""),
            running=status in _RUNNING,
            failed=failed,
            reason=reason,
            ended_at=moment(told.get("end_time")),
        )

    def publish(self, url: str, store: ObjectStore, artifact: Artifact) -> None:
        """Send a bundle; returns when it was taken.

        Args:
            url: Address of the SCM site.
            store: Where the bundle is.
            artifact: The bundle.

        Raises:
            AppError: It is another than the one that was asked for.
        """
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as file:
            size = _fetch(store, artifact, cast("BinaryIO", file))
            headers = {"content-type": "application/zip", "content-length": str(size)}
            # What is published was built for its Python already: nothing is built there.
            query = {"RemoteBuild": "false", "Deployer": publish_mark(artifact)}
            self._manager.send(
                "POST",
                f"{url}/api/publish",
                MANAGEMENT,
                params=query,
                content=_chunks(cast("BinaryIO", file)),
                headers=headers,
            )


def publish_mark(artifact: Artifact) -> str:
    """Return how a deployment of a bundle is known again."""
    return f"polyserve-{artifact.sha256[:32]}"


def _fetch(store: ObjectStore, artifact: Artifact, into: BinaryIO) -> int:
    _, body = store.get(artifact.key)
    digest, size = hashlib.sha256(), 0
    try:
        while data := body.read(_CHUNK):
            digest.update(data)
            size += len(data)
            into.write(data)
    finally:
        body.close()
    if digest.hexdigest() != artifact.sha256:
        message = f"bundle {artifact.key!r} has sha256 {digest.hexdigest()[:12]}, and not {artifact.sha256[:12]}"
        raise AppError(ErrorCode.FAILED_PRECONDITION, message)
    into.seek(0)
    return size


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data


def moment(text: Any) -> datetime | None:
    """Return the moment that a time of Azure is, or `None`."""
    if not isinstance(text, str) or not text:
        return None
    # Seven digits of a second, where Python reads six.
    whole, _, rest = text.rstrip("Z").partition(".")
    try:
        found = datetime.fromisoformat(f"{whole}.{rest[:6]:0<6}" if rest else whole)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
