"""Functions on this machine: what the portable core asks for, passed to the gateway, which does it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import msgspec

from polyserve.driver import ErrorCode, FunctionSpec, FunctionStatus, LogEvent, Scaling
from polyserve_local.control import Gateway
from polyserve_local.errors import GatewayError
from polyserve_local.installing import settings_of
from polyserve_local.lines import merged
from polyserve_local.places import Places
from polyserve_local.settings import LocalSettings
from polyserve_local.state import spec_to_dict, status_from_dict


class LocalPlatform:
    """Functions as processes behind a gateway. Implements `polyserve.driver.FunctionPlatform`.

    Args:
        places: The home's files.
        settings: How functions run.
        gateway: Reaches the gateway.
    """

    def __init__(self, places: Places, settings: LocalSettings, gateway: Gateway) -> None:
        self._places = places
        self._settings = settings
        self._gateway = gateway

    def apply(self, spec: FunctionSpec) -> FunctionStatus:
        """Make a revision exist; its bundle is unpacked and its dependencies are provided after this returned."""
        options = msgspec.to_builtins(self._settings)
        del options["home"], options["linger_s"]
        body = {
            "spec": spec_to_dict(spec),
            "interpreter": sys.executable,
            # The gateway may have been started long ago, by somebody with other settings.
            "installer": settings_of(os.environ),
            "options": options,
        }
        return status_from_dict(self._gateway.call("apply", body))

    def describe(self, name: str) -> FunctionStatus:
        """Describe a function."""
        return status_from_dict(self._about(name, "describe"))

    def list(self, *, labels: Mapping[str, str]) -> Iterator[FunctionStatus]:
        """Yield the functions that carry all these labels, by name."""
        for each in self._gateway.call("list", {}) or []:
            status = status_from_dict(each)
            if labels.items() <= status.labels.items():
                yield status

    def route(self, name: str, weights: Mapping[int, int]) -> None:
        """Set the percent of traffic by revision; done when it returns, and no request is lost on the way."""
        if sum(weights.values()) != 100 or any(weight < 0 for weight in weights.values()):
            message = f"weights must be 0 to 100 and add up to 100, not {dict(weights)}"
            raise GatewayError(ErrorCode.INVALID_ARGUMENT, message)
        self._about(name, "route", weights={str(number): weight for number, weight in weights.items()})

    def scale(self, name: str, scaling: Scaling) -> None:
        """Set the instances' bounds."""
        self._about(name, "scale", scaling=asdict(scaling))

    def logs(self, name: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what all instances wrote, in the order of time."""
        if not self._places.state(name).exists():
            raise _no_function(name)
        return merged(self._places.logs / name, since)

    def remove_revision(self, name: str, number: int) -> None:
        """Delete one revision that has no traffic, with its instances and their logs."""
        self._about(name, "remove_revision", number=number)

    def delete(self, name: str) -> None:
        """Delete a function with all that was made for it; nothing of it runs when this returns."""
        self._about(name, "delete")
        self._gateway.left()

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return nothing: there are no settings that are at odds here, and memory is what the machine has."""
        return ()

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return what the caller must be allowed to do: on one's own machine, to write the home directory."""
        return (f"write {self._places.home}",)

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return nothing: who may write a directory is no document."""
        return {}

    def _about(self, name: str, verb: str, **details: Any) -> Any:
        answer = self._gateway.call(verb, {"name": name, **details})
        if answer is None:
            raise _no_function(name)
        return answer


def _no_function(name: str) -> GatewayError:
    return GatewayError(ErrorCode.NOT_FOUND, f"there is no function {name!r}")
