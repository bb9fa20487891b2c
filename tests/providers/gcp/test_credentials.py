"""Who calls Google Cloud: where credentials are found, and how tokens are kept."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from google.auth.exceptions import RefreshError, TransportError

from polyserve.driver import ErrorCode
from polyserve_gcp import transport
from polyserve_gcp.credentials import Credentials
from polyserve_gcp.errors import ServiceError, TokenError, classify
from polyserve_gcp.settings import GcpSettings

PROJECT = "polyserve-tests"
ACCOUNT = f"deployer@{PROJECT}.iam.gserviceaccount.com"
OTHER = f"other@{PROJECT}.iam.gserviceaccount.com"
MACHINE = "123456789-compute@developer.gserviceaccount.com"


@pytest.fixture
def opened() -> Iterator[Any]:
    """Give what opens credentials and closes them in the end."""
    with ExitStack() as stack:

        def open_(settings: GcpSettings) -> Credentials:
            return stack.enter_context(closing(Credentials(settings)))

        yield open_


def renewed() -> None:
    """Wait for what is asked in the background."""
    for thread in threading.enumerate():
        if thread.name == "polyserve-token":
            thread.join(10)
            assert not thread.is_alive()


# --- where they are found ---------------------------------------------------------------------------------------------


def test_a_key_file_names_project_and_account_and_gets_tokens(google: Any, opened: Any) -> None:
    credentials = opened(google.settings(credentials_file=google.key_file()))

    assert (credentials.project, credentials.service_account_email) == (PROJECT, ACCOUNT)
    assert credentials.headers() == {"authorization": "Bearer secret-access-1"}
    assert [call.path for call in google.asked] == ["/token"]


@pytest.mark.parametrize("way", ["settings", "variable", "gcloud"])
def test_a_file_is_found_where_google_looks_for_it(
    google: Any, opened: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    settings = google.settings()
    if way == "settings":
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "another"))
        settings = google.settings(credentials_file=google.key_file())
    elif way == "variable":
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", google.key_file())
    else:
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        Path(google.key_file()).rename(tmp_path / "application_default_credentials.json")

    assert opened(settings).service_account_email == ACCOUNT


def test_the_project_is_whoever_names_it_first(google: Any, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = google.key_file()
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of-variable")

    assert opened(google.settings(credentials_file=key, project="of-settings")).project == "of-settings"
    assert opened(google.settings(credentials_file=key)).project == "of-variable"
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    person = google.person_file()
    assert opened(google.settings(credentials_file=person, impersonate=OTHER)).project == PROJECT
    with pytest.raises(TokenError, match="give project, or set GOOGLE_CLOUD_PROJECT"):
        _ = opened(google.settings(credentials_file=person)).project


def test_without_credentials_the_ways_to_get_some_are_told_and_nobody_is_asked(google: Any, opened: Any) -> None:
    with pytest.raises(TokenError, match=r"gcloud auth application-default login.*credentials_file") as raised:
        opened(google.settings()).access_token()

    assert classify(raised.value) is ErrorCode.UNAUTHENTICATED
    assert google.asked == []


@pytest.mark.parametrize(
    "content", ["", "hunter2", '{"hunter2": 1}', '{"type": "service_account", "private_key": "hunter2"}', "[]"]
)
def test_a_file_that_is_none_is_named_and_not_shown(google: Any, opened: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)

    with pytest.raises(TokenError, match=r"broken\.json' has no credentials") as raised:
        opened(google.settings(credentials_file=str(path))).access_token()
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_credentials_that_nobody_knows_are_refused_by_their_type(google: Any, opened: Any) -> None:
    with pytest.raises(TokenError, match="type 'gdch_service_account'"):
        opened(google.settings(credentials_file=google.file(type="gdch_service_account"))).access_token()
    with pytest.raises(TokenError, match=r"of s3ns\.example"):
        opened(google.settings(credentials_file=google.file(type="x", universe_domain="s3ns.example"))).access_token()
    with pytest.raises(TokenError, match="No such file"):
        opened(google.settings(credentials_file="missing.json")).access_token()


def test_a_machine_of_googles_has_its_own(google: Any, opened: Any) -> None:
    credentials = opened(google.settings(machine=True))

    assert (credentials.project, credentials.service_account_email) == (PROJECT, MACHINE)
    assert credentials.access_token() == "secret-access-1"
    assert credentials.sign_bytes(b"x") == b"signed by IAM"
    (signed,) = [call for call in google.asked if "signBlob" in call.path]
    assert signed.path == f"/v1/projects/-/serviceAccounts/{MACHINE}:signBlob"
    assert signed.headers["authorization"] == "Bearer secret-access-1"


@pytest.mark.parametrize(
    "variables",
    [
        {"GCE_METADATA_HOST": "{}"},
        {"GCE_METADATA_HOST": "{}", "NO_GCE_CHECK": "true"},
        {},
    ],
    ids=["host", "no check", "neither"],
)
def test_no_link_local_address_is_asked_whether_it_is_there(google: Any, variables: dict[str, str]) -> None:
    program = dedent(
        """
        import sys

        def watch(event, args):
            if event in {"socket.connect", "socket.getaddrinfo"} and "127.0.0.1" not in str(args):
                print("left", args, flush=True)
                raise SystemExit(3)

        sys.addaudithook(watch)
        from pathlib import Path
        from polyserve_gcp import sources
        from polyserve_gcp.credentials import Credentials
        from polyserve_gcp.errors import TokenError
        from polyserve_gcp.settings import GcpSettings

        # Wherever this test runs.
        sources._DMI = Path("/nonexistent")
        try:
            print(Credentials(GcpSettings()).access_token())
        except TokenError as error:
            print("none")
        """
    )
    given = {name: value.format(google.url.removeprefix("http://")) for name, value in variables.items()}
    environment = {name: value for name, value in os.environ.items() if name != "NO_GCE_CHECK"} | given

    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    found = bool(variables) and "NO_GCE_CHECK" not in variables
    assert (done.stdout.strip(), done.returncode) == ("secret-access-1" if found else "none", 0), done.stderr
    assert (google.asked != []) is found


# --- how tokens are kept ----------------------------------------------------------------------------------------------


def test_many_threads_ask_for_one_token(google: Any, opened: Any) -> None:
    credentials = opened(google.settings(credentials_file=google.key_file()))

    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: credentials.access_token(), range(64)))

    assert tokens == {"secret-access-1"}
    assert google.count("/token") == 1


def test_a_token_that_nears_its_end_is_renewed_while_nobody_waits(google: Any, opened: Any) -> None:
    google.life_s = 200
    credentials = opened(google.settings(credentials_file=google.key_file()))
    first = credentials.access_token()
    google.gate.clear()

    assert [credentials.access_token() for _ in range(3)] == [first] * 3
    google.gate.set()
    renewed()

    assert credentials.access_token() == "secret-access-2"
    assert google.count("/token") == 2


def test_a_renewal_that_fails_costs_nothing_as_long_as_the_token_is_good(google: Any, opened: Any) -> None:
    google.life_s = 200
    credentials = opened(google.settings(credentials_file=google.key_file()))
    first = credentials.access_token()
    google.refuse = {"/token": (503, {})}

    assert credentials.access_token() == first
    renewed()

    assert credentials.access_token() == first
    # Not with every call.
    assert google.count("/token") == 2


def test_a_token_that_is_over_is_given_to_nobody(google: Any, opened: Any) -> None:
    google.life_s = 10
    credentials = opened(google.settings(credentials_file=google.key_file()))

    assert [credentials.access_token(), credentials.access_token()] == ["secret-access-1", "secret-access-2"]
    google.refuse = {"/token": (400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})}
    with pytest.raises(RefreshError, match="Invalid JWT Signature") as raised:
        credentials.access_token()
    assert classify(raised.value) is ErrorCode.UNAUTHENTICATED


def test_a_token_that_was_refused_is_asked_for_anew_and_another_one_is_not(google: Any, opened: Any) -> None:
    credentials = opened(google.settings(credentials_file=google.key_file()))
    first = credentials.access_token()

    credentials.forget("another")
    assert credentials.access_token() == first
    credentials.forget(first)
    assert credentials.access_token() == "secret-access-2"
    credentials.forget()
    assert credentials.access_token() == "secret-access-3"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_whoever_cannot_answer_now_is_asked_once(google: Any, opened: Any, status: int) -> None:
    google.refuse = {"/token": (status, {})}

    with pytest.raises(TransportError, match=f"HTTP {status}") as raised:
        opened(google.settings(credentials_file=google.key_file())).access_token()

    assert classify(raised.value) is ErrorCode.UNAVAILABLE
    assert google.count("/token") == 1


def test_whoever_does_not_answer_is_given_up(google: Any, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.2)
    google.gate.clear()

    with pytest.raises(TransportError, match=r"127.0.0.1") as raised:
        opened(google.settings(credentials_file=google.key_file())).access_token()

    assert classify(raised.value) is ErrorCode.UNAVAILABLE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_while_a_token_is_asked_for_asks_by_itself(google: Any) -> None:
    program = dedent(
        """
        import os, signal, sys
        from polyserve_gcp.credentials import Credentials
        from polyserve_gcp.settings import GcpSettings

        credentials = Credentials(GcpSettings(credentials_file=sys.argv[1]))
        print(credentials.access_token(), flush=True)
        sys.stdin.readline()
        # The renewal is on its way, and stays there.
        credentials.access_token()
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            print("forked", flush=True)
            sys.stdin.readline()
            credentials.forget()
            print(credentials.access_token(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        """
    )
    google.life_s = 200
    command = [sys.executable, "-W", "ignore", "-u", "-c", program, google.key_file()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "secret-access-1\n"
        google.gate.clear()
        process.stdin.write("\n")
        assert process.stdout.readline() == "forked\n"
        google.gate.set()
        process.stdin.write("\n")
        assert process.stdout.readline().startswith("secret-access-")
        assert process.wait(20) == 0


def test_no_token_is_shown(google: Any, opened: Any) -> None:
    credentials = opened(google.settings(credentials_file=google.key_file()))
    shown = [
        credentials,
        credentials.source(),
        credentials.access(),
        credentials.identity("https://x"),
        credentials.native,
    ]

    assert not any("secret" in repr(each) or "PRIVATE" in repr(each) for each in shown)
    assert "secret" not in str(shown)


# --- other identities -------------------------------------------------------------------------------------------------


def test_a_service_account_is_impersonated(google: Any, opened: Any) -> None:
    credentials = opened(google.settings(credentials_file=google.key_file(), impersonate=OTHER))

    assert credentials.service_account_email == OTHER
    assert credentials.access_token() == "secret-as-2"
    assert credentials.sign_bytes(b"x") == b"signed by IAM"
    asked, signed = (call for call in google.asked if "serviceAccounts" in call.path)
    assert asked.path == f"/v1/projects/-/serviceAccounts/{OTHER}:generateAccessToken"
    assert asked.headers["authorization"] == signed.headers["authorization"] == "Bearer secret-access-1"
    assert asked.json() == {"scope": ["https://www.googleapis.com/auth/cloud-platform"], "lifetime": "3600s"}
    assert base64.b64decode(signed.json()["payload"]) == b"x"


def test_an_impersonation_in_a_file_is_a_step_on_the_way(google: Any, opened: Any) -> None:
    url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{}:generateAccessToken"
    source = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    file = google.file(
        type="impersonated_service_account",
        source_credentials=source | {"token_uri": f"{google.url}/token"},
        service_account_impersonation_url=url.format(ACCOUNT),
        delegates=["projects/-/serviceAccounts/first@p.iam.gserviceaccount.com"],
    )

    assert opened(google.settings(credentials_file=file)).access_token() == "secret-as-2"
    assert google.asked[-1].path.endswith(f"/{ACCOUNT}:generateAccessToken")
    assert google.asked[-1].json()["delegates"] == ["projects/-/serviceAccounts/first@p.iam.gserviceaccount.com"]
    google.asked.clear()
    assert opened(google.settings(credentials_file=file, impersonate=OTHER)).access_token() == "secret-as-4"
    assert google.asked[-1].path.endswith(f"/{OTHER}:generateAccessToken")
    assert [each.rpartition("/")[2] for each in google.asked[-1].json()["delegates"]] == [
        "first@p.iam.gserviceaccount.com",
        ACCOUNT,
    ]


def test_whom_one_may_not_be_is_told_with_the_permission(google: Any, opened: Any) -> None:
    message = "The caller does not have permission"
    google.refuse = {"serviceAccounts": (403, {"error": {"status": "PERMISSION_DENIED", "message": message}})}
    credentials = opened(google.settings(credentials_file=google.key_file(), impersonate=OTHER))

    for ask, permission in (
        (credentials.access_token, "getAccessToken"),
        (lambda: credentials.id_token("https://x"), "getOpenIdToken"),
        (lambda: credentials.sign_bytes(b""), "signBlob"),
    ):
        with pytest.raises(ServiceError, match=rf"iam\.serviceAccounts\.{permission} on {OTHER}") as raised:
            ask()
        assert classify(raised.value) is ErrorCode.PERMISSION_DENIED


def test_an_api_that_is_not_enabled_is_told_with_the_command(google: Any, opened: Any) -> None:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "SERVICE_DISABLED",
        "metadata": {"service": "iamcredentials.googleapis.com", "consumer": f"projects/{PROJECT}"},
    }
    error = {"status": "PERMISSION_DENIED", "message": "it is disabled", "details": [info]}
    google.refuse = {"serviceAccounts": (403, {"error": error})}

    with pytest.raises(ServiceError, match="gcloud services enable iamcredentials") as raised:
        opened(google.settings(credentials_file=google.key_file(), impersonate=OTHER)).access_token()
    assert classify(raised.value) is ErrorCode.FAILED_PRECONDITION


def test_a_person_calls_and_says_who_pays_and_signs_nothing(google: Any, opened: Any) -> None:
    credentials = opened(google.settings(credentials_file=google.person_file()))

    assert credentials.headers() == {"authorization": "Bearer secret-access-1", "x-goog-user-project": "mine-to-pay"}
    for ask in (lambda: credentials.sign_bytes(b""), lambda: credentials.service_account_email):
        with pytest.raises(TokenError, match="set impersonate"):
            ask()
    someone = opened(google.settings(credentials_file=google.person_file(), impersonate=OTHER))
    assert someone.headers() == {"authorization": "Bearer secret-as-3"}


def test_somebody_of_another_cloud_becomes_a_service_account(google: Any, opened: Any, tmp_path: Path) -> None:
    (tmp_path / "subject").write_text("a token of theirs")
    url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{OTHER}:generateAccessToken"
    pool = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q"
    about = {
        "type": "external_account",
        "audience": pool,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{google.url}/sts",
        "credential_source": {"file": str(tmp_path / "subject")},
    }
    credentials = opened(
        google.settings(
            credentials_file=google.file(
                **about,
                service_account_impersonation_url=url,
                service_account_impersonation={"token_lifetime_seconds": 900},
            )
        )
    )

    assert (credentials.service_account_email, credentials.project) == (OTHER, PROJECT)
    assert credentials.access_token() == "secret-as-2"
    assert [call.path for call in google.asked] == ["/sts", url.removeprefix("https://iamcredentials.googleapis.com")]
    assert b"a+token+of+theirs" in google.asked[0].body
    assert google.asked[1].json()["lifetime"] == "900s"
    alone = opened(google.settings(credentials_file=google.file(**about)))
    assert alone.access_token() == "secret-access-3"
    with pytest.raises(TokenError, match="get no ID token for https://x: set impersonate"):
        alone.id_token("https://x")


def test_a_key_signs_by_itself(google: Any, opened: Any) -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding

    file = google.key_file()
    pem = __import__("json").loads(Path(file).read_text())["private_key"]

    signature = opened(google.settings(credentials_file=file)).sign_bytes(b"content")

    public: Any = serialization.load_pem_private_key(pem.encode(), None).public_key()
    public.verify(signature, b"content", padding.PKCS1v15(), hashes.SHA256())
    assert google.asked == []


# --- for the SDK's clients --------------------------------------------------------------------------------------------


def test_a_client_of_googles_gets_its_tokens_from_here_and_asks_for_nothing_else(google: Any, opened: Any) -> None:
    from google.auth.transport.requests import AuthorizedSession

    google.refuse = {"/storage/v1/b/refused": (401, {}), "/storage": (200, {})}
    credentials = opened(google.settings(credentials_file=google.person_file()))
    with closing(AuthorizedSession(credentials.native)) as session:
        assert session.get(f"{google.url}/storage/v1/b/x").status_code == 200
        assert session.get(f"{google.url}/storage/v1/b/refused").status_code == 401

    called = [call for call in google.asked if call.path.startswith("/storage")]
    assert called[0].headers["x-goog-user-project"] == "mine-to-pay"
    # Refused, another token is tried, twice.
    assert [call.headers["authorization"].rpartition("-")[2] for call in called] == ["1", "1", "2", "3"]
    assert {call.path for call in google.asked} == {"/token", "/storage/v1/b/x", "/storage/v1/b/refused"}
