"""The services of Cloud Run: what is wanted of each, its revisions, and how a change is rolled out.

Cloud Run's own API and that of Cloud Functions stand on this: a function is a service that another API looks after.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import string
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from google.cloud import run_v2

from polyserve.emulation.placeholders import Placeholders
from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.building import BuildError, Image, Images
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.fleet import Fleet, Scale
from polyserve_gcp.emulator.front import Front, Routes, Runner
from polyserve_gcp.emulator.instances import Recipe
from polyserve_gcp.emulator.limits import Limits
from polyserve_gcp.emulator.logs import Logs, Source
from polyserve_gcp.emulator.run_rules import LATEST, SCRATCH, check_revision_name, check_traffic, read_base_image
from polyserve_gcp.emulator.secret_manager import Secrets
from polyserve_gcp.emulator.sizes import read_memory_mb
from polyserve_gcp.emulator.storage import Storage

_NOT_READY = (
    "Revision '{}' is not ready and cannot serve traffic. The user-provided container failed to start and listen on the port "
    "defined provided by the PORT=8080 environment variable within the allocated timeout. This can happen when the container "
    "port is misconfigured or if the timeout is too short. The health check timeout can be extended. Logs for this revision "
    "might contain more information. {}"
)


def new_etag() -> str:
    """Return what a service is told by from what it was before."""
    return f'"{secrets.token_urlsafe(12)}"'


@dataclass(slots=True, eq=False, kw_only=True)
class Revision:
    """One revision.

    Attributes:
        name: Its own name, without that of its service.
        template: What it was made from, with everything filled in.
        runner: Its instances, as the front sees them; `None` where it never came so far.
        failure: Why it is not ready; empty where it is.
        pending: Whether it is on its way.
    """

    name: str
    template: Any
    generation: int
    creator: str
    runner: Runner | None = None
    failure: str = ""
    pending: bool = True
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def ready(self) -> bool:
        """Whether it can serve traffic."""
        return not self.pending and not self.failure


@dataclass(slots=True, eq=False, kw_only=True)
class Service:
    """One service.

    Attributes:
        name: `projects/p/locations/l/services/s`.
        wanted: What is wanted of it, with everything filled in.
        front: Its addresses.
        function: Name of the function that it belongs to; empty where it is a service of its own.
        revisions: Its revisions, oldest first.
        created_revision: Name of the last one that was made.
        ready_revision: Name of the last one that was ready.
        unrouted: Why its traffic does not go as it should.
        changing: How many changes are under way.
        deleting: Whether it is on its way out.
        generation: How often what is wanted of it was said.
        made: How many revisions it has had.
        tag_urls: Addresses of its tags.
        lock: Held while it changes.
    """

    name: str
    wanted: Any
    front: Front
    creator: str
    function: str = ""
    modifier: str = ""
    revisions: dict[str, Revision] = field(default_factory=dict)
    created_revision: str = ""
    ready_revision: str = ""
    unrouted: str = ""
    changing: int = 0
    deleting: bool = False
    generation: int = 1
    made: int = 0
    tag_urls: dict[str, str] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    etag: str = field(default_factory=new_etag)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def short(self) -> str:
        """Its name without its location."""
        return self.name.rpartition("/")[2]

    @property
    def unready(self) -> str:
        """Why the last revision that was made is not ready; empty where it is."""
        last = self.revisions.get(self.created_revision)
        return last.failure if last is not None else ""


class Services:
    """All services.

    Args:
        directory: Where instances write.
        images: What instances are started from.
        storage: Has sources.
        access: Who may call services.
        limits: What is allowed.
        logs: Takes what instances print.
        secrets: Has what variables only name.
        identify: Returns the variables with which an instance finds out who it is, by the address of its account.
    """

    def __init__(
        self,
        directory: Path,
        *,
        images: Images,
        storage: Storage,
        access: Access,
        limits: Limits,
        logs: Logs,
        secrets: Secrets,
        identify: Callable[[str], Awaitable[Mapping[str, str]]],
    ) -> None:
        self._directory, self._images, self._storage, self._access = directory, images, storage, access
        self._limits, self._logs, self._secrets, self._identify = limits, logs, secrets, identify
        self._client: aiohttp.ClientSession | None = None
        self._all: dict[str, Service] = {}
        self._placeholders = Placeholders(directory)

    def __iter__(self) -> Iterator[Service]:
        return iter(list(self._all.values()))

    def find(self, name: str) -> Service | None:
        """Return a service by its full name."""
        return self._all.get(name)

    async def add(self, name: str, wanted: Any, creator: str, function: str = "") -> Service:
        """Make a service that has no revision yet; its address is open.

        Args:
            name: Its full name.
            wanted: What is wanted of it, complete.
            creator: Address of whoever makes it.
            function: Name of the function that it belongs to.
        """
        if self._client is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0)
            self._client = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        source = Source(service=name.rpartition("/")[2], location=name.split("/")[3], function=bool(function))
        front = Front(
            Routes(resource=name), self._access, self._limits, self._client, self._logs.request_writer(source)
        )
        made = Service(name=name, wanted=wanted, front=front, creator=creator, modifier=creator, function=function)
        self._all[name] = made
        await front.open()
        return made

    def check(self, service: Service | None, name: str, wanted: Any) -> None:
        """Refuse what cannot be made of a service, before anything is done.

        Args:
            service: The service as it is; `None` where it is new.
            name: Its own name.
            wanted: What is wanted of it, complete.

        Raises:
            ServiceError: A revision's name is taken or cannot be, or traffic would go nowhere.
        """
        revisions = set(service.revisions) if service is not None else set()
        given = wanted.template.revision
        if given:
            check_revision_name(given, name)
            found = service.revisions.get(given) if service is not None else None
            if found is not None and not _same(found.template, wanted.template):
                raise ServiceError(
                    "ALREADY_EXISTS", f"Revision named '{given}' with different configuration already exists."
                )
            revisions.add(given)
        check_traffic(wanted.traffic, revisions)

    def want(self, service: Service, wanted: Any, modifier: str) -> None:
        """Note what is wanted of a service from now on; `roll_out` does it."""
        service.wanted, service.modifier, service.updated = wanted, modifier, datetime.now(UTC)
        service.generation += 1
        service.etag = new_etag()

    async def roll_out(self, service: Service, wanted: Any, *, again: bool = False) -> None:
        """Bring a service to what is wanted: a new revision where its template is another, then its traffic.

        Args:
            service: The service.
            wanted: What is wanted of it, complete.
            again: Whether a revision that has failed is tried again with the same template.

        Raises:
            ServiceError: The revision is not ready, and what served before goes on.
        """
        async with service.lock:
            service.changing += 1
            try:
                if service.deleting:
                    raise ServiceError("ABORTED", f"Service {service.name} is being deleted.")
                await self._make_revision(service, wanted, again=again)
                try:
                    await self._route(service, wanted)
                except ServiceError as error:
                    service.unrouted = error.message
                    raise
                service.unrouted = ""
            finally:
                service.changing -= 1

    async def remove(self, service: Service) -> None:
        """End a service and everything it has."""
        service.deleting = True
        async with service.lock:
            self._all.pop(service.name, None)
            await self._end(service)
            self._access.forget(service.name)
        await self._prune()

    async def remove_revision(self, service: Service, revision: Revision) -> None:
        """End a revision.

        Raises:
            ServiceError: It is the last one made, or has traffic or a tag.
        """
        routes = service.front.routes
        routed = {runner.name for runner, _ in routes.weights} | {runner.name for runner in routes.tags.values()}
        if revision.name in routed:
            raise ServiceError(
                "FAILED_PRECONDITION",
                f"Revision '{revision.name}' cannot be deleted, because it is actively serving traffic.",
            )
        if revision.name == service.created_revision:
            raise ServiceError(
                "FAILED_PRECONDITION",
                f"Revision '{revision.name}' cannot be deleted, because it is the latest created revision.",
            )
        del service.revisions[revision.name]
        if revision.runner is not None:
            await revision.runner.fleet.close()
        await self._prune()

    async def close(self) -> None:
        """End everything."""
        services, self._all = list(self._all.values()), {}
        await asyncio.gather(*(self._end(service) for service in services))
        await self._placeholders.close()
        if self._client is not None:
            await self._client.close()

    async def _prune(self) -> None:
        """Delete the sources that no revision is made from any more."""
        used: set[Path] = set()
        for revision in (one for service in self for one in service.revisions.values()):
            built = self._images.find(revision.template.containers[0].image)
            used |= {built.root} if built is not None else set()
            used |= {revision.runner.fleet.recipe.root} if revision.runner is not None else set()
        await self._images.prune(used)

    async def _end(self, service: Service) -> None:
        await service.front.close()
        runners = [one.runner for one in service.revisions.values() if one.runner is not None]
        await asyncio.gather(*(runner.fleet.close() for runner in runners))

    async def _make_revision(self, service: Service, wanted: Any, *, again: bool) -> None:
        last = service.revisions.get(service.created_revision)
        template = run_v2.RevisionTemplate(wanted.template)
        same = last is not None and _same(last.template, template) and template.revision in {"", last.name}
        if last is not None and same and (last.ready or not again):
            return
        service.made += 1
        ending = "".join(secrets.choice(string.ascii_lowercase) for _ in range(3))
        name = template.revision or f"{service.short}-{service.made:05d}-{ending}"
        made = Revision(name=name, template=template, generation=service.generation, creator=service.modifier)
        service.revisions[name] = made
        service.created_revision = name
        try:
            await self._start(service, made, await self._image(template))
        except ServiceError as error:
            made.failure = error.message
            raise
        finally:
            made.pending = False
        service.ready_revision = name

    async def _image(self, template: Any) -> Image:
        container = template.containers[0]
        if container.image != SCRATCH:
            found = self._images.find(container.image)
            if found is None:
                raise ServiceError("NOT_FOUND", f"Image '{container.image}' not found.")
            return found
        source = container.source_code.cloud_storage_source
        archive = await self._storage.read_object(source.bucket, source.object_, source.generation)
        try:
            return await self._images.unpack(archive, read_base_image(container.base_image_uri))
        except (BuildError, OSError) as error:
            raise ServiceError("INVALID_ARGUMENT", f"template.containers[0].source_code: {error}") from error

    async def _start(self, service: Service, revision: Revision, image: Image) -> None:
        template = revision.template
        container = template.containers[0]
        variables = {
            "LANG": "C.UTF-8",
            **image.variables,
            **await self._identify(template.service_account),
            **{one.name: self._value(one, template.service_account) for one in container.env},
            "K_SERVICE": service.short,
            "K_CONFIGURATION": service.short,
            "K_REVISION": revision.name,
        }
        limits = container.resources.limits
        recipe = Recipe(
            command=(*container.command, *container.args) if container.command else (*image.command, *container.args),
            root=image.root,
            variables=variables,
            memory_mb=read_memory_mb(limits["memory"], "memory"),
            start_s=min(self._limits.start_s, _startup_s(container.startup_probe)),
            prepared=image.prepared and not container.command and _has_path_of(image, variables),
        )
        source = Source(
            service=service.short,
            location=service.name.split("/")[3],
            revision=revision.name,
            function=bool(service.function),
        )
        fleet = Fleet(
            recipe,
            Scale(maximum=template.scaling.max_instance_count, concurrency=template.max_instance_request_concurrency),
            self._directory / revision.name, self._logs.line_writer(source), self._limits,
            placeholders=self._placeholders,
        )  # fmt: skip
        why = await fleet.begin()
        if why:
            await fleet.close()
            message = _NOT_READY.format(revision.name, why)
            self._logs.write_system(source, message)
            raise ServiceError("FAILED_PRECONDITION", message)
        revision.runner = Runner(name=revision.name, fleet=fleet, timeout_s=template.timeout.total_seconds())

    def _value(self, variable: Any, account: str) -> str:
        reference = variable.value_source.secret_key_ref
        return (
            self._secrets.read(account, reference.secret, reference.version)
            if reference.secret
            else str(variable.value)
        )

    async def _route(self, service: Service, wanted: Any) -> None:
        weights: list[tuple[Runner, int]] = []
        tags: dict[str, Runner] = {}
        for target in list(wanted.traffic) or [run_v2.TrafficTarget(type_=LATEST, percent=100)]:
            name = service.ready_revision if target.type_ == LATEST else target.revision
            revision = service.revisions.get(name)
            if revision is None or revision.runner is None:
                raise ServiceError("FAILED_PRECONDITION", f"Revision '{name}' is not ready and cannot serve traffic.")
            if target.percent:
                weights.append((revision.runner, target.percent))
            if target.tag:
                tags[target.tag] = revision.runner
                service.tag_urls[target.tag] = await service.front.open_tag(target.tag)
        routes = service.front.routes
        routes.weights, routes.tags, routes.audiences = weights, tags, list(wanted.custom_audiences)
        routes.public = wanted.invoker_iam_disabled
        routes.internal = wanted.ingress != run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL
        self._keep(service, wanted)

    def _keep(self, service: Service, wanted: Any) -> None:
        """Keep as many instances as the service and its revisions want; only those that have traffic or a tag count."""
        routes = service.front.routes
        parts: dict[Runner, int] = dict.fromkeys(routes.tags.values(), 0)
        for runner, percent in routes.weights:
            parts[runner] = parts.get(runner, 0) + percent
        for revision in service.revisions.values():
            if revision.runner is None:
                continue
            kept = 0
            if revision.runner in parts:
                share = math.ceil(wanted.scaling.min_instance_count * parts[revision.runner] / 100)
                kept = max(share, revision.template.scaling.min_instance_count)
            revision.runner.fleet.keep(kept, wanted.scaling.max_instance_count)


def _has_path_of(image: Image, variables: Mapping[str, str]) -> bool:
    return variables.get("PYTHONPATH") == image.variables.get("PYTHONPATH")


def _startup_s(probe: Any) -> float:
    """Return how long a container's startup probe gives it; 240 seconds unless it says."""
    if not probe:
        return 240.0
    return float(probe.initial_delay_seconds + (probe.period_seconds or 10) * (probe.failure_threshold or 3))


def _same(one: Any, other: Any) -> bool:
    """Whether two templates are the same but for the revision's name."""
    first, second = run_v2.RevisionTemplate(one), run_v2.RevisionTemplate(other)
    first.revision = second.revision = ""
    return bool(first == second)
