"""The functions of the account: versions, aliases, URLs and policies, as records. Nothing runs here.

A name in a request may be a name, a partial ARN or a whole one, each with a qualifier or without: `Functions.find`
takes them all, as Lambda does.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from polyserve_aws.emulator.errors import ServiceError, missing
from polyserve_aws.emulator.identities import ACCOUNT
from polyserve_aws.emulator.releases import Release

LATEST = "$LATEST"
_REFERENCE = re.compile(
    r"(?:arn:aws:lambda:(?P<region>[a-z0-9-]+):)?(?:(?P<account>\d{12}):)?(?:function:)?"
    r"(?P<name>[A-Za-z0-9_-]+)(?::(?P<qualifier>\$LATEST|[A-Za-z0-9_-]+))?"
)


def stamp() -> str:
    """Return the time as Lambda writes it into `LastModified`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000"


@dataclass(kw_only=True)
class Version:
    """One version of a function, `$LATEST` included.

    Attributes:
        release: What it is, or is becoming.
        ready_at: When the change under way is done, by the monotonic clock.
        before: What it was until then, and still runs; `None` where it is being made.
        description: Description of the version.
        failed: Why it could not be made ready; empty where it could.
    """

    release: Release
    ready_at: float
    before: Release | None = None
    description: str = ""
    failed: str = ""
    revision_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    modified: str = field(default_factory=stamp)

    @property
    def changing(self) -> bool:
        """Whether it is being made or updated."""
        return time.monotonic() < self.ready_at

    @property
    def pending(self) -> bool:
        """Whether it is being made, so that nothing can run yet."""
        return self.changing and self.before is None

    @property
    def serving(self) -> Release:
        """What runs now: until an update is done, what was there before it."""
        return self.before if self.changing and self.before is not None else self.release

    def touch(self) -> None:
        """Note that it changed."""
        self.revision_id, self.modified = str(uuid.uuid4()), stamp()


@dataclass(kw_only=True)
class Alias:
    """A name for one version, or for two with weights."""

    name: str
    version: str
    description: str = ""
    weights: dict[str, float] = field(default_factory=dict)
    revision_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def choose(self) -> str:
        """Return the version that the next event goes to: at random by weight, as on AWS."""
        at = random.random()  # noqa: S311
        for version, weight in self.weights.items():
            if at < weight:
                return version
            at -= weight
        return self.version


@dataclass(kw_only=True)
class UrlConfig:
    """The address of a function or of one of its aliases."""

    url_id: str
    url: str
    auth_type: str
    cors: dict[str, Any]
    invoke_mode: str
    qualifier: str
    created: str = field(default_factory=stamp)
    modified: str = field(default_factory=stamp)


@dataclass(kw_only=True)
class Function:
    """One function with everything that hangs on it.

    Attributes:
        latest: `$LATEST`.
        versions: Published versions by number.
        aliases: By name.
        urls: By alias; the empty name is the function's own.
        provisioned: Requested environments by qualifier, with the status and its reason.
        reserved: Reserved concurrency.
        rules: Statements of its resource policy, by qualifier; the empty one is the function's own.
        tags: By name.
        event_config: EventInvokeConfig as it was given, by qualifier.
    """

    name: str
    region: str
    latest: Version
    versions: dict[str, Version] = field(default_factory=dict)
    next_version: int = 1
    aliases: dict[str, Alias] = field(default_factory=dict)
    urls: dict[str, UrlConfig] = field(default_factory=dict)
    provisioned: dict[str, dict[str, Any]] = field(default_factory=dict)
    reserved: int | None = None
    rules: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    rules_revision: str = field(default_factory=lambda: str(uuid.uuid4()))
    tags: dict[str, str] = field(default_factory=dict)
    event_config: dict[str, dict[str, Any]] = field(default_factory=dict)

    def arn(self, qualifier: str = "") -> str:
        """Return the function's ARN, with a qualifier where one is given."""
        return f"arn:aws:lambda:{self.region}:{ACCOUNT}:function:{self.name}" + (f":{qualifier}" if qualifier else "")

    def version(self, number: str) -> Version:
        """Return a version by its number, or `$LATEST`.

        Raises:
            ServiceError: There is none of that number.
        """
        if number == LATEST:
            return self.latest
        found = self.versions.get(number)
        if found is None:
            raise missing(f"Function not found: {self.arn(number)}")
        return found

    def resolve(self, qualifier: str) -> Version:
        """Return the version that a qualifier leads to now; an alias with weights chooses.

        Raises:
            ServiceError: The qualifier is neither a version nor an alias.
        """
        if not qualifier or qualifier == LATEST:
            return self.latest
        if qualifier in self.aliases:
            return self.version(self.aliases[qualifier].choose())
        if qualifier.isdigit():
            return self.version(qualifier)
        raise missing(f"Function not found: {self.arn(qualifier)}")

    def all_versions(self) -> Iterator[Version]:
        """Yield `$LATEST`, then the published versions."""
        yield self.latest
        yield from self.versions.values()


@dataclass(frozen=True, slots=True)
class Reference:
    """What a request names: a function, and the qualifier that came with the name."""

    region: str
    name: str
    qualifier: str


class Functions:
    """All functions, by region and name."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str], Function] = {}

    def read(self, text: str, region: str, qualifier: str = "") -> Reference:
        """Take a function's name apart.

        Raises:
            ServiceError: It is no name, or it has another qualifier than the one beside it.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise ServiceError(
                400, "ValidationException",
                f"1 validation error detected: Value '{text}' at 'functionName' failed to satisfy constraint: Member must "
                "satisfy regular expression pattern: (arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}(-gov)?-[a-z]+-\\d{1}:)?"
                "(\\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\\$LATEST|[a-zA-Z0-9-_]+))?",
            )  # fmt: skip
        named = found["qualifier"] or ""
        if named and qualifier and named != qualifier:
            raise ServiceError(
                400, "InvalidParameterValueException",
                "The derived qualifier from the function name does not match the specified qualifier.",
            )  # fmt: skip
        return Reference(found["region"] or region, found["name"], named or qualifier)

    def find(self, reference: Reference) -> Function:
        """Return a function.

        Raises:
            ServiceError: There is none of that name in that region.
        """
        found = self._all.get((reference.region, reference.name))
        if found is None:
            suffix = f":{reference.qualifier}" if reference.qualifier else ""
            arn = f"arn:aws:lambda:{reference.region}:{ACCOUNT}:function:{reference.name}{suffix}"
            raise missing(f"Function not found: {arn}")
        return found

    def has(self, region: str, name: str) -> bool:
        """Whether there is such a function."""
        return (region, name) in self._all

    def add(self, function: Function) -> None:
        """Take a new function in."""
        self._all[function.region, function.name] = function

    def remove(self, function: Function) -> None:
        """Forget a function."""
        del self._all[function.region, function.name]

    def of(self, region: str) -> list[Function]:
        """Return the functions of a region, by name."""
        return [function for (where, _), function in sorted(self._all.items()) if where == region]
