"""Every kind of identity calls Cloud Storage and shows who it is, against an emulator that checks both."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import httpx
import pytest
from google.auth.exceptions import GoogleAuthError

from polyserve.driver import ErrorCode, PutAttributes
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import ServiceError, TokenError, classify
from polyserve_gcp.gcs import GcsStore
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.storage import Buckets

URL = "https://iris-x-uc.a.run.app"
CREATOR = "roles/iam.serviceAccountTokenCreator"


@pytest.fixture
def bucket(cloud: Any) -> Iterator[str]:
    """Give a bucket with one object."""
    name = cloud.name()
    cloud.buckets.ensure(name)
    cloud.store(name).put("k", io.BytesIO(b"content"), attrs=PutAttributes())
    yield name
    cloud.store(name).delete("k")
    cloud.buckets.remove(name)


@pytest.fixture
def opened() -> Iterator[Callable[[GcpSettings], tuple[Credentials, Buckets]]]:
    """Give what opens credentials, and the client of Cloud Storage that has them."""
    with ExitStack() as stack:

        def open_(settings: GcpSettings) -> tuple[Credentials, Buckets]:
            credentials = stack.enter_context(closing(Credentials(settings)))
            return credentials, stack.enter_context(closing(Buckets(settings, credentials)))

        yield open_


def who(cloud: Any, credentials: Credentials) -> str:
    """Return whom the emulator takes the caller of a service for."""
    return str(cloud.ground.identities.read_id_token(f"Bearer {credentials.id_token(URL)}", [URL]).email)


def read(buckets: Buckets, bucket: str) -> bytes:
    _, body = GcsStore(buckets, GcpSettings(), bucket).get("k")
    with closing(body):
        return body.read()


def signed(buckets: Buckets, bucket: str) -> int:
    """Return what an URL that they sign is answered with."""
    url = GcsStore(buckets, GcpSettings(), bucket).sign("k", method="GET", expires_in=timedelta(minutes=5))
    return httpx.get(url, trust_env=False).status_code


def test_a_key_is_its_service_account(cloud: Any, opened: Any, bucket: str) -> None:
    account = cloud.account("roles/storage.objectAdmin")
    credentials, buckets = opened(cloud.settings_of(account))

    assert read(buckets, bucket) == b"content"
    assert who(cloud, credentials) == credentials.service_account_email == account.email
    assert signed(buckets, bucket) == 200


def test_a_key_of_an_account_that_is_gone_is_good_for_nothing(cloud: Any, opened: Any) -> None:
    account = cloud.account()
    credentials, _ = opened(cloud.settings_of(account))
    cloud.ground.identities.remove(account)

    for ask in (credentials.access_token, lambda: credentials.id_token(URL)):
        with pytest.raises(GoogleAuthError, match="invalid_grant") as raised:
            ask()
        assert classify(raised.value) is ErrorCode.UNAUTHENTICATED


def test_a_machine_is_the_account_that_it_runs_as(cloud: Any, opened: Any, bucket: str) -> None:
    account = cloud.account("roles/storage.objectAdmin", CREATOR)
    credentials, buckets = opened(cloud.settings_on_machine_of(account))

    assert credentials.project == cloud.settings.project
    assert read(buckets, bucket) == b"content"
    assert who(cloud, credentials) == account.email
    assert signed(buckets, bucket) == 200


@pytest.mark.parametrize("kind", ["account", "person"])
def test_whoever_may_be_another_one_is_that_one(cloud: Any, opened: Any, bucket: str, kind: str) -> None:
    other = cloud.account("roles/storage.objectViewer")
    caller = getattr(cloud, kind)(CREATOR)
    credentials, buckets = opened(cloud.settings_of(caller, impersonate=other.email))

    assert read(buckets, bucket) == b"content"
    assert who(cloud, credentials) == other.email
    assert signed(buckets, bucket) == 200


def test_whoever_may_not_is_told_which_permission_is_missing(cloud: Any, opened: Any) -> None:
    other = cloud.account("roles/storage.objectViewer")
    credentials, _ = opened(cloud.settings_of(cloud.account(), impersonate=other.email))

    for ask, permission in (
        (credentials.access_token, r"iam\.serviceAccounts\.getAccessToken"),
        (lambda: credentials.id_token(URL), r"iam\.serviceAccounts\.getOpenIdToken"),
        (lambda: credentials.sign_bytes(b"x"), r"iam\.serviceAccounts\.signBlob"),
    ):
        with pytest.raises(ServiceError, match=permission) as raised:
            ask()
        assert classify(raised.value) is ErrorCode.PERMISSION_DENIED


def test_a_person_calls_apis_and_no_services(cloud: Any, opened: Any, bucket: str) -> None:
    credentials, buckets = opened(
        cloud.settings_of(cloud.person("roles/storage.objectViewer", "roles/serviceusage.serviceUsageConsumer"))
    )

    assert read(buckets, bucket) == b"content"
    with pytest.raises(TokenError, match="set impersonate"):
        credentials.id_token(URL)
    with pytest.raises(TokenError, match="set impersonate"):
        signed(buckets, bucket)
