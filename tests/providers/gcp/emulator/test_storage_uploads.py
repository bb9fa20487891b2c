"""Resumable uploads: chunk by chunk, interrupted, wrong, given up; and uploads in parts over the XML API."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from google.api_core import exceptions
from google.auth.transport.requests import AuthorizedSession

if TYPE_CHECKING:
    from google.cloud import storage

QUARTER = 256 * 1024
ONCE: dict[str, Any] = {"retry": None}


def put(url: str, body: bytes, given: str, **headers: str) -> httpx.Response:
    fields = {"content-range": given} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.put(url, content=body, headers=fields)


class TestSessions:
    """Sessions as Google's client drives them."""

    @pytest.mark.parametrize("known", [True, False])
    def test_chunks_become_an_object(self, bucket: storage.Bucket, known: bool) -> None:
        body = os.urandom(3 * QUARTER + 12345)
        blob = bucket.blob("big", chunk_size=QUARTER)
        blob.metadata = {"a": "1"}
        blob.upload_from_file(io.BytesIO(body), size=len(body) if known else None, content_type="a/b")
        found = bucket.get_blob("big")
        assert found is not None
        assert (found.size, found.content_type, found.metadata) == (len(body), "a/b", {"a": "1"})
        assert hashlib.sha256(found.download_as_bytes()).digest() == hashlib.sha256(body).digest()

    def test_what_is_large_goes_in_a_session_by_itself(self, bucket: storage.Bucket) -> None:
        body = os.urandom(9 * 2**20)
        blob = bucket.blob("nine")
        blob.upload_from_file(io.BytesIO(body), size=len(body), checksum="crc32c")
        assert bucket.blob("nine").download_as_bytes() == body

    def test_a_writer_writes_as_it_goes(self, bucket: storage.Bucket) -> None:
        body = os.urandom(3 * QUARTER)
        with bucket.blob("w").open("wb", chunk_size=QUARTER, ignore_flush=True) as file:
            file.write(body[:1000])
            file.write(body[1000:])
        assert bucket.blob("w").download_as_bytes() == body

    def test_a_condition_holds_at_the_end_as_at_the_start(self, bucket: storage.Bucket) -> None:
        body = os.urandom(QUARTER + 1)
        blob = bucket.blob("x", chunk_size=QUARTER)
        session = blob.create_resumable_upload_session(size=len(body), if_generation_match=0)
        bucket.blob("x").upload_from_string("faster")
        assert put(session, body[:QUARTER], f"bytes 0-{QUARTER - 1}/{len(body)}").status_code == 308
        refused = put(session, body[QUARTER:], f"bytes {QUARTER}-{QUARTER}/{len(body)}")
        assert refused.status_code == 412
        assert bucket.blob("x").download_as_bytes() == b"faster"
        with pytest.raises(exceptions.PreconditionFailed):
            blob.upload_from_file(io.BytesIO(body), size=len(body), if_generation_match=0, **ONCE)

    def test_whoever_may_not_write_gets_no_session(self, ground: Any, bucket: storage.Bucket) -> None:
        reader = ground.client(ground.account("roles/storage.objectViewer")).bucket(bucket.name)
        with pytest.raises(exceptions.Forbidden, match=r"storage\.objects\.create"):
            reader.blob("x").create_resumable_upload_session(size=1, **ONCE)


class TestInterruptions:
    """What a client finds out after its connection broke."""

    @pytest.fixture
    def body(self) -> bytes:
        return os.urandom(2 * QUARTER + 77)

    @pytest.fixture
    def session(self, bucket: storage.Bucket, body: bytes) -> str:
        return str(bucket.blob("sess").create_resumable_upload_session(size=len(body)))

    def test_a_session_says_how_much_it_has(self, bucket: storage.Bucket, session: str, body: bytes) -> None:
        size = len(body)
        asked = put(session, b"", f"bytes */{size}")
        assert (asked.status_code, asked.headers.get("range")) == (308, None)
        first = put(session, body[:QUARTER], f"bytes 0-{QUARTER - 1}/{size}")
        assert (first.status_code, first.headers["range"]) == (308, f"bytes=0-{QUARTER - 1}")
        asked = put(session, b"", f"bytes */{size}")
        assert (asked.status_code, asked.headers["range"]) == (308, f"bytes=0-{QUARTER - 1}")
        # What has arrived may come again, with what comes after it.
        last = put(session, body[1000:], f"bytes 1000-{size - 1}/{size}")
        assert last.status_code == 200
        assert last.json()["size"] == str(size)
        assert bucket.blob("sess").download_as_bytes() == body
        asked = put(session, b"", f"bytes */{size}")
        assert (asked.status_code, asked.json()["generation"]) == (200, last.json()["generation"])
        assert put(session, body, f"bytes 0-{size - 1}/{size}").status_code == 200
        assert bucket.get_blob("sess").generation == int(last.json()["generation"])

    def test_nothing_is_there_before_the_end(self, bucket: storage.Bucket, session: str, body: bytes) -> None:
        put(session, body[:QUARTER], f"bytes 0-{QUARTER - 1}/{len(body)}")
        assert not bucket.blob("sess").exists()
        assert list(bucket.list_blobs()) == []

    @pytest.mark.parametrize(
        ("given", "length", "status"),
        [
            ("bytes 0-999/{size}", 1000, 400), (f"bytes 0-{QUARTER - 1}/1000", QUARTER, 400), (f"bytes 0-{QUARTER}/{{size}}", QUARTER, 400),
            (f"bytes {QUARTER}-{2 * QUARTER - 1}/{{size}}", QUARTER, 503), ("bytes */{size}", 5, 400), ("pages 0-5/6", 6, 400),
        ],
    )  # fmt: skip
    def test_a_chunk_that_does_not_fit_is_refused(
        self, bucket: storage.Bucket, session: str, body: bytes, given: str, length: int, status: int
    ) -> None:
        assert put(session, body[:length], given.format(size=len(body))).status_code == status
        # The session goes on as if nothing had come.
        assert put(session, body, f"bytes 0-{len(body) - 1}/{len(body)}").status_code == 200
        assert bucket.blob("sess").download_as_bytes() == body

    def test_a_session_that_is_given_up_is_over(self, bucket: storage.Bucket, session: str, body: bytes) -> None:
        assert httpx.delete(session).status_code == 499
        assert put(session, body, f"bytes 0-{len(body) - 1}/{len(body)}").status_code == 499
        assert httpx.put(f"{session[:-5]}wrong", content=body).status_code == 404
        assert not bucket.blob("sess").exists()

    def test_a_checksum_at_the_end_is_checked(self, bucket: storage.Bucket, session: str, body: bytes) -> None:
        wrong = base64.b64encode(b"0" * 16).decode()
        refused = put(session, body, f"bytes 0-{len(body) - 1}/{len(body)}", x_goog_hash=f"md5={wrong}")
        assert refused.status_code == 400
        assert not bucket.blob("sess").exists()


class TestParts:
    """Uploads in parts over the XML API, as they are on the wire."""

    @pytest.fixture
    def wire(self, ground: Any, bucket: storage.Bucket) -> tuple[AuthorizedSession, str]:
        scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
        return AuthorizedSession(
            ground.deployer().with_scopes(scopes)
        ), f"{ground.endpoint('storage')}/{bucket.name}/parts"

    def begin(self, wire: tuple[AuthorizedSession, str]) -> str:
        session, url = wire
        text = session.post(f"{url}?uploads", headers={"content-type": "a/b", "x-goog-meta-k": "v"}).text
        return f"{url}?uploadId={text.split('<UploadId>')[1].split('<')[0]}"

    def complete(self, wire: tuple[AuthorizedSession, str], place: str, *parts: tuple[int, str]) -> Any:
        inner = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in parts)
        return wire[0].post(place, data=f"<CompleteMultipartUpload>{inner}</CompleteMultipartUpload>")

    def test_parts_become_an_object_when_they_are_completed(self, bucket: storage.Bucket, wire: Any) -> None:
        place, large = self.begin(wire), os.urandom(5 * 2**20)
        etags = [
            wire[0].put(f"{place}&partNumber={number}", data=body).headers["etag"]
            for number, body in ((1, large), (2, b"end"))
        ]
        assert not bucket.blob("parts").exists()
        wrong = self.complete(wire, place, (2, etags[1]), (1, etags[0]))
        assert (wrong.status_code, "InvalidPartOrder" in wrong.text) == (400, True)
        assert "InvalidPart<" in self.complete(wire, place, (1, etags[1])).text
        assert self.complete(wire, place, (1, etags[0]), (2, etags[1])).status_code == 200
        found = bucket.get_blob("parts")
        assert found is not None
        assert found.download_as_bytes() == large + b"end"
        assert (found.content_type, found.metadata, found.component_count) == ("a/b", {"k": "v"}, 2)
        assert "NoSuchUpload" in self.complete(wire, place, (1, etags[0])).text

    def test_small_parts_and_what_is_given_up_are_refused(self, bucket: storage.Bucket, wire: Any) -> None:
        place = self.begin(wire)
        etags = [wire[0].put(f"{place}&partNumber={number}", data=b"x").headers["etag"] for number in (1, 2)]
        assert "EntityTooSmall" in self.complete(wire, place, *enumerate(etags, 1)).text
        assert wire[0].delete(place).status_code == 204
        assert wire[0].put(f"{place}&partNumber=1", data=b"x").status_code == 404
        assert not bucket.blob("parts").exists()
