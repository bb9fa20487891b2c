"""Which providers are installed: entry points of group `polyserve.providers`, each a light `ProviderInfo`.

The heavy module behind it, with its SDK, is imported when the provider is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from polyserve.driver import AppProvider, Provider, ProviderInfo
from polyserve.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    import msgspec

GROUP = "polyserve.providers"


@cache
def providers() -> Mapping[str, ProviderInfo]:
    """Return every installed provider by name, in alphabetical order, `local` first.

    Raises:
        InvalidArgumentError: Two distributions claim one name.
    """
    found: dict[str, ProviderInfo] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name != "local", entry.name)):
        if entry.name in found:
            owners = sorted({e.dist.name for e in entry_points(group=GROUP, name=entry.name) if e.dist})
            message = f"two distributions provide {entry.name!r} ({', '.join(owners)}): uninstall one of them"
            raise InvalidArgumentError(message, operation="load", resource=entry.name)
        found[entry.name] = entry.load()
    return found


def info(name: str) -> ProviderInfo:
    """Return what is known of a provider.

    Raises:
        InvalidArgumentError: No such provider; the message lists those there are.
    """
    known = providers()
    if name not in known:
        message = (
            f"unknown provider {name!r}: installed are {', '.join(known) or 'none'} (`polyserve providers` lists them)"
        )
        raise InvalidArgumentError(message, operation="load", resource=name)
    return known[name]


def load(name: str, settings: msgspec.Struct) -> Provider | AppProvider:
    """Construct a provider from its validated settings; `polyserve.layers.fronting.fronted` makes functions of one that has apps.

    Raises:
        InvalidArgumentError: No such provider.
        MissingDependencyError: Its SDK is not installed; the message has the command that installs it.
    """
    described = info(name)
    return cast("Provider | AppProvider", attribute(described, described.factory)(settings))


def settings_type(described: ProviderInfo) -> type[msgspec.Struct]:
    """Return the type that validates a provider's own options.

    Raises:
        MissingDependencyError: As `load`.
    """
    return cast("type[msgspec.Struct]", attribute(described, described.settings))


def versioned(described: ProviderInfo, options: msgspec.Struct) -> dict[str, Any]:
    """Return the options of a provider that are part of a revision, as JSON values: those that are set and not `unversioned`.

    One that was set to its default is as one that was not.
    """
    import msgspec

    defaults = type(options)()
    given: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(options, order="deterministic"))
    return {
        name: given[name]
        for name in options.__struct_fields__
        if name not in described.unversioned and getattr(options, name) != getattr(defaults, name)
    }


def attribute(described: ProviderInfo, path: str) -> type:
    """Import `module:attribute` of a provider.

    Raises:
        MissingDependencyError: A package that it needs is not installed.
    """
    module, _, name = path.partition(":")
    try:
        return cast("type", getattr(import_module(module), name))
    except ImportError as error:
        way_out = f"pip install 'polyserve-sdk[{described.extra}]'" if described.extra else f"install {error.name}"
        message = f"provider {described.name!r} needs {error.name!r}, which is not installed: {way_out}"
        raise MissingDependencyError(message, provider=described.name, operation="load", resource=path) from error
