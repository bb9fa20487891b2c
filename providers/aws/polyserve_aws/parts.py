"""Large objects, part by part: up from a file, or from one object to another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

__all__ = ["PART_BYTES", "copy_in_parts", "read_part", "upload_in_parts"]

PART_BYTES = 8 << 20
"""Size from which on an object goes up in parts, and of each of the first thousand."""
PARALLEL = 8
COPIED_PART_BYTES = 1 << 30
_GROWTH = 1000
"""Parts after which the next ones are twice as large: S3 takes 10,000 of them, and 5 TB."""

Part = dict[str, Any]


def upload_in_parts(
    s3: Any,
    where: Mapping[str, Any],
    what: Mapping[str, Any],
    conditions: Mapping[str, str],
    *,
    first: bytes,
    body: BinaryIO,
) -> tuple[Mapping[str, Any], int]:
    """Upload what was read already and the rest of a body; the parts are gone if anything fails.

    Args:
        s3: The client.
        where: Bucket and key.
        what: Content type, metadata and encryption.
        conditions: Decided by S3 when the parts are put together.
        first: The first part.
        body: The rest.

    Returns:
        The answer that has the object's ETag, and its size.
    """
    started = s3.create_multipart_upload(**where, **what, ChecksumAlgorithm="CRC32")
    upload = {**where, "UploadId": started["UploadId"]}

    def send(number: int, data: bytes | bytearray) -> Part:
        answer = s3.upload_part(**upload, PartNumber=number, Body=data, ChecksumAlgorithm="CRC32")
        checksum = {"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer else {}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    size, number = 0, 0

    def take(memory: _Memory) -> Callable[[], Part] | None:
        nonlocal size, number
        data = memory.read(body, PART_BYTES << number // _GROWTH) if number else first
        size += len(data)
        number += 1
        return partial(send, number, data) if data else None

    return _finish(s3, upload, conditions, take), size


def copy_in_parts(
    s3: Any, where: Mapping[str, Any], what: Mapping[str, Any], origin: Mapping[str, str], *, size: int, etag: str
) -> Mapping[str, Any]:
    """Copy an object that is too large for one request; fails if it is written meanwhile. Returns the answer that has the new ETag."""
    upload = {**where, "UploadId": s3.create_multipart_upload(**where, **what)["UploadId"]}

    def send(number: int, start: int) -> Part:
        end = min(start + COPIED_PART_BYTES, size) - 1
        answer = s3.upload_part_copy(
            **upload,
            PartNumber=number,
            CopySource=origin,
            CopySourceIfMatch=etag,
            CopySourceRange=f"bytes={start}-{end}",
        )
        return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

    steps = (partial(send, *each) for each in enumerate(range(0, size, COPIED_PART_BYTES), start=1))
    return _finish(s3, upload, {}, lambda _: next(steps, None))


class _Memory:
    """What one thread reads into, again and again: the processor that sends a part has just read it."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def read(self, body: BinaryIO, size: int) -> bytearray:
        """Read `size` bytes, or all that is left where that is less; good until the next call."""
        readinto = getattr(body, "readinto", None)
        if readinto is None:
            return bytearray(read_part(body, size))
        if len(self._memory) != size:
            self._memory = bytearray(size)
        done = 0
        with memoryview(self._memory) as view:
            while done < size and (count := readinto(view[done:])):
                done += count
        # Less than a part is the end.
        del self._memory[done:]
        return self._memory


def _finish(
    s3: Any,
    upload: Mapping[str, Any],
    conditions: Mapping[str, str],
    take: Callable[[_Memory], Callable[[], Part] | None],
) -> Mapping[str, Any]:
    """Send the parts, several at a time, and put them together.

    Args:
        s3: The client.
        upload: Bucket, key and id of the upload.
        conditions: Decided by S3 in the end.
        take: Gives what sends the next part, or `None` where there is none; called by one thread at a time.
    """
    parts: list[Part] = []
    taking, ended = threading.Lock(), threading.Event()

    def send() -> None:
        memory = _Memory()
        try:
            while True:
                with taking:
                    step = None if ended.is_set() else take(memory)
                if step is None:
                    return
                parts.append(step())
        finally:
            # Without a next part there is nothing left to take; where one failed, the others send no more than they have begun.
            ended.set()

    try:
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="polyserve-s3") as pool:
            try:
                for sent in as_completed([pool.submit(send) for _ in range(PARALLEL)]):
                    sent.result()
            finally:
                ended.set()
        parts.sort(key=lambda part: int(part["PartNumber"]))
        answer: Mapping[str, Any] = s3.complete_multipart_upload(
            **upload, **conditions, MultipartUpload={"Parts": parts}
        )
    except BaseException:
        # What is left of it would be paid for, unseen, until the bucket goes.
        with suppress(Exception):
            s3.abort_multipart_upload(**upload)
        raise
    return answer


def read_part(body: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or all that is left where that is less."""
    pieces, missing = [], size
    while missing and (data := body.read(missing)):
        pieces.append(data)
        missing -= len(data)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
