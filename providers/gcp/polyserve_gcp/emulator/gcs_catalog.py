"""What there is in Cloud Storage: buckets and objects with all that is said of them. fake-gcs-server has the contents.

fake-gcs-server forgets metagenerations, labels and policies, makes a new generation of what is patched, and deletes the
live generation where an old one is meant (measured 2026-11-21). So what is said of an object is kept here.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from polyserve_gcp.emulator.gcs_errors import absent, bad, no_bucket

WRITABLE = (
    "cacheControl", "contentDisposition", "contentEncoding", "contentLanguage", "contentType", "customTime", "metadata",
    "storageClass",
)  # fmt: skip
"""What callers may say of an object."""
CLASSES = frozenset(
    {"STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE", "MULTI_REGIONAL", "REGIONAL", "DURABLE_REDUCED_AVAILABILITY"}
)
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9._-]{1,220})[a-z0-9]")
_ADDRESS = re.compile(r"\d+(\.\d+){3}")
_METADATA_LIMIT = 8192
_NAME_LIMIT = 1024
_ABSENT = {
    "eventBasedHold": "holds", "temporaryHold": "holds", "retention": "retention", "contexts": "object contexts",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class StoredObject:
    """One generation of an object.

    Attributes:
        bucket: Its bucket.
        name: Its name.
        generation: Its number, which is larger than that of the generation before.
        size: Length in bytes.
        crc32c: Checksum in base64.
        md5: Checksum in base64; empty for what was composed.
        fields: What its writer says of it: those of `WRITABLE`.
        metageneration: Counts the changes of what is said.
        components: Of how many objects it was composed; 0 for others.
        kms_key: Version of the customer's key, where there is one.
        deleted: When it became an old generation; empty for the live one.
    """

    bucket: str
    name: str
    generation: int
    size: int
    crc32c: str
    md5: str
    fields: dict[str, Any]
    metageneration: int = 1
    components: int = 0
    kms_key: str = ""
    created: str = field(default_factory=lambda: now_text())  # noqa: PLW0108 - it is further down
    updated: str = ""
    deleted: str = ""

    @property
    def etag(self) -> str:
        """What changes with the generation and the metageneration."""
        return base64.b64encode(f"{self.generation}/{self.metageneration}".encode()).decode()

    def show(self, url: str) -> dict[str, Any]:
        """Return it as the JSON API does."""
        place = f"{url}/storage/v1/b/{self.bucket}/o/{quote(self.name, safe='')}"
        media = f"{url}/download/storage/v1/b/{self.bucket}/o/{quote(self.name, safe='')}?generation={self.generation}&alt=media"
        shown: dict[str, Any] = {
            "kind": "storage#object", "id": f"{self.bucket}/{self.name}/{self.generation}", "selfLink": place, "mediaLink": media,
            "name": self.name, "bucket": self.bucket, "generation": str(self.generation),
            "metageneration": str(self.metageneration), "storageClass": "STANDARD", "size": str(self.size), "crc32c": self.crc32c,
            "etag": self.etag, "timeCreated": self.created, "updated": self.updated or self.created,
            "timeStorageClassUpdated": self.created, "timeFinalized": self.created,
        }  # fmt: skip
        more = {
            "md5Hash": self.md5,
            "componentCount": self.components,
            "kmsKeyName": self.kms_key,
            "timeDeleted": self.deleted,
        }
        return shown | {name: value for name, value in more.items() if value} | self.fields


@dataclass(slots=True, kw_only=True)
class Bucket:
    """One bucket.

    Attributes:
        name: Its name.
        fields: What its owner says of it.
        metageneration: Counts the changes of that.
        live: The live objects by their names.
        old: Old generations by their names and numbers.
        writers: How many write into it right now.
    """

    name: str
    fields: dict[str, Any]
    metageneration: int = 1
    created: str = field(default_factory=lambda: now_text())  # noqa: PLW0108 - it is further down
    updated: str = ""
    live: dict[str, StoredObject] = field(default_factory=dict)
    old: dict[str, dict[int, StoredObject]] = field(default_factory=dict)
    writers: int = 0

    @contextmanager
    def written(self) -> Iterator[None]:
        """Have it stay while something is written into it."""
        self.writers += 1
        try:
            yield
        finally:
            self.writers -= 1

    @property
    def etag(self) -> str:
        """What changes with the metageneration."""
        return base64.b64encode(f"{self.metageneration}".encode()).decode()

    @property
    def versioning(self) -> bool:
        """Whether what is overwritten or deleted is kept as an old generation."""
        return bool((self.fields.get("versioning") or {}).get("enabled"))

    @property
    def kms_key(self) -> str:
        """The customer's key for objects that name none; empty for Google's."""
        return str((self.fields.get("encryption") or {}).get("defaultKmsKeyName") or "")

    def find(self, name: str, generation: int = 0) -> StoredObject | None:
        """Return an object: the live one, or that of a generation."""
        live = self.live.get(name)
        if not generation:
            return live
        if live is not None and live.generation == generation:
            return live
        return self.old.get(name, {}).get(generation)

    def put(self, made: StoredObject) -> None:
        """Make an object the live one of its name."""
        self.retire(made.name, keep=self.versioning)
        self.live[made.name] = made

    def retire(self, name: str, *, keep: bool) -> None:
        """Have no live object of a name; it is kept as an old generation, or not."""
        before = self.live.pop(name, None)
        if before is not None and keep:
            before.deleted = now_text()
            self.old.setdefault(name, {})[before.generation] = before

    def drop(self, found: StoredObject) -> None:
        """Forget one generation for good."""
        if self.live.get(found.name) is found:
            del self.live[found.name]
        kept = self.old.get(found.name, {})
        kept.pop(found.generation, None)
        if not kept:
            self.old.pop(found.name, None)

    def every(self) -> Iterator[StoredObject]:
        """Iterate over all generations of all objects, in the order of lists."""
        for name in sorted({*self.live, *self.old}, key=str.encode):
            found = [*self.old.get(name, {}).values(), *([self.live[name]] if name in self.live else [])]
            yield from sorted(found, key=lambda one: one.generation)

    def show(self, url: str, number: str) -> dict[str, Any]:
        """Return it as the JSON API does."""
        shown: dict[str, Any] = {
            "kind": "storage#bucket", "id": self.name, "selfLink": f"{url}/storage/v1/b/{self.name}", "projectNumber": number,
            "name": self.name, "timeCreated": self.created, "updated": self.updated or self.created,
            "metageneration": str(self.metageneration), "etag": self.etag,
        }  # fmt: skip
        return shown | self.fields


class Catalog:
    """All buckets."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}

    def bucket(self, name: str) -> Bucket:
        """Return a bucket.

        Raises:
            ServiceError: There is none of that name.
        """
        found = self.buckets.get(name)
        if found is None:
            raise no_bucket()
        return found


def check_bucket_name(name: str) -> None:
    """Refuse a name that no bucket can have ("Bucket naming guidelines", read 2026-11-21)."""
    parts = name.split(".")
    sized = 3 <= len(name) <= (63 if len(parts) == 1 else 222) and all(0 < len(part) <= 63 for part in parts)
    taken = name.startswith("goog") or "google" in name or _ADDRESS.fullmatch(name)
    if not sized or taken or not _BUCKET.fullmatch(name):
        raise bad(f"Invalid bucket name: '{name}'")


def check_object_name(name: str) -> None:
    """Refuse a name that no object can have ("Object naming guidelines", read 2026-11-21)."""
    size = len(name.encode("utf-8", "replace"))
    if size > _NAME_LIMIT:
        raise bad(f"The maximum object length is {_NAME_LIMIT} characters, but got a name with {size} characters.")
    if (
        not name
        or name in {".", ".."}
        or "\r" in name
        or "\n" in name
        or name.startswith(".well-known/acme-challenge/")
    ):
        raise bad("The specified object name is not valid.")


def read_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a caller says of an object, without what is `None`.

    Raises:
        ServiceError: A value is no such value, or the emulator cannot honour it.
    """
    for name, what in _ABSENT.items():
        if given.get(name):
            raise absent(what)
    found = {name: given[name] for name in WRITABLE if given.get(name) is not None}
    metadata = found.get("metadata")
    if metadata is not None:
        if not isinstance(metadata, dict):
            raise bad("Invalid value for: metadata is not an object.")
        found["metadata"] = {str(key): str(value) for key, value in metadata.items() if value is not None}
        if sum(len(key.encode()) + len(value.encode()) for key, value in found["metadata"].items()) > _METADATA_LIMIT:
            raise bad("The metadata is too large: custom metadata must not exceed 8 KiB.")
        if not found["metadata"]:
            del found["metadata"]
    if found.get("storageClass", "STANDARD") not in CLASSES:
        raise bad(f"Invalid argument: storageClass {found['storageClass']}.")
    return found


def merge_fields(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of an object after a patch: `null` takes away, a field that is not named stays."""
    merged = dict(before)
    for name in WRITABLE:
        if name not in given:
            continue
        if name == "metadata" and isinstance(given[name], dict):
            merged[name] = {**before.get(name, {}), **given[name]}
        else:
            merged[name] = given[name]
    return read_fields({**merged, **{name: given[name] for name in _ABSENT if name in given}})


def now_text() -> str:
    """Return the time as the JSON API writes it."""
    at = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at * 1000) % 1000:03d}Z"
