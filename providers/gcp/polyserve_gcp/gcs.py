"""Cloud Storage as an object store: one bucket, keys as `keys` writes them, versions are generations.

Small objects go up in one request, large ones by a resumable upload, piece by piece; each with a checksum that the service compares with
what it got. Conditions are decided by the service, for a large object when its last piece is there.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast
from urllib.parse import quote

from polyserve.driver import ObjectMeta, Page, PutAttributes
from polyserve_gcp.errors import PreconditionError
from polyserve_gcp.keys import decode_key, encode_key, is_plain, search_prefix
from polyserve_gcp.storage import CALL, Buckets

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

    from polyserve_gcp.settings import GcpSettings

__all__ = ["Content", "GcsStore"]

SMALL_BYTES = 8 << 20
"""Size from which on an object goes up piece by piece; of the SDK's own choice, too."""
PIECE_BYTES = 16 << 20
"""Size of a piece: a multiple of 256 KiB, kept in memory while it is on its way."""
LISTED = "items(name,size,updated,contentType,metadata,generation),prefixes,nextPageToken"
CARRIED = ("cache_control", "content_disposition", "content_encoding", "content_language", "content_type", "metadata")
"""What a copy takes along."""

_AFTER = "\U0010ffff"
"""Sorts after everything that may follow a common prefix."""


class GcsStore:
    """One bucket. Implements `polyserve.driver.ObjectStore`.

    Args:
        buckets: The SDK's client.
        settings: How objects are encrypted.
        bucket: Name of the bucket; need not exist yet.
    """

    def __init__(self, buckets: Buckets, settings: GcpSettings, bucket: str) -> None:
        self._buckets = buckets
        self._name = bucket
        self._kms_key = settings.kms_key or None

    @property
    def _bucket(self) -> Bucket:
        return self._buckets.client.bucket(self._name)

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(name)

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object, in one request where it is small."""
        blob = self._bucket.blob(encode_key(key), kms_key_name=self._kms_key, chunk_size=PIECE_BYTES)
        blob.metadata = dict(attrs.metadata)
        how = {"content_type": attrs.content_type, "checksum": "auto", **_condition(key, attrs), **CALL}
        first = _read(body, SMALL_BYTES)
        with _in_few_words():
            if len(first) < SMALL_BYTES:
                blob.upload_from_file(io.BytesIO(first), size=len(first), **how)
            else:
                blob.upload_from_file(cast("BinaryIO", _Joined(first, body)), **how)
        return _meta(key, blob)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object. What is read is one version of it, whatever is written meanwhile."""
        if length == 0:
            return self.head(key), io.BytesIO()
        # The XML API tells the metadata with the content; the SDK would ask for it before, and another version could come between.
        url = f"{self._buckets.client.api_endpoint}/{self._name}/{quote(encode_key(key), safe='/~')}"
        # As it is stored: without this, what was stored compressed would come unpacked.
        headers = {"accept-encoding": "gzip"}
        if offset or length is not None:
            headers["range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        answer = self._buckets.session.get(url, headers=headers, stream=True, timeout=CALL["timeout"])
        if answer.status_code >= 400:
            with answer:
                if answer.status_code != 416:
                    raise _refused(answer)
            # An offset at or past the end, or any offset of an empty object.
            return self.head(key), io.BytesIO()
        return _told(key, answer.headers), cast("BinaryIO", Content(answer))

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        blob = self._blob(encode_key(key))
        blob.reload(**CALL)
        return _meta(key, blob)

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page, content types and metadata included."""
        if delimiter and not is_plain(delimiter):
            return self._rolled_up(prefix, delimiter, token, limit)
        found = self._buckets.client.list_blobs(
            self._name,
            prefix=search_prefix(prefix) or None,
            delimiter=delimiter or None,
            page_token=token,
            max_results=limit,
            page_size=limit,
            fields=LISTED,
            **CALL,
        )
        objects = [_meta(decode_key(blob.name), blob) for blob in next(found.pages, ())]
        prefixes = sorted((decode_key(common) for common in found.prefixes), key=str.encode)
        return Page(
            # A prefix that ends with a space finds escapes that begin with one, too.
            objects=tuple(meta for meta in objects if meta.key.startswith(prefix)),
            prefixes=tuple(common for common in prefixes if common.startswith(prefix)),
            next_token=found.next_page_token or None,
        )

    def _rolled_up(self, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page with a delimiter that the service does not find where it is in the key. A token is the last name that was told."""
        objects: list[ObjectMeta] = []
        prefixes: list[str] = []
        after = base64.urlsafe_b64decode(token).decode() if token else ""
        for blob in self._buckets.client.list_blobs(
            self._name, prefix=search_prefix(prefix) or None, start_offset=after or None, fields=LISTED, **CALL
        ):
            key = decode_key(blob.name)
            # It begins with what was told last.
            if blob.name == after or not key.startswith(prefix) or (prefixes and key.startswith(prefixes[-1])):
                continue
            if len(objects) + len(prefixes) == limit:
                following = base64.urlsafe_b64encode(after.encode()).decode()
                return Page(objects=tuple(objects), prefixes=tuple(prefixes), next_token=following)
            cut = key.find(delimiter, len(prefix))
            if cut < 0:
                objects.append(_meta(key, blob))
                after = blob.name
            else:
                prefixes.append(key[: cut + len(delimiter)])
                after = search_prefix(prefixes[-1]) + _AFTER
        return Page(objects=tuple(objects), prefixes=tuple(prefixes))

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object within Cloud Storage, which takes several calls where the copy is of another place or key."""
        origin = self._blob(encode_key(source))
        origin.reload(**CALL)
        made = self._bucket.blob(encode_key(target), kms_key_name=self._kms_key)
        for name in CARRIED:
            setattr(made, name, getattr(origin, name))
        token, *_ = made.rewrite(origin, **CALL)
        while token:
            token, *_ = made.rewrite(origin, token=token, **CALL)
        return _meta(target, made)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._blob(encode_key(key)).delete(**CALL)

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a URL that the service account signed: with its key, or by the IAM API where there is none here."""
        client = self._buckets.client
        return str(
            self._blob(encode_key(key)).generate_signed_url(
                version="v4",
                # Whole seconds, and at least one.
                expiration=timedelta(seconds=max(1, int(expires_in.total_seconds()))),
                method=method,
                credentials=self._buckets.credentials.native,
                api_access_endpoint=client.api_endpoint,
            )
        )


class Content(io.RawIOBase):
    """The content of an object that is being read. Closing it gives the connection up, which may be in the middle of an answer.

    Args:
        answer: What is being read.
    """

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def readable(self) -> bool:
        """Return true."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all that is left.

        Raises:
            requests.exceptions.RequestException: The connection was lost, or nothing came for too long.
        """
        from requests import exceptions
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        try:
            return bytes(self._answer.raw.read(None if size is None or size < 0 else size, decode_content=False))
        except ReadTimeoutError as error:
            raise exceptions.ReadTimeout("nothing came for too long") from error
        except HTTPError as error:
            raise exceptions.ConnectionError(f"the connection was lost: {error}") from error

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes came."""
        with memoryview(buffer).cast("B") as view:
            data = self.read(len(view))
            view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the answer."""
        if not self.closed:
            super().close()
            self._answer.close()


class _Joined(io.RawIOBase):
    """What was read of a body and the rest of it, in pieces as large as they are asked for."""

    def __init__(self, first: bytes, rest: BinaryIO) -> None:
        self._first = io.BytesIO(first)
        self._rest = rest
        self._at = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0
        data = self._first.read(size)
        if len(data) < size:
            data += _read(self._rest, size - len(data))
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at


def _read(body: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or all that is left where that is less."""
    pieces, missing = [], size
    while missing and (data := body.read(missing)):
        pieces.append(data)
        missing -= len(data)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def _in_few_words() -> Iterator[None]:
    """Say of an upload's error what the service said; not the address of a resumable upload: whoever has it can write the object."""
    from google.api_core.exceptions import GoogleAPICallError
    from requests.exceptions import RequestException

    raised: Exception
    try:
        yield
        return
    except GoogleAPICallError as error:
        if error.response is None:
            raise
        raised = _refused(error.response)
    except RequestException as error:
        raised = type(error)("the connection was lost while the object went up")
    raise raised from None


def _refused(answer: Any) -> Exception:
    """Return the SDK's error that an answer is, in the service's own words."""
    from google.api_core.exceptions import from_http_status

    raised: Exception = from_http_status(answer.status_code, _words(answer), response=answer)
    return raised


def _words(answer: Any) -> str:
    text = str(answer.text)
    if text.lstrip().startswith("<"):
        found = re.findall(r"<(?:Message|Details)>([^<]*)<", text)
        return html.unescape(" ".join(found)) or str(answer.reason)
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200] or str(answer.reason)


def _condition(key: str, attrs: PutAttributes) -> dict[str, int]:
    if attrs.if_absent:
        return {"if_generation_match": 0}
    if attrs.if_match is None:
        return {}
    # No other text is a generation, and 0 would mean that there is none.
    if not (attrs.if_match.isascii() and attrs.if_match.isdigit() and int(attrs.if_match)):
        raise PreconditionError(f"object {key!r} has no version {attrs.if_match!r}")
    return {"if_generation_match": int(attrs.if_match)}


def _meta(key: str, blob: Blob) -> ObjectMeta:
    return ObjectMeta(
        key=key,
        size=int(blob.size or 0),
        modified_at=blob.updated or datetime.now(UTC),
        content_type=blob.content_type or "application/octet-stream",
        metadata=dict(blob.metadata or {}),
        version=str(blob.generation),
    )


def _told(key: str, headers: Mapping[str, str]) -> ObjectMeta:
    """Return what an answer of the XML API tells of its object."""
    begin = "x-goog-meta-"
    metadata = {
        name.lower().removeprefix(begin): value for name, value in headers.items() if name.lower().startswith(begin)
    }
    return ObjectMeta(
        key=key,
        # Of the whole object, whatever part of it comes.
        size=int(headers["x-goog-stored-content-length"]),
        modified_at=parsedate_to_datetime(headers["last-modified"]),
        content_type=headers.get("content-type", "application/octet-stream"),
        metadata=metadata,
        version=headers["x-goog-generation"],
    )
