"""What the native resources of a deployment are called, and what is written on them."""

from __future__ import annotations

import re

__all__ = [
    "APP_LABEL",
    "FRONT_LABEL",
    "MAX_LABEL",
    "OWN",
    "READY_LABEL",
    "REVISION_LABEL",
    "ROUTED",
    "SPEC",
    "attempt_of",
    "is_ours",
    "number_of",
    "revision_name",
    "tag_of",
]

OWN = "polyserve-"
"""Begins the labels and annotations that are no labels of the core's."""
APP_LABEL, REVISION_LABEL, FRONT_LABEL = f"{OWN}app", f"{OWN}revision", f"{OWN}front"
MAX_LABEL = f"{OWN}max-instances"
"""Says whether somebody asked for a bound: the platform always has one."""
READY_LABEL = f"{OWN}ready"
"""Mark of the description that a function answered as when its bounds were changed, which is a deployment to the platform."""
SPEC = f"{OWN}spec"
"""Annotation of a Cloud Run revision: the digest of the spec that it was made of. A label has room for 63 characters, a digest has 64."""
ROUTED = f"{OWN}routed"
"""Annotation of a Cloud Run service that was routed: a new one has traffic from its first moment, whether it was asked for or not."""

_REVISION = re.compile(r"(?P<service>.+)-r(?P<number>\d+)(?:-(?P<attempt>\d+))?")


def revision_name(service: str, number: int, attempt: int = 1) -> str:
    """Return the name of a Cloud Run revision. Names are never used twice, so another attempt has another name."""
    return f"{service}-r{number}" if attempt == 1 else f"{service}-r{number}-{attempt}"


def number_of(revision: str) -> int:
    """Return the number of the revision that a Cloud Run revision is; 0 for one that is none of ours."""
    found = _REVISION.fullmatch(revision.rpartition("/")[2])
    return int(found["number"]) if found else 0


def attempt_of(revision: str) -> int:
    """Return which attempt at it a Cloud Run revision is."""
    found = _REVISION.fullmatch(revision.rpartition("/")[2])
    return int(found["attempt"] or 1) if found else 0


def tag_of(number: int) -> str:
    """Return the tag that a revision can be called by, whatever its traffic."""
    return f"r{number}"


def is_ours(label: str) -> bool:
    """Whether a label is one of our own, and not one that the core asked for."""
    return label.startswith(OWN)
