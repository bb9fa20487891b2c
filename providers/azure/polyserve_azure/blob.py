"""Blob Storage as an object store: one container, keys as `keys` writes them, versions are entity tags.

Small objects go up in one request, large ones in blocks, several at a time. Conditions are decided by the service, for a large object when
its blocks are put together.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobSasPermissions, ContentSettings, generate_blob_sas

from polyserve.driver import ErrorCode, ObjectMeta, Page, PutAttributes
from polyserve_azure.errors import AppError, PreconditionError, code_of
from polyserve_azure.keys import decode_key, encode_key, is_plain, search_prefix
from polyserve_azure.storage import BLOCK_BYTES, Accounts

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

    from polyserve_azure.settings import AzureSettings

__all__ = ["AzureStore"]

PARALLEL = 4
"""Blocks of one object that are on their way at once."""
CLOCKS = timedelta(minutes=5)
"""How far the clocks of signer and service may be apart."""


class AzureStore:
    """One container. Implements `polyserve.driver.ObjectStore`.

    Args:
        accounts: The account that it is in.
        settings: How objects are encrypted.
        bucket: Name of the container; need not exist yet.
    """

    def __init__(self, accounts: Accounts, settings: AzureSettings, bucket: str) -> None:
        self._accounts = accounts
        self._bucket = bucket
        scope = settings.encryption_scope
        self._encryption: dict[str, Any] = {"encryption_scope": scope} if scope else {}

    def put(self, key: str, body: BinaryIO, *, attrs: PutAttributes) -> ObjectMeta:
        """Write an object, in one request where it fits one block."""
        name = encode_key(key)
        first = _read(body, BLOCK_BYTES)
        small = len(first) < BLOCK_BYTES
        counted = _Counted(first, body)
        what: dict[str, Any] = {
            "metadata": dict(attrs.metadata),
            "content_settings": ContentSettings(content_type=attrs.content_type),
            **self._encryption,
            **_conditions(attrs),
        }

        def upload(container: ContainerClient) -> Any:
            blob = container.get_blob_client(name)
            if small:
                return blob.upload_blob(first, length=len(first), **what)
            if counted.size:
                message = "the account's key was renewed while the object went up: begin again"
                raise AppError(ErrorCode.UNAVAILABLE, message)
            return blob.upload_blob(cast("Any", counted), max_concurrency=PARALLEL, **what)

        try:
            answer = self._accounts.using(self._bucket, upload)
        except HttpResponseError as error:
            if attrs.if_match is not None and code_of(error) == "BlobNotFound":
                # The service says that there is nothing to match.
                message = f"object {key!r} of version {attrs.if_match!r} does not exist any more"
                raise PreconditionError(message) from error
            raise
        return ObjectMeta(
            key=key,
            size=len(first) if small else counted.size,
            modified_at=answer["last_modified"],
            content_type=attrs.content_type,
            metadata=dict(attrs.metadata),
            version=_version(answer["etag"]),
        )

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> tuple[ObjectMeta, BinaryIO]:
        """Open an object. What is read is one version of it, whatever is written meanwhile."""
        if length == 0:
            return self.head(key), io.BytesIO()
        name, total = encode_key(key), list[int]()

        def note(response: Any) -> None:
            told = response.http_response.headers.get("Content-Range", "").rpartition("/")[2]
            if told.isdigit() and not total:
                total.append(int(told))

        def open_it(container: ContainerClient) -> Any:
            return container.download_blob(name, offset=offset, length=length, raw_response_hook=note)

        try:
            found = self._accounts.using(self._bucket, open_it)
        except HttpResponseError as error:
            if error.status_code != 416:
                raise
            # An offset at or past the end, or any offset of an empty object.
            return self.head(key), io.BytesIO()
        size = total[0] if total else int(found.properties.size)
        return _meta(key, found.properties, size), cast("BinaryIO", Content(found))

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        found = self._properties(key)
        return _meta(key, found, int(found.size))

    def _properties(self, key: str) -> Any:
        name = encode_key(key)
        return self._accounts.using(
            self._bucket, lambda container: container.get_blob_client(name).get_blob_properties()
        )

    def list_page(self, *, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page, content types included."""
        # Longer ones are Azure's, too, but Azurite does not find them.
        if delimiter and (len(delimiter) > 1 or not is_plain(delimiter)):
            return self._rolled_up(prefix, delimiter, token, limit)
        objects: list[ObjectMeta] = []
        prefixes: list[str] = []
        page, following = self._page(search_prefix(prefix), delimiter, token, limit)
        for each in page:
            name = str(each.name)
            if delimiter and not hasattr(each, "etag"):
                common = decode_key(name)
                if common.startswith(prefix):
                    prefixes.append(common)
                continue
            key = decode_key(name)
            # A prefix that ends with a space or a bracket finds escapes that begin with one, too.
            if key.startswith(prefix):
                objects.append(_meta(key, each, int(each.size)))
        return Page(objects=tuple(objects), prefixes=tuple(prefixes), next_token=following)

    def _page(self, start: str, delimiter: str, token: str | None, limit: int) -> tuple[list[Any], str | None]:
        def ask(container: ContainerClient) -> tuple[list[Any], str | None]:
            wanted: dict[str, Any] = {"name_starts_with": start or None, "results_per_page": limit}
            found = container.walk_blobs(delimiter=delimiter, **wanted) if delimiter else container.list_blobs(**wanted)
            pages = found.by_page(continuation_token=token)
            entries = list(next(pages, iter(())))
            return entries, cast("Any", pages).continuation_token or None

        return self._accounts.using(self._bucket, ask)

    def _rolled_up(self, prefix: str, delimiter: str, token: str | None, limit: int) -> Page:
        """List one page with a delimiter that the service does not find where it is in the key.

        The service cannot begin behind a name, so what was told is skipped; a token is the last key, or the last prefix, that was.
        """
        told, whole = (base64.urlsafe_b64decode(token[1:]), token[0] == "p") if token else (b"", False)
        objects: list[ObjectMeta] = []
        prefixes: list[str] = []
        marker: str | None = None
        while True:
            page, marker = self._page(search_prefix(prefix), "", marker, 1000)
            for each in page:
                key = decode_key(str(each.name))
                raw = key.encode()
                if not key.startswith(prefix) or (token and (raw <= told or (whole and raw.startswith(told)))):
                    continue
                if prefixes and key.startswith(prefixes[-1]):
                    continue
                if len(objects) + len(prefixes) == limit:
                    return Page(objects=tuple(objects), prefixes=tuple(prefixes), next_token=_token(objects, prefixes))
                cut = key.find(delimiter, len(prefix))
                if cut < 0:
                    objects.append(_meta(key, each, int(each.size)))
                else:
                    prefixes.append(key[: cut + len(delimiter)])
            if marker is None:
                return Page(objects=tuple(objects), prefixes=tuple(prefixes))

    def copy(self, source: str, target: str) -> ObjectMeta:
        """Copy an object within the account, which takes no time.

        Raises:
            AppError: It does take time: to be asked again.
        """
        found = self._properties(source)
        origin, name = encode_key(source), encode_key(target)

        def begin(container: ContainerClient) -> Any:
            url = container.get_blob_client(origin).url
            where = {"source_etag": found.etag, "source_match_condition": MatchConditions.IfNotModified}
            return container.get_blob_client(name).start_copy_from_url(url, **where, **self._encryption)

        answer = self._accounts.using(self._bucket, begin)
        if answer.get("copy_status") == "pending":
            raise AppError(ErrorCode.UNAVAILABLE, f"the copy of {source!r} is not finished yet")
        return ObjectMeta(
            key=target,
            size=int(found.size),
            modified_at=answer["last_modified"],
            content_type=found.content_settings.content_type or "application/octet-stream",
            metadata=dict(found.metadata or {}),
            version=_version(answer["etag"]),
        )

    def delete(self, key: str) -> None:
        """Delete an object with its snapshots."""
        name = encode_key(key)
        self._accounts.using(
            self._bucket, lambda container: container.get_blob_client(name).delete_blob(delete_snapshots="include")
        )

    def sign(self, key: str, *, method: Literal["GET", "PUT"], expires_in: timedelta) -> str:
        """Return a URL with a signature of the account's key, or of one that the caller's token was given for seven days at most.

        A PUT needs the header `x-ms-blob-type: BlockBlob`.
        """
        access, name = self._accounts.access(), encode_key(key)
        begins, ends = datetime.now(UTC) - CLOCKS, datetime.now(UTC) + expires_in
        keys: dict[str, Any] = {"account_key": access.key}
        if not access.key:
            keys = {"user_delegation_key": access.client.get_user_delegation_key(begins, ends)}
        read = method == "GET"
        permission = BlobSasPermissions(read=True) if read else BlobSasPermissions(create=True, write=True)
        signature = generate_blob_sas(
            access.name,
            self._bucket,
            name,
            **keys,
            permission=permission,
            start=begins,
            expiry=ends,
        )
        return f"{access.client.get_blob_client(self._bucket, name).url}?{signature}"


class Content(io.RawIOBase):
    """The content of an object that is being read, chunk by chunk; no connection is held between them."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def readable(self) -> bool:
        """Return true."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all that is left."""
        return bytes(self._found.read(-1 if size is None or size < 0 else size)) if size != 0 else b""

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes came."""
        with memoryview(buffer).cast("B") as view:
            data = self.read(len(view))
            view[: len(data)] = data
        return len(data)


class _Counted(io.RawIOBase):
    """What was read of a body and the rest of it, counted."""

    def __init__(self, first: bytes, rest: BinaryIO) -> None:
        self._first = io.BytesIO(first)
        self._rest = rest
        self.size = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        wanted = -1 if size is None else size
        data = self._first.read(wanted)
        if wanted < 0 or len(data) < wanted:
            data += self._rest.read() if wanted < 0 else _read(self._rest, wanted - len(data))
        self.size += len(data)
        return data


def _read(body: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or all that is left where that is less."""
    pieces, missing = [], size
    while missing and (data := body.read(missing)):
        pieces.append(data)
        missing -= len(data)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _conditions(attrs: PutAttributes) -> Mapping[str, Any]:
    if attrs.if_absent:
        return {"overwrite": False}
    if attrs.if_match is not None:
        return {"overwrite": True, "etag": f'"{attrs.if_match}"', "match_condition": MatchConditions.IfNotModified}
    return {"overwrite": True}


def _meta(key: str, found: Any, size: int) -> ObjectMeta:
    return ObjectMeta(
        key=key,
        size=size,
        modified_at=found.last_modified,
        content_type=found.content_settings.content_type or "application/octet-stream",
        metadata=dict(found.metadata or {}),
        version=_version(found.etag),
    )


def _token(objects: list[ObjectMeta], prefixes: list[str]) -> str:
    last = max(
        [*(("o", meta.key) for meta in objects[-1:]), *(("p", each) for each in prefixes[-1:])],
        key=lambda one: one[1].encode(),
    )
    return last[0] + base64.urlsafe_b64encode(last[1].encode()).decode()


def _version(etag: str) -> str:
    return etag.strip('"')
