"""The methods of the APIs, as the clients' own libraries describe them: names, request messages, and paths over REST.

Nothing of this is written down by hand: what a newer client calls differently, the emulator takes differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from google.iam.v1 import iam_policy_pb2
from google.longrunning import operations_pb2

FUNCTIONS, RUN = "cloudfunctions.googleapis.com", "run.googleapis.com"
OPERATIONS = "google.longrunning.Operations"
IAM = "google.iam.v1.IAMPolicy"
_CLIENTS = (
    ("google.cloud.functions_v2", "function_service", "google.cloud.functions.v2.FunctionService", FUNCTIONS),
    ("google.cloud.run_v2", "services", "google.cloud.run.v2.Services", RUN),
    ("google.cloud.run_v2", "revisions", "google.cloud.run.v2.Revisions", RUN),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method.

    Attributes:
        api: Host of the API.
        service: Full name of the gRPC service.
        name: `CreateFunction`.
        request: Class of the request message in plain protobuf.
        wrap: Makes the client's own request message of it.
        rules: Pairs of an HTTP method and a path pattern, and the field that is the body: empty for none, `*` for all.
    """

    api: str
    service: str
    name: str
    request: Any
    wrap: Callable[[Any], Any]
    rules: tuple[tuple[str, re.Pattern[str], str], ...]

    @property
    def key(self) -> str:
        """Under which handlers are registered: `google.cloud.run.v2.Services/CreateService`."""
        return f"{self.service}/{self.name}"


@cache
def methods() -> tuple[Method, ...]:
    """Return all methods of the clients' libraries."""
    return tuple(_methods())


def _methods() -> Iterator[Method]:
    for package, module, service, api in _CLIENTS:
        rest = import_module(f"{package}.services.{module}.transports.rest_base")
        types = import_module(f"{package}.types")
        transport = next(one for name, one in vars(rest).items() if re.fullmatch(r"_Base\w+RestTransport", name))
        for key, described in vars(transport).items():
            if not hasattr(described, "_get_http_options"):
                continue
            name = key.removeprefix("_Base")
            request = _request(types, name)
            if request is None:
                continue  # locations: nobody asks for them
            plain = hasattr(request, "DESCRIPTOR")
            yield Method(
                api=api, service=_service(service, name), name=name, request=request if plain else request.pb(),
                wrap=_same if plain else request.wrap, rules=tuple(_rules(described._get_http_options())),
            )  # fmt: skip


def _request(types: Any, name: str) -> Any:
    for where in (types, iam_policy_pb2, operations_pb2):
        found = getattr(where, f"{name}Request", None)
        if found is not None:
            return found
    return None


def _service(service: str, name: str) -> str:
    """Return the gRPC service of a method: what is mixed in has one of its own, but Cloud Run's IAM."""
    if name.endswith(("Operation", "Operations")):
        return OPERATIONS
    return IAM if name.endswith(("IamPolicy", "IamPermissions")) and "functions" in service else service


def _rules(options: list[Mapping[str, str]]) -> Iterator[tuple[str, re.Pattern[str], str]]:
    for one in options:
        yield one["method"].upper(), _pattern(one["uri"]), one.get("body", "")


def _pattern(template: str) -> re.Pattern[str]:
    """Return what matches a path of `google.api.http`; groups are fields, with `__` for their dots."""
    found, end = "", 0
    for match in re.finditer(r"\{([\w.]+)(?:=([^}]*))?\}", template):
        wild = (match[2] or "*").replace("**", "\0").replace("*", "[^/:]+").replace("\0", ".+")
        found += re.escape(template[end : match.start()]) + f"(?P<{match[1].replace('.', '__')}>{wild})"
        end = match.end()
    return re.compile(found + re.escape(template[end:]))


def _same(message: Any) -> Any:
    return message


def plain(message: Any) -> Any:
    """Return a message in plain protobuf, whichever of the two kinds it is."""
    return message if hasattr(message, "DESCRIPTOR") else type(message).pb(message)
