"""Where an image goes: to a registry, or to a directory in the OCI image layout, which every container tool reads.

Layers first, the manifest last: whoever sees the image sees all of it. A push that was cut short is repeated and sends what is missing.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from polyserve.bundle.image import Image
from polyserve.bundle.references import Reference
from polyserve.bundle.registry import Blob, Registry
from polyserve.errors import InvalidArgumentError, PackageError

__all__ = ["Sending", "push", "write_layout"]

State = Literal["present", "mounted", "sending", "sent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How far one part of an image is on its way.

    Attributes:
        what: The part, for people.
        size: Its size in bytes.
        done: How much of it has gone up.
        state: `present` and `mounted` parts did not have to be sent.
    """

    what: str
    size: int
    done: int
    state: State


Told = Callable[[Sending], None]


def push(
    image: Image, registry: Registry, target: Reference, *, source: Registry | None = None, told: Told | None = None
) -> Reference:
    """Push an image, and return its place by digest. What the repository has already is not sent.

    Args:
        image: The image.
        registry: The registry that it goes to.
        target: Repository and tag.
        source: The registry of its base; by default the same one.
        told: Called when a part goes up, and when it has.

    Raises:
        InvalidArgumentError: The target is in another registry than the one given.
        PolyserveError: The registry refuses or does not answer; the same call goes on from there.
    """
    if target.address != registry.host:
        message = f"push {str(target)!r} failed: it is in another registry than {registry.host!r}"
        raise InvalidArgumentError(message, operation="push", resource=str(target))
    pushing = _Push(registry, source or registry, target.repository, told or (lambda sending: None))
    if image.base is not None:
        for descriptor in image.base.layers:
            pushing.base(image.base.reference.repository, str(descriptor["digest"]), int(descriptor["size"]))
    for layer in image.layers:
        blob = Blob(digest=layer.digest, size=layer.size, open=lambda layer=layer: layer.path.open("rb"))  # type: ignore[misc]
        pushing.send(blob, layer.name)
    digest = json.loads(image.manifest.body)["config"]["digest"]
    pushing.send(Blob(digest=digest, size=len(image.config), open=lambda: io.BytesIO(image.config)), "configuration")
    if not registry.has_manifest(target.repository, target.tag, image.digest):
        registry.put_manifest(target.repository, target.tag, image.manifest)
    return Reference(host=target.host, repository=target.repository, tag=target.tag, digest=image.digest)


class _Push:
    """Parts on their way to one repository."""

    def __init__(self, registry: Registry, source: Registry, repository: str, say: Told) -> None:
        self._registry = registry
        self._source = source
        self._repository = repository
        self._say = say

    def send(self, blob: Blob, what: str) -> None:
        """Send a blob, unless it is there."""

        def tell(done: int, state: State) -> None:
            self._say(Sending(what=what, size=blob.size, done=done, state=state))

        if self._registry.has_blob(self._repository, blob.digest):
            tell(blob.size, "present")
            return
        tell(0, "sending")
        self._registry.push_blob(self._repository, blob, lambda done: tell(done, "sending"))
        tell(blob.size, "sent")

    def base(self, repository: str, digest: str, size: int) -> None:
        """Bring a layer of the base: it is there, or is taken over within the registry, or goes by way of this machine."""
        what = f"base {digest[7:19]}"
        if self._registry.has_blob(self._repository, digest):
            self._say(Sending(what=what, size=size, done=size, state="present"))
        elif self._source.host == self._registry.host and self._registry.mount_blob(
            self._repository, digest, repository
        ):
            self._say(Sending(what=what, size=size, done=size, state="mounted"))
        else:
            with tempfile.NamedTemporaryFile(prefix="polyserve-layer-") as spool:
                # By way of the disk: another try must not need another download, and what is damaged must not go on.
                for piece in self._source.stream_blob(repository, digest):
                    spool.write(piece)
                spool.flush()

                def again() -> BinaryIO:
                    return Path(spool.name).open("rb")

                self.send(Blob(digest=digest, size=size, open=again), what)


def write_layout(image: Image, directory: Path, *, tag: str = "latest", source: Registry | None = None) -> None:
    """Write an image to a directory in the OCI image layout, such as `skopeo copy oci:DIRECTORY:TAG docker://...` takes.

    Args:
        image: The image.
        directory: The directory; made if it is not there. Blobs that it has are kept, and so are images of other tags.
        tag: The image's name in the directory.
        source: The registry of the base, whose layers are downloaded; needed where there is one.

    Raises:
        InvalidArgumentError: The image has a base, and its registry is not given.
        PackageError: The directory cannot be written.
    """
    if image.base is not None and source is None:
        message = f"write image to {str(directory)!r} failed: its base {str(image.base.reference)!r} needs its registry: give source="
        raise InvalidArgumentError(message, operation="write", resource=str(directory))
    try:
        blobs = directory / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        if image.base is not None and source is not None:
            for each in image.base.layers:
                _keep(
                    blobs, str(each["digest"]), source.stream_blob(image.base.reference.repository, str(each["digest"]))
                )
        for layer in image.layers:
            with layer.path.open("rb") as file:
                _keep(blobs, layer.digest, iter(lambda file=file: file.read(1 << 20), b""))  # type: ignore[misc]
        _keep(blobs, json.loads(image.manifest.body)["config"]["digest"], iter([image.config]))
        _keep(blobs, image.digest, iter([image.manifest.body]))
        _replace(directory / "oci-layout", {"imageLayoutVersion": "1.0.0"})
        _replace(directory / "index.json", _index(directory / "index.json", image, tag))
    except OSError as error:
        message = f"write image to {str(directory)!r} failed: {error.strerror}"
        raise PackageError(message, operation="write", resource=str(directory)) from error


def _index(path: Path, image: Image, tag: str) -> dict[str, Any]:
    name = "org.opencontainers.image.ref.name"
    others = json.loads(path.read_bytes())["manifests"] if path.exists() else []
    kept = [each for each in others if (each.get("annotations") or {}).get(name) != tag]
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [*kept, {**image.descriptor, "annotations": {name: tag}}],
    }


def _keep(blobs: Path, digest: str, pieces: Iterator[bytes]) -> None:
    """Write a blob under its digest, unless it is there."""
    target = blobs / digest.removeprefix("sha256:")
    if target.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=blobs, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _replace(path: Path, value: Mapping[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")))
    os.replace(fresh, path)
