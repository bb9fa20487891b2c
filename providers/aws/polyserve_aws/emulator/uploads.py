"""Uploaded archives: checked as Lambda checks them, kept, and unpacked once.

Limits and messages are Lambda's: 50 MB for a direct upload, 262144000 bytes unpacked (Lambda quotas, read 2026-11-20).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import zipfile
from io import BytesIO
from pathlib import Path

from polyserve_aws.emulator.errors import ServiceError, invalid
from polyserve_aws.emulator.releases import Code

DIRECT_LIMIT = 50 * 1024 * 1024
"""Largest archive that may come with the call itself, in bytes."""
BASE64_LIMIT = 69905067
"""The same archive in base64: what Lambda's own message names."""
UNPACKED_LIMIT = 262144000
"""Largest sum of all unpacked files, in bytes."""


class Uploads:
    """The archives of all functions.

    Args:
        directory: Where they are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._archives, self._tasks = directory / "archives", directory / "tasks"
        self._archives.mkdir(parents=True, exist_ok=True)
        self._tasks.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes, *, direct: bool, operation: str) -> Code:
        """Keep an archive and unpack it; blocks while it does.

        Args:
            data: The archive.
            direct: Whether it came with the call, not through S3.
            operation: Name of the call, for the message.

        Raises:
            ServiceError: It is too large, or no archive.
        """
        if direct and len(data) > DIRECT_LIMIT:
            message = f"Request must be smaller than {BASE64_LIMIT} bytes for the {operation} operation"
            raise ServiceError(413, "RequestEntityTooLargeException", message)
        digest = hashlib.sha256(data)
        root = self._tasks / digest.hexdigest()
        archive = self._archives / f"{digest.hexdigest()}.zip"
        if not root.is_dir():
            self._unpack(data, root)
        if not archive.exists():
            making = archive.with_suffix(f".{os.urandom(4).hex()}")
            making.write_bytes(data)
            making.rename(archive)
        sha256 = base64.b64encode(digest.digest()).decode()
        return Code(sha256=sha256, size=len(data), root=root, archive=archive)

    def _unpack(self, data: bytes, root: Path) -> None:
        refusal = invalid("Could not unzip uploaded file. Please check your file, then try to upload again.")
        making = root.with_name(f".{root.name}.{os.urandom(4).hex()}")
        try:
            with zipfile.ZipFile(BytesIO(data)) as archive:
                members = archive.infolist()
                if not members:
                    raise invalid("Uploaded file must be a non-empty zip")
                if sum(member.file_size for member in members) > UNPACKED_LIMIT:
                    raise invalid(f"Unzipped size must be smaller than {UNPACKED_LIMIT} bytes")
                making.mkdir()
                for member in members:
                    _extract(archive, member, making)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
            shutil.rmtree(making, ignore_errors=True)
            raise refusal from error
        except ServiceError:
            shutil.rmtree(making, ignore_errors=True)
            raise
        try:
            making.rename(root)
        except OSError:
            shutil.rmtree(making)  # another thread was faster with the same bytes


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, root: Path) -> None:
    """Unpack one member with the mode that the archive gives it, as Lambda does; links stay links."""
    mode = member.external_attr >> 16
    if stat.S_ISLNK(mode):
        target = root / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        link = archive.read(member).decode()
        if link.startswith("/") or not (target.parent / link).resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{member.filename} is a link out of the archive")
        target.symlink_to(link)
        return
    path = Path(archive.extract(member, root))
    if not member.is_dir() and mode:
        # The function's user on Lambda is not the owner of its files: without the bit for others it cannot read them.
        path.chmod(stat.S_IMODE(mode))
