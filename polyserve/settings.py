"""Profiles: which provider, which bucket, how much of everything, and who said so.

    argument > environment > polyserve.toml > pyproject.toml [tool.polyserve] > default

A file holds settings at its top, profiles under `profiles`, and a provider's own options in a table of the provider's name, shared or
within a profile:

    profile = "dev"
    bucket = "models"

    [aws]
    region = "eu-central-1"

    [profiles.dev]
    provider = "aws"
    memory_mb = 1024

    [profiles.dev.aws]
    function_prefix = "dev-"

`resolve` depends on the working directory and the environment it is given, and on the two files. Credentials are never settings.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from polyserve import registry
from polyserve.setting_errors import (
    CREDENTIAL,
    credential,
    nearest,
    refuse_credentials,
    refuse_misspelt,
    refused,
    typed,
)

if TYPE_CHECKING:
    import msgspec

__all__ = ["Settings", "resolve"]

_DEFAULT_PROFILE = "default"
_PREFIX = "POLYSERVE_"
_REQUEST_BYTES = 64 << 20
_DEFAULTS: Mapping[str, Any] = {
    "provider": "local",
    "emulate": False,
    "bucket": "polyserve",
    "memory_mb": 512,
    "timeout_s": 30.0,
    "min_instances": 0,
    "max_instances": None,
    "request_bytes": _REQUEST_BYTES,
    "model_in_bucket_mb": None,
    "architecture": None,
    "python": None,
    "slim": "standard",
    "environment": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a deployment starts from, validated, with the origin of every value.

    Attributes:
        profile: The profile they are of.
        provider: Name of the provider.
        emulate: Whether the provider's emulator on this machine is meant, and no account.
        bucket: Bucket that holds packages, bundles and records.
        memory_mb: Memory of one instance, in MiB.
        timeout_s: Longest time one request may take, in seconds.
        min_instances: Instances kept warm.
        max_instances: Most instances, or `None` to leave it to the platform.
        request_bytes: Largest request body. By default 64 MiB, or the platform's limit if that is less.
        environment: Environment variables of the function; layers are merged name by name.
        model_in_bucket_mb: Size in MiB from which on a model's file stays in the bucket; `None` where the platform's limits decide.
        architecture: Processor architecture of the functions, `x86_64` or `arm64`; `None` for this machine's where the platform has it.
        python: Python minor version of the functions; `None` for the package's own.
        slim: What of the dependencies is left out of bundles: `standard`, `off` or `traced`.
        options: The provider's own options, as its own settings type.
        sources: Where each value came from, by key (`bucket`, `environment.NAME`, `aws.region`): `"argument"`, `"default"`, or the place,
            such as `"environment: POLYSERVE_BUCKET"` or `"polyserve.toml: profiles.dev.bucket"`.
    """

    profile: str
    provider: str
    emulate: bool
    bucket: str
    memory_mb: int
    timeout_s: float
    min_instances: int
    max_instances: int | None
    request_bytes: int
    environment: Mapping[str, str] = field(default_factory=dict)
    model_in_bucket_mb: int | None = None
    architecture: str | None = None
    python: str | None = None
    slim: str = "standard"
    options: msgspec.Struct
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Settings that one place gave: portable ones, and the options of providers by provider.

    Attributes:
        origin: What kind of place; variables are text and parsed to their type, all else must already be of it.
        place: The file and the table within it, up to where a key follows.
    """

    origin: Literal["argument", "environment", "file"]
    place: str = ""
    common: Mapping[str, Any]
    options: Mapping[str, Mapping[str, Any]]

    def locate(self, *keys: str) -> str:
        """Name the place of a key for people, the way they wrote it."""
        if self.origin == "argument":
            return f"argument {'.'.join(keys)}"
        if self.origin == "environment":
            return f"environment: {_variable(*keys)}"
        return f"{self.place}{'.'.join(keys)}"

    def locate_option(self, provider: str, key: str) -> str:
        """Name the place of a provider's option."""
        return self.locate("options" if self.origin == "argument" else provider, key)


def resolve(
    provider: str | None = None,
    profile: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    **overrides: object,
) -> Settings:
    """Gather the settings of a profile from arguments, the environment and the two files, nearest first.

    A `provider` that differs from the profile's keeps the profile's portable settings and takes the options of its own tables only.

    Args:
        provider: Name of the provider, instead of the profile's.
        profile: Name of the profile, instead of the default one.
        options: Options of the provider itself.
        cwd: Where the search for the files starts, upwards; the working directory by default.
        environ: The environment; the process's own by default.
        **overrides: Portable settings by name, such as `memory_mb`; one that is `None` is not given.

    Raises:
        SettingsError: Something does not validate; the message names where it was written, what is wrong and the nearest right key.
        InvalidArgumentError: No such provider.
        MissingDependencyError: The provider's settings need a package that is not installed.
    """
    environ = os.environ if environ is None else environ
    files = list(_files(Path.cwd() if cwd is None else Path(cwd)))
    chosen = _profile(profile, environ, files)
    arguments = {"provider": provider, **overrides}
    given = {key: value for key, value in arguments.items() if value is not None}
    layers = [_Layer(origin="argument", common=given, options={}), _environment(environ), *_tables(chosen, files)]
    for layer in layers:
        _check_names(layer)

    sources: dict[str, str] = {}
    values = {key: _first(key, layers, sources) for key in _DEFAULTS if key != "environment"}
    values["environment"] = _merged_environment(layers, sources)
    info = registry.info(values["provider"])
    if sources["request_bytes"] == "default" and info.limits.request_bytes is not None:
        values["request_bytes"] = min(_REQUEST_BYTES, info.limits.request_bytes)
    if values["max_instances"] is not None and values["max_instances"] < values["min_instances"]:
        least, most = (f"{key} is {values[key]} ({sources[key]})" for key in ("min_instances", "max_instances"))
        raise refused(f"{least} but {most}: raise one or lower the other")
    kind = registry.settings_type(info)
    layers[0] = replace(layers[0], options={info.name: options or {}})
    layers[1] = replace(layers[1], options={info.name: _option_variables(info.name, kind, environ)})
    own = _options(info.name, kind, layers, sources)
    return Settings(profile=chosen, options=own, sources=MappingProxyType(sources), **values)


# --- where settings are written ----------------------------------------------------------------------------------------------------------


def _files(cwd: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the two files as (place, table), nearest first; the place ends where a key would follow."""
    here = cwd.absolute()
    for name, inside in (("polyserve.toml", ()), ("pyproject.toml", ("tool", "polyserve"))):
        for folder in (here, *here.parents):
            path = folder / name
            if not path.is_file():
                continue
            shown = os.path.relpath(path, here)
            table = _read(path, shown)
            for key in inside:
                table = table.get(key, {})
            if inside and not table:
                continue
            yield f"{shown}: {''.join(f'{key}.' for key in inside)}", table
            break


def _read(path: Path, shown: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise refused(f"{shown}: not valid TOML: {error}") from error
    except OSError as error:
        raise refused(f"{shown}: cannot be read: {error.strerror or error}") from error


def _profile(argument: str | None, environ: Mapping[str, str], files: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Find which profile is meant, and that it exists where it was named on purpose."""
    known: list[str] = []
    named: list[tuple[str, object]] = [("argument profile", argument)] if argument is not None else []
    if environ.get(f"{_PREFIX}PROFILE"):
        named.append((f"environment: {_PREFIX}PROFILE", environ[f"{_PREFIX}PROFILE"]))
    for where, table in files:
        profiles = table.get("profiles", {})
        if not isinstance(profiles, dict):
            raise refused(f"{where}profiles: expected a table, got {typed(profiles)}")
        for name, content in profiles.items():
            if not isinstance(content, dict):
                raise refused(f"{where}profiles.{name}: expected a table, got {typed(content)}")
            known.append(name)
        if "profile" in table:
            named.append((f"{where}profile", table["profile"]))
    if not named:
        return _DEFAULT_PROFILE
    where, chosen = named[0]
    if not isinstance(chosen, str):
        raise refused(f"{where}: expected str, got {typed(chosen)}")
    if chosen not in known and chosen != _DEFAULT_PROFILE:
        there = f"there are {', '.join(sorted(set(known)))}" if known else "no profile is defined"
        raise refused(f"{where}: unknown profile {chosen!r}{nearest(chosen, known)}; {there}")
    return chosen


def _tables(profile: str, files: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[_Layer]:
    """Yield a file's tables as layers: the profile's before the shared ones."""
    for where, table in files:
        refuse_credentials(where, table)
        own = table.get("profiles", {}).get(profile)
        if own is not None:
            yield _layer(f"{where}profiles.{profile}.", own)
        yield _layer(where, {key: value for key, value in table.items() if key not in {"profile", "profiles"}})


def _layer(place: str, table: Mapping[str, Any]) -> _Layer:
    """Split a table into portable settings and tables of providers."""
    common: dict[str, Any] = {}
    options: dict[str, Mapping[str, Any]] = {}
    providers = registry.providers()
    for key, value in table.items():
        if key in providers and key not in _DEFAULTS:
            if not isinstance(value, dict):
                raise refused(f"{place}{key}: expected a table of options, got {typed(value)}")
            options[key] = value
        else:
            common[key] = value
    return _Layer(origin="file", place=place, common=common, options=options)


def _environment(environ: Mapping[str, str]) -> _Layer:
    """Read the portable settings out of the environment; an empty variable counts as unset."""
    known = {f"{_PREFIX}{key.upper()}": key for key in _DEFAULTS if key != "environment"}
    common: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or not text:
            continue
        if name in known:
            common[known[name]] = text
        # The second is where emulators are installed: no setting, though it looks like one that was mistyped.
        elif name not in {f"{_PREFIX}PROFILE", f"{_PREFIX}EMULATORS"}:
            refuse_misspelt(name, [*known, f"{_PREFIX}PROFILE"])
    return _Layer(origin="environment", common=common, options={})


@cache
def _types() -> Mapping[str, Any]:
    """Return what each portable setting must be. Built on first use: msgspec is not imported before."""
    from typing import Annotated

    from msgspec import Meta

    count = Annotated[int, Meta(ge=0)]
    positive = Annotated[int, Meta(ge=1)]
    return {
        "provider": Annotated[str, Meta(min_length=1)],
        "emulate": bool,
        "bucket": Annotated[str, Meta(min_length=1)],
        "memory_mb": positive,
        "timeout_s": Annotated[float, Meta(gt=0)],
        "min_instances": count,
        "max_instances": positive,
        "request_bytes": positive,
        "model_in_bucket_mb": count,
        "architecture": Literal["x86_64", "arm64"],
        "python": Annotated[str, Meta(pattern=r"^3\.\d+$")],
        "slim": Literal["standard", "off", "traced"],
        "environment": dict[str, str],
    }


def _check_names(layer: _Layer) -> None:
    """Refuse a key that nobody would read."""
    for key, value in layer.common.items():
        if key in _DEFAULTS:
            continue
        if CREDENTIAL.search(key.lower()):
            raise credential(layer.locate(key))
        known = [*_DEFAULTS, *(("profile",) if layer.origin == "argument" else ())]
        if layer.origin == "file":
            known = [*_DEFAULTS, "profile", *(("profiles", *registry.providers()) if isinstance(value, dict) else ())]
        raise refused(f"{layer.locate(key)}: unknown key {key!r}{nearest(key, known)}; known are {', '.join(known)}")


def _first(key: str, layers: Iterable[_Layer], sources: dict[str, str]) -> Any:
    """Return the nearest value of a key, noting where it was found. Farther ones are validated too: a wrong one is a mistake anyway."""
    found: Any = _DEFAULTS[key]
    sources[key] = "default"
    for layer in layers:
        if key in layer.common:
            value = _valid(layer.common[key], _types()[key], layer.locate(key), text=layer.origin == "environment")
            if sources[key] == "default":
                found, sources[key] = value, _source(layer, layer.locate(key))
    return found


def _merged_environment(layers: Iterable[_Layer], sources: dict[str, str]) -> Mapping[str, str]:
    """Merge the function's environment variables name by name."""
    merged: dict[str, str] = {}
    for layer in layers:
        given = layer.common.get("environment", {})
        if not isinstance(given, Mapping):
            raise refused(f"{layer.locate('environment')}: expected a table, got {typed(given)}")
        for name, value in given.items():
            # Numbers and booleans are refused, not converted: TOML's `true` and `1.0` have no one spelling in an environment.
            text = _valid(value, str, layer.locate("environment", str(name)), text=False)
            if name not in merged:
                merged[name], sources[f"environment.{name}"] = text, _source(layer, layer.locate("environment", name))
    return MappingProxyType(dict(sorted(merged.items())))


def _option_variables(provider: str, kind: type[msgspec.Struct], environ: Mapping[str, str]) -> Mapping[str, str]:
    """Read a provider's options out of the environment."""
    import msgspec

    known = {_variable(provider, each.encode_name): each.encode_name for each in msgspec.structs.fields(kind)}
    written: dict[str, str] = {}
    for name, text in environ.items():
        if not name.startswith(_variable(provider, "")) or not text:
            continue
        if name in known:
            written[known[name]] = text
        elif CREDENTIAL.search(name.lower()):
            raise credential(f"environment: {name}")
        else:
            refuse_misspelt(name, known)
    return written


def _options(
    provider: str, kind: type[msgspec.Struct], layers: Iterable[_Layer], sources: dict[str, str]
) -> msgspec.Struct:
    """Validate the provider's own options, key by key so that each error names its place, then together."""
    import msgspec

    fields = {each.encode_name: each for each in msgspec.structs.fields(kind)}
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.options.get(provider, {}).items():
            where = layer.locate_option(provider, key)
            if CREDENTIAL.search(key.lower()):
                raise credential(where)
            if key not in fields:
                known = f"known are {', '.join(sorted(fields)) or 'none'}"
                raise refused(
                    f"{where}: unknown option {key!r} of provider {provider!r}{nearest(key, fields)}; {known}"
                )
            valid = _valid(value, fields[key].type, where, text=layer.origin == "environment")
            if fields[key].name not in merged:
                merged[fields[key].name] = valid
                sources[f"{provider}.{key}"] = _source(layer, where)
    for key in fields:
        sources.setdefault(f"{provider}.{key}", "default")
    try:
        return kind(**merged)
    except (TypeError, ValueError) as error:
        raise refused(f"options of provider {provider!r}: {error}") from error


def _valid(value: Any, kind: Any, where: str, *, text: bool) -> Any:
    """Convert a value to its type, or say where it was written and what was expected."""
    import msgspec

    try:
        if text and value[:1] in {"[", "{"}:
            return msgspec.json.decode(value, type=kind, strict=False)
        return msgspec.convert(value, kind, strict=not text)
    except msgspec.ValidationError as error:
        reason = re.sub(r" - at `\$\.?(.*)`$", r" at \1", str(error)).replace("`", "").replace(" at ...", "")
        reason = reason[:1].lower() + reason[1:]
        raise refused(
            f"{where}: {reason} {value!r}" if ", got" in reason else f"{where}: {reason}, got {value!r}"
        ) from error
    except msgspec.DecodeError as error:
        raise refused(f"{where}: not valid JSON: {error}") from error


def _variable(*keys: str) -> str:
    """Return the environment variable of a key."""
    return f"{_PREFIX}{'_'.join(keys)}".upper().replace("-", "_")


def _source(layer: _Layer, where: str) -> str:
    return "argument" if layer.origin == "argument" else where
