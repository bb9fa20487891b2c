"""The XML API of Cloud Storage: what signed URLs lead to, and uploads in parallel parts."""

from __future__ import annotations

import hashlib
import html
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from polyserve.emulation.http import Answer, Call
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_catalog import StoredObject
from polyserve_gcp.emulator.gcs_conditions import read_number, read_xml_conditions
from polyserve_gcp.emulator.gcs_errors import absent, bad
from polyserve_gcp.emulator.gcs_json import media_headers, serve_media
from polyserve_gcp.emulator.gcs_objects import Caller, Objects, Source, Writing, check_sums, find_crc32c
from polyserve_gcp.emulator.gcs_uploads import Uploads, read_sums

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_HEADERS = {
    "cache-control": "cacheControl", "content-disposition": "contentDisposition", "content-encoding": "contentEncoding",
    "content-language": "contentLanguage", "content-type": "contentType", "x-goog-storage-class": "storageClass",
}  # fmt: skip
_KMS_KEY = "x-goog-encryption-kms-key-name"
PART_LEAST = 5 * 1024 * 1024
"""Least size of all parts but the last, in bytes ("XML API multipart uploads", read 2026-11-21)."""


@dataclass(slots=True)
class _Parallel:
    """An upload in parts."""

    writing: Writing
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


class XmlApi:
    """Answers calls to the XML API on objects.

    Args:
        objects: The operations on objects.
        uploads: Where resumable uploads are.
    """

    def __init__(self, objects: Objects, uploads: Uploads) -> None:
        self._objects, self._uploads = objects, uploads
        self._parallel: dict[str, _Parallel] = {}

    async def answer(self, call: Call, caller: Caller, bucket: str, name: str, url: str) -> Answer:
        """Answer one call on an object."""
        query = call.query
        if "uploads" in query or "uploadId" in query:
            return await self._answer_parts(call, caller, bucket, name, url)
        for part in ("acl", "tagging", "retention", "encryption", "compose"):
            if part in query:
                raise absent(f"?{part} in the XML API")
        if call.headers.get("x-goog-copy-source"):
            raise absent("copies in the XML API")
        if call.method == "GET":
            return await serve_media(self._objects, call, caller, (bucket, name), read_xml_conditions(call.headers))
        if call.method == "HEAD":
            found = self._objects.find(caller, bucket, name, read_number(query, "generation"))
            read_xml_conditions(call.headers).check(found, reading=True)
            return Answer(200, media_headers(found))
        conditions = read_xml_conditions(call.headers)
        if call.method == "DELETE":
            generation = read_number(query, "generation")
            await self._objects.delete(
                caller, Source(bucket=bucket, name=name, generation=generation, conditions=conditions)
            )
            return Answer(204)
        writing = Writing(
            bucket=bucket, name=name, fields=_fields(call.headers), conditions=conditions, kms_key=call.headers.get(_KMS_KEY, ""),
            **read_sums(call.headers),
        )  # fmt: skip
        if call.method == "POST" and call.headers.get("x-goog-resumable", "").lower() == "start":
            location, _ = self._uploads.begin(caller, writing, url)
            return Answer(201, {"location": location, "x-guploader-uploadid": location.rpartition("=")[2]})
        if call.method != "PUT":
            raise absent(f"{call.method} in the XML API")
        _check_length(call)
        made = await self._objects.write(caller, writing, call.body)
        return Answer(200, _made(made))

    async def _answer_parts(self, call: Call, caller: Caller, bucket: str, name: str, url: str) -> Answer:
        identifier = call.query.get("uploadId", "")
        if call.method == "POST" and "uploads" in call.query:
            writing = Writing(
                bucket=bucket, name=name, fields=_fields(call.headers), conditions=read_xml_conditions(call.headers),
                kms_key=call.headers.get(_KMS_KEY, ""),
            )  # fmt: skip
            self._objects.demand(caller, "storage.multipartUploads.create", bucket, name)
            self._objects.check_writing(caller, writing)
            identifier = secrets.token_urlsafe(24)
            self._parallel[identifier] = _Parallel(writing)
            return _xml("InitiateMultipartUploadResult", {"Bucket": bucket, "Key": name, "UploadId": identifier})
        found = self._parallel.get(identifier)
        if found is None or (found.writing.bucket, found.writing.name) != (bucket, name):
            raise ServiceError("NOT_FOUND", "The requested upload was not found.", reason="NoSuchUpload")
        if call.method == "PUT":
            self._objects.demand(caller, "storage.objects.create", bucket, name)
            number = read_number(call.query, "partNumber")
            if not 1 <= number <= 10000:
                raise bad(f"partNumber is {number}, and must be between 1 and 10000.", "InvalidArgument")
            sums = read_sums(call.headers)
            check_sums(call.body, sums.get("md5", ""), sums.get("crc32c", ""))
            etag = hashlib.md5(call.body, usedforsecurity=False).hexdigest()
            crc32c = find_crc32c(call.body)
            found.parts[number] = (etag, call.body)
            return Answer(200, {"etag": f'"{etag}"', "x-goog-hash": f"crc32c={crc32c}"})
        if call.method == "DELETE":
            self._objects.demand(caller, "storage.multipartUploads.abort", bucket, name)
            del self._parallel[identifier]
            return Answer(204)
        if call.method != "POST":
            raise absent(f"{call.method} on uploads in parts")
        made = await self._complete(call, caller, found)
        del self._parallel[identifier]
        place = {"Location": f"{url}/{bucket}/{name}", "Bucket": bucket, "Key": name, "ETag": f'"{made.etag}"'}
        answer = _xml("CompleteMultipartUploadResult", place)
        return Answer(200, {**_made(made), **answer.headers}, answer.body)

    async def _complete(self, call: Call, caller: Caller, found: _Parallel) -> StoredObject:
        try:
            root = ET.fromstring(call.body)  # noqa: S314 - it comes from this machine
        except ET.ParseError:
            raise bad("The XML you provided was not well-formed.", "MalformedXML") from None
        named: list[tuple[int, str]] = []
        for part in root.iter():
            if part.tag.rpartition("}")[2] == "Part":
                texts = {one.tag.rpartition("}")[2]: (one.text or "").strip() for one in part}
                named.append((read_number(texts, "PartNumber"), texts.get("ETag", "").strip('"')))
        numbers = [number for number, _ in named]
        if not named or numbers != sorted(set(numbers)):
            raise bad("The list of parts was not in ascending order.", "InvalidPartOrder")
        if any(number not in found.parts or found.parts[number][0] != etag for number, etag in named):
            raise bad("One or more of the specified parts could not be found.", "InvalidPart")
        bodies = [found.parts[number][1] for number in numbers]
        if any(len(body) < PART_LEAST for body in bodies[:-1]):
            raise bad("Your proposed upload is smaller than the minimum allowed object size.", "EntityTooSmall")
        made = await self._objects.write(caller, found.writing, b"".join(bodies))
        made.md5, made.components = "", len(bodies)
        return made


def _fields(headers: Mapping[str, str]) -> dict[str, object]:
    fields: dict[str, object] = {field: headers[name] for name, field in _HEADERS.items() if headers.get(name)}
    start = "x-goog-meta-"
    metadata = {name.lower()[len(start) :]: value for name, value in headers.items() if name.lower().startswith(start)}
    return fields | ({"metadata": metadata} if metadata else {})


def _check_length(call: Call) -> None:
    text = call.headers.get("x-goog-content-length-range", "")
    if not text:
        return
    least, _, most = text.partition(",")
    if not least.strip().isdigit() or not most.strip().isdigit():
        raise bad(f"x-goog-content-length-range is '{text}', and not two numbers.", "InvalidArgument")
    if len(call.body) < int(least):
        raise bad(f"The body has {len(call.body)} bytes, and must have {least} at least.", "EntityTooSmall")
    if len(call.body) > int(most):
        raise bad(f"The body has {len(call.body)} bytes, and must have {most} at most.", "EntityTooLarge")


def _made(made: StoredObject) -> dict[str, str]:
    sums = [f"crc32c={made.crc32c}", *([f"md5={made.md5}"] if made.md5 else [])]
    return {
        "etag": f'"{made.etag}"', "x-goog-generation": str(made.generation), "x-goog-metageneration": str(made.metageneration),
        "x-goog-hash": ",".join(sums), "x-goog-stored-content-length": str(made.size), "content-type": "text/html; charset=UTF-8",
    }  # fmt: skip


def _xml(tag: str, values: Mapping[str, str]) -> Answer:
    inner = "".join(f"<{name}>{html.escape(value)}</{name}>" for name, value in values.items())
    text = f"<?xml version='1.0' encoding='UTF-8'?><{tag} xmlns='{_NAMESPACE}'>{inner}</{tag}>"
    return Answer(200, {"content-type": "application/xml; charset=UTF-8"}, text.encode())
