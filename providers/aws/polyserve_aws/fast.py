"""Contents of objects through obstore, where it is installed: a client in Rust that signs with the SDK's credentials.

What needs a condition, a key of KMS or a name that obstore would change goes through boto3, and so does everything where the SDK was
told of proxies, certificates or endpoints of its own. Errors become the SDK's own, so that there is one classification; nothing is
repeated here.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from polyserve.driver import ErrorCode, PutAttributes
from polyserve_aws.clients import CONNECTIONS, Clients, is_private
from polyserve_aws.errors import classify, explain_refusal
from polyserve_aws.parts import PARALLEL, PART_BYTES, read_part
from polyserve_aws.pieces import NOTHING, PiecedContent
from polyserve_aws.settings import AwsSettings

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import S3Credential, S3Store

__all__ = ["FastContent", "FastObjects"]

CHUNK_BYTES = 1 << 20
MOST_PARTS = 10_000
"""Parts of one upload: "Amazon S3 multipart upload limits" in its user guide, 2026-11."""
# botocore hands out credentials that are good for ten more minutes at least: `_mandatory_refresh_timeout` in botocore.credentials.
_CREDENTIALS_LAST = timedelta(minutes=10)
_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
# Names of attributes that are not metadata, as obstore reads and writes them.
_HEADERS = frozenset(
    {"cachecontrol", "contentdisposition", "contentencoding", "contentlanguage", "contenttype", "storageclass"}
)


class FastObjects:
    """Contents of the objects of one bucket, written and read.

    Args:
        clients: The SDK's clients, which know where S3 is and who asks.
        settings: Whether to do it at all.
        bucket: Name of the bucket.
    """

    def __init__(self, clients: Clients, settings: AwsSettings, bucket: str) -> None:
        self._clients = clients
        self._settings = settings
        self._bucket = bucket
        self._lock = threading.Lock()
        self._store: S3Store | None = None
        self._wanted = settings.fast_transfers and find_spec("obstore") is not None

    def put(self, name: str, data: bytes, attrs: PutAttributes) -> str | None:
        """Write an object and return its ETag, or `None` where boto3 has to.

        Raises:
            ClientError: S3 refused.
            BotoCoreError: S3 could not be reached.
        """
        store = self._open(name) if self._takes(attrs) else None
        if store is None:
            return None
        import obstore

        try:
            return obstore.put(store, name, data, attributes=_attributes(attrs), use_multipart=False)["e_tag"]
        except Exception as error:
            raised = self._translated(error, "PutObject")
            if raised is None:
                return None
            raise raised from error

    def put_in_parts(self, name: str, first: bytes, body: BinaryIO, attrs: PutAttributes) -> tuple[str, int] | None:
        """Write what was read already and the rest of a body; returns ETag and size, or `None` where boto3 has to.

        The body is as it was then. obstore takes the parts back if anything fails: it does since 0.12, and a test says so.

        Raises:
            ClientError: S3 refused.
            BotoCoreError: S3 could not be reached.
        """
        # How large parts have to be is known only where the size is.
        store = self._open(name) if self._takes(attrs) and body.seekable() else None
        if store is None:
            return None
        import obstore

        here = body.tell()
        left = body.seek(0, io.SEEK_END) - here
        body.seek(here)
        part = max(PART_BYTES, -(-(len(first) + left) // MOST_PARTS))
        size = 0

        def pieces() -> Iterator[bytes]:
            nonlocal size
            data = first
            while data:
                size += len(data)
                yield data
                data = read_part(body, part)

        try:
            done = obstore.put(
                store,
                name,
                pieces(),
                attributes=_attributes(attrs),
                use_multipart=True,
                chunk_size=part,
                max_concurrency=PARALLEL,
            )
        except Exception as error:
            raised = self._translated(error, "UploadPart")
            if raised is None:
                # Half of the body is gone.
                raise
            raise raised from error
        return done["e_tag"] or "", size

    def _takes(self, attrs: PutAttributes) -> bool:
        if self._settings.kms_key_id or attrs.if_absent or attrs.if_match is not None:
            return False
        return _HEADERS.isdisjoint(attrs.metadata)

    def get(
        self, name: str, *, offset: int = 0, length: int | None = None, version: str | None = None
    ) -> GetResult | None:
        """Open an object, or that version of it, or return `None` where boto3 has to: so it is for ranges that S3 does not have, too.

        Raises:
            ClientError: S3 refused.
            BotoCoreError: S3 could not be reached.
        """
        store = self._open(name)
        if store is None:
            return None
        import obstore

        options: Any = {}
        if length is not None:
            options["range"] = (offset, offset + length)
        elif offset:
            options["range"] = {"offset": offset}
        if version is not None:
            options["if_match"] = f'"{version}"'
        try:
            return obstore.get(store, name, options=options)
        except Exception as error:
            raised = self._translated(error, "GetObject")
            if raised is None:
                return None
            raise raised from error

    def _open(self, name: str) -> S3Store | None:
        # obstore drops a slash at either end, and knows neither empty names between slashes nor control characters.
        if not self._wanted or name.startswith("/") or name.endswith("/") or "//" in name or not name.isprintable():
            return None
        if self._store is None:
            with self._lock:
                if self._store is None:
                    self._store = self._made()
                    self._wanted = self._store is not None
        return self._store

    def _made(self) -> S3Store | None:
        s3 = self._clients.get("s3")
        url, region = s3.meta.endpoint_url, s3.meta.region_name
        special = s3.meta.config.s3 or {}
        if (
            getproxies()
            or (url.startswith("https:") and self._clients.session._session.get_config_variable("ca_bundle"))
            or any(special.get(name) for name in ("use_accelerate_endpoint", "use_dualstack_endpoint"))
            or any(getattr(s3.meta.config, name, None) for name in ("use_fips_endpoint", "use_dualstack_endpoint"))
        ):
            return None
        if not self._settings.endpoint_url:
            if url not in {f"https://s3.{region}.amazonaws.com", "https://s3.amazonaws.com"}:
                return None
            url = f"https://{self._bucket}.s3.{region}.amazonaws.com"
        found = self._clients.session.get_credentials()
        if found is None:
            return None

        def credentials() -> S3Credential:
            frozen = found.get_frozen_credentials()
            return {
                "access_key_id": str(frozen.access_key),
                "secret_access_key": str(frozen.secret_key),
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
            }

        from obstore.store import S3Store

        private = is_private(url)
        return S3Store(
            self._bucket,
            endpoint=url,
            region=region,
            virtual_hosted_style_request=not self._settings.endpoint_url,
            # Said, because what is not said is read from the environment.
            skip_signature=False,
            unsigned_payload=private,
            # S3 compares it with what it got, as it does for boto3. Other servers may not know the one that is S3's own choice.
            checksum_algorithm="crc64nvme" if private and _knows_crc64(url) else "sha256",
            client_options={
                "allow_http": url.startswith("http:"),
                "connect_timeout": "5s",
                "read_timeout": "60s",
                # Of a whole request; a large object takes what it takes, as long as something comes.
                "timeout": "1d",
                "pool_max_idle_per_host": str(CONNECTIONS),
            },
            retry_config={"max_retries": 0},
            credential_provider=credentials,
        )

    def _translated(self, error: Exception, operation: str) -> Exception | None:
        """Return the SDK's error that says the same, or `None` where boto3 shall find out."""
        text = str(error)
        found = _STATUS.search(text)
        if found is None and "Server returned error response" not in text:
            return _of_transport(text, self._clients.get("s3").meta.endpoint_url)
        # S3 may find out that it cannot put parts together after it said 200.
        status = int(found[1]) if found else 500
        if status == 416:
            return None
        code, message = _CODE.search(text), _MESSAGE.search(text)
        parsed: Any = {
            "Error": {"Code": code[1] if code else str(status), "Message": message[1] if message else ""},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}},
        }
        model = self._clients.get("s3").meta.service_model.operation_model(operation)
        explain_refusal(SimpleNamespace(status_code=status), parsed, model)
        translated: Exception = ClientError(parsed, operation)
        if classify(translated) is ErrorCode.UNAUTHENTICATED:
            # The next one asks the SDK for credentials anew.
            self._store = None
        return translated


def _knows_crc64(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn")) or not url.startswith("https:")


def _attributes(attrs: PutAttributes) -> Any:
    return {**attrs.metadata, "Content-Type": attrs.content_type}


def _of_transport(text: str, url: str) -> BotoCoreError | None:
    kind: Any = None
    if "kind: Timeout" in text or "TimedOut" in text:
        kind = exceptions.ReadTimeoutError
    elif "kind: Connect" in text:
        kind = exceptions.EndpointConnectionError
    elif "HTTP error" in text:
        kind = exceptions.ConnectionClosedError
    return cast("BotoCoreError", kind(endpoint_url=url)) if kind else None


def _broken(text: str) -> BotoCoreError:
    if "TimedOut" in text:
        return cast("BotoCoreError", exceptions.ReadTimeoutError(endpoint_url="while an object was read"))
    return cast("BotoCoreError", exceptions.ResponseStreamingError(error=text.partition("\n")[0]))


class FastContent(PiecedContent):
    """The content of an object that is being read, piece by piece as it comes.

    Args:
        found: What is being read.
    """

    def __init__(self, found: GetResult) -> None:
        super().__init__()
        self._found = found
        # A stream costs more than all of a small object at once.
        first, last = found.range
        self._small = last - first <= PART_BYTES
        self._chunks: Any = None if self._small else found.stream(min_chunk_size=CHUNK_BYTES)

    def _next(self) -> memoryview | None:
        try:
            if self._small:
                self._small = False
                return memoryview(self._found.bytes())
            return None if self._chunks is None else memoryview(next(self._chunks))
        except StopIteration:
            self._chunks = None
            return None
        except Exception as error:
            raise _broken(str(error)) from error

    def close(self) -> None:
        """Give up what has not come yet."""
        if not self.closed:
            super().close()
            self._chunks, self._piece, self._small = None, NOTHING, False
