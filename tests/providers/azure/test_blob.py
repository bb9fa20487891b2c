"""What the store asks of Blob Storage: conditions, keys that are renewed on the way, signatures, and blobs that take time."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, UserDelegationKey

from polyserve.driver import ErrorCode, PutAttributes
from polyserve_azure.blob import CLOCKS, AzureStore, Content
from polyserve_azure.errors import AppError, PreconditionError, classify
from polyserve_azure.settings import AzureSettings
from polyserve_azure.storage import BLOCK_BYTES, Access

WHEN = datetime(2026, 11, 21, tzinfo=UTC)


class Blob:
    """A client of one blob that notes what it is asked."""

    def __init__(self, container: Container, name: str) -> None:
        self.container, self.name = container, name
        self.url = f"https://account.blob.core.windows.net/models/{name}"

    def upload_blob(self, body: Any, **what: Any) -> dict[str, Any]:
        """Read what comes."""
        data = body if isinstance(body, bytes) else body.read()
        self.container.asked.append(("upload", self.name, {**what, "data": data}))
        if self.container.failures:
            raise self.container.failures.pop(0)
        return {"last_modified": WHEN, "etag": '"0x1"'}

    def get_blob_properties(self) -> Any:
        """Describe it."""
        kind = SimpleNamespace(content_type=None)
        return SimpleNamespace(size=7, etag='"0x7"', last_modified=WHEN, content_settings=kind, metadata={"a": "b"})

    def start_copy_from_url(self, url: str, **what: Any) -> dict[str, Any]:
        """Copy, or begin to."""
        self.container.asked.append(("copy", self.name, {"url": url, **what}))
        return {"last_modified": WHEN, "etag": '"0x2"', "copy_status": self.container.copy_status}


class Container:
    """A client of one container."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.failures: list[Exception] = []
        self.copy_status = "success"

    def get_blob_client(self, name: str) -> Blob:
        """Give a client of one blob."""
        return Blob(self, name)


class OneAccount:
    """Accounts whose key is renewed whenever a test wants it: a call is made again then, as `Accounts.using` does."""

    def __init__(self) -> None:
        self.container, self.renewed = Container(), 0
        self.delegated: UserDelegationKey | None = None
        self.asked: list[tuple[Any, ...]] = []

    def using(self, _: str, call: Callable[[Any], Any]) -> Any:
        """Call, and once more for each time that the key was renewed."""
        for _ in range(self.renewed):
            call(self.container)
        return call(self.container)

    def access(self) -> Access:
        """Return an account of that name."""
        if self.delegated is not None:
            key, asked = self.delegated, self.asked

            class Tokens(BlobServiceClient):
                def get_user_delegation_key(self, *given: Any, **_: Any) -> UserDelegationKey:
                    asked.append(given)
                    return key

            client: BlobServiceClient = Tokens("https://account.blob.core.windows.net")
            return Access(name="account", endpoint="https://account.blob.core.windows.net", key="", client=client)
        client = BlobServiceClient(
            "https://account.blob.core.windows.net", {"account_name": "account", "account_key": "a2V5"}
        )
        return Access(name="account", endpoint="https://account.blob.core.windows.net", key="a2V5", client=client)


@pytest.fixture
def account() -> OneAccount:
    """Give an account that only notes."""
    return OneAccount()


def store(account: OneAccount, **settings: Any) -> AzureStore:
    """Return a store on it."""
    return AzureStore(account, AzureSettings(**settings), "models")  # type: ignore[arg-type]


def put(target: AzureStore, body: bytes = b"content", **attrs: Any) -> Any:
    """Put an object."""
    return target.put("k", io.BytesIO(body), attrs=PutAttributes(**attrs))


def test_conditions_are_the_services_to_decide(account: OneAccount) -> None:
    target = store(account)

    put(target)
    put(target, if_absent=True)
    put(target, if_match="0x1")

    plain, absent, match = (what for _, _, what in account.container.asked)
    assert (plain["overwrite"], absent["overwrite"]) == (True, False)
    assert (match["etag"], match["match_condition"]) == ('"0x1"', MatchConditions.IfNotModified)


def test_a_version_of_what_is_gone_is_a_condition_that_does_not_hold(account: OneAccount) -> None:
    gone = ResourceNotFoundError("gone")
    gone.error_code = "BlobNotFound"  # type: ignore[attr-defined]
    account.container.failures.append(gone)

    with pytest.raises(PreconditionError, match="does not exist any more"):
        put(store(account), if_match="0x1")


def test_a_small_object_goes_up_again_under_a_renewed_key_and_a_large_one_is_to_be_begun_again(
    account: OneAccount,
) -> None:
    account.renewed = 1
    assert put(store(account)).size == 7
    assert [what["data"] for _, _, what in account.container.asked] == [b"content", b"content"]

    # Its body was read already: half of it would be written as the whole.
    with pytest.raises(AppError, match="begin again") as raised:
        put(store(account), b"x" * (BLOCK_BYTES + 1))
    assert classify(raised.value) is ErrorCode.UNAVAILABLE


def test_a_large_object_goes_up_whole_and_counted(account: OneAccount) -> None:
    body = b"ab" * (BLOCK_BYTES // 2 + 3)

    assert put(store(account), body).size == len(body)
    ((_, _, what),) = account.container.asked
    assert what["data"] == body
    assert what["max_concurrency"] == 4


def test_an_encryption_scope_is_named_wherever_something_is_written(account: OneAccount) -> None:
    target = store(account, encryption_scope="secret")
    put(target)
    target.copy("k", "other")

    assert [what["encryption_scope"] for _, _, what in account.container.asked] == ["secret", "secret"]


def test_a_copy_is_of_one_version_and_one_that_takes_time_is_to_be_asked_for_again(account: OneAccount) -> None:
    made = store(account).copy("k", "other")

    ((_, name, what),) = account.container.asked
    assert (name, what["source_etag"], what["source_match_condition"]) == (
        "other",
        '"0x7"',
        MatchConditions.IfNotModified,
    )
    assert (made.key, made.size, made.content_type, made.metadata) == (
        "other",
        7,
        "application/octet-stream",
        {"a": "b"},
    )
    account.container.copy_status = "pending"
    with pytest.raises(AppError, match="not finished yet") as raised:
        store(account).copy("k", "other")
    assert classify(raised.value) is ErrorCode.UNAVAILABLE


@pytest.mark.parametrize(("method", "allowed"), [("GET", "r"), ("PUT", "cw")])
def test_a_signature_allows_one_method_on_one_blob_for_a_while_whatever_the_clocks_say(
    account: OneAccount, method: Any, allowed: str
) -> None:
    url = urlsplit(store(account).sign("a b/ü", method=method, expires_in=timedelta(hours=1)))

    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert (query["sp"], query["sr"], url.path) == (allowed, "b", "/models/a%20b/%C3%BC")
    begins, ends = (datetime.fromisoformat(query[name]) for name in ("st", "se"))
    assert ends - begins == timedelta(hours=1) + CLOCKS
    assert "a2V5" not in url.query


def test_where_there_is_no_key_a_signature_is_that_of_a_token_for_as_long(account: OneAccount) -> None:
    key = account.delegated = UserDelegationKey()
    key.signed_oid, key.signed_tid, key.signed_service, key.signed_version = "oid", "tid", "b", "2024-01-01"
    key.signed_start, key.signed_expiry, key.value = "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z", "a2V5"

    url = urlsplit(store(account).sign("k", method="GET", expires_in=timedelta(hours=1)))

    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert (query["skoid"], query["sktid"], query["sp"]) == ("oid", "tid", "r")
    ((begins, ends),) = account.asked
    assert ends - begins == pytest.approx(timedelta(hours=1) + CLOCKS, abs=timedelta(seconds=1))


def test_content_is_read_into_what_the_reader_has() -> None:
    source = io.BytesIO(b"0123456789")
    content = io.BufferedReader(Content(source), 4)

    assert (content.read(3), content.read(0), content.read()) == (b"012", b"", b"3456789")
    assert Content(io.BytesIO(b"abc")).readall() == b"abc"
