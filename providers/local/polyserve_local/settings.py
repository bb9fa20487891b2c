"""The options of the local provider, validated where profiles are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0.01, le=86_400 * 7)]


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How functions run on this machine.

    Attributes:
        home: Directory that holds everything; `$POLYSERVE_HOME`, else `~/.polyserve`, where it is empty.
        idle_timeout_s: Seconds without a request after which an instance stops.
        concurrency: Requests in flight on one instance from which on another one is started.
        queue_ms: Milliseconds that requests may take on average, while several wait, before another instance is started.
        start_timeout_s: Seconds that an instance may take to load its model.
        start_attempts: Crashes before the first readiness after which a revision is given up as failed.
        retry_s: Seconds before a failed revision is tried anew, at first; doubles up to a minute.
        log_bytes: Size at which an instance's log is rotated; one older part is kept.
        linger_s: Seconds that the gateway stays after the last function is deleted.
    """

    home: str = ""
    idle_timeout_s: Seconds = 300.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    queue_ms: Annotated[float, msgspec.Meta(ge=1, le=3_600_000)] = 100.0
    start_timeout_s: Seconds = 120.0
    start_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    retry_s: Seconds = 1.0
    log_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] = 10 << 20
    linger_s: Annotated[float, msgspec.Meta(ge=0, le=86_400 * 7)] = 0.0

    def home_path(self) -> Path:
        """Return the home directory, absolute, whether it exists or not."""
        return Path(self.home or os.environ.get("POLYSERVE_HOME") or "~/.polyserve").expanduser().absolute()
