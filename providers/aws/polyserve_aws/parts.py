"""Large objects, part by part: up from a file, or from one object to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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

    def send(number: int, data: bytes) -> Part:
        answer = s3.upload_part(**upload, PartNumber=number, Body=data, ChecksumAlgorithm="CRC32")
        checksum = {"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer else {}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    size = 0

    def pieces() -> Any:
        nonlocal size
        number, data = 1, first
        while data:
            size += len(data)
            yield lambda number=number, data=data: send(number, data)
            data = read_part(body, PART_BYTES << number // _GROWTH)
            number += 1

    return _finish(s3, upload, conditions, pieces()), size


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

    starts = enumerate(range(0, size, COPIED_PART_BYTES), start=1)
    return _finish(s3, upload, {}, (lambda n=n, s=s: send(n, s) for n, s in starts))


def _finish(s3: Any, upload: Mapping[str, Any], conditions: Mapping[str, str], pieces: Any) -> Mapping[str, Any]:
    """Send the pieces, several at a time, and put them together."""
    parts: list[Part] = []
    waiting: deque[Future[Part]] = deque()
    try:
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="polyserve-s3") as pool:
            try:
                each: Callable[[], Part]
                for each in pieces:
                    # No more of the body is in memory than is on its way.
                    if len(waiting) == PARALLEL:
                        parts.append(waiting.popleft().result())
                    waiting.append(pool.submit(each))
                parts += [future.result() for future in waiting]
            except BaseException:
                for future in waiting:
                    future.cancel()
                raise
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
