"""What the emulator allows: Google's limits, and those of the machine that it runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Limits:
    """What is allowed; may be changed while the emulator runs.

    Attributes:
        request_bytes: Largest request: 32 MiB over HTTP/1 ("Cloud Run quotas and limits", read 2026-11-20).
        response_bytes: Largest response that is not streamed: the same.
        queue_s: How long a request waits for an instance before it is refused with 429 ("About instance autoscaling").
        start_s: How long an instance may take until it listens: the startup probe's 240 seconds.
        idle_s: How long an instance is kept without work; Google Cloud keeps them for up to 15 minutes.
        instances: Most instances of a revision on this machine, whatever its scale says.
    """

    request_bytes: int = 32 * 2**20
    response_bytes: int = 32 * 2**20
    queue_s: float = 10.0
    start_s: float = 240.0
    idle_s: float = 30.0
    instances: int = 10
