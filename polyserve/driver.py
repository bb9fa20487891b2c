"""What a provider implements: Protocols, and the frozen values that pass between a driver and the portable core.

Users never see a driver; they hold `Bucket`, `Deployment` and `Endpoint`, which are concrete and written
once. A driver is thin: translate, call the SDK, return. It raises the SDK's own error (`Provider.classify`
sorts it, the core wraps it once), never polls, never retries, and honours or refuses what it is asked,
never ignores it. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

from polyserve.runtime.messages import ErrorCode, Request, Response

__all__ = [
    "Address",
    "AppPlatform",
    "AppProvider",
    "AppSpec",
    "AppStatus",
    "Artifact",
    "BundleForm",
    "Capability",
    "Cloud",
    "Detour",
    "ErrorCode",
    "Forward",
    "FunctionPlatform",
    "FunctionSpec",
    "FunctionStatus",
    "HttpCall",
    "HttpReply",
    "Invoker",
    "Limits",
    "LogEvent",
    "ObjectMeta",
    "ObjectStore",
    "Page",
    "Phase",
    "Price",
    "Provider",
    "ProviderInfo",
    "PutAttributes",
    "Request",
    "Response",
    "RevisionStatus",
    "Scaling",
]

T = TypeVar("T")

LABEL = "polyserve"
"""Label that every native resource of a deployment carries; its value is the deployment's name."""


# --- what a provider says of itself ---------------------------------------------------------------------------------


class Capability(StrEnum):
    """What a provider may or may not be able to do. Honoured where declared, refused by `plan()` where not."""

    CONDITIONAL_PUT = "conditional-put"
    """`put` with `if_absent` and `if_match`, decided by the service and not by a read before the write."""
    SIGNED_URL = "signed-url"
    """`sign` gives a URL that reads or writes one object without other credentials."""
    TRAFFIC_SPLIT = "traffic-split"
    """Several revisions of one function answer side by side, by weight."""
    SCALE_TO_ZERO = "scale-to-zero"
    """Nothing runs, and nothing is paid, while nobody calls."""
    MIN_INSTANCES = "min-instances"
    """A number of instances can be kept warm."""
    MAX_INSTANCES = "max-instances"
    """The number of instances can be capped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A platform's own limits; `None` where it has none. `plan()` refuses what is over them before the first remote call.

    Attributes:
        name_pattern: Regular expression that a deployment's name must match in full.
        name_rule: The same in words, for people.
        memory_mb: Smallest and largest memory of one instance, in MiB.
        memory_choices: The only memory sizes there are, where the platform offers a list.
        timeout: Longest time one request may take.
        request_bytes: Largest request body.
        response_bytes: Largest response body.
        bundle_bytes: Largest bundle as uploaded.
        bundle_unpacked_bytes: Largest bundle once unpacked.
        environment_bytes: Largest sum of names and values of environment variables.
        pythons: Python minor versions that functions may run under, such as `"3.11"`.
        architectures: Processor architectures.
        max_instances: Most instances of one function.
        traffic_revisions: Most revisions of one function with traffic at once, where traffic can be split at all.
        source: Where these figures are from, with the date they were read.
    """

    name_pattern: str
    name_rule: str
    memory_mb: tuple[int, int]
    memory_choices: tuple[int, ...] | None = None
    timeout: timedelta
    request_bytes: int | None = None
    response_bytes: int | None = None
    bundle_bytes: int | None = None
    bundle_unpacked_bytes: int | None = None
    environment_bytes: int | None = None
    pythons: tuple[str, ...]
    architectures: tuple[str, ...]
    max_instances: int | None = None
    traffic_revisions: int | None = None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a platform charges, in US dollars; the free tier is left out.

    Attributes:
        per_million_requests: For one million requests.
        per_gb_second: For one GiB of memory held for one second.
        source: Where the figures are from, with the date they were read.
        per_second: For an instance that runs for one second, whatever its memory: its processor, where that is charged by itself.
    """

    per_million_requests: float
    per_gb_second: float
    source: str
    per_second: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleForm:
    """How a platform wants a bundle laid out.

    Attributes:
        entrypoint: Where the entrypoint's source goes, as the platform's runtime looks for it.
        dependencies: The directory of the dependencies' files, `"."` for the bundle's root; `None` where the platform installs them
            from `FunctionSpec.requirements` by itself.
        requirements: Further distributions that the entrypoint or the platform needs beside the package's, such as
            `"azure-functions==1.26.0"`.
        requirements_file: Where the lock is written for a platform that builds from it; `None` where none does.
        files: Further files by path, with their text, such as a host's configuration.
        glibc: Version of the platform's C library by Python minor version: wheels for a newer one do not load there.
        archive: How it is packed.
    """

    entrypoint: str = "polyserve_entrypoint.py"
    dependencies: str | None = None
    requirements: tuple[str, ...] = ()
    requirements_file: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    glibc: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    archive: Literal["zip", "tar.gz"] = "zip"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderInfo:
    """What is known of a provider before its SDK is imported. The entry point of group `polyserve.providers` is one of these.

    Attributes:
        name: The word that picks it: `provider="aws"`.
        title: Its name for people.
        store_service: The service that stores objects, for people.
        function_service: The service that runs functions, for people.
        factory: `module:attribute` of a callable that takes the settings object and returns a `Provider`; does no I/O.
        settings: `module:attribute` of the `msgspec.Struct` that validates the provider's own options.
        entrypoint: `module` that travels in the bundle and takes the platform's native events.
        extra: The extra of `polyserve-sdk` that installs its SDK, or an empty string.
        capabilities: What it can do.
        limits: What it cannot exceed.
        bundle: How it wants its bundles.
        price: What it charges, or `None` where it is free.
        emulator: Module that rehearses it on loopback: `python -m MODULE DIRECTORY` serves until it is told to stop, and writes
            `DIRECTORY/ready.json` once it answers, whose `options` are the settings to reach it with. Empty where there is none.
        unversioned: Options that are no part of a revision: where the provider is, who asks it, and how that is done. Every other one
            that is set shapes revisions, so that a deploy after a change of it makes a new one.
    """

    name: str
    title: str
    store_service: str
    function_service: str
    factory: str
    settings: str
    entrypoint: str
    extra: str
    capabilities: frozenset[Capability]
    limits: Limits
    bundle: BundleForm = BundleForm()
    price: Price | None = None
    emulator: str = ""
    unversioned: frozenset[str] = frozenset()


# --- storage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMeta:
    """What is known of an object without reading it.

    Attributes:
        key: Its name, any UTF-8 string.
        size: Its size in bytes.
        modified_at: When it was last written, with time zone.
        content_type: Its media type.
        metadata: User metadata by lower-case name.
        version: An opaque token of this content (an ETag on S3 and Azure, a generation on Google Cloud); goes into `if_match`.
    """

    key: str
    size: int
    modified_at: datetime
    content_type: str
    metadata: Mapping[str, str]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAttributes:
    """How an object is written.

    Attributes:
        content_type: Its media type.
        metadata: User metadata by lower-case name.
        if_absent: Write only where no object of that key exists.
        if_match: Write only over the object that has this `ObjectMeta.version`.
    """

    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    if_absent: bool = False
    if_match: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a listing: objects and common prefixes in UTF-8 byte order, and the token of the next page, if any."""

    objects: tuple[ObjectMeta, ...]
    prefixes: tuple[str, ...] = ()
    next_token: str | None = None


class ObjectStore(Protocol):
    """One bucket. Keys are any UTF-8 string of 1 to 1024 bytes (drivers escape), lists are in UTF-8 byte order, writes are atomic."""

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object. Must raise an error of code FAILED_PRECONDITION where `if_absent` or `if_match` does not hold."""
        ...

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object from `offset`, for `length` bytes or to its end. An offset at or past the end gives an empty body."""
        ...

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        ...

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page of at most `limit` objects and prefixes together. A bucket that does not exist is NOT_FOUND."""
        ...

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object within the bucket, content type and metadata included."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object. A missing key must raise an error of code NOT_FOUND; the portable type decides on leniency."""
        ...

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a URL that allows one method on one object until it expires. Only with capability SIGNED_URL."""
        ...


# --- functions ------------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    """Where a function or a revision is in its life."""

    PROVISIONING = "provisioning"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A bundle, or a file of a model, in the deployment's bucket. `sha256` (hex) and `size` (bytes) are of the object itself."""

    bucket: str
    key: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many instances there may be; `max_instances=None` leaves it to the platform. Not part of a revision: it can change in place."""

    min_instances: int = 0
    max_instances: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """One revision of one function, complete.

    Attributes:
        name: The function's name: the deployment's.
        revision: The revision's number, from 1.
        artifact: The bundle it runs.
        package_digest: Tree digest of the model package in the bundle.
        entrypoint: Python module in the bundle that takes the platform's events.
        python: Python minor version, such as `"3.11"`.
        architecture: Processor architecture, `"x86_64"` or `"arm64"`.
        requirements: Locked requirements, `name==version`; what of them the bundle does not carry the platform must provide.
        memory_mb: Memory of one instance, in MiB.
        timeout: Longest time one request may take.
        environment: Environment variables.
        request_bytes: Largest request body that an instance accepts.
        scaling: Instances, applied when the function is made; `FunctionPlatform.scale` changes it later.
        labels: Labels of the native resource; `polyserve: <deployment>` among them.
        models: Files of the model that the bundle left out. They lie in the artifact's bucket, the key of each is one prefix and the file's
            sha256: bucket and prefix are all that an entrypoint has to be told, the rest is in the package's manifest. Instances must be
            allowed to read them and have disk for them; `polyserve.runtime.remote` does the reading, the checking and the refusing.
        options: Options of the provider that are part of a revision and were set, as JSON values. A driver has them from its settings;
            here they make revisions different.
    """

    name: str
    revision: int
    artifact: Artifact
    package_digest: str
    entrypoint: str
    python: str
    architecture: str
    requirements: tuple[str, ...]
    memory_mb: int
    timeout: timedelta
    environment: Mapping[str, str]
    request_bytes: int
    scaling: Scaling
    labels: Mapping[str, str]
    models: tuple[Artifact, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the sha256 (hex) of everything but the scaling: two specs with one digest are the same revision."""
        fields = asdict(self)
        del fields["scaling"]
        for later in ("models", "options"):
            if not fields[later]:
                # So that what was deployed before there were any is still the same revision.
                del fields[later]
        fields["timeout"] = self.timeout.total_seconds()
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionStatus:
    """One revision as its platform sees it.

    Attributes:
        number: Its number.
        spec_digest: Digest of the spec that it was made of.
        phase: Where it is in its life.
        reason: Why it failed, if it did.
        instances: How many run now, if the platform tells.
        incomplete: Whether it takes another `apply` of the same spec to go on. A platform that makes a revision by several calls, each of
            which must have settled before the next, says so instead of waiting.
    """

    number: int
    spec_digest: str
    phase: Phase
    reason: str | None = None
    instances: int | None = None
    incomplete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionStatus:
    """One function as its platform sees it.

    Attributes:
        name: Its name.
        phase: Where it is in its life; READY once it could take traffic, whatever its revisions do.
        url: Where it is invoked, without credentials; `None` while there is none.
        revisions: Its revisions, oldest first.
        weights: Percent of the traffic by revision number; empty before the first `route`.
        scaling: Its instances' bounds.
        labels: Labels of the native resource.
        native_id: The platform's own name for it (an ARN, a resource id).
        reason: Why it failed, if it did.
        incomplete: Whether its traffic takes another `route` of the same weights to go on, as `RevisionStatus.incomplete`.
    """

    name: str
    phase: Phase
    url: str | None
    revisions: tuple[RevisionStatus, ...]
    weights: Mapping[int, int]
    scaling: Scaling
    labels: Mapping[str, str]
    native_id: str
    reason: str | None = None
    incomplete: bool = False

    def revision(self, number: int) -> RevisionStatus | None:
        """Return the revision of that number, or `None`."""
        return next((r for r in self.revisions if r.number == number), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """One line that a function wrote. `revision` and `instance` are empty or zero where the platform does not tell.

    `platform` says that the platform wrote it itself, of its own accounts, and that nothing went wrong there.
    """

    at: datetime
    message: str
    revision: int = 0
    instance: str = ""
    platform: bool = False


class FunctionPlatform(Protocol):
    """Functions with revisions. Every method is one or few calls of the service; waiting and retrying belong to the core."""

    def apply(self, spec: FunctionSpec) -> FunctionStatus:
        """Make a revision exist, without traffic; idempotent by name, number and `spec.digest()`.

        Must return before the revision is ready and never poll; where more calls must follow, `RevisionStatus.incomplete` says so and
        the core applies again. The same number with another digest is ALREADY_EXISTS. Repeating the call for a revision that failed must
        try it anew.
        """
        ...

    def describe(self, name: str) -> FunctionStatus:
        """Describe a function. A missing one is NOT_FOUND."""
        ...

    def list(self, *, labels: Mapping[str, str]) -> Iterator[FunctionStatus]:
        """Yield the functions that carry all these labels, by name."""
        ...

    def route(self, name: str, weights: Mapping[int, int]) -> None:
        """Set the percent of traffic by revision; sums to 100. Atomic; idempotent. An unknown revision is FAILED_PRECONDITION.

        More than one revision only with capability TRAFFIC_SPLIT.
        """
        ...

    def scale(self, name: str, scaling: Scaling) -> None:
        """Set the instances' bounds in place; idempotent."""
        ...

    def logs(self, name: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the function wrote, oldest first, from `since` on."""
        ...

    def remove_revision(self, name: str, number: int) -> None:
        """Delete one revision that has no traffic. A missing one is NOT_FOUND; one with traffic is FAILED_PRECONDITION."""
        ...

    def delete(self, name: str) -> None:
        """Delete a function with all that was made for it: revisions, instances, logs, credentials. A missing one is NOT_FOUND."""
        ...

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return what is in the way of this revision and known without asking anybody: settings that do not go together. Pure.

        Each is a sentence with the value, the limit and the way out. `plan()` refuses them before anything is done, and `scale` and
        `traffic` of a deployment those that only `spec.scaling` or `split` bring about; `apply` must refuse the same by itself. `split`
        says that the revision is to share the traffic with another one.
        """
        ...

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return what the caller must be allowed to do to deploy this, as the provider's own action names. Pure."""
        ...

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the same as the provider's own policy document, ready to be given to the caller; empty where it has none. Pure."""
        ...


# --- apps: functions of platforms that have no revisions -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A share of an app's requests that it passes on to another app, which runs another revision."""

    revision: int
    percent: int
    app: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """One app, complete: it runs one revision's bundle and may pass shares of its requests on.

    Attributes:
        app: Its name.
        spec: The revision that it runs.
        forwards: Shares that go to other apps.
        front: Whether it is the app that the deployment's callers reach.
        scaling: Its instances' bounds; can change in place.
    """

    app: str
    spec: FunctionSpec
    forwards: tuple[Forward, ...] = ()
    front: bool
    scaling: Scaling

    def to_json(self) -> str:
        """Return all but the scaling as text. A driver keeps it on the native app, and its entrypoint reads it there."""
        fields = asdict(self)
        del fields["scaling"], fields["spec"]["scaling"]
        fields["spec"]["timeout"] = self.spec.timeout.total_seconds()
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, scaling: Scaling) -> AppSpec:
        """Return the app that `to_json` wrote down, with the bounds that its platform tells.

        Raises:
            ValueError: The text is not of this form.
        """
        try:
            fields = json.loads(text)
            spec = fields["spec"]
            spec |= {
                "artifact": Artifact(**spec["artifact"]),
                "models": tuple(Artifact(**model) for model in spec["models"]),
                "requirements": tuple(spec["requirements"]),
                "timeout": timedelta(seconds=spec["timeout"]),
                "scaling": scaling,
            }
            forwards = tuple(Forward(**forward) for forward in fields["forwards"])
            return cls(
                app=fields["app"],
                spec=FunctionSpec(**spec),
                forwards=forwards,
                front=fields["front"],
                scaling=scaling,
            )
        except (TypeError, KeyError, AttributeError) as error:
            message = f"an app's description is not of this version of polyserve: {error}"
            raise ValueError(message) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStatus:
    """One app as its platform sees it.

    Attributes:
        app: What it was last asked to be.
        phase: READY once it answers as that; until then whatever it was before goes on answering.
        url: Where it is called, without credentials.
        native_id: The platform's own name for it.
        labels: Labels of the native resource.
        reason: Why it failed, if it did.
        instances: How many run now, if the platform tells.
        incomplete: Whether it takes another `put` of the same app to go on.
    """

    app: AppSpec
    phase: Phase
    url: str | None
    native_id: str
    labels: Mapping[str, str]
    reason: str | None = None
    instances: int | None = None
    incomplete: bool = False


class AppPlatform(Protocol):
    """What a platform without revisions and weights offers: apps, each of which runs one bundle.

    The layer `polyserve.layers.fronting` makes a `FunctionPlatform` of it. Every method is one or few calls of the service.
    """

    def put(self, app: AppSpec) -> None:
        """Make an app be this; idempotent. What it ran before answers until the new one is ready.

        Must return before it is ready and never poll. Repeating the call for an app that failed must try it anew. The native resource
        carries `app.spec.labels`.
        """
        ...

    def get(self, app: str) -> AppStatus:
        """Describe an app. A missing one is NOT_FOUND."""
        ...

    def list(self, *, labels: Mapping[str, str]) -> Iterator[AppStatus]:
        """Yield the apps that carry all these labels, by name."""
        ...

    def scale(self, app: str, scaling: Scaling) -> None:
        """Set the instances' bounds in place; idempotent."""
        ...

    def logs(self, app: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the app wrote, oldest first, from `since` on."""
        ...

    def remove(self, app: str) -> None:
        """Delete an app with all that was made for it. A missing one is NOT_FOUND."""
        ...

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return what is in the way of this revision and known without asking anybody: settings that do not go together. Pure.

        Each is a sentence with the value, the limit and the way out. `plan()` refuses them before anything is done, and `scale` and
        `traffic` of a deployment those that only `spec.scaling` or `split` bring about; `put` must refuse the same by itself. `split`
        says that the revision is to share the traffic with another one.
        """
        ...

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return what the caller must be allowed to do to deploy this, as the provider's own action names. Pure."""
        ...

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the same as the provider's own policy document, as `FunctionPlatform.policy`. Pure."""
        ...


# --- invocation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where and how a function is called. Holds a credential: never printed, recorded or logged.

    Attributes:
        url: Base URL, without a trailing slash.
        headers: Headers of every call, the credential among them.
        expires_at: When the credential ends; `None` if it does not.
        context: Whatever else the driver's `prepare` needs, such as a signer.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    expires_at: datetime | None = None
    context: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detour:
    """How a call goes whose request or answer is too large for its platform: by way of the platform's storage.

    Attributes:
        before: Made first. Answered with a status of 300 or more, that is the answer, and the call is not made.
        follow: Asked for the call that fetches the answer, once the platform's reply is there; `None` where the reply is all of it.
        after: Made last, however the others ended; what becomes of them is nobody's business.
    """

    before: HttpCall | None = None
    follow: Callable[[HttpReply], HttpCall | None] | None = None
    after: tuple[HttpCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """A complete HTTP call, signed and ready to send, and what has to be done beside it, if anything."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | memoryview = field(repr=False)
    detour: Detour | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """What came back from an `HttpCall`. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class Invoker(Protocol):
    """How a function is called. The core owns the connections, sync and async; a driver only finds, signs and reads."""

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find where a function, or one revision of it whatever its traffic, is called, and with which credential.

        May do I/O. The core keeps the answer until it expires, and asks again after an answer of code UNAUTHENTICATED or where nothing
        listens at the address. A missing function or revision is NOT_FOUND.
        """
        ...

    def prepare(self, address: Address, request: Request) -> HttpCall:
        """Turn a request into the platform's HTTP call. Pure and quick: it runs once for every invocation."""
        ...

    def parse(self, address: Address, reply: HttpReply) -> Response:
        """Turn the platform's HTTP reply into the response of the function. Raises its own error for a fault of the platform. Pure."""
        ...


# --- the provider ---------------------------------------------------------------------------------------------------


class Cloud(Protocol):
    """What every provider has, constructed from validated settings; no I/O in its constructor."""

    @property
    def info(self) -> ProviderInfo:
        """Return what it can do as configured; may be narrower or wider than its entry point's."""
        ...

    def store(self, bucket: str) -> ObjectStore:
        """Return one bucket, whether it exists or not. No I/O."""
        ...

    def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket exist; idempotent."""
        ...

    def remove_bucket(self, bucket: str) -> None:
        """Delete the bucket if it is empty. A missing one is NOT_FOUND, one with objects FAILED_PRECONDITION."""
        ...

    @property
    def invoker(self) -> Invoker:
        """Return how functions are called."""
        ...

    def classify(self, error: Exception) -> ErrorCode:
        """Sort an error that one of the drivers raised. Pure. UNKNOWN for what it has never heard of."""
        ...

    def retry_after(self, error: Exception) -> timedelta | None:
        """Return how long the service asked to wait before a retry, if it did. Pure."""
        ...

    def unwrap(self, wanted: type[T]) -> T | None:
        """Return the native client of that type, or `None`: the documented way out of the portable interface."""
        ...

    def close(self) -> None:
        """Give back connections. Running functions are not touched."""
        ...


class Provider(Cloud, Protocol):
    """One cloud whose functions have revisions."""

    @property
    def functions(self) -> FunctionPlatform:
        """Return the function platform."""
        ...


class AppProvider(Cloud, Protocol):
    """One cloud whose apps run one bundle each; `polyserve.layers.fronting` makes a `Provider` of it.

    Its `invoker` resolves an app by its name, whatever its revision.
    """

    @property
    def apps(self) -> AppPlatform:
        """Return the platform of apps."""
        ...
