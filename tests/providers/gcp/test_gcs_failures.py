"""What Cloud Storage's driver does when the service fails, dawdles or breaks off: each call once, in time, and without telling secrets."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import Conflict, GoogleAPICallError
from requests.exceptions import RequestException

from polyserve.driver import ErrorCode, PutAttributes
from polyserve_gcp import storage
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import BucketNotEmptyError, classify, retry_after
from polyserve_gcp.gcs import PIECE_BYTES, GcsStore
from polyserve_gcp.storage import Buckets

KEY = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
LARGE = b"x" * (PIECE_BYTES + 5)
OBJECT = {
    "name": "k", "size": "1", "generation": "7", "updated": "2026-11-21T10:00:00Z", "contentType": "a/b", "metadata": {"a": "b"},
}  # fmt: skip
VERBS: dict[str, Callable[[GcsStore], Any]] = {
    "put": lambda store: store.put("k", io.BytesIO(b"x"), attrs=PutAttributes()),
    "put of much": lambda store: store.put("k", io.BytesIO(LARGE), attrs=PutAttributes()),
    "get": lambda store: store.get("k"),
    "head": lambda store: store.head("k"),
    "list": lambda store: store.list_page(prefix="", delimiter="/", token=None, limit=3),
    "list by escapes": lambda store: store.list_page(prefix="", delimiter=".", token=None, limit=3),
    "copy": lambda store: store.copy("k", "l"),
    "delete": lambda store: store.delete("k"),
}
verbs = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())


@pytest.fixture
def buckets(google: Any) -> Iterator[Buckets]:
    """Give the buckets of a service that does what a test says."""
    settings = google.settings(credentials_file=google.key_file(), kms_key=KEY)
    with closing(Credentials(settings)) as credentials, closing(Buckets(settings, credentials)) as found:
        yield found


@pytest.fixture
def store(google: Any, buckets: Buckets) -> GcsStore:
    return GcsStore(buckets, google.settings(kms_key=KEY), "models")


def calls(google: Any) -> list[Any]:
    return [call for call in google.asked if call.path != "/token"]


def said(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": 0, "errors": []}}


@verbs
@pytest.mark.parametrize(
    ("status", "code"),
    [(429, ErrorCode.RESOURCE_EXHAUSTED), (503, ErrorCode.UNAVAILABLE)],
)
def test_each_call_is_made_once_and_its_error_says_what_the_service_said(
    google: Any, store: GcsStore, verb: Callable[[GcsStore], Any], status: int, code: ErrorCode
) -> None:
    google.refuse = {"models": (status, {"headers": {"retry-after": "3"}, "body": said("not now, please")})}

    with pytest.raises(GoogleAPICallError, match="not now, please") as raised:
        verb(store)

    assert classify(raised.value) is code
    assert retry_after(raised.value) == timedelta(seconds=3)
    assert len(calls(google)) == 1


@verbs
def test_a_service_that_does_not_answer_is_given_up(
    google: Any, store: GcsStore, verb: Callable[[GcsStore], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store._buckets.credentials.access_token()
    monkeypatch.setitem(storage.CALL, "timeout", (0.2, 0.2))
    google.gate.clear()

    with pytest.raises(RequestException) as raised:
        verb(store)

    assert classify(raised.value) is ErrorCode.DEADLINE_EXCEEDED
    assert len(calls(google)) == 1


@verbs
def test_a_service_that_is_not_there_is_unavailable(
    google: Any, store: GcsStore, verb: Callable[[GcsStore], Any]
) -> None:
    store._buckets.credentials.access_token()
    google.close()

    with pytest.raises(RequestException) as raised:
        verb(store)

    assert classify(raised.value) is ErrorCode.UNAVAILABLE


def begun(google: Any) -> None:
    """Have uploads begin."""
    place = {"location": f"{google.url}/upload/storage/v1/b/models/o?uploadType=resumable&upload_id=SECRET"}
    google.refuse = {"uploadType=resumable($|&kms|&ifGen)": (200, {"headers": place, "body": {}})}


def test_an_upload_that_breaks_off_is_not_repeated_and_its_address_is_not_told(google: Any, store: GcsStore) -> None:
    begun(google)
    google.refuse["upload_id=SECRET"] = (503, said("not now"))
    with pytest.raises(GoogleAPICallError) as refused:
        store.put("k", io.BytesIO(LARGE), attrs=PutAttributes())
    google.refuse["upload_id=SECRET"] = (200, {"headers": {"content-length": "10", "connection": "close"}, "body": b""})
    with pytest.raises(RequestException) as lost:
        store.put("k", io.BytesIO(LARGE), attrs=PutAttributes())

    for raised in (refused.value, lost.value):
        assert classify(raised) is ErrorCode.UNAVAILABLE
        assert "SECRET" not in repr(raised)
        assert raised.__suppress_context__
        assert raised.__cause__ is None
    assert [call.method for call in calls(google)] == ["POST", "PUT"] * 2


def test_a_large_object_goes_up_in_pieces_under_the_customers_key_and_its_condition(
    google: Any, store: GcsStore
) -> None:
    begun(google)
    end = f"bytes {PIECE_BYTES}-{len(LARGE) - 1}/{len(LARGE)}"
    more = {"headers": {"range": f"bytes=0-{PIECE_BYTES - 1}"}, "body": b""}
    answers = iter([(308, more), (200, OBJECT | {"size": str(len(LARGE)), "crc32c": crc32c(LARGE)})])
    google.answer = lambda call, line, usual=google.answer: next(answers) if "SECRET" in line else usual(call, line)

    meta = store.put("k", io.BytesIO(LARGE), attrs=PutAttributes(if_match="6", metadata={"a": "b"}))

    start, first, last = calls(google)
    assert start.query["ifGenerationMatch"] == ["6"]
    assert start.query["kmsKeyName"] == [KEY]
    assert start.json() == {"name": "k", "metadata": {"a": "b"}}
    assert (len(first.body), len(last.body)) == (PIECE_BYTES, 5)
    assert last.headers["content-range"] == end
    assert (meta.size, meta.version, meta.metadata) == (len(LARGE), "7", {"a": "b"})


def test_no_password_of_the_users_takes_the_place_of_the_token(
    google: Any, store: GcsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    google.refuse = {"GET": (200, OBJECT)}

    store.head("k")

    assert calls(google)[0].headers["authorization"] == "Bearer secret-access-1"


def test_what_is_small_is_written_in_one_request_with_its_checksum(google: Any, store: GcsStore) -> None:
    google.refuse = {"upload": (200, OBJECT | {"crc32c": crc32c(b"x")})}

    store.put("k", io.BytesIO(b"x"), attrs=PutAttributes(if_absent=True))

    (asked,) = calls(google)
    assert (asked.query["ifGenerationMatch"], asked.query["kmsKeyName"]) == (["0"], [KEY])
    assert crc32c(b"x").encode() in asked.body


def test_what_breaks_off_while_it_is_read_is_an_error_and_not_an_end(google: Any, store: GcsStore) -> None:
    told = {
        "x-goog-generation": "7",
        "x-goog-stored-content-length": "10",
        "last-modified": "Sat, 21 Nov 2026 10:00:00 GMT",
        "content-length": "10",
        "connection": "close",
    }
    google.refuse = {"GET /models/k": (200, {"headers": told, "body": b"12345"})}

    meta, body = store.get("k")
    with closing(body), pytest.raises(RequestException, match="connection was lost") as raised:
        body.read()

    assert (meta.size, meta.version) == (10, "7")
    assert classify(raised.value) is ErrorCode.UNAVAILABLE


def test_a_content_that_stops_coming_is_given_up(google: Any, store: GcsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(storage.CALL, "timeout", (0.3, 0.3))
    told = {
        "x-goog-generation": "7",
        "x-goog-stored-content-length": "10",
        "last-modified": "Sat, 21 Nov 2026 10:00:00 GMT",
        "content-length": "10",
    }
    google.refuse = {"GET /models/k": (200, {"headers": told, "body": b"12345"})}

    _, body = store.get("k")
    with closing(body), pytest.raises(RequestException, match="nothing came") as raised:
        body.read()

    assert classify(raised.value) is ErrorCode.DEADLINE_EXCEEDED


def test_an_error_in_xml_is_read_as_well(google: Any, store: GcsStore) -> None:
    body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access denied.</Message><Details>me &amp; you</Details></Error>"
    google.refuse = {"GET /models/k": (403, {"headers": {"content-type": "application/xml"}, "body": body})}

    with pytest.raises(GoogleAPICallError, match=r"Access denied\. me & you") as raised:
        store.get("k")

    assert classify(raised.value) is ErrorCode.PERMISSION_DENIED


def test_a_copy_that_takes_several_calls_goes_on_to_its_end(google: Any, store: GcsStore) -> None:
    half = {"done": False, "totalBytesRewritten": "1", "objectSize": "2", "rewriteToken": "go on"}
    done = {"done": True, "totalBytesRewritten": "2", "objectSize": "2", "resource": OBJECT | {"generation": "8"}}
    google.refuse = {"GET": (200, OBJECT), "rewriteToken=": (200, done), "rewriteTo": (200, half)}

    assert store.copy("k", "l").version == "8"

    _, first, second = calls(google)
    assert (second.query["rewriteToken"], first.query["destinationKmsKeyName"]) == (["go on"], [KEY])
    # One version of it, whatever is written meanwhile.
    assert first.query["sourceGeneration"] == second.query["sourceGeneration"] == ["7"]


def test_a_signature_is_made_by_iam_where_there_is_no_key(google: Any) -> None:
    settings = google.settings(machine=True)
    with closing(Credentials(settings)) as credentials, closing(Buckets(settings, credentials)) as buckets:
        url = GcsStore(buckets, settings, "models").sign("k", method="GET", expires_in=timedelta(minutes=5))

    assert url.startswith(
        f"{google.url}/models/k?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=123456789-compute"
    )
    assert url.endswith("X-Goog-Signature=" + b"signed by IAM".hex())
    assert "X-Goog-Expires=300" in url


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_a_bucket_is_made_with_the_customers_key(google: Any, buckets: Buckets) -> None:
    google.refuse = {"GET": (404, said("no bucket")), "POST /storage": (200, {"name": "models"})}

    buckets.ensure("models")

    made = calls(google)[-1].json()
    assert made["encryption"] == {"defaultKmsKeyName": KEY}
    assert made["iamConfiguration"]["publicAccessPrevention"] == "enforced"


def test_a_name_that_is_somebody_elses_is_told(google: Any, buckets: Buckets) -> None:
    taken = "The requested bucket name is not available. The bucket namespace is shared by all users of the system."
    google.refuse = {"GET": (404, said("no bucket")), "POST /storage": (409, said(taken))}

    with pytest.raises(Conflict, match="not available") as raised:
        buckets.ensure("models")

    assert classify(raised.value) is ErrorCode.ALREADY_EXISTS


def test_two_who_make_a_bucket_at_once_both_have_it(google: Any, buckets: Buckets) -> None:
    looks = iter([(404, said("no bucket")), (200, {"name": "models"})])
    usual = google.answer
    google.answer = lambda call, line: next(looks) if line.startswith("GET") else usual(call, line)
    google.refuse = {"POST /storage": (409, said("You already own this bucket."))}

    buckets.ensure("models")

    assert next(looks, None) is None


def test_a_bucket_that_is_filled_meanwhile_is_not_empty(google: Any, buckets: Buckets) -> None:
    google.refuse = {"GET": (200, {}), "DELETE": (409, said("The bucket you tried to delete is not empty."))}

    with pytest.raises(BucketNotEmptyError):
        buckets.remove("models")


def crc32c(data: bytes) -> str:
    import base64

    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
