"""A container registry over its HTTP API v2 (the OCI distribution specification): blobs and manifests, looked up, mounted, pushed, read.

No daemon and no container tool: a few requests. Everything is named by its digest, so what is there is never sent again, and a push that
was cut short goes on where it was. Knows nothing of what an image is made of.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import httpx

from polyserve.bundle.references import is_loopback
from polyserve.bundle.registry_auth import Authorizer, Credentials
from polyserve.driver import ErrorCode
from polyserve.errors import InternalError, PolyserveError, UnavailableError, error_for

__all__ = ["Blob", "Manifest", "Registry"]

T = TypeVar("T")

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CHUNK_BYTES = 256 << 20
"""Size above which a blob goes up in pieces: a connection that breaks costs one of them and not the whole."""

ATTEMPTS = 5
_PIECE = 1 << 20
_LARGEST_MANIFEST = 4 << 20
"""What the specification lets registries refuse."""

_CODES = {
    400: ErrorCode.INVALID_ARGUMENT,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.UNSUPPORTED,
    408: ErrorCode.UNAVAILABLE,
    409: ErrorCode.CONFLICT,
    413: ErrorCode.INVALID_ARGUMENT,
    415: ErrorCode.UNSUPPORTED,
    416: ErrorCode.CONFLICT,
    429: ErrorCode.RESOURCE_EXHAUSTED,
}
_WAYS_OUT = {
    ErrorCode.UNAUTHENTICATED: "log in again, or give other credentials",
    ErrorCode.PERMISSION_DENIED: "ask for the right to push to and pull from this repository",
    ErrorCode.NOT_FOUND: "make the repository, or give the name of one that exists",
}
_NO_MOUNT = {ErrorCode.UNAUTHENTICATED, ErrorCode.PERMISSION_DENIED, ErrorCode.NOT_FOUND, ErrorCode.UNSUPPORTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob to push.

    Attributes:
        digest: `sha256:...` of its content.
        size: In bytes.
        open: Opens it from its start; called again for another try.
    """

    digest: str
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or an index as the registry has it; `digest` is of `body`, compared here."""

    media_type: str
    body: bytes
    digest: str


class Registry:
    """One registry. Thread-safe; close it, or use it in a `with` statement.

    Args:
        host: Its host, with the port where it has one.
        credentials: Who asks; without them only what is public can be read.
        plain_http: Whether it is spoken to without encryption; by default only on this machine.
        chunk_bytes: Size above which a blob goes up in pieces of that size.
        timeout: How long one step of a request may take: connecting, or a pause in the middle.
        transport: What carries the requests; for tests.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: Credentials | None = None,
        plain_http: bool | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        timeout: timedelta = timedelta(seconds=60),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        plain = is_loopback(host) if plain_http is None else plain_http
        self.host = host
        self._base = httpx.URL(f"{'http' if plain else 'https'}://{host}")
        self._chunk_bytes = chunk_bytes
        self._client = httpx.Client(
            auth=Authorizer(self._base.netloc.decode("ascii"), credentials),
            timeout=timeout.total_seconds(),
            headers={"user-agent": "polyserve"},
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    # --- blobs ----------------------------------------------------------------------------------------------------------

    def has_blob(self, repository: str, digest: str) -> bool:
        """Return whether a repository has a blob."""
        response = self._send("HEAD", f"{repository}/blobs/{digest}", _pull(repository), ok=(200, 404), follow=True)
        return response.status_code == 200

    def mount_blob(self, repository: str, digest: str, source: str) -> bool:
        """Take a blob over from another repository of this registry, without sending it; false where the registry does not."""
        scope = f"{_push(repository)} {_pull(source)}"
        query = {"mount": digest, "from": source}
        try:
            response = self._send("POST", f"{repository}/blobs/uploads/", scope, ok=(201, 202), query=query)
        except PolyserveError as error:
            # Who may push here may not have the right to read there: then it is sent, and refused or not by itself.
            if error.code in _NO_MOUNT:
                return False
            raise
        if response.status_code == 201:
            return True
        # It began an upload instead, as the specification allows; nobody is going to finish this one.
        location = self._location(response)
        if location is not None:
            self._request("DELETE", location, _push(repository))
        return False

    def push_blob(self, repository: str, blob: Blob, told: Callable[[int], None] = lambda done: None) -> None:
        """Send a blob. Look first whether it is there: `has_blob`.

        Args:
            repository: Where it goes.
            blob: The blob.
            told: Called with the number of bytes that have gone up, now and then.

        Raises:
            InternalError: What arrived is not what was sent: the digest differs.
            PolyserveError: The registry refuses it, or does not answer.
        """
        if blob.size > self._chunk_bytes:
            self._push_in_pieces(repository, blob, told)
        else:
            self._retrying(lambda: self._push_whole(repository, blob, told))

    def read_blob(self, repository: str, digest: str, limit: int = _LARGEST_MANIFEST) -> bytes:
        """Return a small blob, such as an image's configuration.

        Raises:
            InternalError: It is not what its digest says, or is larger than `limit` bytes.
        """
        data = bytearray()
        for piece in self.stream_blob(repository, digest):
            data += piece
            if len(data) > limit:
                raise self._damaged("pull", f"{repository}@{digest}", f"it has more than {limit:,} bytes")
        return bytes(data)

    def stream_blob(self, repository: str, digest: str) -> Iterator[bytes]:
        """Yield a blob piece by piece; raises at its end where it is not what its digest says.

        Raises:
            InternalError: It is not what its digest says.
            NotFoundError: The repository has no such blob.
        """
        seen = hashlib.sha256()
        with self._opened(f"{repository}/blobs/{digest}", _pull(repository)) as response:
            for piece in response.iter_bytes(_PIECE):
                seen.update(piece)
                yield piece
        if f"sha256:{seen.hexdigest()}" != digest:
            raise self._damaged("pull", f"{repository}@{digest}", f"its content has sha256:{seen.hexdigest()}")

    # --- manifests ------------------------------------------------------------------------------------------------------

    def manifest(self, repository: str, reference: str) -> Manifest:
        """Return the manifest of a tag or a digest.

        Raises:
            NotFoundError: There is none.
            InternalError: It is not what its digest says.
        """
        accept = {"accept": ", ".join(MANIFEST_TYPES)}
        response = self._send(
            "GET", f"{repository}/manifests/{reference}", _pull(repository), headers=accept, follow=True
        )
        body = response.content
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.startswith("sha256:") and reference != digest:
            raise self._damaged("pull", f"{repository}@{reference}", f"its content has {digest}")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip()
        return Manifest(media_type=media_type, body=body, digest=digest)

    def has_manifest(self, repository: str, reference: str, digest: str) -> bool:
        """Return whether a tag or a digest is the manifest of that digest."""
        accept = {"accept": ", ".join(MANIFEST_TYPES)}
        path = f"{repository}/manifests/{reference}"
        response = self._send("HEAD", path, _pull(repository), headers=accept, ok=(200, 404), follow=True)
        return response.status_code == 200 and response.headers.get("docker-content-digest") == digest

    def put_manifest(self, repository: str, reference: str, manifest: Manifest) -> None:
        """Write a manifest under a tag or its digest; the blobs that it names must be there.

        Raises:
            InternalError: The registry understood something else: it answers with another digest.
        """
        response = self._send(
            "PUT",
            f"{repository}/manifests/{reference}",
            _push(repository),
            ok=(201,),
            headers={"content-type": manifest.media_type},
            body=manifest.body,
        )
        told = response.headers.get("docker-content-digest", manifest.digest)
        if told != manifest.digest:
            raise self._damaged("push", f"{repository}:{reference}", f"it is kept as {told}, and is {manifest.digest}")

    # --- one upload -----------------------------------------------------------------------------------------------------

    def _begin(self, repository: str) -> tuple[httpx.URL, int]:
        response = self._request("POST", self._url(f"{repository}/blobs/uploads/"), _push(repository))
        self._check(response, "push to", repository, (202,))
        smallest = response.headers.get("oci-chunk-min-length", "")
        return self._place(response, repository), int(smallest) if smallest.isdigit() else 0

    def _push_whole(self, repository: str, blob: Blob, told: Callable[[int], None]) -> None:
        place, _ = self._begin(repository)
        with blob.open() as file:
            self._finish(repository, blob, place, _pieces(file, blob.size, told), blob.size)

    def _push_in_pieces(self, repository: str, blob: Blob, told: Callable[[int], None]) -> None:
        place, smallest = self._retrying(lambda: self._begin(repository))
        step, done, failures = max(self._chunk_bytes, smallest), 0, 0
        with blob.open() as file:
            while done < blob.size:
                count = min(step, blob.size - done)
                file.seek(done)
                headers = {
                    "content-range": f"{done}-{done + count - 1}",
                    "content-length": str(count),
                    "content-type": "application/octet-stream",
                }
                pieces = _pieces(file, count, lambda more, before=done: told(before + more))  # type: ignore[misc]
                try:
                    response = self._request("PATCH", place, _push(repository), headers=headers, body=pieces)
                    self._check(response, "push to", repository, (202,))
                    place, done = self._place(response, repository), done + count
                except PolyserveError as error:
                    # 416: it has another number of bytes than we think, as after an answer that was lost.
                    failures += 1
                    if failures >= ATTEMPTS or not (error.retryable or error.code is ErrorCode.CONFLICT):
                        raise
                    place, done = self._retrying(lambda place=place: self._where(repository, place))  # type: ignore[misc]
        self._retrying(lambda: self._finish(repository, blob, place, None, 0))

    def _where(self, repository: str, place: httpx.URL) -> tuple[httpx.URL, int]:
        """Ask how far an upload is."""
        response = self._request("GET", place, _push(repository))
        self._check(response, "push to", repository, (204,))
        # An upload without a byte is at 0-0, too; our pieces are larger than one.
        last = re.search(r"-(\d+)", response.headers.get("range", "0-0"))
        count = int(last[1]) if last else 0
        return self._place(response, repository), count + 1 if count else 0

    def _finish(self, repository: str, blob: Blob, place: httpx.URL, body: Iterator[bytes] | None, size: int) -> None:
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        url = place.copy_merge_params({"digest": blob.digest})
        response = self._request("PUT", url, _push(repository), headers=headers, body=body)
        if response.status_code == 400 and "DIGEST_INVALID" in _reason(response):
            raise self._damaged("push", f"{repository}@{blob.digest}", _reason(response))
        self._check(response, "push to", repository, (201,))

    def _place(self, response: httpx.Response, repository: str) -> httpx.URL:
        location = self._location(response)
        if location is None:
            raise self._damaged("push to", repository, "it accepts the upload and does not say where")
        return location

    def _location(self, response: httpx.Response) -> httpx.URL | None:
        location = response.headers.get("location")
        return response.request.url.join(location) if location else None

    # --- one request ----------------------------------------------------------------------------------------------------

    def _url(self, path: str) -> httpx.URL:
        return self._base.copy_with(path=f"/v2/{path}")

    def _send(
        self,
        method: str,
        path: str,
        scope: str,
        *,
        ok: tuple[int, ...] = (200,),
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        follow: bool = False,
    ) -> httpx.Response:
        """Send a request that can be repeated, until it is answered or it is of no use."""
        url = self._url(path).copy_merge_params(query or {})

        def once() -> httpx.Response:
            response = self._request(method, url, scope, headers=headers, body=body, follow=follow)
            return self._check(response, "push to" if method in {"POST", "PUT"} else "pull", path, ok)

        return self._retrying(once)

    def _request(
        self,
        method: str,
        url: httpx.URL,
        scope: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | Iterator[bytes] | None = None,
        follow: bool = False,
    ) -> httpx.Response:
        with self._connected(method, url):
            request = self._client.build_request(
                method, url, headers=headers, content=body, extensions={"scope": scope}
            )
            return self._client.send(request, follow_redirects=follow)

    @contextmanager
    def _opened(self, path: str, scope: str) -> Iterator[httpx.Response]:
        url = self._url(path)
        with self._connected("GET", url):
            request = self._client.build_request("GET", url, extensions={"scope": scope})
            response = self._client.send(request, stream=True, follow_redirects=True)
            try:
                if response.status_code != 200:
                    response.read()
                self._check(response, "pull", path, (200,))
                yield response
            finally:
                response.close()

    @contextmanager
    def _connected(self, method: str, url: httpx.URL) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.StreamError) as error:
            reason = str(error) or type(error).__name__
            message = f"{method} {url.path!r} failed on registry {self.host!r}: {reason}"
            raise UnavailableError(message, operation=method, resource=url.path) from error

    def _check(self, response: httpx.Response, operation: str, resource: str, ok: tuple[int, ...]) -> httpx.Response:
        if response.status_code in ok:
            return response
        status = response.status_code
        code = _CODES.get(status, ErrorCode.UNAVAILABLE if status >= 500 else ErrorCode.INTERNAL)
        way_out = f"; {_WAYS_OUT[code]}" if code in _WAYS_OUT else ""
        wait = response.headers.get("retry-after", "")
        message = f"{operation} {resource!r} failed on registry {self.host!r}: {_reason(response)}{way_out}"
        raise error_for(code)(
            message,
            operation=operation,
            resource=resource,
            retry_after=timedelta(seconds=int(wait)) if wait.isdigit() else None,
        )

    def _damaged(self, operation: str, resource: str, reason: str) -> InternalError:
        message = f"{operation} {resource!r} failed on registry {self.host!r}: {reason}"
        return InternalError(message, operation=operation, resource=resource)

    @staticmethod
    def _retrying(act: Callable[[], T]) -> T:
        """Do something that can be repeated, until it is done or it is of no use."""
        import stamina

        logger = logging.getLogger("stamina")
        if not logger.handlers:
            # A retry that succeeds is nobody's business unless logging is set up: Python would print it on standard error.
            logger.addHandler(logging.NullHandler())

        def pause(error: Exception) -> bool | timedelta:
            if not isinstance(error, PolyserveError) or not error.retryable:
                return False
            return error.retry_after or True

        patience = {"attempts": ATTEMPTS, "timeout": None, "wait_initial": 0.1, "wait_max": 5.0, "wait_jitter": 0.1}
        for attempt in stamina.retry_context(on=pause, **patience):  # type: ignore[arg-type]
            with attempt:
                return act()
        raise AssertionError("stamina raises what the last attempt raised")


def _pull(repository: str) -> str:
    return f"repository:{repository}:pull"


def _push(repository: str) -> str:
    return f"repository:{repository}:pull,push"


def _pieces(file: BinaryIO, count: int, told: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    while done < count and (data := file.read(min(_PIECE, count - done))):
        yield data
        done += len(data)
        told(done)


def _reason(response: httpx.Response) -> str:
    """Return why a registry refuses: codes and messages of the specification's form, or the beginning of what it says."""
    try:
        errors = json.loads(response.content)["errors"]
        told = "; ".join(f"{each.get('code', '')} {each.get('message', '')}".strip() for each in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        told = response.content[:200].decode(errors="replace").strip()
    return f"status {response.status_code}" + (f" ({told})" if told else "")
