"""Where the local provider keeps what, and how it writes a file so that a crash leaves the old one or the new one.

Knows paths only: not what is in the files, and no process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_BYTES = 100
"""Longest path of a unix socket that we use: the kernels allow 107 bytes (Linux) and 103 (macOS)."""


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one home. Everything lies under `<home>/local`, but sockets where that path would be too long.

    Attributes:
        home: The home directory, absolute.
    """

    home: Path

    @property
    def root(self) -> Path:
        """Return the directory of functions."""
        return self.home / "local"

    @property
    def store(self) -> Path:
        """Return the directory of buckets."""
        return self.home / "buckets"

    @property
    def lock(self) -> Path:
        """Return the file whose lock the gateway holds while it lives."""
        return self.root / "gateway.lock"

    @property
    def contact(self) -> Path:
        """Return the file that tells pid, port and token of the gateway; readable by its owner only."""
        return self.root / "gateway.json"

    @property
    def gateway_log(self) -> Path:
        """Return the file that the gateway's output goes to."""
        return self.root / "gateway.log"

    @property
    def functions(self) -> Path:
        """Return the directory of desired states, one file for each function."""
        return self.root / "functions"

    @property
    def bundles(self) -> Path:
        """Return the directory of unpacked bundles, by sha256."""
        return self.root / "bundles"

    @property
    def models(self) -> Path:
        """Return the directory of packages that were put together from bundle and bucket, by the bundle's sha256."""
        return self.root / "models"

    @property
    def environments(self) -> Path:
        """Return the directory of cached virtual environments."""
        return self.root / "environments"

    @property
    def logs(self) -> Path:
        """Return the directory of logs, one directory for each function."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Return the directory of control sockets and pulses: short, and private to this user."""
        near = self.root / "run"
        if len(os.fsencode(near)) + len("/0123456789ab.sock") <= SOCKET_PATH_BYTES:
            return near
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"polyserve-{os.getuid()}-{digest}"

    def state(self, name: str) -> Path:
        """Return the file of a function's desired state."""
        return self.functions / f"{name}.json"

    def bundle(self, sha256: str) -> Path:
        """Return the directory that a bundle is unpacked to."""
        return self.bundles / sha256

    def make(self) -> None:
        """Make the directories, private to this user.

        Raises:
            PermissionError: The directory of sockets belongs to somebody else.
        """
        for directory in (self.root, *self._made()):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The fallback lies in a directory that everybody may write to: somebody else's would be a trap.
        if self.run.lstat().st_uid != os.getuid() or self.run.is_symlink():
            raise PermissionError(f"{self.run} belongs to another user: remove it, or set a shorter home")

    def unmake(self) -> None:
        """Remove the directories that have nothing in them; the gateway's log stays."""
        for directory in self._made():
            with contextlib.suppress(OSError):
                directory.rmdir()

    def _made(self) -> tuple[Path, ...]:
        return self.functions, self.bundles, self.models, self.environments, self.logs, self.run


def write_atomic(path: Path, body: bytes) -> None:
    """Replace a file's content in one step that survives a power cut; its mode is 0600."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def remove_trees(paths: Iterable[Path]) -> None:
    """Remove directories with all that is in them, those that are there."""
    for path in paths:
        remove_tree(path)


def tail(path: Path, limit: int = 2000) -> str:
    """Return the last `limit` bytes of a text file, from the start of a line; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            start = max(0, file.tell() - limit)
            file.seek(start)
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return (text.partition("\n")[2] if start else text).strip()
