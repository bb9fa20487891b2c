"""Make an OCI image of layers, on top of a base image or of nothing, without any daemon: a configuration, a manifest, and their digests.

    base = resolve(registry, parse("host/python:3.11"), architecture="x86_64")
    image = make(layers_of(bundle, info, root="/var/task"), ImageConfig(cmd=("entrypoint.handler",)), architecture="x86_64", base=base)

The same layers, base and configuration give the same image digest, on any machine: nothing in it is a time, a name or a path of here. Knows
registries only to read a base; `polyserve.bundle.publishing` pushes an image, or writes it to a directory.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyserve.bundle.build import PACKAGE, Bundle
from polyserve.bundle.layers import MEDIA_TYPE as LAYER_TYPE
from polyserve.bundle.layers import Layer, layer
from polyserve.bundle.references import Reference
from polyserve.bundle.registry import Manifest, Registry
from polyserve.driver import ProviderInfo
from polyserve.errors import InvalidArgumentError, PackageError, UnsupportedError
from polyserve.runtime import archive

__all__ = ["Base", "Image", "ImageConfig", "layered", "layers_of", "make", "resolve"]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
PARTS = (("dependencies",), ("runtime", "entrypoint"), ("package",))
"""Which parts of a bundle make a layer, the one that changes least first: what is below a change is never pushed again."""

_INDEX_TYPES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_MANIFEST_TYPES = {MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"}
# The same bytes under the names of the two specifications; a manifest of one must not name layers of the other.
_LAYER_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    LAYER_TYPE: LAYER_TYPE,
    "application/vnd.oci.image.layer.v1.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
_EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How a container of the image is started. What is left empty stays as the base has it.

    Attributes:
        entrypoint: The program and its first arguments; the base's arguments go with the base's program.
        cmd: Further arguments, or what the base's program is to run.
        environment: Environment variables, over those of the base.
        working_dir: Directory that the program starts in.
        user: Who it runs as.
        labels: Labels, over those of the base.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An image to build upon, of one architecture.

    Attributes:
        reference: Where it is.
        digest: Digest of its manifest for the architecture.
        config: Its configuration.
        layers: Descriptors of its layers, as an OCI manifest has them.
    """

    reference: Reference
    digest: str
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that is ready to be pushed.

    Attributes:
        manifest: Its manifest; `manifest.digest` is the image's identity.
        config: Its configuration, canonical JSON.
        layers: The layers that were made here.
        base: What they are on top of, if anything.
        architecture: `"x86_64"` or `"arm64"`.
    """

    manifest: Manifest
    config: bytes
    layers: tuple[Layer, ...]
    base: Base | None
    architecture: str

    @property
    def digest(self) -> str:
        """Return the image's identity, `sha256:...`."""
        return self.manifest.digest

    @property
    def size(self) -> int:
        """Return the size of what was made here, as it is pushed, in bytes."""
        return sum(each.size for each in self.layers) + len(self.config)

    @property
    def descriptor(self) -> dict[str, Any]:
        """Return what an index says of it."""
        platform = {"architecture": _ARCHITECTURES[self.architecture], "os": "linux"}
        manifest = self.manifest
        return {
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": len(manifest.body),
            "platform": platform,
        }


def layered(contents: Mapping[str, Mapping[str, Path | bytes]], *, root: str = "/") -> tuple[Layer, ...]:
    """Make the layers of a bundle's parts, from the one that changes least on.

    Args:
        contents: A file or its content by path, by part of the bundle; parts of another name go with the runtime.
        root: Directory of the image that they go to.

    Raises:
        PackageError: A path is none inside an image or is in two parts, or a file cannot be read.
    """
    known = {name for names in PARTS for name in names}
    others = tuple(name for name in contents if name not in known)
    seen: set[str] = set()
    made = []
    for names in PARTS:
        wanted = names + (others if "runtime" in names else ())
        files: dict[str, Path | bytes] = {}
        for name in wanted:
            part = contents.get(name, {})
            if twice := sorted(seen & part.keys()):
                message = f"build image failed: {twice[0]!r} is in two parts of the bundle"
                raise PackageError(message, operation="build", resource=twice[0])
            seen |= part.keys()
            files |= part
        if files:
            made.append(layer(" and ".join(name for name in wanted if contents.get(name)), files, root=root))
    return tuple(made)


def layers_of(bundle: Bundle, info: ProviderInfo, *, root: str = "/") -> tuple[Layer, ...]:
    """Make the layers of a bundle that was built: what was slimmed and locked for it is what is in the image.

    Args:
        bundle: The bundle.
        info: The provider that it was built for.
        root: Directory of the image that its files go to.

    Raises:
        PackageError: The bundle cannot be read, or the cache cannot be written.
    """
    form = info.bundle
    with tempfile.TemporaryDirectory(prefix="polyserve-image-") as directory:
        try:
            archive.extract(bundle.path, Path(directory))
        except (archive.ArchiveError, OSError) as error:
            message = (
                f"bundle {str(bundle.path)!r} cannot be unpacked: {error}; remove it from the cache and build it again"
            )
            raise PackageError(message, operation="build", resource=str(bundle.path)) from error
        parts: dict[str, dict[str, Path | bytes]] = {"dependencies": {}, "runtime": {}, "entrypoint": {}, "package": {}}
        for file in Path(directory).rglob("*"):
            if file.is_file():
                inside = file.relative_to(directory).as_posix()
                part = "runtime" if inside.startswith("polyserve/") or inside in form.files else "dependencies"
                part = "package" if inside.startswith(f"{PACKAGE}/") else part
                parts["entrypoint" if inside == form.entrypoint else part][inside] = file
        return layered(parts, root=root)


def resolve(registry: Registry, reference: Reference, *, architecture: str) -> Base:
    """Look a base image up in its registry; of an index, the image for the architecture. Its layers are not downloaded.

    Raises:
        NotFoundError: There is no such image.
        UnsupportedError: It has no image for the architecture, or is of a form from before 2016.
        PolyserveError: The registry does not answer, or may not be asked.
    """
    wanted = _architecture(architecture)
    found = registry.manifest(reference.repository, reference.manifest)
    described = _decoded(found.body, reference)
    if found.media_type in _INDEX_TYPES or "manifests" in described:
        digest = _choose(described.get("manifests", []), wanted, reference)
        found = registry.manifest(reference.repository, digest)
        described = _decoded(found.body, reference)
    if found.media_type not in _MANIFEST_TYPES or "config" not in described:
        raise _unsupported(
            reference, f"its manifest is {found.media_type!r}, and OCI and Docker's version 2.2 are known"
        )
    config = _decoded(registry.read_blob(reference.repository, described["config"]["digest"]), reference)
    if config.get("os") != "linux" or config.get("architecture") != wanted:
        what = f"{config.get('os')}/{config.get('architecture')}"
        raise _unsupported(reference, f"it is for {what}, and linux/{wanted} is needed: give another base")
    return Base(
        reference=reference,
        digest=found.digest,
        config=config,
        layers=tuple(_layer_of(each, reference) for each in described["layers"]),
    )


def make(layers: Sequence[Layer], config: ImageConfig, *, architecture: str, base: Base | None = None) -> Image:
    """Make the image of some layers on top of a base, or of nothing.

    Args:
        layers: The lowest first.
        config: How a container of it is started.
        architecture: `"x86_64"` or `"arm64"`; the base's.
        base: What they go on top of.

    Raises:
        InvalidArgumentError: An architecture that there is none of, or an environment variable without a name.
    """
    below: Mapping[str, Any] = base.config if base is not None else {}
    rootfs = {
        "type": "layers",
        "diff_ids": [*below.get("rootfs", {}).get("diff_ids", []), *(each.diff_id for each in layers)],
    }
    body = {
        **{name: value for name, value in below.items() if name not in {"created", "container", "container_config"}},
        "architecture": _architecture(architecture),
        "os": "linux",
        "created": _EPOCH,
        "config": _started(below.get("config") or {}, config),
        "rootfs": rootfs,
        "history": [
            *_history(below, base),
            *({"created": _EPOCH, "created_by": f"polyserve: {each.name}"} for each in layers),
        ],
    }
    encoded = _encoded(body)
    manifest = _encoded(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, encoded),
            "layers": [
                *(base.layers if base is not None else ()),
                *({"mediaType": LAYER_TYPE, "digest": each.digest, "size": each.size} for each in layers),
            ],
        }
    )
    return Image(
        manifest=Manifest(media_type=MANIFEST_TYPE, body=manifest, digest=_digest(manifest)),
        config=encoded,
        layers=tuple(layers),
        base=base,
        architecture=architecture,
    )


def _started(below: Mapping[str, Any], config: ImageConfig) -> dict[str, Any]:
    """Return the part of the configuration that says how a container is started: the base's, with ours over it."""
    started = dict(below)
    if config.entrypoint:
        started["Entrypoint"] = list(config.entrypoint)
        # As everywhere: arguments belong to the program that they were written for.
        started.pop("Cmd", None)
    if config.cmd:
        started["Cmd"] = list(config.cmd)
    for name in config.environment:
        if not name or "=" in name or "\0" in name:
            raise InvalidArgumentError(
                f"environment variable {name!r}: a name has neither '=' nor a zero byte in it, and is not empty",
                operation="build",
                resource=name,
            )
    kept = [each for each in below.get("Env") or [] if each.partition("=")[0] not in config.environment]
    variables = [*kept, *(f"{name}={value}" for name, value in sorted(config.environment.items()))]
    labels = {**(below.get("Labels") or {}), **config.labels}
    settings = {"Env": variables, "Labels": labels, "WorkingDir": config.working_dir, "User": config.user}
    return started | {name: value for name, value in settings.items() if value}


def _history(below: Mapping[str, Any], base: Base | None) -> list[Any]:
    """Return the base's history; one line for each of its layers where it has none, since the lines are counted."""
    if base is None or below.get("history"):
        return list(below.get("history") or [])
    return [{"created": _EPOCH, "created_by": str(base.reference)} for _ in base.layers]


def _choose(manifests: Sequence[Mapping[str, Any]], wanted: str, reference: Reference) -> str:
    platforms = []
    for each in manifests:
        platform = each.get("platform") or {}
        names = (platform.get("os"), platform.get("architecture"), platform.get("variant") or "v8")
        if names == ("linux", wanted, "v8") or (
            names[:2] == ("linux", wanted) and wanted == "amd64" and names[2] == "v1"
        ):
            return str(each["digest"])
        platforms.append("/".join(str(name) for name in names[:2]))
    there = ", ".join(sorted(set(platforms) - {"unknown/unknown"})) or "nothing"
    raise _unsupported(reference, f"it has {there}, and linux/{wanted} is needed: give another base")


def _layer_of(described: Mapping[str, Any], reference: Reference) -> dict[str, Any]:
    media_type = described.get("mediaType")
    if media_type not in _LAYER_TYPES:
        raise _unsupported(
            reference, f"one of its layers is {media_type!r}, which may not be copied: give another base"
        )
    return {"mediaType": _LAYER_TYPES[media_type], "digest": described["digest"], "size": described["size"]}


def _architecture(architecture: str) -> str:
    if architecture not in _ARCHITECTURES:
        message = f"architecture {architecture!r}: images are made for {' and '.join(_ARCHITECTURES)}"
        raise InvalidArgumentError(message, operation="build", resource=architecture)
    return _ARCHITECTURES[architecture]


def _decoded(body: bytes, reference: Reference) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError as error:
        raise _unsupported(reference, f"its description is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise _unsupported(reference, "its description is no JSON object")
    return decoded


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _descriptor(media_type: str, body: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(body), "size": len(body)}


def _unsupported(reference: Reference, reason: str) -> UnsupportedError:
    message = f"base image {str(reference)!r} cannot be built upon: {reason}"
    return UnsupportedError(message, operation="build", resource=str(reference))
