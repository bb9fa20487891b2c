"""Batches: several calls to the JSON API in one request, each with an answer of its own."""

from __future__ import annotations

import email.policy
import re
import secrets
from email.message import Message
from email.parser import BytesParser
from http import HTTPStatus

from multidict import CIMultiDict, CIMultiDictProxy

from polyserve.emulation.http import Answer, Call, Handler
from polyserve_gcp.emulator.gcs_errors import absent, bad, format_json

MOST = 100
"""Most calls of one batch ("Batch requests", read 2026-11-21)."""


async def answer_batch(call: Call, answer: Handler) -> Answer:
    """Answer a batch.

    Args:
        call: The request, multipart/mixed, whose parts are requests.
        answer: Answers one of them.

    Raises:
        ServiceError: It is no batch.
    """
    head = f"content-type: {call.headers.get('Content-Type', '')}\r\n\r\n".encode()
    parsed = BytesParser(policy=email.policy.HTTP).parsebytes(head + call.body)
    parts = parsed.get_payload()
    if not parsed.is_multipart() or not isinstance(parts, list):
        raise bad("Failed to parse batch request, error: the body is not multipart/mixed.", "badRequest")
    if len(parts) > MOST:
        raise bad(f"The batch request contains {len(parts)} calls which exceeds the limit of {MOST}.", "badRequest")
    boundary = f"batch_{secrets.token_urlsafe(16)}"
    found = bytearray()
    for part in parts:
        assert isinstance(part, Message)
        inner = _read_call(str(part.get_payload()).encode("utf-8", "surrogateescape"), call)
        identifier = str(part.get("Content-ID", "")).strip("<>")
        given = await answer(inner) if _is_small(inner) else format_json(absent("uploads and downloads in a batch"))
        found += (
            f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-{identifier}>\r\n\r\n".encode()
        )
        found += _format(given)
    found += f"--{boundary}--\r\n".encode()
    return Answer(200, {"content-type": f"multipart/mixed; boundary={boundary}"}, bytes(found))


def _is_small(call: Call) -> bool:
    return not call.raw_path.startswith(("/upload/", "/resumable/", "/download/")) and call.query.get("alt") != "media"


def _read_call(text: bytes, outer: Call) -> Call:
    head, _, body = text.replace(b"\r\n", b"\n").lstrip(b"\n").partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    words = first.split(" ")
    if len(words) < 2:
        raise bad(f"Failed to parse batch request, error: no request line in '{first[:80]}'.", "badRequest")
    # Clients write whole addresses; a call has the path and the query.
    target = re.sub(r"^https?://[^/]+", "", words[1])
    headers: CIMultiDict[str] = CIMultiDict(
        [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    )
    if "Authorization" not in headers and "Authorization" in outer.headers:
        headers["Authorization"] = outer.headers["Authorization"]
    return Call(method=words[0], target=target, headers=CIMultiDictProxy(headers), body=body.rstrip(b"\n"))


def _format(given: Answer) -> bytes:
    headers = {**given.headers, "Content-Length": str(len(given.body))}
    lines = [
        f"HTTP/1.1 {given.status} {HTTPStatus(given.status).phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + given.body + b"\r\n"
