"""The JSON API of Cloud Storage, as far as it is about objects."""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_catalog import StoredObject
from polyserve_gcp.emulator.gcs_conditions import Conditions, read_conditions, read_number
from polyserve_gcp.emulator.gcs_errors import absent, bad, format_media, no_range
from polyserve_gcp.emulator.gcs_objects import Caller, Objects, Source, Writing
from polyserve_gcp.emulator.gcs_server import Content

_PART = r"([^/]+)"
_OBJECT = re.compile(rf"/(?:download/)?storage/v1/b/{_PART}/o/{_PART}")
_COPY = re.compile(rf"/storage/v1/b/{_PART}/o/{_PART}/(copyTo|rewriteTo)/b/{_PART}/o/{_PART}")
_MOVE = re.compile(rf"/storage/v1/b/{_PART}/o/{_PART}/moveTo/o/{_PART}")
_BREAK = re.compile(r"[\r\n\0]+")
_COMPOSE = re.compile(rf"/storage/v1/b/{_PART}/o/{_PART}/compose")


@dataclass(frozen=True, slots=True)
class JsonApi:
    """Answers calls on objects.

    Args:
        objects: The operations on objects.
    """

    objects: Objects

    async def answer(self, call: Call, caller: Caller, url: str) -> Answer:
        """Answer one call."""
        found = _OBJECT.fullmatch(call.raw_path)
        if found is not None:
            return await self._answer_one(call, caller, unquote(found[1]), unquote(found[2]), url)
        if call.method == "POST":
            for pattern, answer in ((_COPY, self._copy), (_MOVE, self._move), (_COMPOSE, self._compose)):
                found = pattern.fullmatch(call.raw_path)
                if found is not None:
                    return await answer(call, caller, [unquote(part) for part in found.groups()], url)
        if "/acl" in call.raw_path or "/defaultObjectAcl" in call.raw_path:
            raise bad("Cannot use ACL API to update bucket policy when uniform bucket-level access is enabled.")
        raise absent(f"'{call.method} {call.raw_path}'")

    async def _answer_one(self, call: Call, caller: Caller, bucket: str, name: str, url: str) -> Answer:
        query = call.query
        if call.method == "GET" and query.get("alt") == "media":
            try:
                return await serve_media(
                    self.objects, call, caller, (bucket, name), read_conditions(query, call.headers)
                )
            except ServiceError as error:
                if error.status in {401, 403}:
                    raise
                return format_media(error)
        generation, conditions = read_number(query, "generation"), read_conditions(query, call.headers)
        source = Source(bucket=bucket, name=name, generation=generation, conditions=conditions)
        if call.method == "GET":
            found = self.objects.find(caller, bucket, name, generation)
            conditions.check(found, reading=True)
        elif call.method in {"PATCH", "PUT"}:
            found = await self.objects.patch(caller, source, read_body(call), whole=call.method == "PUT")
        elif call.method == "DELETE":
            await self.objects.delete(caller, source)
            return Answer(204)
        else:
            raise absent(f"{call.method} on objects")
        return json_answer(200, found.show(url), etag=found.etag)

    async def _copy(self, call: Call, caller: Caller, parts: list[str], url: str) -> Answer:
        given = read_body(call)
        source, writing = _read_copy(call, (parts[0], parts[1]), (parts[3], parts[4]), given)
        made = await self.objects.copy(caller, source, writing, replace=_says_something(given))
        if parts[2] == "copyTo":
            return json_answer(200, made.show(url))
        size = str(made.size)
        return json_answer(
            200,
            {
                "kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True,
                "resource": made.show(url),
            },
        )  # fmt: skip

    async def _move(self, call: Call, caller: Caller, parts: list[str], url: str) -> Answer:
        source, writing = _read_copy(call, (parts[0], parts[1]), (parts[0], parts[2]), {})
        return json_answer(200, (await self.objects.move(caller, source, writing)).show(url))

    async def _compose(self, call: Call, caller: Caller, parts: list[str], url: str) -> Answer:
        given = read_body(call)
        sources = [_read_component(parts[0], one) for one in given.get("sourceObjects") or ()]
        writing = Writing(
            bucket=parts[0], name=parts[1], fields=given.get("destination") or {}, conditions=read_conditions(call.query),
            kms_key=call.query.get("kmsKeyName", ""),
        )  # fmt: skip
        return json_answer(200, (await self.objects.compose(caller, sources, writing)).show(url))


async def serve_media(
    objects: Objects, call: Call, caller: Caller, place: tuple[str, str], conditions: Conditions
) -> Answer:
    """Answer with what an object holds, or with the part of it that is asked for.

    Args:
        objects: The operations on objects.
        call: The request.
        caller: Who asks.
        place: The object's bucket and name.
        conditions: What must be there.
    """
    generation = read_number(call.query, "generation")
    headers = {key.lower(): value for key, value in call.headers.items()}
    found, content = await objects.read(caller, *place, headers, generation=generation, conditions=conditions)
    if content.status == 416:
        raise no_range(call.headers.get("Range", ""), found.size)
    fields = media_headers(found, content)
    return Answer(content.status, fields, stream=content.pieces)


def media_headers(found: StoredObject, content: Content | None = None) -> dict[str, str]:
    """Return the header fields that go with what an object holds.

    Args:
        found: The object.
        content: What fake-gcs-server says of the bytes; `None` where none are sent.
    """
    named = {
        "cacheControl": "cache-control", "contentDisposition": "content-disposition", "contentLanguage": "content-language",
    }  # fmt: skip
    sums = [f"crc32c={found.crc32c}", *([f"md5={found.md5}"] if found.md5 else [])]
    at = datetime.fromisoformat(found.updated or found.created)
    headers = {
        "content-type": str(found.fields.get("contentType") or "application/octet-stream"), "etag": f'"{found.etag}"',
        "last-modified": email.utils.format_datetime(at, usegmt=True), "x-goog-generation": str(found.generation),
        "x-goog-metageneration": str(found.metageneration), "x-goog-hash": ",".join(sums),
        "x-goog-storage-class": str(found.fields.get("storageClass", "STANDARD")),
        "x-goog-stored-content-length": str(found.size), "accept-ranges": "bytes",
        "x-goog-stored-content-encoding": str(found.fields.get("contentEncoding") or "identity"),
    }  # fmt: skip
    headers |= {header: str(found.fields[name]) for name, header in named.items() if found.fields.get(name)}
    # A line's end in a value would begin another field.
    headers |= {
        f"x-goog-meta-{name}": _BREAK.sub(" ", str(value))
        for name, value in (found.fields.get("metadata") or {}).items()
    }
    if content is None:
        encoding = found.fields.get("contentEncoding")
        return headers | {"content-length": str(found.size)} | ({"content-encoding": str(encoding)} if encoding else {})
    kept = ("content-length", "content-range", "content-encoding")
    return headers | {name: content.headers[name] for name in kept if name in content.headers}


def read_body(call: Call) -> dict[str, Any]:
    """Return the body of a call, which must be a JSON object or nothing.

    Raises:
        ServiceError: It is something else.
    """
    try:
        found = json.loads(call.body or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise bad("Parse Error", "parseError")
    return found


def _read_copy(
    call: Call, source_place: tuple[str, str], place: tuple[str, str], given: Mapping[str, Any]
) -> tuple[Source, Writing]:
    query = call.query
    source = Source(
        bucket=source_place[0], name=source_place[1], generation=read_number(query, "sourceGeneration"),
        conditions=read_conditions(query, source=True),
    )  # fmt: skip
    writing = Writing(
        bucket=place[0],
        name=place[1],
        fields=given,
        conditions=read_conditions(query),
        kms_key=query.get("destinationKmsKeyName", ""),
    )
    return source, writing


def _read_component(bucket: str, given: Mapping[str, Any]) -> Source:
    said = {"generation": str(given.get("generation") or "")}
    said |= {name: str(value) for name, value in (given.get("objectPreconditions") or {}).items()}
    return Source(
        bucket=bucket, name=str(given.get("name", "")), generation=read_number(said, "generation"),
        conditions=read_conditions(said),
    )  # fmt: skip


def _says_something(given: Mapping[str, Any]) -> bool:
    """Whether a copy's body says something of the copy; names alone say nothing."""
    return any(name not in {"name", "bucket"} for name in given)
