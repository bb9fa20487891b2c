"""S3 as an object store: one bucket, keys as `keys` writes them, versions are entity tags.

Small objects go up in one request with the sha256 that the core has computed already, which S3 compares with what it got; large ones in
parts, several at a time, each with a CRC32. Conditions are decided by S3, for a large object when its parts are put together.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from botocore.exceptions import ClientError

from polyserve.driver import ErrorCode, ObjectMeta, Page, PutAttributes
from polyserve_aws.clients import Clients
from polyserve_aws.errors import BucketNotEmptyError, PreconditionError, RevisionError, classify, code_of
from polyserve_aws.fast import FastContent, FastObjects
from polyserve_aws.keys import decode_key, encode_key, is_plain, search_prefix
from polyserve_aws.parts import PART_BYTES, copy_in_parts, read_part, upload_in_parts
from polyserve_aws.ranges import RANGE_BYTES, RangedContent

if TYPE_CHECKING:
    from obstore import GetResult

    from polyserve_aws.settings import AwsSettings

__all__ = ["S3Store", "ensure_bucket", "remove_bucket"]

LARGEST_COPY = 5 << 30
"""Bytes that S3 copies in one request: CopyObject in its API reference, 2026-11."""

_AFTER = "\U0010ffff"
"""Sorts after everything that may follow a common prefix."""


class S3Store:
    """One bucket of S3. Implements `polyserve.driver.ObjectStore`.

    Args:
        clients: The SDK's clients.
        settings: How objects are encrypted.
        bucket: Name of the bucket; need not exist yet.
    """

    def __init__(self, clients: Clients, settings: AwsSettings, bucket: str) -> None:
        self._clients = clients
        self._bucket = bucket
        self._encryption = encryption_of(settings)
        self._fast = FastObjects(clients, settings, bucket)

    @property
    def _s3(self) -> Any:
        return self._clients.get("s3")

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object, in one request where it fits one part."""
        name = encode_key(key)
        first = read_part(body, PART_BYTES)
        size = len(first)
        answer: Mapping[str, Any]
        try:
            if size < PART_BYTES:
                etag = self._fast.put(name, first, attrs)
                answer = {"ETag": etag} if etag else self._put(name, first, attrs)
            elif done := self._fast.put_in_parts(name, first, body, attrs):
                answer, size = {"ETag": done[0]}, done[1]
            else:
                where, what = self._described(name, attrs)
                answer, size = upload_in_parts(self._s3, where, what, conditions_of(attrs), first=first, body=body)
        except ClientError as error:
            if attrs.if_match is not None and code_of(error) in {"NoSuchKey", "404"}:
                # S3 says that there is nothing to match; so does a bucket that is not there, and that has a name of its own.
                message = f"object {key!r} of version {attrs.if_match!r} does not exist any more"
                raise PreconditionError(message) from error
            raise
        return ObjectMeta(
            key=key,
            size=size,
            modified_at=_answered_at(answer),
            content_type=attrs.content_type,
            metadata=dict(attrs.metadata),
            version=_version(answer["ETag"]),
        )

    def _put(self, name: str, body: bytes, attrs: PutAttributes) -> Mapping[str, Any]:
        where, what = self._described(name, attrs)
        answer: Mapping[str, Any] = self._s3.put_object(
            **where, **what, **conditions_of(attrs), **_checksum_of(attrs.metadata), Body=body
        )
        return answer

    def _described(self, name: str, attrs: PutAttributes) -> tuple[dict[str, str], dict[str, Any]]:
        """Return where an object goes, and what it is."""
        what = {"ContentType": attrs.content_type, "Metadata": dict(attrs.metadata), **self._encryption}
        return {"Bucket": self._bucket, "Key": name}, what

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object. What is read is one version of it: where a large one is written meanwhile, reading fails with CONFLICT."""
        if length == 0:
            return self.head(key), io.BytesIO()
        if offset or length is not None:
            return self._opened(key, offset, length)
        meta, first = self._opened(key, 0, RANGE_BYTES)
        if meta.size <= RANGE_BYTES:
            return meta, first
        ranged = RangedContent(
            first, partial(self._range, key, meta.version), partial(self._rest, key, meta.version), meta.size
        )
        return meta, cast("BinaryIO", ranged)

    def _range(self, key: str, version: str, offset: int, length: int) -> memoryview:
        """Read a range of one version."""
        with self._at(key, version, offset, length) as body:
            pieces = list(body.pieces()) if isinstance(body, FastContent) else [memoryview(body.read())]
            return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def _rest(self, key: str, version: str, offset: int) -> BinaryIO:
        return self._at(key, version, offset, None)

    def _at(self, key: str, version: str, offset: int, length: int | None) -> BinaryIO:
        """Open a range of one version."""
        try:
            return self._opened(key, offset, length, version)[1]
        except ClientError as error:
            if code_of(error) in {"PreconditionFailed", "412", "NoSuchKey", "404"}:
                message = f"object {key!r} was written or deleted while it was read: read it again"
                raise RevisionError(ErrorCode.CONFLICT, message) from error
            raise

    def _opened(
        self, key: str, offset: int, length: int | None, version: str | None = None
    ) -> tuple[ObjectMeta, BinaryIO]:
        found = self._fast.get(encode_key(key), offset=offset, length=length, version=version)
        if found is not None:
            return _fast_meta(key, found), cast("BinaryIO", FastContent(found))
        wanted = {} if version is None else {"IfMatch": f'"{version}"'}
        if offset or length is not None:
            wanted["Range"] = f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + length - 1}"
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=encode_key(key), **wanted)
        except ClientError as error:
            if code_of(error) not in {"InvalidRange", "416"}:
                raise
            # An offset at or past the end, or any offset of an empty object.
            return self.head(key), io.BytesIO()
        total = answer.get("ContentRange", "").rpartition("/")[2]
        size = int(total) if total.isdigit() else answer["ContentLength"]
        return _meta(key, answer, size), cast("BinaryIO", Content(answer["Body"]))

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        answer = self._s3.head_object(Bucket=self._bucket, Key=encode_key(key))
        return _meta(key, answer, answer["ContentLength"])

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page. Objects have no content type and no metadata in S3's listings."""
        if delimiter and not is_plain(delimiter):
            return self._rolled_up(prefix, delimiter, token, limit)
        wanted = {"Delimiter": delimiter} if delimiter else {}
        if token is not None:
            wanted["ContinuationToken"] = token
        answer = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=search_prefix(prefix), MaxKeys=limit, **wanted)
        objects = (_listed(each) for each in answer.get("Contents", ()))
        prefixes = (decode_key(each["Prefix"]) for each in answer.get("CommonPrefixes", ()))
        return Page(
            # A prefix that ends with a space finds escapes that begin with one, too.
            objects=tuple(meta for meta in objects if meta.key.startswith(prefix)),
            prefixes=tuple(common for common in prefixes if common.startswith(prefix)),
            next_token=answer.get("NextContinuationToken"),
        )

    def _rolled_up(self, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page with a delimiter that S3 does not find where it is in the key. A token is the last name that was told."""
        objects: list[ObjectMeta] = []
        prefixes: list[str] = []
        after = base64.urlsafe_b64decode(token).decode() if token else ""
        while True:
            answer = self._s3.list_objects_v2(
                Bucket=self._bucket, Prefix=search_prefix(prefix), MaxKeys=1000, StartAfter=after
            )
            for each in answer.get("Contents", ()):
                meta = _listed(each)
                if not meta.key.startswith(prefix) or (prefixes and meta.key.startswith(prefixes[-1])):
                    continue
                if len(objects) + len(prefixes) == limit:
                    return Page(
                        objects=tuple(objects),
                        prefixes=tuple(prefixes),
                        next_token=base64.urlsafe_b64encode(after.encode()).decode(),
                    )
                cut = meta.key.find(delimiter, len(prefix))
                if cut < 0:
                    objects.append(meta)
                    after = each["Key"]
                else:
                    prefixes.append(meta.key[: cut + len(delimiter)])
                    after = search_prefix(prefixes[-1]) + _AFTER
            if not answer.get("IsTruncated"):
                return Page(objects=tuple(objects), prefixes=tuple(prefixes))
            after = max(after, answer["Contents"][-1]["Key"], key=str.encode)

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object within S3, in parts where it is too large for one request."""
        found = self._s3.head_object(Bucket=self._bucket, Key=encode_key(source))
        where = {"Bucket": self._bucket, "Key": encode_key(target)}
        what = {"ContentType": found["ContentType"], "Metadata": found["Metadata"], **self._encryption}
        size = found["ContentLength"]
        origin = {"Bucket": self._bucket, "Key": encode_key(source)}
        if size > LARGEST_COPY:
            answer = copy_in_parts(self._s3, where, what, origin, size=size, etag=found["ETag"])
            version, modified = answer["ETag"], _answered_at(answer)
        else:
            # REPLACE, because S3 refuses to copy an object onto itself as it is.
            answer = self._s3.copy_object(**where, **what, CopySource=origin, MetadataDirective="REPLACE")
            version, modified = answer["CopyObjectResult"]["ETag"], answer["CopyObjectResult"]["LastModified"]
        return ObjectMeta(
            key=target,
            size=size,
            modified_at=modified,
            content_type=found["ContentType"],
            metadata=found["Metadata"],
            version=_version(version),
        )

    def delete(self, key: str) -> None:
        """Delete an object. S3 says nothing of one that is missing, so it is looked at before."""
        where = {"Bucket": self._bucket, "Key": encode_key(key)}
        self._s3.head_object(**where)
        self._s3.delete_object(**where)

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a URL; it ends with the credentials that signed it, where these end first."""
        operation = {"GET": "get_object", "PUT": "put_object"}[method]
        where = {"Bucket": self._bucket, "Key": encode_key(key)}
        seconds = max(1, int(expires_in.total_seconds()))
        return str(self._s3.generate_presigned_url(operation, Params=where, ExpiresIn=seconds))


class Content(io.RawIOBase):
    """The content of an object that is being read. Closing it gives the connection up, which the SDK's own body does not tell."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readable(self) -> bool:
        """Return true."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all that is left."""
        return bytes(self._body.read(None if size is None or size < 0 else size))

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes came."""
        with memoryview(buffer).cast("B") as view:
            data = self._body.read(len(view))
            view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection, which may be in the middle of an answer."""
        if not self.closed:
            super().close()
            self._body.close()


def ensure_bucket(clients: Clients, bucket: str) -> None:
    """Make a bucket exist in the region; private and encrypted, as S3 makes them all since 2023."""
    s3 = clients.get("s3")
    try:
        s3.head_bucket(Bucket=bucket)
        return
    except ClientError as error:
        if classify(error) is not ErrorCode.NOT_FOUND:
            raise
    region = s3.meta.region_name
    # `us-east-1` is the one region that must not be named: CreateBucket in the API reference of S3.
    placed = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        s3.create_bucket(Bucket=bucket, **placed)
    except ClientError as error:
        # Two deployers at once.
        if code_of(error) != "BucketAlreadyOwnedByYou":
            raise


def remove_bucket(clients: Clients, bucket: str) -> None:
    """Delete an empty bucket, with the parts of uploads that were never finished.

    Raises:
        BucketNotEmptyError: It has objects.
    """
    s3 = clients.get("s3")
    if s3.list_objects_v2(Bucket=bucket, MaxKeys=1).get("Contents"):
        raise BucketNotEmptyError(f"bucket {bucket!r} has objects: delete them first")
    for upload in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
        s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    s3.delete_bucket(Bucket=bucket)


def encryption_of(settings: AwsSettings) -> Mapping[str, Any]:
    """Return how objects are encrypted: with a key of KMS, or as the bucket says, which is with S3's own keys unless it was changed."""
    if not settings.kms_key_id:
        return {}
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": settings.kms_key_id, "BucketKeyEnabled": True}


def conditions_of(attrs: PutAttributes) -> dict[str, str]:
    """Return the conditions of a write."""
    if attrs.if_absent:
        return {"IfNoneMatch": "*"}
    return {} if attrs.if_match is None else {"IfMatch": f'"{attrs.if_match}"'}


def _checksum_of(metadata: Mapping[str, str]) -> dict[str, str]:
    digest = metadata.get("sha256", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        return {"ChecksumAlgorithm": "CRC32"}
    return {"ChecksumSHA256": base64.b64encode(bytes.fromhex(digest)).decode()}


def _meta(key: str, answer: Mapping[str, Any], size: int) -> ObjectMeta:
    return ObjectMeta(
        key=key,
        size=size,
        modified_at=answer["LastModified"],
        content_type=answer.get("ContentType", "binary/octet-stream"),
        metadata=answer.get("Metadata", {}),
        version=_version(answer["ETag"]),
    )


def _fast_meta(key: str, found: GetResult) -> ObjectMeta:
    # Each of the two makes a dictionary whenever it is asked for.
    about, meta = found.attributes, found.meta
    return ObjectMeta(
        key=key,
        size=meta["size"],
        modified_at=meta["last_modified"],
        content_type=str(about.get("Content-Type", "binary/octet-stream")),
        # Those of HTTP, such as `Cache-Control`, are the only ones that begin with a capital.
        metadata={name: str(value) for name, value in about.items() if name[:1].islower()},
        version=_version(meta["e_tag"] or ""),
    )


def _listed(entry: Mapping[str, Any]) -> ObjectMeta:
    return ObjectMeta(
        key=decode_key(entry["Key"]),
        size=entry["Size"],
        modified_at=entry["LastModified"],
        content_type="",
        metadata={},
        version=_version(entry["ETag"]),
    )


def _version(etag: str) -> str:
    return etag.strip('"')


def _answered_at(answer: Mapping[str, Any]) -> datetime:
    """Return when S3 answered a write: the answer does not tell when the object was written."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)
