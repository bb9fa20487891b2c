"""Signed URLs, made by Google's own client and used by nobody in particular."""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from google.auth.transport import requests
from google.oauth2 import service_account

if TYPE_CHECKING:
    from google.cloud import storage

SOON = dt.timedelta(minutes=5)


class Signing:
    """Signs URLs of one bucket."""

    def __init__(self, ground: Any, bucket: storage.Bucket) -> None:
        self.ground, self.bucket, self.credentials = ground, bucket, ground.deployer()

    def __call__(self, name: str, method: str = "GET", **given: Any) -> str:
        given = {"version": "v4", "expiration": SOON, "credentials": self.credentials} | given
        host = self.ground.endpoint("storage")
        return str(self.bucket.blob(name).generate_signed_url(method=method, api_access_endpoint=host, **given))


@pytest.fixture
def sign(ground: Any, bucket: storage.Bucket) -> Signing:
    bucket.blob("s").upload_from_string("signed", content_type="text/plain")
    return Signing(ground, bucket)


@pytest.mark.parametrize("version", ["v2", "v4"])
def test_a_signed_url_opens_one_object(sign: Signing, version: str) -> None:
    answer = httpx.get(sign("s", version=version))
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"signed", "text/plain")
    part = httpx.get(sign("s", version=version), headers={"range": "bytes=1-2"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"ig", "bytes 1-2/6")
    missing = httpx.get(sign("none", version=version))
    assert (missing.status_code, "<Code>NoSuchKey</Code>" in missing.text) == (404, True)
    assert f"<Details>No such object: {sign.bucket.name}/none</Details>" in missing.text
    beyond = httpx.get(sign("s", version=version), headers={"range": "bytes=9-"})
    assert (beyond.status_code, "<Code>InvalidRange</Code>" in beyond.text) == (416, True)
    assert beyond.headers["content-range"] == "bytes */6"


@pytest.mark.parametrize("name", ["a b", "a%2Fb", "a+b&c=d?e", "é/ü", "~tilde/x"])
def test_any_name_can_be_signed(sign: Signing, name: str) -> None:
    sign.bucket.blob(name).upload_from_string(name)
    assert httpx.get(sign(name)).text == name


def test_a_signed_upload_is_written(sign: Signing) -> None:
    url = sign(
        "up", "PUT", content_type="application/zip", headers={"x-goog-meta-a": "1", "x-goog-if-generation-match": "0"}
    )
    fields = {"content-type": "application/zip", "x-goog-meta-a": "1", "x-goog-if-generation-match": "0"}
    answer = httpx.put(url, content=b"PK\0\1\r\n", headers=fields)
    assert answer.status_code == 200
    found = sign.bucket.get_blob("up")
    assert found is not None
    assert (found.download_as_bytes(), found.content_type, found.metadata) == (
        b"PK\0\1\r\n",
        "application/zip",
        {"a": "1"},
    )
    assert answer.headers["x-goog-generation"] == str(found.generation)
    assert httpx.put(url, content=b"again", headers=fields).status_code == 412
    assert "SignatureDoesNotMatch" in httpx.put(url, content=b"x", headers=fields | {"content-type": "text/plain"}).text
    wrong = httpx.put(sign("up", "PUT"), content=b"x", headers={"content-md5": "MDAwMDAwMDAwMDAwMDAwMA=="})
    assert wrong.status_code == 400
    assert httpx.delete(sign("up", "DELETE")).status_code == 204
    assert not found.exists()


def test_an_upload_keeps_within_the_length_that_was_signed(sign: Signing) -> None:
    fields = {"x-goog-content-length-range": "2,4"}
    url = sign("up", "PUT", headers=fields)
    assert [httpx.put(url, content=b"x" * size, headers=fields).status_code for size in (1, 3, 5)] == [400, 200, 400]


def test_an_upload_names_the_customers_key_and_no_list_of_readers(sign: Signing) -> None:
    key = "projects/p/locations/us/keyRings/r/cryptoKeys/k"
    fields = {"x-goog-encryption-kms-key-name": key}
    assert httpx.put(sign("up", "PUT", headers=fields), content=b"x", headers=fields).status_code == 200
    assert sign.bucket.get_blob("up").kms_key_name == f"{key}/cryptoKeyVersions/1"
    fields = {"x-goog-acl": "public-read"}
    refused = httpx.put(sign("up", "PUT", headers=fields), content=b"x", headers=fields)
    assert (refused.status_code, "uniform bucket-level access" in refused.text) == (400, True)


def test_a_signed_session_takes_a_large_upload(sign: Signing) -> None:
    url = sign("large", "RESUMABLE")
    begun = httpx.post(url, headers={"x-goog-resumable": "start"})
    assert begun.status_code == 201
    assert httpx.put(begun.headers["location"], content=b"x" * 1000).status_code == 200
    assert sign.bucket.blob("large").download_as_bytes() == b"x" * 1000


@pytest.mark.parametrize("version", ["v2", "v4"])
def test_an_expired_url_is_refused(sign: Signing, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if version == "v2":
        url = sign("s", version="v2", expiration=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    else:
        from google.cloud.storage import _signing

        moment = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=10)
        stamp = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
        monkeypatch.setattr(_signing, "get_v4_now_dtstamps", lambda: stamp)
        url = sign("s")
    answer = httpx.get(url)
    assert (answer.status_code, "<Code>ExpiredToken</Code>" in answer.text) == (400, True)


@pytest.mark.parametrize("version", ["v2", "v4"])
def test_a_url_that_was_changed_is_refused(sign: Signing, version: str) -> None:
    sign.bucket.blob("other").upload_from_string("secret")
    url = sign("s", version=version)
    for changed in (
        url.replace("/s?", "/other?"),
        url.replace("deployer%40", "deployer2%40"),
        url + "&x=1" if version == "v4" else url.replace("Expires=", "Expires=9"),
    ):
        answer = httpx.get(changed)
        assert (answer.status_code, "<Code>SignatureDoesNotMatch</Code>" in answer.text) == (403, True)
    assert httpx.delete(url).status_code == 403
    assert httpx.get(url.replace("Signature=", "Signature=00")).status_code in {400, 403}


def test_what_was_signed_is_told(sign: Signing) -> None:
    answer = httpx.delete(sign("s"))
    assert f"<CanonicalRequest>DELETE\n/{sign.bucket.name}/s\n" in answer.text


def test_a_url_is_good_for_a_week_at_most(sign: Signing) -> None:
    url = sign("s", expiration=dt.timedelta(days=7))
    assert httpx.get(url).status_code == 200
    assert httpx.get(url.replace("X-Goog-Expires=604800", "X-Goog-Expires=604801")).status_code == 400


def test_a_url_can_do_what_its_signer_may(sign: Signing) -> None:
    reader = sign.ground.account("roles/storage.objectViewer")
    assert httpx.get(sign("s", credentials=reader)).status_code == 200
    refused = httpx.put(sign("s", "PUT", credentials=reader), content=b"x")
    assert (refused.status_code, "<Code>AccessDenied</Code>" in refused.text) == (403, True)
    assert f"{reader.service_account_email} does not have storage.objects.create access" in refused.text
    stranger = sign.ground.account()
    assert httpx.get(sign("s", credentials=stranger)).status_code == 403


def test_a_key_of_somebody_else_signs_nothing(sign: Signing) -> None:
    identities = sign.ground.ground.identities
    forged = identities.add_key(identities.add_service_account("forger")) | {
        "client_email": sign.credentials.service_account_email
    }
    mine = service_account.Credentials.from_service_account_info(forged)
    assert "SignatureDoesNotMatch" in httpx.get(sign("s", credentials=mine)).text


def test_a_signature_can_come_from_the_credentials_api(sign: Signing, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the client does it where there is no key: with an access token, and the address of whom it signs for.
    from google.cloud.storage import _signing

    def post(message: str, token: str, email: str, *_: Any, **__: Any) -> str:
        place = f"{sign.ground.endpoint('iamcredentials')}/v1/projects/-/serviceAccounts/{quote(email)}:signBlob"
        payload = {"payload": base64.b64encode(message.encode()).decode()}
        answer = httpx.post(place, json=payload, headers={"authorization": f"Bearer {token}"})
        return str(json.loads(answer.text)["signedBlob"])

    monkeypatch.setattr(_signing, "_sign_message", post)
    own = sign.ground.deployer().with_scopes(["https://www.googleapis.com/auth/cloud-platform"])
    own.refresh(requests.Request())
    target = sign.ground.account("roles/storage.objectViewer").service_account_email
    assert httpx.get(sign("s", service_account_email=target, access_token=own.token)).text == "signed"
