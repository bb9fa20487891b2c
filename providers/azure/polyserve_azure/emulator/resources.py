"""The resources there are, of every type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from polyserve_azure.emulator.errors import ServiceError

_CLAUSE = re.compile(r"^\s*(\w+)\s+eq\s+'((?:[^']|'')*)'\s*$", re.IGNORECASE)


@dataclass(slots=True, eq=False)
class Resource:
    """One resource.

    Attributes:
        path: Its identifier, spelled as it was made.
        name: Its name.
        kind: Its type, `Microsoft.Web/sites`.
        group: Its resource group.
        location: Its region.
        tags: Its tags.
        properties: Its `properties`.
        more: Other fields of its own: `sku`, `kind`, `identity`.
        hidden: What belongs to it and is not shown: keys, settings.
    """

    path: str
    name: str
    kind: str
    group: str = ""
    location: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    hidden: dict[str, Any] = field(default_factory=dict)

    def modified(self) -> None:
        """Note when it was changed, as apps tell it: in UTC, without saying so."""
        self.properties["lastModifiedTimeUtc"] = datetime.now(UTC).replace(tzinfo=None).isoformat()

    def show(self) -> dict[str, Any]:
        """Return it as Resource Manager does."""
        shown: dict[str, Any] = {"id": self.path, "name": self.name, "type": self.kind}
        if self.location:
            shown |= {"location": self.location, "tags": dict(self.tags)}
        return shown | self.more | {"properties": dict(self.properties)}

    def summarize(self) -> dict[str, Any]:
        """Return it as a list of resources of all types does: without its properties."""
        shown = self.show()
        del shown["properties"]
        return shown


class Resources:
    """All resources, by their identifier without regard to case.

    Args:
        removed: Called with the identifier of each that is gone.
    """

    def __init__(self, removed: Callable[[str], None]) -> None:
        self._all: dict[str, Resource] = {}
        self._removed = removed

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._all.values()))

    def find(self, path: str) -> Resource | None:
        """Return a resource, or `None`."""
        return self._all.get(path.lower())

    def put(self, resource: Resource) -> None:
        """Keep a resource."""
        self._all[resource.path.lower()] = resource

    def remove(self, path: str) -> Resource | None:
        """Forget a resource and all that is below it; returns it if it was there."""
        key = path.lower()
        for below in [one for one in self._all if one.startswith(f"{key}/")]:
            del self._all[below]
        self._removed(path)
        return self._all.pop(key, None)

    def of_kind(self, kind: str, scope: str = "") -> list[Resource]:
        """Return the resources of a type, in a subscription or a group, in the order in which they were made."""
        prefix, kind = f"{scope.lower()}/" if scope else "", kind.lower()
        return [one for key, one in self._all.items() if one.kind.lower() == kind and key.startswith(prefix)]

    def within(self, scope: str) -> list[Resource]:
        """Return the top-level resources in a subscription or a group."""
        prefix = f"{scope.lower()}/"
        return [one for key, one in self._all.items() if key.startswith(prefix) and one.location and one.group]


def matches(resource: Resource, text: str) -> bool:
    """Whether a resource is meant by a `$filter`: clauses of `eq`, joined by `and`.

    Raises:
        ServiceError: It is written otherwise.
    """
    clauses: dict[str, str] = {}
    for part in re.split(r"\s+and\s+", text, flags=re.IGNORECASE) if text else ():
        found = _CLAUSE.match(part)
        if found is None:
            raise ServiceError(
                400, "InvalidFilterInQueryString", f"Invalid $filter '{text}' specified in the query string."
            )
        clauses[found[1].lower()] = found[2].replace("''", "'")
    return all(_holds(resource, name, value) for name, value in clauses.items() if name != "tagvalue") and (
        "tagvalue" not in clauses or _tag(resource.tags, clauses.get("tagname", "")) == clauses["tagvalue"]
    )


def _holds(resource: Resource, name: str, value: str) -> bool:
    if name == "tagname":
        return _tag(resource.tags, value) is not None
    known = {
        "resourcetype": resource.kind,
        "resourcegroup": resource.group,
        "name": resource.name,
        "location": resource.location,
    }
    if name not in known:
        raise ServiceError(400, "InvalidFilterInQueryString", f"Invalid $filter: '{name}' is no property to filter by.")
    return known[name].lower() == value.lower()


def _tag(tags: Mapping[str, str], name: str) -> str | None:
    """Return a tag's value; names of tags ignore case, values do not."""
    return next((value for key, value in tags.items() if key.lower() == name.lower()), None)
