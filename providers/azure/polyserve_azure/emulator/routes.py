"""Routes of HTTP functions: `models/{name}`, `{id:int?}`, `{*path}`.

The grammar is ASP.NET's, of which the host uses it for its functions. A function without a route has its name for one.
Another method than a function's own is 404, not 405 (Azure/azure-functions-host#10098, open in 2026).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from polyserve_azure.emulator.instances import Function

_CONSTRAINTS = {
    "int": r"-?\d+", "long": r"-?\d+", "guid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", "bool": r"true|false",
    "alpha": r"[A-Za-z]+", "decimal": r"-?\d+(?:\.\d+)?",
}  # fmt: skip
_PARAMETER = re.compile(r"\{(\*{0,2})(\w+)(?::(\w+)(?:\([^)]*\))?)?(\?)?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One HTTP trigger.

    Attributes:
        function: Whose it is.
        binding: Name of the trigger's parameter.
        level: `anonymous`, `function` or `admin`.
        methods: Those it takes, in capitals; empty for all.
        pattern: What the path behind the prefix has to match.
        rank: Lower is tried first.
    """

    function: Function
    binding: str
    level: str
    methods: frozenset[str]
    pattern: re.Pattern[str]
    rank: tuple[int, ...]


def make_routes(functions: Iterable[Function]) -> list[Route]:
    """Return the HTTP triggers among all bindings, in the order in which they are tried."""
    found = []
    for function in functions:
        for binding in function.bindings:
            if str(binding.get("type", "")).lower() == "httptrigger":
                found.append(_make_route(function, binding))
    return sorted(found, key=lambda route: route.rank)


def find_route(routes: Iterable[Route], method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """Return the route of a request and the values in its path; `None` where there is none.

    Args:
        routes: All routes, in order.
        method: The request's method.
        path: Its path behind the prefix, as it was sent, without a slash in front.
    """
    for route in routes:
        matched = route.pattern.fullmatch(path.rstrip("/"))
        if matched is not None and (not route.methods or method in route.methods):
            return route, {name: unquote(value) for name, value in matched.groupdict().items() if value is not None}
    return None


def _make_route(function: Function, binding: Mapping[str, Any]) -> Route:
    template = str(binding.get("route") or function.name).strip("/")
    pattern, rank = "", []
    for number, segment in enumerate(template.split("/")):
        slash = "/" if number else ""
        given = _PARAMETER.fullmatch(segment)
        if given is None:
            pattern += slash + re.escape(segment)
            rank.append(0)
            continue
        star, name, constraint, optional = given.groups()
        inner = f"(?P<{name}>{'.*' if star else _CONSTRAINTS.get(constraint or '', '[^/]+')})"
        pattern += f"(?:{slash}{inner})?" if optional or star else slash + inner
        rank.append(3 if star else 1 if constraint else 2)
    return Route(
        function=function, binding=str(binding["name"]), level=str(binding.get("authLevel") or "function").lower(),
        methods=frozenset(str(method).upper() for method in binding.get("methods") or ()),
        pattern=re.compile(pattern, re.IGNORECASE), rank=tuple(rank),
    )  # fmt: skip
