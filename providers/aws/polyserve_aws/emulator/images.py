"""Images as functions: pulled from the registry, unpacked, and run without a container.

An image that brings its own Python runs in its own root directory, where the emulator may change to one (as root, on
Linux). Any other one runs from the unpacked `/var/task` under this machine's interpreter and Lambda's own runtime
client: that proves the layers that were pushed, not the base below them.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from polyserve_aws.emulator.errors import invalid
from polyserve_aws.emulator.registry import Blobs, Registry
from polyserve_aws.emulator.releases import Code, Release

SIZE_LIMIT = 10 * 1024**3
"""Largest image, unpacked, in bytes (Lambda quotas, read 2026-11-20)."""
TASK = "/var/task"
_SINGLE = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class Images:
    """Pulls and unpacks images.

    Args:
        directory: Where they are unpacked.
        registry: Knows what was pushed.
        blobs: Has its bytes.
    """

    def __init__(self, directory: Path, registry: Registry, blobs: Blobs) -> None:
        self._directory, self._registry, self._blobs = directory / "images", registry, blobs

    def pull(self, uri: str, region: str) -> Code:
        """Return an image as code; blocks while it is unpacked.

        Args:
            uri: `host/repository:tag` or `host/repository@sha256:...`, with ECR's host name or the emulator's.
            region: Region of the function, in which the image has to be.

        Raises:
            ServiceError: There is no such image, or Lambda does not take images of its kind.
        """
        host, _, rest = uri.partition("/")
        where = self._registry.region_of(host)
        if where is None:
            raise invalid(f"Source image {uri} is not valid. Provide a valid source image.")
        if where != region:
            raise invalid(f"The source image {uri} is in {where}: it has to be in the function's region, {region}.")
        repository, _, reference = rest.partition("@") if "@" in rest else rest.partition(":")
        digest = self._registry.find(region, repository, reference or "latest")
        if digest is None:
            raise invalid(f"Source image {uri} does not exist. Provide a valid source image.")
        manifest = json.loads(self._blobs.path(digest).read_bytes())
        if manifest.get("mediaType", _SINGLE[0]) not in _SINGLE:
            raise invalid(
                f"The image manifest, config or layer media type for the source image {uri} is not supported."
            )
        image = json.loads(self._blobs.path(manifest["config"]["digest"]).read_bytes())
        here = _MACHINES.get(platform.machine(), platform.machine())
        if image.get("architecture", here) != here:
            raise invalid(
                f"The emulator cannot run an image for {image['architecture']} on this machine, which is {here}."
            )
        root = self._directory / digest.removeprefix("sha256:")
        if not root.is_dir():
            self._unpack(manifest["layers"], root)
        return Code(
            sha256=digest.removeprefix("sha256:"),
            size=0,
            root=root,
            image_uri=uri,
            resolved_uri=f"{host}/{repository}@{digest}",
            image=image.get("config") or {},
        )

    def _unpack(self, layers: list[dict[str, Any]], root: Path) -> None:
        making = root.with_name(f".{root.name}.{os.urandom(4).hex()}")
        making.mkdir(parents=True)
        size = 0
        for layer in layers:
            path = self._blobs.path(layer["digest"])
            with path.open("rb") as raw:
                packed = raw.read(2) == b"\x1f\x8b"
            with (gzip.open if packed else open)(path, "rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
                for member in archive:
                    size += member.size
                    if size > SIZE_LIMIT:
                        shutil.rmtree(making)
                        raise invalid(f"The image is larger than {SIZE_LIMIT} bytes.")
                    _extract(archive, member, making)
        making.rename(root)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    """Unpack one member of a layer; names that begin with `.wh.` take away what layers below have."""
    member.name = member.name.lstrip("/")
    path = root / member.name
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise invalid(f"The image has a file outside of its root: {member.name}")
    if path.name == ".wh..wh..opq":
        for below in path.parent.iterdir() if path.parent.is_dir() else ():
            _remove(below)
    elif path.name.startswith(".wh."):
        _remove(path.with_name(path.name.removeprefix(".wh.")))
    elif not (member.isdev() or member.isfifo()):
        if not member.isdir() and (path.is_symlink() or path.exists()):
            _remove(path)
        archive.extract(member, root, filter="tar" if member.isfile() or member.isdir() else "fully_trusted")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def command_of(release: Release) -> tuple[list[str], str, str]:
    """Return program and arguments of an image, its handler and its working directory, after the function's overrides."""
    image, over = release.code.image, release.settings.image_config
    entry = [str(part) for part in over.get("EntryPoint") or image.get("Entrypoint") or ()]
    arguments = [str(part) for part in over.get("Command") or image.get("Cmd") or ()]
    directory = str(over.get("WorkingDirectory") or image.get("WorkingDir") or TASK)
    return entry + arguments, (arguments or entry or [""])[-1], directory


def variables_of(release: Release) -> dict[str, str]:
    """Return the environment variables that the image brings."""
    pairs = (str(entry).partition("=") for entry in release.code.image.get("Env") or ())
    return {name: value for name, _, value in pairs}


def runs_in_its_own_root(release: Release) -> bool:
    """Whether the image has the program that it starts, and the emulator may make its files the root directory."""
    command = command_of(release)[0]
    if not command or sys.platform != "linux" or os.geteuid() != 0 or shutil.which("chroot") is None:
        return False
    root = release.code.root
    places = [""] if command[0].startswith("/") else (variables_of(release).get("PATH") or "/usr/bin:/bin").split(":")
    return any((root / f"{place}/{command[0]}".lstrip("/")).exists() for place in places)
