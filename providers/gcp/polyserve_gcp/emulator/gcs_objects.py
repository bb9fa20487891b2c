"""What can be done with objects, whichever API asks: permission, then conditions, then the deed, all in one go."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import google_crc32c

from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_catalog import (
    Bucket,
    Catalog,
    StoredObject,
    check_object_name,
    merge_fields,
    now_text,
    read_fields,
)
from polyserve_gcp.emulator.gcs_conditions import NONE, Conditions
from polyserve_gcp.emulator.gcs_errors import absent, bad, forbidden, no_object
from polyserve_gcp.emulator.gcs_server import Content, FakeGcs
from polyserve_gcp.emulator.identities import Principal

_KMS_KEY = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+")
COMPOSE_LIMIT = 32
"""Most objects that are put together at once ("Quotas & limits", read 2026-11-21)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for something.

    Attributes:
        principal: Who it is; `None` for anybody.
        trusted: Whether nobody has to be asked: Google's own services.
    """

    principal: Principal | None = None
    trusted: bool = False


OWN = Caller(trusted=True)
"""The emulator itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What is to be written.

    Attributes:
        bucket: Name of the bucket.
        name: Name of the object.
        fields: What the writer says of it.
        conditions: What must be there.
        kms_key: The customer's key, where there is one.
        md5: What the content must have, in base64; empty where nobody says.
        crc32c: The same.
    """

    bucket: str
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    conditions: Conditions = NONE
    kms_key: str = ""
    md5: str = ""
    crc32c: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is to be copied: an object, a generation of it, and conditions on that."""

    bucket: str
    name: str
    generation: int = 0
    conditions: Conditions = NONE


class Objects:
    """The operations on objects.

    Args:
        catalog: What there is.
        server: Has the contents.
        access: Who may do what.
    """

    def __init__(self, catalog: Catalog, server: FakeGcs, access: Access) -> None:
        self.catalog, self._server, self._access = catalog, server, access
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def demand(self, caller: Caller, permission: str, bucket: str, name: str = "") -> None:
        """Let a caller do something with a bucket, or an object in it.

        Raises:
            ServiceError: No role allows that.
        """
        resource = f"projects/_/buckets/{bucket}" + (f"/objects/{name}" if name else "")
        if not caller.trusted and not self._access.allows(caller.principal, permission, resource):
            raise forbidden(caller.principal, permission)

    def find(self, caller: Caller, bucket: str, name: str, generation: int = 0) -> StoredObject:
        """Return an object that a caller may read.

        Raises:
            ServiceError: There is none, or it may not be read. Who may not list is not told that there is none.
        """
        place = self.catalog.bucket(bucket)
        self.demand(caller, "storage.objects.get", bucket, name)
        return self._live(caller, place, name, generation)

    async def read(
        self,
        caller: Caller,
        bucket: str,
        name: str,
        headers: Mapping[str, str],
        *,
        generation: int = 0,
        conditions: Conditions = NONE,
    ) -> tuple[StoredObject, Content]:
        """Return an object and what it holds.

        Args:
            caller: Who asks.
            bucket: Its bucket.
            name: Its name.
            headers: `range` and `accept-encoding`, which are honoured.
            generation: Which generation; the live one unless given.
            conditions: What must be there.
        """
        async with self._locked((bucket, name)):
            found = self.find(caller, bucket, name, generation)
            conditions.check(found, reading=True)
            wanted = {key: headers[key] for key in ("range", "accept-encoding") if key in headers}
            return found, await self._server.get(bucket, name, found.generation, wanted)

    async def write(self, caller: Caller, writing: Writing, body: bytes | bytearray) -> StoredObject:
        """Write an object.

        Raises:
            ServiceError: A condition does not hold, a checksum is another, or it may not be written.
        """
        fields = self.check_writing(caller, writing)
        check_sums(body, writing.md5, writing.crc32c)
        async with self._locked((writing.bucket, writing.name)):
            place = self._check_target(caller, writing)
            with place.written():
                said = await self._server.put(writing.bucket, writing.name, fields, body)
            return self._keep(place, writing, said, fields)

    def check_writing(self, caller: Caller, writing: Writing) -> dict[str, Any]:
        """Refuse at once what could not be written later; returns what is said of the object."""
        check_object_name(writing.name)
        if writing.kms_key and not _KMS_KEY.fullmatch(writing.kms_key):
            raise bad(f"Malformed Cloud KMS crypto key: {writing.kms_key}")
        self._check_target(caller, writing)
        fields = read_fields(writing.fields)
        usual = self.catalog.bucket(writing.bucket).fields.get("storageClass", "STANDARD")
        return fields if usual == "STANDARD" else {"storageClass": usual, **fields}

    async def patch(
        self,
        caller: Caller,
        source: Source,
        given: Mapping[str, Any],
        *,
        whole: bool = False,
    ) -> StoredObject:
        """Change what is said of an object.

        Args:
            caller: Who asks.
            source: The object.
            given: What is said of it now; `None` takes away.
            whole: Whether what is not named is taken away too.
        """
        async with self._locked((source.bucket, source.name)):
            place = self.catalog.bucket(source.bucket)
            self.demand(caller, "storage.objects.update", source.bucket, source.name)
            found = self._live(caller, place, source.name, source.generation)
            source.conditions.check(found)
            fields = read_fields(given) if whole else merge_fields(found.fields, given)
            if fields.get("contentEncoding", "") != found.fields.get("contentEncoding", ""):
                raise absent("change of contentEncoding")
            if fields.get("storageClass", "STANDARD") != found.fields.get("storageClass", "STANDARD"):
                raise bad("Invalid argument: the storage class of an object is changed by a rewrite.")
            found.fields, found.updated = fields, now_text()
            found.metageneration += 1
            return found

    async def delete(self, caller: Caller, source: Source) -> None:
        """Delete an object, or one generation of it for good."""
        async with self._locked((source.bucket, source.name)):
            place = self.catalog.bucket(source.bucket)
            self.demand(caller, "storage.objects.delete", source.bucket, source.name)
            found = self._live(caller, place, source.name, source.generation)
            source.conditions.check(found)
            if place.live.get(source.name) is found:
                await self._server.remove(source.bucket, source.name)
            if source.generation:
                place.drop(found)
            else:
                place.retire(source.name, keep=place.versioning)

    async def copy(self, caller: Caller, source: Source, writing: Writing, *, replace: bool) -> StoredObject:
        """Copy an object.

        Args:
            caller: Who asks.
            source: What is copied.
            writing: What the copy is to be.
            replace: Whether the writer says anew what is said of it; else that is copied.
        """
        check_object_name(writing.name)
        async with self._locked((source.bucket, source.name), (writing.bucket, writing.name)):
            found = self.find(caller, source.bucket, source.name, source.generation)
            source.conditions.check(found)
            place = self._check_target(caller, writing)
            fields = read_fields({**(found.fields if not replace else {}), **writing.fields})
            if fields.get("contentEncoding", "") != found.fields.get("contentEncoding", ""):
                raise absent("change of contentEncoding")
            with place.written():
                said = await self._server.copy(
                    (found.bucket, found.name, found.generation), writing.bucket, writing.name
                )
            made = self._keep(place, writing, said, fields)
            made.md5, made.components = found.md5, found.components
            return made

    async def move(self, caller: Caller, source: Source, writing: Writing) -> StoredObject:
        """Give an object another name in its bucket, in one go."""
        self.demand(caller, "storage.objects.move", source.bucket, source.name)
        check_object_name(writing.name)
        if source.name == writing.name:
            raise bad("The source and destination object of a move are the same.")
        async with self._locked((source.bucket, source.name), (writing.bucket, writing.name)):
            place = self.catalog.bucket(source.bucket)
            found = self._live(caller, place, source.name, source.generation)
            source.conditions.check(found)
            self._check_target(caller, writing)
            with place.written():
                said = await self._server.copy(
                    (found.bucket, found.name, found.generation), writing.bucket, writing.name
                )
            made = self._keep(place, writing, said, found.fields)
            made.md5, made.components = found.md5, found.components
            await self._server.remove(source.bucket, source.name)
            place.retire(source.name, keep=place.versioning)
            return made

    async def compose(self, caller: Caller, sources: Sequence[Source], writing: Writing) -> StoredObject:
        """Put live objects of one bucket together to one."""
        check_object_name(writing.name)
        if not 1 <= len(sources) <= COMPOSE_LIMIT:
            raise bad(
                f"The number of source components provided ({len(sources)}) must be between 1 and {COMPOSE_LIMIT}."
            )
        places = [(one.bucket, one.name) for one in sources]
        async with self._locked((writing.bucket, writing.name), *places):
            place = self._check_target(caller, writing)
            found = [self.find(caller, one.bucket, one.name) for one in sources]
            for one, wanted in zip(found, sources, strict=True):
                if wanted.generation and wanted.generation != one.generation:
                    raise no_object(one.bucket, one.name)
                wanted.conditions.check(one)
            fields = read_fields(writing.fields)
            with place.written():
                # A composition by fake-gcs-server has the generation of what it is written over.
                parts = [await self._server.read(one.bucket, one.name, one.generation) for one in found]
                said = await self._server.put(writing.bucket, writing.name, fields, b"".join(parts))
            components = sum(one.components or 1 for one in found)
            made = self._keep(place, writing, said, fields)
            made.md5, made.components = "", components
            return made

    def _live(self, caller: Caller, place: Bucket, name: str, generation: int) -> StoredObject:
        found = place.find(name, generation)
        if found is None:
            self.demand(caller, "storage.objects.list", place.name)
            raise no_object(place.name, name)
        return found

    def _check_target(self, caller: Caller, writing: Writing) -> Bucket:
        place = self.catalog.bucket(writing.bucket)
        self.demand(caller, "storage.objects.create", writing.bucket, writing.name)
        found = place.live.get(writing.name)
        writing.conditions.check(found)
        if found is not None:
            self.demand(caller, "storage.objects.delete", writing.bucket, writing.name)
        return place

    def _keep(
        self, place: Bucket, writing: Writing, said: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> StoredObject:
        key = writing.kms_key or place.kms_key
        made = StoredObject(
            bucket=writing.bucket, name=writing.name, generation=int(said["generation"]), size=int(said["size"]),
            crc32c=said["crc32c"], md5=said["md5Hash"], fields=dict(fields), kms_key=f"{key}/cryptoKeyVersions/1" if key else "",
        )  # fmt: skip
        place.put(made)
        return made

    @asynccontextmanager
    async def _locked(self, *places: tuple[str, str]) -> AsyncIterator[None]:
        """Have objects for oneself: always in the same order, so that nobody waits for whom he keeps waiting."""
        async with AsyncExitStack() as held:
            for place in sorted(set(places)):
                await held.enter_async_context(self._locks.setdefault(place, asyncio.Lock()))
            yield


def check_sums(body: bytes | bytearray, md5: str, crc32c: str) -> None:
    """Refuse content that has not the checksums that its sender says it has.

    Raises:
        ServiceError: It has others, or they are none.
    """
    if md5:
        found = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if found != md5:
            raise _mismatch("MD5 hash", md5, found)
    if crc32c:
        found = find_crc32c(body)
        if found != crc32c:
            raise _mismatch("CRC32C", crc32c, found)


def find_crc32c(body: bytes | bytearray) -> str:
    """Return the checksum of content, in base64."""
    return base64.b64encode(google_crc32c.Checksum(bytes(body)).digest()).decode()


def _mismatch(what: str, given: str, found: str) -> ServiceError:
    return bad(f'Provided {what} "{given}" doesn\'t match calculated {what} "{found}".')
