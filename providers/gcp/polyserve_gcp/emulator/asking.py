"""One call of an API's method, whether it came over REST or gRPC, and who makes it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from polyserve.emulation.http import Call
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError, denied, invalid
from polyserve_gcp.emulator.identities import Principal

REGIONS = (
    "africa-south1", "asia-east1", "asia-east2", "asia-northeast1", "asia-northeast2", "asia-northeast3", "asia-south1",
    "asia-south2", "asia-southeast1", "asia-southeast2", "australia-southeast1", "australia-southeast2", "europe-central2",
    "europe-north1", "europe-southwest1", "europe-west1", "europe-west10", "europe-west12", "europe-west2", "europe-west3",
    "europe-west4", "europe-west6", "europe-west8", "europe-west9", "me-central1", "me-central2", "me-west1",
    "northamerica-northeast1", "northamerica-northeast2", "southamerica-east1", "southamerica-west1", "us-central1",
    "us-east1", "us-east4", "us-east5", "us-south1", "us-west1", "us-west2", "us-west3", "us-west4",
)  # fmt: skip
"""Where functions and services can be ("Cloud Run locations", read 2026-11-21)."""
_LOCATION = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)(?:/(?P<rest>.+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call of a method.

    Attributes:
        request: The request message, as the client's library has it.
        call: The HTTP request that it came in, or what stands for one where it came over gRPC.
        api: Host of the API, `run.googleapis.com`.
    """

    request: Any
    call: Call
    api: str


Handler = Callable[[Ask], Awaitable[Any]]
"""Answers one method with its response message, or raises `ServiceError`."""


def admit(access: Access, ask: Ask, permission: str, resource: str) -> Principal:
    """Let a call through, and return who makes it.

    Args:
        access: Who may do what.
        ask: The call.
        permission: `run.services.create`.
        resource: What it is about, `projects/p/locations/l`; `-` stands for all locations.

    Raises:
        ServiceError: The caller is nobody, may not, or names a project or a location that is not there.
    """
    principal = access.enter(ask.call, ask.api)
    match = _LOCATION.fullmatch(resource)
    if match is None:
        raise invalid(
            f"'{resource}' is not the name of a resource: it begins with projects/PROJECT/locations/LOCATION."
        )
    if match["project"] not in {access.identities.project, access.identities.number}:
        raise denied(permission, resource)
    if match["location"] not in {*REGIONS, "-"}:
        # The words of both APIs for what is no region.
        message = f"Location {match['location']} is not found or access is unauthorized."
        raise ServiceError("PERMISSION_DENIED", message)
    access.demand(principal, permission, resource)
    return principal


def split_name(name: str, kind: str) -> tuple[str, str]:
    """Return the location and the last part of a name: `projects/p/locations/l` and `f`.

    Args:
        name: `projects/p/locations/l/functions/f`.
        kind: `functions`.

    Raises:
        ServiceError: It is no such name.
    """
    location, found, last = name.partition(f"/{kind}/")
    if not found or not last or _LOCATION.fullmatch(location) is None:
        raise invalid(f"'{name}' is not a name of the form projects/PROJECT/locations/LOCATION/{kind}/NAME.")
    return location, last
