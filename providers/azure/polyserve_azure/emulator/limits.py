"""What this machine allows, and Azure's own numbers where somebody wants others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Limits:
    """What apps may take; may be changed while the emulator runs.

    Attributes:
        instances: Most instances of an app, whatever its `maximumInstanceCount`.
        idle_s: How long an instance is kept without work, in seconds.
        response_s: After how long the load balancer gives up on an answer, in seconds.
        request_bytes: Largest body of a request: "210 MB".
        official_messages: Whether instances are driven with the official protobuf messages.
        broken_publish_succeeds: Whether a deployment of an app that does not start ends as a success without functions,
            instead of as a failure; real ones have been seen to do either.
    """

    instances: int = 8
    idle_s: float = 300.0
    response_s: float = 230.0
    request_bytes: int = 210_000_000
    official_messages: bool = False
    broken_publish_succeeds: bool = False
