"""What the native resources of a deployment are called, and what is written on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from polyserve.driver import FunctionSpec

__all__ = [
    "ALIAS",
    "API_TAG",
    "MAX_TAG",
    "MIN_TAG",
    "OWN_TAGS",
    "PREFIX",
    "REMOVED_TAG",
    "Mark",
    "function_name",
    "log_group",
    "payload_prefix",
    "role_name",
]

PREFIX = "polyserve-"
"""Begins the name of every function and role, so that no other one of the account is ever touched."""
ALIAS = "live"
"""The alias that has the traffic."""
OWN_TAGS = "polyserve:"
"""Begins the tags that are no labels."""
MIN_TAG, MAX_TAG, REMOVED_TAG = f"{OWN_TAGS}min-instances", f"{OWN_TAGS}max-instances", f"{OWN_TAGS}removed"
API_TAG = f"{OWN_TAGS}http-api"


def function_name(name: str) -> str:
    """Return the name of a deployment's function."""
    return f"{PREFIX}{name}"


def role_name(name: str, region: str) -> str:
    """Return the name of a deployment's execution role; roles are of the whole account, so it has the region."""
    return f"{PREFIX}{name}-{region}"


def log_group(name: str) -> str:
    """Return the name of a deployment's log group: the one that Lambda writes to by itself."""
    return f"/aws/lambda/{function_name(name)}"


def payload_prefix(spec: FunctionSpec) -> str:
    """Return what the keys of requests and answers begin with that are too large for an event: beside the bundles."""
    home = PurePosixPath(spec.artifact.key).parent.parent
    return f"{home}/payloads/" if home.name else "payloads/"


_MARK = re.compile(r"polyserve revision=(\d+) attempt=(\d+) spec=([0-9a-f]{64}) bundle=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a version's description says of the revision that it is.

    Attributes:
        number: Number of the revision.
        attempt: How often it was begun, from 1: without a difference Lambda publishes nothing.
        spec: Digest of its spec.
        bundle: Digest of its bundle.
    """

    number: int
    attempt: int
    spec: str
    bundle: str

    @staticmethod
    def of(spec: FunctionSpec, attempt: int = 1) -> Mark:
        """Return the mark of a spec."""
        return Mark(number=spec.revision, attempt=attempt, spec=spec.digest(), bundle=spec.artifact.sha256)

    @staticmethod
    def read(description: str) -> Mark | None:
        """Return the mark that a description is, or `None`."""
        found = _MARK.fullmatch(description)
        if found is None:
            return None
        return Mark(number=int(found[1]), attempt=int(found[2]), spec=found[3], bundle=found[4])

    def __str__(self) -> str:
        return f"polyserve revision={self.number} attempt={self.attempt} spec={self.spec} bundle={self.bundle}"
