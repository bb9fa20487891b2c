"""Contents through obstore and through boto3: one contract, and what only one of the two could get wrong."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polyserve.bucket import Bucket
from polyserve.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    PolyserveError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from polyserve.testing.stores import ObjectStoreContract
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

LARGE = bytes(range(251)) * 80_000


@pytest.fixture(scope="module")
def harness(harness_of: Callable[..., Any]) -> Iterator[Any]:
    """Give the harness of AWS with fast transfers off."""
    found = harness_of("aws", fast_transfers=False)
    yield found
    assert list(found.inventory()) == []


class TestStoreThroughBoto3(ObjectStoreContract):
    """The contract without obstore; with it, the suite of all providers runs."""


class _S3:
    """A server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append((self.command, self.path, self.headers["user-agent"]))
                status, body = 200, b""
                if "uploads" in self.path:
                    body = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
                elif self.command == "POST":
                    body = b'<CompleteMultipartUploadResult><ETag>"w"</ETag></CompleteMultipartUploadResult>'
                for pattern, (code, name) in outer.refuse.items():
                    if re.search(pattern, f"{self.command} {self.path}"):
                        status, body = code, f"<Error><Code>{name}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("ETag", '"p"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def s3() -> Iterator[_S3]:
    server = _S3()
    yield server
    server.close()


def bucket_at(s3: _S3, directory: Path, **changed: Any) -> Iterator[Bucket]:
    credentials = directory / "credentials"
    credentials.write_text("[default]\naws_access_key_id = AKID\naws_secret_access_key = secret\n")
    provider = AwsProvider(
        AwsSettings(endpoint_url=s3.url, region="eu-central-1", shared_credentials_file=str(credentials), **changed)
    )
    yield Bucket(provider, "models")
    provider.close()


@pytest.fixture
def fast(s3: _S3, tmp_path: Path) -> Iterator[Bucket]:
    yield from bucket_at(s3, tmp_path)


@pytest.fixture
def plain(s3: _S3, tmp_path: Path) -> Iterator[Bucket]:
    yield from bucket_at(s3, tmp_path, fast_transfers=False)


def agents(s3: _S3) -> set[str]:
    return {agent.partition("/")[0] for _, _, agent in s3.asked}


def test_contents_go_through_obstore_unless_the_setting_says_no(s3: _S3, fast: Bucket, plain: Bucket) -> None:
    fast.put("k", b"small")
    fast.put("k", LARGE)
    assert "Boto3" not in agents(s3)
    s3.asked.clear()

    plain.put("k", b"small")
    plain.put("k", LARGE)
    assert agents(s3) == {"Boto3"}


def test_what_obstore_cannot_do_goes_through_boto3(s3: _S3, fast: Bucket, tmp_path: Path) -> None:
    fast.put("k", b"x", if_absent=True)
    fast.put("k", LARGE, if_match="p")
    fast.put("a//b", b"x")
    fast.put("/a", b"x")
    fast.put("k", b"x", metadata={"contenttype": "mine"})
    encrypted = bucket_at(s3, tmp_path, kms_key_id="alias/models")
    next(encrypted).put("k", b"x")
    next(encrypted, None)

    assert agents(s3) == {"Boto3"}


@pytest.mark.parametrize("way", ["fast", "plain"])
def test_a_large_upload_that_fails_is_taken_back_and_not_repeated(
    s3: _S3, request: pytest.FixtureRequest, way: str
) -> None:
    s3.refuse = {r"PUT .*partNumber=2\b": (503, "SlowDown")}

    with pytest.raises(ResourceExhaustedError):
        request.getfixturevalue(way).put("k", LARGE)

    assert len([path for method, path, _ in s3.asked if method == "PUT" and "partNumber=2&" in path + "&"]) == 1
    assert [path for method, path, _ in s3.asked if method == "DELETE"] != []
    assert [path for method, path, _ in s3.asked if method == "POST" and "uploads" not in path] == []


@pytest.mark.parametrize("way", ["fast", "plain"])
def test_parts_that_cannot_be_put_together_after_all_are_taken_back(
    s3: _S3, request: pytest.FixtureRequest, way: str
) -> None:
    s3.refuse = {r"POST .*uploadId": (200, "InternalError")}

    with pytest.raises(UnavailableError):
        request.getfixturevalue(way).put("k", LARGE)

    assert [path for method, path, _ in s3.asked if method == "DELETE"] != []


class _Breaks(io.BytesIO):
    """A file that can be hashed and then not be read to its end again."""

    again = False

    def seek(self, offset: int, whence: int = 0) -> int:
        self.again = self.again or whence == 0
        return super().seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        self._break()
        return super().read(size)

    def readinto(self, buffer: Any) -> int:
        self._break()
        return super().readinto(buffer)

    def _break(self) -> None:
        if self.again and self.tell() > 9 << 20:
            raise OSError("the disk is gone")


@pytest.mark.parametrize("way", ["fast", "plain"])
def test_a_body_that_breaks_leaves_no_parts(s3: _S3, request: pytest.FixtureRequest, way: str) -> None:
    with pytest.raises(PolyserveError, match="the disk is gone"):
        request.getfixturevalue(way).put("k", _Breaks(LARGE))

    assert [path for method, path, _ in s3.asked if method == "DELETE"] != []
    assert [path for method, path, _ in s3.asked if method == "POST" and "uploads" not in path] == []


@pytest.mark.parametrize("way", ["fast", "plain"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", ResourceExhaustedError),
        (500, "InternalError", UnavailableError),
        (404, "NoSuchKey", NotFoundError),
        (403, "AccessDenied", PermissionDeniedError),
        (403, "SignatureDoesNotMatch", UnauthenticatedError),
        (400, "ExpiredToken", UnauthenticatedError),
        (412, "PreconditionFailed", FailedPreconditionError),
    ],
)
def test_an_error_is_the_same_both_ways_and_one_request(
    s3: _S3, request: pytest.FixtureRequest, way: str, status: int, code: str, expected: type[PolyserveError]
) -> None:
    bucket = request.getfixturevalue(way)
    s3.refuse = {"": (status, code)}

    for verb in (lambda: bucket.put("k", b"x"), lambda: bucket.get("k")):
        s3.asked.clear()
        with pytest.raises(expected) as raised:
            verb()
        assert raised.value.__cause__ is not None
        assert len(s3.asked) == 1


def test_a_refusal_names_the_permission(s3: _S3, fast: Bucket) -> None:
    s3.refuse = {"": (403, "AccessDenied")}

    with pytest.raises(PermissionDeniedError, match="s3:PutObject"):
        fast.put("k", b"x")
    with pytest.raises(PermissionDeniedError, match="s3:GetObject"):
        fast.get("k")


def test_a_server_that_is_not_there_is_unavailable(s3: _S3, fast: Bucket) -> None:
    s3.close()

    with pytest.raises(UnavailableError):
        fast.put("k", b"x")
    with pytest.raises(UnavailableError):
        fast.get("k")


@pytest.mark.parametrize("changed", [{}, {"fast_transfers": False}], ids=["fast", "plain"])
def test_a_large_object_comes_back_whole_with_all_that_was_said_of_it(
    aws: Any, bucket: str, tmp_path: Path, changed: dict[str, Any]
) -> None:
    provider = AwsProvider(AwsSettings(**{**aws.options, **changed}))
    objects = Bucket(provider, bucket)
    file = io.BytesIO(b"skipped" + LARGE)
    file.seek(7)

    meta = objects.put("a b/ü%2F+", file, content_type="image/png", metadata={"author": "me"})

    raw = aws.raw_get(bucket, "a b/ü%2F+")
    assert (raw.body == LARGE, raw.content_type, raw.metadata["author"]) == (True, "image/png", "me")
    assert (meta.size, meta.version) == (len(LARGE), objects.head("a b/ü%2F+").version)
    found = objects.download("a b/ü%2F+", tmp_path / "file")
    assert (found.version, found.content_type, found.metadata) == (meta.version, "image/png", meta.metadata)
    assert hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest() == meta.metadata["sha256"]
    with objects.open("a b/ü%2F+", offset=9_000_000, length=5) as body:
        assert (body.read(), body.meta.size) == (LARGE[9_000_000:9_000_005], len(LARGE))
    provider.close()
