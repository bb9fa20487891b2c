"""From what was uploaded to what instances are started from.

A function's source is built: unpacked, looked at, and its requirements installed, as Google's buildpack for Python does. A
service's source without a build is unpacked, and nothing else: its dependencies are in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
import os
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from polyserve_gcp.emulator.installing import install_framework, install_python, install_requirements

KEPT_S = 900.0
"""How long an unpacked source that nothing runs from is kept all the same: something may be about to."""
NO_BUILD_BYTES = 250 * 2**20
"""Largest source that is deployed without a build ("Deploy services from source code", read 2026-11-20)."""
FAILED = "Build failed with status: FAILURE and message: {}. For more details see the logs at {}."
_NO_MAIN = (
    "missing main.py and GOOGLE_FUNCTION_SOURCE not specified. Either create the function in main.py or specify "
    "GOOGLE_FUNCTION_SOURCE to point to the file that contains the function"
)
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BuildError(Exception):
    """A source that cannot be built; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What instances are started from.

    Attributes:
        root: The unpacked source; where instances run.
        command: What is run where the container does not say.
        variables: What is in the environment unless the container has it.
        prepared: Whether a placeholder can have made ready what the command begins with.
    """

    root: Path
    command: tuple[str, ...]
    variables: Mapping[str, str]
    prepared: bool = False


class Images:
    """All images there are: built ones under names as in Artifact Registry, others by what is in them.

    Args:
        directory: Where sources are unpacked.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built: dict[str, Image] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._used: dict[Path, float] = {}

    def find(self, name: str) -> Image | None:
        """Return a built image."""
        return self._built.get(name)

    async def build(
        self, name: str, archive: bytes, *, runtime: str, entry_point: str, variables: Mapping[str, str]
    ) -> Image:
        """Build a function, and keep it under a name.

        Args:
            name: The image's name.
            archive: The source, a zip.
            runtime: `python311`.
            entry_point: Name of the function in the source.
            variables: Environment variables of the build.

        Raises:
            BuildError: It cannot be built.
        """
        root = await self._unpacked(archive, built=True)
        made = await asyncio.to_thread(_build, root, runtime, entry_point, variables)
        self._built[name] = made
        return made

    async def unpack(self, archive: bytes, runtime: str) -> Image:
        """Return the image of a source that is deployed as it is.

        Args:
            archive: The source, a zip or a tar.gz.
            runtime: `python311`.

        Raises:
            BuildError: It is none, or too large.
        """
        if len(archive) > NO_BUILD_BYTES:
            raise BuildError(
                f"the source archive has {len(archive)} bytes, and at most 250 MiB are deployed without a build"
            )
        root = await self._unpacked(archive, built=False)
        python = await asyncio.to_thread(install_python, runtime)
        return Image(root=root, command=(), variables={"PATH": f"{python / 'bin'}:{_SYSTEM}"})

    async def prune(self, used: Collection[Path]) -> None:
        """Delete unpacked sources that nothing runs from, and the images that were built of them.

        Args:
            used: The directories that are needed.
        """
        for root in [root for root in self._used if root not in used]:
            async with self._locks[root.name]:
                # Looked at under the lock: somebody may have come for it meanwhile.
                if self._used.get(root, math.inf) > time.monotonic() - KEPT_S:
                    continue
                del self._used[root]
                self._built = {name: image for name, image in self._built.items() if image.root != root}
                await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)

    async def _unpacked(self, archive: bytes, *, built: bool) -> Path:
        name = await asyncio.to_thread(lambda: hashlib.sha256(archive).hexdigest()[:32])
        root = self._directory / name
        async with self._locks.setdefault(name, asyncio.Lock()):
            self._used[root] = time.monotonic()
            if not root.exists():
                await asyncio.to_thread(_unpack, archive, root, tar=not built)
        return root


def _build(root: Path, runtime: str, entry_point: str, variables: Mapping[str, str]) -> Image:
    source = variables.get("GOOGLE_FUNCTION_SOURCE", "main.py")
    if not (root / source).is_file():
        why = f"GOOGLE_FUNCTION_SOURCE specified file '{source}' but it does not exist"
        raise BuildError(_NO_MAIN if source == "main.py" else why)
    # The buildpack compiles everything, which can take a minute; what is written by hand is at the top.
    for file in sorted({root / source, *root.glob("*.py")}):
        try:
            compile(file.read_bytes(), os.fspath(file.relative_to(root)), "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise BuildError(f"{file.name}: {type(error).__name__}: {error}") from error
    try:
        layer = install_requirements(runtime, root)
        framework = install_framework(runtime)
        python = install_python(runtime) / "bin" / "python"
    except OSError as error:
        raise BuildError(str(error)) from error
    path = [os.fspath(one) for one in (layer, framework) if one is not None]
    return Image(
        root=root,
        # Its script, as on Google Cloud: `-m` would put the source before what is installed.
        command=(os.fspath(python), os.fspath(framework / "bin" / "functions-framework")),
        variables={
            "PATH": f"{python.parent}:{_SYSTEM}",
            "PYTHONPATH": os.pathsep.join(path),
            "FUNCTION_TARGET": entry_point,
            "FUNCTION_SIGNATURE_TYPE": "http",
            "FUNCTION_SOURCE": source,
        },
        prepared=layer is None or _leaves_start(layer, framework),
    )


def _leaves_start(layer: Path, framework: Path) -> bool:
    """Whether a function starts with a layer as it would without: with the same framework, and what that imports first."""
    # Python runs what customises it before anything else, and that may look at the instance's environment.
    found, own = ({one.name for one in place.glob("functions_framework-*.dist-info")} for place in (layer, framework))
    return found <= own and not any(layer.glob("*customize*"))


def _unpack(archive: bytes, root: Path, *, tar: bool) -> None:
    """Unpack a source into a directory that is there whole or not at all."""
    making = root.with_name(f".{root.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(io.BytesIO(archive)):
            _unzip(archive, making)
        elif tar:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as found:
                found.extractall(making, filter="data")
        else:
            raise BuildError("the source is not a zip archive")
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        shutil.rmtree(making, ignore_errors=True)
        raise BuildError(f"the source cannot be unpacked: {error}") from error
    except BuildError:
        shutil.rmtree(making, ignore_errors=True)
        raise
    making.rename(root)


def _unzip(archive: bytes, root: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as found:
        for member in found.infolist():
            parts = Path(member.filename).parts
            if ".." in parts or member.filename.startswith("/"):
                raise BuildError(f"'{member.filename}' of the source leads out of it")
            mode = member.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise BuildError(f"'{member.filename}' of the source is a link")
            path = Path(found.extract(member, root))
            if not member.is_dir() and mode:
                path.chmod(stat.S_IMODE(mode) | stat.S_IRUSR | stat.S_IWUSR)
