"""Our signatures are botocore's, byte for byte, for whatever is signed."""

from unittest import mock

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from polyserve_aws import signing
from polyserve_aws.signing import Signer

NOW = 1_790_000_000
STAMP = "20260921T141320Z"
BASE = "https://example.lambda-url.eu-central-1.on.aws"
PATHS = ["/", "/v2/models/iris/infer", "/v2/models/a%20b/infer", "/2015-03-31/functions/polyserve-iris/invocations"]


@pytest.fixture(autouse=True)
def at_one_time():
    with (
        mock.patch.object(signing.time, "time", return_value=NOW),
        mock.patch("botocore.auth.get_current_datetime") as clock,
    ):
        clock.return_value.strftime = lambda form: STAMP if "T" in form else STAMP[:8]
        yield


def signed(method, path, query, body, token, service, auth=SigV4Auth):
    """Return the headers as botocore signs them."""
    url = f"{BASE}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method=method, url=url, data=body)
    if service != "s3":
        import hashlib

        request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(body).hexdigest()
    auth(Credentials("AKIDEXAMPLE", "secret", token), service, "eu-central-1").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.mark.parametrize("token", [None, "a-session-token=="])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", ["", "Qualifier=live"])
@given(body=st.binary(max_size=100))
def test_a_call_of_lambda_is_signed_as_botocore_signs_it(token, method, path, query, body):
    ours = Signer("AKIDEXAMPLE", "secret", token, region="eu-central-1", service="lambda")

    found = ours.headers(method, BASE.partition("://")[2], path, query, body)

    assert found.items() <= signed(method, path, query, body, token, "lambda").items()
    assert "authorization" in found


@pytest.mark.parametrize("token", [None, "token"])
@pytest.mark.parametrize("path", ["/bucket/deployments/iris/payloads/1", "/bucket/a%20b"])
def test_a_call_of_s3_is_signed_as_botocore_signs_it(token, path):
    ours = Signer("AKIDEXAMPLE", "secret", token, region="eu-central-1", service="lambda").for_service("s3")

    found = ours.headers("PUT", BASE.partition("://")[2], path, "", b"content")

    theirs = signed("PUT", path, "", b"content", token, "s3", S3SigV4Auth)
    # botocore puts the host's name into the signature, too, whatever else it signs.
    assert found["authorization"].partition("Credential")[0] == theirs["authorization"].partition("Credential")[0]
    assert found["x-amz-content-sha256"] == theirs["x-amz-content-sha256"]
    assert found["authorization"] == theirs["authorization"]


@pytest.mark.parametrize("token", [None, "token"])
def test_a_url_is_signed_as_botocore_signs_it(token):
    request = AWSRequest(method="GET", url=f"{BASE}/bucket/a%20b")
    S3SigV4QueryAuth(Credentials("AKIDEXAMPLE", "secret", token), "s3", "eu-central-1", expires=60).add_auth(request)

    ours = Signer("AKIDEXAMPLE", "secret", token, region="eu-central-1", service="s3").url(
        "GET", BASE, "/bucket/a%20b", seconds=60
    )

    assert sorted(ours.partition("?")[2].split("&")) == sorted(request.url.partition("?")[2].split("&"))


def test_the_key_is_derived_once_a_day_and_the_signature_is_new_each_second():
    signer = Signer("AKIDEXAMPLE", "secret", None, region="eu-central-1", service="lambda")
    found = []
    with mock.patch.object(signing.hmac, "digest", wraps=signing.hmac.digest) as digest:
        for now, derived in ((NOW, 4), (NOW + 1, 4), (NOW + 86_400, 8)):
            with mock.patch.object(signing.time, "time", return_value=now):
                found.append(signer.headers("GET", "h", "/", "", b""))
            assert digest.call_count == derived

    assert [each["x-amz-date"] for each in found] == [STAMP, "20260921T141321Z", "20260922T141320Z"]
    assert "20260922/eu-central-1" in found[2]["authorization"]
    assert len({each["authorization"] for each in found}) == 3


def test_a_signer_does_not_show_its_secret():
    assert "secret" not in repr(Signer("AKID", "the-secret-part", "the-secret-token", region="r", service="lambda"))
