"""Uploads to the JSON API: at once, with their description, and resumable ones, whose sessions are kept here."""

from __future__ import annotations

import json
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Any
from urllib.parse import quote

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_gcp.emulator.errors import ServiceError
from polyserve_gcp.emulator.gcs_catalog import StoredObject
from polyserve_gcp.emulator.gcs_conditions import read_conditions, read_number
from polyserve_gcp.emulator.gcs_errors import bad
from polyserve_gcp.emulator.gcs_objects import Caller, Objects, Writing

CHUNK = 256 * 1024
"""All chunks of a resumable upload but the last are a multiple of this ("Resumable uploads", read 2026-11-21)."""
IN_MEMORY = 8 * 1024 * 1024
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(slots=True, kw_only=True)
class Session:
    """One resumable upload.

    Attributes:
        caller: Who began it, as whom it writes.
        writing: What is to be written.
        size: How long the whole is; negative while nobody knows.
        body: What has arrived.
        received: How many bytes that are.
        made: The object, once it is there.
        ended: Whether it was given up.
    """

    caller: Caller
    writing: Writing
    size: int = -1
    body: IO[bytes] = field(default_factory=lambda: tempfile.SpooledTemporaryFile(max_size=IN_MEMORY))  # noqa: SIM115
    received: int = 0
    made: StoredObject | None = None
    ended: bool = False


class Uploads:
    """Takes uploads.

    Args:
        objects: Where they go.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._sessions: dict[str, Session] = {}

    def close(self) -> None:
        """Forget all sessions."""
        for session in self._sessions.values():
            session.body.close()
        self._sessions.clear()

    async def answer(self, call: Call, caller: Caller, bucket: str, url: str) -> Answer:
        """Answer an upload, or the beginning of a resumable one."""
        kind = call.query.get("uploadType", "")
        if kind == "media":
            fields = {"contentType": call.headers["Content-Type"]} if call.headers.get("Content-Type") else {}
            writing = _with_sums(_writing(call, bucket, fields), call.headers)
            return json_answer(200, (await self._objects.write(caller, writing, call.body)).show(url))
        if kind == "multipart":
            given, content_type, body = _split(call)
            fields = {**given, "contentType": given.get("contentType") or content_type}
            return json_answer(200, (await self._objects.write(caller, _writing(call, bucket, fields), body)).show(url))
        if kind == "resumable":
            given = _object(call.body)
            named = given.get("contentType") or call.headers.get("X-Upload-Content-Type")
            size = read_number(call.headers, "X-Upload-Content-Length", -1)
            location, _ = self.begin(caller, _writing(call, bucket, {**given, "contentType": named}), url, size)
            return Answer(200, {"location": location, "x-guploader-uploadid": location.rpartition("=")[2]})
        raise bad(f"Invalid upload type: '{kind}'; it is one of media, multipart, resumable.")

    def begin(self, caller: Caller, writing: Writing, url: str, size: int = -1) -> tuple[str, Session]:
        """Begin a resumable upload; returns the address at which it goes on, and the session."""
        self._objects.check_writing(caller, writing)
        identifier = secrets.token_urlsafe(48)
        made = self._sessions[identifier] = Session(caller=caller, writing=writing, size=size)
        name = quote(writing.name, safe="")
        return (
            f"{url}/upload/storage/v1/b/{writing.bucket}/o?uploadType=resumable&name={name}&upload_id={identifier}",
            made,
        )

    async def resume(self, call: Call, url: str) -> Answer:
        """Answer a call to the address of a resumable upload: whoever knows it may."""
        session = self._sessions.get(call.query["upload_id"])
        if session is None:
            raise ServiceError("NOT_FOUND", "Upload session not found.")
        if session.ended:
            raise ServiceError("CANCELLED", "The upload was cancelled.", status=499)
        if call.method == "DELETE":
            session.ended = True
            session.body.close()
            return Answer(499)
        if call.method not in {"PUT", "POST"}:
            raise bad(f"A resumable upload goes on with PUT, and not with {call.method}.")
        if session.made is not None:
            return json_answer(200, session.made.show(url))
        whole = self._take(session, call)
        if not whole:
            more = {"range": f"bytes=0-{session.received - 1}"} if session.received else {}
            return Answer(308, {"x-guploader-uploadid": call.query["upload_id"], **more})
        session.body.seek(0)
        body = session.body.read()
        try:
            session.made = await self._objects.write(session.caller, _with_sums(session.writing, call.headers), body)
        finally:
            # What is refused as a whole is over: its sender has to begin anew.
            session.ended = session.made is None
            session.body.close()
        made = session.made
        headers = {
            "x-goog-hash": f"crc32c={made.crc32c},md5={made.md5}",
            "x-goog-stored-content-length": str(made.size),
        }
        return json_answer(200, made.show(url), **{name.replace("-", "_"): value for name, value in headers.items()})

    def _take(self, session: Session, call: Call) -> bool:
        """Keep a chunk; returns whether everything is there."""
        start, size = _read_range(call, session.received)
        if size >= 0:
            if session.size not in {-1, size}:
                raise bad(f"Invalid request: the upload was to have {session.size} bytes, and has {size} now.")
            session.size = size
        if start > session.received:
            message = f"Invalid request: the chunk starts at byte {start}, and {session.received} bytes have arrived."
            raise ServiceError("UNAVAILABLE", message)
        body = memoryview(call.body)[session.received - start :]
        end = session.received + len(body)
        if session.size >= 0 and end > session.size:
            raise bad(f"Invalid request: {end} bytes have arrived of an upload of {session.size}.")
        last = end == session.size
        if not last and len(call.body) % CHUNK:
            raise bad(f"Invalid request: a chunk of {len(call.body)} bytes is not the last and no multiple of {CHUNK}.")
        session.body.seek(session.received)
        session.body.write(body)
        session.received = end
        return last


def _read_range(call: Call, received: int) -> tuple[int, int]:
    """Return where a chunk starts and how long the whole is; -1 where its sender does not know."""
    text = call.headers.get("Content-Range", "").strip()
    if not text:
        return 0, len(call.body)
    match = _RANGE.fullmatch(text)
    if match is None:
        raise bad(f"Failed to parse Content-Range header: {text}")
    start = received if match[1] is None else int(match[1])
    if len(call.body) != (0 if match[1] is None else int(match[2]) - start + 1):
        raise bad(f"Invalid request: Content-Range {text} does not fit a body of {len(call.body)} bytes.")
    return start, -1 if match[3] == "*" else int(match[3])


def read_sums(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the checksums that a content's sender says it has: `md5` and `crc32c`, in base64."""
    found = {"md5": headers["Content-MD5"]} if headers.get("Content-MD5") else {}
    # multidict joins nothing, so that both may be in one field or in two.
    lines = headers.getall("X-Goog-Hash", []) if hasattr(headers, "getall") else [headers.get("X-Goog-Hash", "")]
    for part in ",".join(lines).split(","):
        name, _, value = part.strip().partition("=")
        if name in {"md5", "crc32c"}:
            found[name] = value
    return found


def _with_sums(writing: Writing, headers: Mapping[str, str]) -> Writing:
    sums = read_sums(headers)
    return replace(writing, md5=writing.md5 or sums.get("md5", ""), crc32c=writing.crc32c or sums.get("crc32c", ""))


def _writing(call: Call, bucket: str, fields: Mapping[str, Any]) -> Writing:
    query = call.query
    name = str(fields.get("name") or query.get("name") or "")
    if not name:
        raise bad("Required parameter: name")
    if query.get("contentEncoding"):
        fields = {**fields, "contentEncoding": query["contentEncoding"]}
    return Writing(
        bucket=bucket, name=name, fields=fields, conditions=read_conditions(query, call.headers),
        kms_key=query.get("kmsKeyName") or str(fields.get("kmsKeyName") or "").partition("/cryptoKeyVersions/")[0],
        md5=str(fields.get("md5Hash") or ""), crc32c=str(fields.get("crc32c") or ""),
    )  # fmt: skip


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise bad("Parse Error", "parseError")
    return found


def _split(call: Call) -> tuple[dict[str, Any], str, bytes]:
    """Return the parts of a multipart upload: description, the content's type, and the content."""
    match = re.search(r'boundary="?([^";]+)"?', call.headers.get("Content-Type", ""))
    if match is None:
        raise bad("Multipart content has no boundary.")
    mark = b"--" + match[1].encode()
    body = call.body
    first = body.find(mark)
    second = body.find(b"\r\n" + mark, first + len(mark))
    last = body.rfind(b"\r\n" + mark + b"--")
    if not 0 <= first < second < last:
        raise bad("Missing end boundary in multipart body.")
    _, described = _part(body[first + len(mark) : second])
    headers, content = _part(body[second + 2 + len(mark) : last])
    return _object(described), headers.get("content-type", ""), content


def _part(text: bytes) -> tuple[dict[str, str], bytes]:
    head, found, content = text.partition(b"\r\n\r\n")
    if not found:
        raise bad("A part of the multipart body has no header fields.")
    lines = [line.partition(":") for line in head.decode("latin-1").split("\r\n") if ":" in line]
    return {name.strip().lower(): value.strip() for name, _, value in lines}, content
