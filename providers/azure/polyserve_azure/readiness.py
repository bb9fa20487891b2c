"""Whether an app answers as what it was asked to be: a publish that succeeded proves nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import httpx

from polyserve.driver import AppSpec

__all__ = ["Readiness", "Seen", "mark_of", "probe"]

MARK = "x-polyserve-app"
"""Header of an app's answers: which description it answers as."""
PROBE_S = 30.0
"""How long an app may take to answer, its start from nothing included."""


class Readiness(Enum):
    """What a look at an app shows."""

    READY = auto()
    WAITING = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look at an app showed, and why; `refused` where the key was."""

    verdict: Readiness
    reason: str = ""
    refused: bool = False


def mark_of(text: str) -> str:
    """Return the mark of an app's description: 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def probe(client: httpx.Client, url: str, headers: Mapping[str, str], app: AppSpec) -> Seen:
    """Look once whether an app answers as what it was asked to be.

    Args:
        client: The connections.
        url: The app's address.
        headers: What to show there.
        app: What it was asked to be.
    """
    try:
        reply = client.get(f"{url}/v2/health/ready", headers=dict(headers), timeout=PROBE_S)
    except httpx.TransportError as error:
        return Seen(verdict=Readiness.WAITING, reason=f"the app does not answer: {type(error).__name__}")
    found = reply.headers.get(MARK)
    if found is None:
        words = "the platform in front of it answers for it; look at its log"
        reason = f"the app does not answer: HTTP {reply.status_code}, {words}"
        return Seen(verdict=Readiness.WAITING, reason=reason, refused=reply.status_code == 401)
    if found != mark_of(app.to_json()) or reply.headers.get("x-polyserve-revision") != str(app.spec.revision):
        return Seen(verdict=Readiness.WAITING, reason="the app still answers as what it was before")
    if reply.status_code == 200:
        return Seen(verdict=Readiness.READY)
    return Seen(verdict=Readiness.FAILED, reason=_reason(reply))


def _reason(reply: httpx.Response) -> str:
    try:
        told = json.loads(reply.content)
        return str(told["error"])
    except (ValueError, KeyError, TypeError):
        return f"the app is not ready: HTTP {reply.status_code}"
