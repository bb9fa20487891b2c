"""How functions are called: with a token for their service's address, renewed in the background, whoever the caller is."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import pytest

from polyserve.driver import ErrorCode, HttpReply, Request
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import AppError, InvocationError, TokenError, classify, retry_after
from polyserve_gcp.invoker import Service, ServiceInvoker
from polyserve_gcp.settings import GcpSettings

OTHER = "other@polyserve-tests.iam.gserviceaccount.com"
URL = "https://iris-x-uc.a.run.app"
TAGGED = "https://r2---iris-x-uc.a.run.app"
REQUEST = Request(method="POST", path="/invocations", headers={"content-type": "a/b"}, body=b"[]", request_id="abc")


def find(name: str, revision: int | None) -> Service:
    if name == "missing":
        raise AppError(ErrorCode.NOT_FOUND, "there is no function 'missing'")
    return Service(url=URL if revision is None else TAGGED, audience=URL, public=name == "public")


@pytest.fixture
def invoker(google: Any) -> Iterator[Any]:
    """Give what makes an invoker of settings."""
    with ExitStack() as stack:

        def made(settings: GcpSettings | None = None) -> ServiceInvoker:
            found = Credentials(settings or google.settings(credentials_file=google.key_file()))
            return ServiceInvoker(stack.enter_context(closing(found)), find)

        yield made


def claims(headers: Any, name: str = "authorization") -> dict[str, Any]:
    scheme, _, token = headers[name].partition(" ")
    assert scheme == "Bearer"
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def renewed() -> None:
    for thread in threading.enumerate():
        if thread.name == "polyserve-token":
            thread.join(10)


@pytest.mark.parametrize("revision", [None, 2])
def test_an_address_has_a_token_for_the_service_whichever_revision_is_called(
    invoker: Any, revision: int | None
) -> None:
    address = invoker().resolve("iris", revision=revision)

    told = claims(address.headers)
    assert (address.url, told["aud"]) == (URL if revision is None else TAGGED, URL)
    assert address.expires_at.timestamp() == told["exp"]
    assert address.headers["authorization"].split()[1] not in repr(address)


@pytest.mark.parametrize("who", ["key", "machine", "impersonated", "person who impersonates"])
def test_whoever_can_have_a_token_gets_one_and_keeps_it(google: Any, invoker: Any, who: str) -> None:
    settings = {
        "key": lambda: google.settings(credentials_file=google.key_file()),
        "machine": lambda: google.settings(machine=True),
        "impersonated": lambda: google.settings(credentials_file=google.key_file(), impersonate=OTHER),
        "person who impersonates": lambda: google.settings(credentials_file=google.person_file(), impersonate=OTHER),
    }[who]()
    invokes = invoker(settings)

    addresses = [invokes.resolve("iris") for _ in range(3)]

    assert {claims(address.headers)["jti"] for address in addresses} == {claims(addresses[0].headers)["jti"]}
    asked = [
        call
        for call in google.asked
        if "identity" in call.path or "generateIdToken" in call.path or b"assertion" in call.body
    ]
    if "impersonate" in who:
        (last,) = [call for call in asked if "generateIdToken" in call.path]
        assert last.path == f"/v1/projects/-/serviceAccounts/{OTHER}:generateIdToken"
        assert last.json() == {"audience": URL, "includeEmail": True}
    elif who == "machine":
        assert asked[0].query["audience"] == [URL]
        assert len(asked) == 1
    else:
        assert len(asked) == 1


def test_a_person_has_none_and_is_told_what_to_do(google: Any, invoker: Any) -> None:
    with pytest.raises(TokenError, match=rf"of a person and get no ID token for {URL}: set impersonate") as raised:
        invoker(google.settings(credentials_file=google.person_file())).resolve("iris")

    for way_out in ("roles/iam.serviceAccountTokenCreator", "credentials_file", "public = true"):
        assert way_out in str(raised.value)
    assert classify(raised.value) is ErrorCode.UNAUTHENTICATED


def test_what_is_public_needs_no_token_not_even_from_a_person(google: Any, invoker: Any) -> None:
    invokes = invoker(google.settings(credentials_file=google.person_file()))

    address = invokes.resolve("public")

    assert (address.headers, address.expires_at) == ({}, None)
    assert "authorization" not in invokes.prepare(address, REQUEST).headers
    assert google.asked == []


def test_a_missing_function_is_not_found(invoker: Any) -> None:
    with pytest.raises(AppError) as raised:
        invoker().resolve("missing")
    assert classify(raised.value) is ErrorCode.NOT_FOUND


def test_a_call_has_what_the_request_has(invoker: Any) -> None:
    invokes = invoker()
    address = invokes.resolve("iris")

    call = invokes.prepare(address, REQUEST)

    assert (call.method, call.url, call.body, call.detour) == ("POST", f"{URL}/invocations", b"[]", None)
    assert call.headers == {"content-type": "a/b", "x-request-id": "abc", **address.headers}


def test_a_callers_own_authorization_reaches_the_function(invoker: Any) -> None:
    invokes = invoker()
    request = Request(method="GET", path="/v2", headers={"authorization": "Basic mine"}, body=b"")

    headers = invokes.prepare(invokes.resolve("iris"), request).headers

    assert headers["authorization"] == "Basic mine"
    assert claims(headers, "x-serverless-authorization")["aud"] == URL


def test_calls_go_on_with_the_newest_token_and_never_wait_for_it(google: Any, invoker: Any) -> None:
    google.life_s = 200
    invokes = invoker()
    address = invokes.resolve("iris")
    first = claims(address.headers)["jti"]
    google.gate.clear()

    assert claims(invokes.prepare(address, REQUEST).headers)["jti"] == first
    google.gate.set()
    renewed()

    assert claims(invokes.prepare(address, REQUEST).headers)["jti"] != first
    assert google.count("/token") == 2


def test_a_call_of_an_address_whose_token_is_over_goes_out_with_it_and_is_refused(google: Any, invoker: Any) -> None:
    google.life_s = 10
    invokes = invoker()
    address = invokes.resolve("iris")

    # Whoever calls has been told when it ends; to ask here would be to wait.
    assert invokes.prepare(address, REQUEST).headers["authorization"] == address.headers["authorization"]
    assert google.count("/token") == 1


def test_a_token_that_was_refused_is_replaced(google: Any, invoker: Any) -> None:
    invokes = invoker()
    address = invokes.resolve("iris")

    with pytest.raises(InvocationError, match="the ID token was refused") as raised:
        invokes.parse(address, HttpReply(status=401, headers={}, body=b"Unauthorized"))

    assert classify(raised.value) is ErrorCode.UNAUTHENTICATED
    assert claims(invokes.resolve("iris").headers)["jti"] != claims(address.headers)["jti"]


@pytest.mark.parametrize("status", [200, 400, 404, 413, 429, 500, 504])
def test_an_answer_of_the_function_is_its_own(invoker: Any, status: int) -> None:
    invokes = invoker()
    headers = {"x-polyserve-revision": "2", "x-request-id": "abc"}

    response = invokes.parse(invokes.resolve("iris"), HttpReply(status=status, headers=headers, body=b"{}"))

    assert (response.status, response.headers, response.body) == (status, headers, b"{}")


@pytest.mark.parametrize(
    ("status", "headers", "body", "code", "words"),
    [
        (403, {}, b"<html>Forbidden</html>", ErrorCode.PERMISSION_DENIED, r"run\.routes\.invoke"),
        (404, {}, b"<html>", ErrorCode.NOT_FOUND, "no service answers"),
        (413, {}, b"", ErrorCode.INVALID_ARGUMENT, "32 MiB"),
        (429, {"retry-after": "2"}, b"Rate exceeded.", ErrorCode.RESOURCE_EXHAUSTED, "no instance has room"),
        (500, {}, b"", ErrorCode.UNAVAILABLE, "no instance could be started"),
        (500, {"x-google-status": "crash"}, b"<html>", ErrorCode.INTERNAL, "the function failed: its log says why"),
        (502, {}, b"", ErrorCode.UNAVAILABLE, "its log says why"),
        (503, {}, b"Service Unavailable", ErrorCode.UNAVAILABLE, "its log says why"),
        (504, {}, b"upstream request timeout", ErrorCode.DEADLINE_EXCEEDED, "within its time"),
        (418, {}, b'{"message": "short and stout"}', ErrorCode.INVALID_ARGUMENT, "short and stout"),
        (418, {}, b"", ErrorCode.INVALID_ARGUMENT, "no reason given"),
    ],
)
def test_an_answer_of_the_platform_is_an_error_with_its_reason(
    invoker: Any, status: int, headers: dict[str, str], body: bytes, code: ErrorCode, words: str
) -> None:
    invokes = invoker()

    with pytest.raises(InvocationError, match=rf"HTTP {status}: .*{words}") as raised:
        invokes.parse(invokes.resolve("iris"), HttpReply(status=status, headers=headers, body=body))

    assert classify(raised.value) is code
    assert retry_after(raised.value) == (timedelta(seconds=2) if headers.get("retry-after") else None)
