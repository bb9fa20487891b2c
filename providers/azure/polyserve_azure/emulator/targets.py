"""Resource identifiers: what the path of a call to Resource Manager names."""

from __future__ import annotations

from dataclasses import dataclass

from polyserve_azure.emulator.errors import ServiceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a path names: a resource, all resources of a type, or an action on a resource.

    Attributes:
        path: The whole path.
        scope: The part before the last `/providers/`: where a type is listed, what an extension extends.
        subscription: Its subscription; empty for the tenant.
        group: Its resource group; empty where it is in none.
        kind: Types in lower case with the namespace, and at the end the action or the listed type: `microsoft.web/sites/host`.
        names: The names that belong to the types.
        single: Whether there is a name for each type, so that one resource is meant.
    """

    path: str
    scope: str
    subscription: str
    group: str
    kind: str
    names: tuple[str, ...]
    single: bool

    @property
    def name(self) -> str:
        """The first name: that of a site, whatever of it is meant."""
        return self.names[0] if self.names else ""

    @property
    def key(self) -> str:
        """The identifier of the resource, as resources are kept by: Azure's identifiers ignore case."""
        return self.path.lower()

    def above(self, levels: int) -> str:
        """Return the identifier without its last segments."""
        return "/".join(self.path.split("/")[:-levels])


def parse_target(path: str) -> Target:
    """Read a path.

    Raises:
        ServiceError: It names nothing.
    """
    path = path.rstrip("/")
    scope, mark, rest = path, "", ""
    lowered = path.lower()
    at = lowered.rfind("/providers/")
    if at >= 0:
        scope, mark, rest = path[:at], "providers", path[at + len("/providers/") :]
    subscription = group = ""
    parts = scope.strip("/").split("/")
    if parts[0].lower() == "subscriptions" and len(parts) > 1:
        subscription = parts[1]
        if len(parts) > 3 and parts[2].lower() == "resourcegroups":
            group = parts[3]
    elif scope:
        raise ServiceError(404, "InvalidResourceType", f"The path '{path}' names no resource.")
    if mark:
        return _of_provider(path, scope, subscription, group, rest)
    return _of_subscription(path, parts, subscription, group)


def _of_provider(path: str, scope: str, subscription: str, group: str, rest: str) -> Target:
    namespace, *segments = rest.split("/")
    if not namespace or any(not segment for segment in segments):
        raise ServiceError(404, "InvalidResourceType", f"The path '{path}' names no resource.")
    kind = "/".join([namespace, *segments[0::2]]).lower()
    return Target(
        path=path, scope=scope, subscription=subscription, group=group, kind=kind, names=tuple(segments[1::2]),
        single=len(segments) % 2 == 0,
    )  # fmt: skip


def _of_subscription(path: str, parts: list[str], subscription: str, group: str) -> Target:
    """Read what Resource Manager itself answers for: subscriptions, groups, and what is in them."""
    kind = "/".join(["microsoft.resources", *(part.lower() for part in parts[0::2])])
    names = tuple(parts[1::2])
    scope = "/" + "/".join(parts[: len(parts) // 2 * 2])
    return Target(
        path=path,
        scope=scope,
        subscription=subscription,
        group=group,
        kind=kind,
        names=names,
        single=len(parts) % 2 == 0,
    )
