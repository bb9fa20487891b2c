"""What a version of a function is: its code and its settings, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Uploaded code.

    Attributes:
        sha256: Digest of the archive in base64, or of the image in hexadecimal, as Lambda shows it.
        size: Size of the archive in bytes; 0 for an image.
        root: Where it is unpacked.
        archive: The archive itself; `None` for an image.
        image_uri: The image as it was named; empty for an archive.
        resolved_uri: The image by its digest; empty for an archive.
        image: The image's own configuration: entry point, command, environment, working directory.
    """

    sha256: str
    size: int
    root: Path
    archive: Path | None = None
    image_uri: str = ""
    resolved_uri: str = ""
    image: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a function runs; names and units are those of Lambda's own API.

    Attributes:
        role: ARN of the execution role.
        handler: `module.function`; empty for an image.
        runtime: `python3.11`; empty for an image.
        timeout: Seconds that one invocation may take.
        memory: Memory in MB.
        storage: Size of /tmp in MB.
        description: Free text.
        environment: Variables of the function.
        architecture: `x86_64` or `arm64`.
        package_type: `Zip` or `Image`.
        snap_start: `None` or `PublishedVersions`.
        tracing: `PassThrough` or `Active`.
        vpc: VpcConfig as it was given.
        key: ARN of the customer's key that encrypts the variables; empty for Lambda's own.
        logging: LoggingConfig as it was given.
        image_config: ImageConfig as it was given.
    """

    role: str
    handler: str = ""
    runtime: str = ""
    timeout: int = 3
    memory: int = 128
    storage: int = 512
    description: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    architecture: str = "x86_64"
    package_type: str = "Zip"
    snap_start: str = "None"
    tracing: str = "PassThrough"
    vpc: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    logging: Mapping[str, Any] = field(default_factory=dict)
    image_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Release:
    """One code under one set of settings: what execution environments are made of, and compared by identity.

    Attributes:
        name: The function's name.
        version: `$LATEST` or a number.
        region: Where the function is.
        code: What was uploaded.
        settings: How it runs.
    """

    name: str
    version: str
    region: str
    code: Code
    settings: Settings

    @property
    def log_group(self) -> str:
        """Name of the log group that its output goes to."""
        return str(self.settings.logging.get("LogGroup") or f"/aws/lambda/{self.name}")
