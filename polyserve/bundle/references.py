"""Names of images: `host[:port]/repository[:tag][@sha256:...]`, read as every container tool reads them. Knows no network."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from polyserve.errors import InvalidArgumentError

__all__ = ["DIGEST", "Reference", "is_loopback", "parse"]

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
"""What the digest of a blob or a manifest looks like; the only algorithm that every registry has."""

DEFAULT_HOST = "docker.io"
_HUB = "registry-1.docker.io"
# The grammar of github.com/distribution/reference, which the specification of OCI distribution takes over.
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image, or the place of one, in a registry.

    Attributes:
        host: The registry, with its port where it has one.
        repository: Path within the registry.
        tag: Name within the repository; `latest` where nothing is said.
        digest: Digest of the manifest, `sha256:...`, or an empty string; what it names never changes.
    """

    host: str
    repository: str
    tag: str = "latest"
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")

    @property
    def manifest(self) -> str:
        """Return what the manifest is asked for by: its digest where there is one."""
        return self.digest or self.tag

    @property
    def address(self) -> str:
        """Return the host that answers for the registry."""
        return _HUB if self.host == DEFAULT_HOST else self.host


def parse(text: str) -> Reference:
    """Read a reference.

    Raises:
        InvalidArgumentError: It is none; the message says what is wrong with it.
    """
    rest, _, digest = text.partition("@")
    if digest and not DIGEST.fullmatch(digest):
        raise _refused(text, f"{digest!r} is no digest: it has the form sha256: and 64 hexadecimal digits")
    host, slash, path = rest.partition("/")
    # What is before the first slash is a host only where it looks like one; else it is part of the name.
    if not slash or not (set(host) & set(".:[") or host == "localhost" or host != host.lower()):
        host, path = DEFAULT_HOST, rest
    if not _HOST.fullmatch(host):
        raise _refused(text, f"{host!r} is no host")
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refused(text, f"{tag!r} is no tag: 1 to 128 letters, digits, dots, hyphens and underscores")
    if host == DEFAULT_HOST and "/" not in path:
        path = f"library/{path}"
    if not _REPOSITORY.fullmatch(path) or len(path) > 255:
        raise _refused(
            text, f"{path!r} is no repository: lower-case words, joined by . _ - and /, of 255 characters at most"
        )
    return Reference(host=host, repository=path, tag=tag or "latest", digest=digest)


def is_loopback(host: str) -> bool:
    """Tell whether a host, with or without a port, is this machine: the one place where plain HTTP is as good as any."""
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refused(text: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"image reference {text!r}: {reason}", operation="parse", resource=text)
