"""Keys, tokens and the metadata server, as google.auth and Google's credentials API use them."""

from __future__ import annotations

import json
import time
import urllib.parse
from typing import Any

import google.auth.compute_engine
import httpx
import pytest
from google.auth import exceptions, iam, impersonated_credentials
from google.auth import jwt as google_jwt
from google.auth.compute_engine import _metadata
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import credentials as user_credentials
from google.oauth2 import id_token, service_account

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
FIELDS = ("refresh_token", "token_uri", "client_id", "client_secret")
AUDIENCE = "https://scorer-abc-uc.a.run.app"


def session(credentials: Any) -> AuthorizedSession:
    return AuthorizedSession(credentials.with_scopes(SCOPES))


def certificates(ground: Any) -> str:
    return f"{ground.endpoint('oauth2')}/oauth2/v1/certs"


def claims_of(ground: Any, token: str, audience: str = AUDIENCE) -> dict[str, Any]:
    """Verify a token as Google's own library does, against the published certificates."""
    found: dict[str, Any] = id_token.verify_token(token, Request(), audience=audience, certs_url=certificates(ground))
    return found


def test_a_key_file_gives_an_access_token_that_the_apis_take(ground: Any) -> None:
    answer = session(ground.deployer()).get(f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated")
    assert answer.status_code == 200
    assert answer.json()["projectId"] == "polyserve-emulated"


def test_a_key_file_gives_an_id_token_for_one_audience_that_google_auth_verifies(ground: Any) -> None:
    given = service_account.IDTokenCredentials.from_service_account_file(
        ground.options["credentials_file"], target_audience=AUDIENCE
    )
    given.refresh(Request())
    claims = claims_of(ground, given.token)
    assert (claims["email"], claims["email_verified"], claims["iss"]) == (
        "deployer@polyserve-emulated.iam.gserviceaccount.com", True, "https://accounts.google.com",
    )  # fmt: skip
    assert 3500 < claims["exp"] - time.time() < 3700
    with pytest.raises(exceptions.GoogleAuthError, match="audience"):
        claims_of(ground, given.token, "https://another.a.run.app")


def test_the_certificates_are_published_as_json_web_keys_too(ground: Any) -> None:
    keys = httpx.get(f"{ground.endpoint('oauth2')}/oauth2/v3/certs").json()["keys"]
    assert [key["kid"] for key in keys] == list(httpx.get(certificates(ground)).json())
    assert keys[0]["kty"] == "RSA"


def test_a_token_that_an_account_signed_itself_is_an_access_token_of_its_api(ground: Any) -> None:
    signed = ground.deployer().with_always_use_jwt_access(True)
    signed._create_self_signed_jwt("https://cloudresourcemanager.googleapis.com/")
    place = f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated"
    assert AuthorizedSession(signed).get(place).status_code == 200
    other = f"{ground.endpoint('serviceusage')}/v1/projects/polyserve-emulated/services"
    assert AuthorizedSession(signed).get(other).status_code == 401


def test_a_key_that_is_not_the_accounts_gives_no_token(ground: Any) -> None:
    mine, other = (ground.ground.identities.add_service_account(name) for name in ("key-of-mine", "key-of-other"))
    content = ground.ground.identities.add_key(other) | {"client_email": mine.email}
    forged = service_account.Credentials.from_service_account_info(content, scopes=SCOPES)
    with pytest.raises(exceptions.RefreshError, match="invalid_grant"):
        forged.refresh(Request())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": -4000, "iat": -7600}, "short-lived"),
        ({"exp": 9000}, "short-lived"),
        ({"aud": "https://elsewhere.example"}, "audience"),
        ({"iss": "nobody@polyserve-emulated.iam.gserviceaccount.com"}, "account not found"),
        ({"scope": ""}, "Invalid OAuth scope"),
    ],
)
def test_an_assertion_that_says_something_else_gives_no_token(
    ground: Any, changes: dict[str, Any], reason: str
) -> None:
    deployer, now = ground.deployer(), int(time.time())
    claims = {
        "iss": deployer.service_account_email, "aud": "https://oauth2.googleapis.com/token", "scope": SCOPES[0], "iat": 0, "exp": 3600,
    } | changes  # fmt: skip
    claims |= {"iat": now + claims["iat"], "exp": now + claims["exp"]}
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": google_jwt.encode(deployer.signer, claims).decode(),
    }
    answer = httpx.post(f"{ground.endpoint('oauth2')}/token", data=form)
    assert answer.status_code == 400
    assert reason in answer.json()["error_description"]


def test_a_person_gets_tokens_for_a_client_and_for_no_service(ground: Any) -> None:
    identities = ground.ground.identities
    person = identities.add_person("ada@example.com")
    content = identities.add_refresh_token(person)
    logged_in = user_credentials.Credentials(None, **{name: content[name] for name in FIELDS})
    logged_in.refresh(Request())
    place = f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated"
    refused = httpx.get(place, headers={"authorization": f"Bearer {logged_in.token}"})
    assert refused.status_code == 403
    assert claims_of(ground, logged_in.id_token, content["client_id"])["email"] == "ada@example.com"
    stolen = user_credentials.Credentials(
        None, **{name: content[name] for name in FIELDS} | {"client_secret": "guessed"}
    )
    with pytest.raises(exceptions.RefreshError, match="expired or revoked"):
        stolen.refresh(Request())


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer made-up", "Basic dTpw", "Bearer a.b.c"])
def test_a_call_without_a_good_token_is_from_nobody(ground: Any, header: str) -> None:
    place = f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated"
    answer = httpx.get(place, headers={"authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.json()["error"]["status"] == "UNAUTHENTICATED"
    assert answer.headers["www-authenticate"].startswith("Bearer realm=")


def test_an_expired_token_is_refused_and_says_so(ground: Any) -> None:
    identities = ground.ground.identities
    token = identities.issue_access_token(ground.ground.deployer, lifetime_s=-1)
    place = f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated"
    answer = httpx.get(place, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert answer.json()["error"]["details"][0]["reason"] == "ACCESS_TOKEN_EXPIRED"


def test_a_token_for_something_else_is_too_narrow(ground: Any) -> None:
    narrow = ground.deployer().with_scopes(["https://www.googleapis.com/auth/devstorage.read_only"])
    place = f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated"
    answer = AuthorizedSession(narrow).get(place)
    assert answer.status_code == 403
    assert answer.json()["error"]["details"][0]["reason"] == "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
    client = ground.client(narrow)
    assert isinstance(list(client.list_buckets()), list)


def test_tokens_of_a_disabled_or_deleted_account_are_good_for_nothing(ground: Any) -> None:
    owner, api = session(ground.deployer()), f"{ground.endpoint('iam')}/v1/projects/polyserve-emulated/serviceAccounts"
    mine = ground.account("roles/viewer")
    own = session(mine)
    place = f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated"
    account = f"{api}/{mine.service_account_email}"
    assert own.get(place).status_code == 200
    field = {"authorization": f"Bearer {own.credentials.token}"}
    assert owner.post(f"{account}:disable", json={}).status_code == 200
    assert httpx.get(place, headers=field).json()["error"]["details"][0]["reason"] == "ACCOUNT_STATE_INVALID"
    assert owner.post(f"{account}:enable", json={}).status_code == 200
    assert httpx.get(place, headers=field).status_code == 200
    assert owner.delete(account).status_code == 200
    assert httpx.get(place, headers=field).status_code == 401
    with pytest.raises(exceptions.RefreshError, match="account not found"):
        mine.with_scopes(SCOPES).refresh(Request())


class TestImpersonation:
    """One account acts as another through the IAM Service Account Credentials API."""

    @pytest.fixture
    def target(self, ground: Any) -> str:
        made = ground.ground.identities.add_service_account(f"target-{time.monotonic_ns()}")
        ground.ground.access.grant("roles/viewer", made.member)
        return str(made.email)

    def impersonate(self, ground: Any, source: Any, target: str) -> impersonated_credentials.Credentials:
        place = f"{ground.endpoint('iamcredentials')}/v1/projects/-/serviceAccounts/{target}:generateAccessToken"
        return impersonated_credentials.Credentials(
            source_credentials=source.with_scopes(SCOPES), target_principal=target, target_scopes=SCOPES,
            iam_endpoint_override=place,
        )  # fmt: skip

    def test_whoever_may_create_tokens_acts_as_the_other(self, ground: Any, target: str) -> None:
        acting = self.impersonate(ground, ground.account("roles/iam.serviceAccountTokenCreator"), target)
        place = f"{ground.endpoint('cloudresourcemanager')}/v3/projects/polyserve-emulated"
        assert AuthorizedSession(acting).get(place).status_code == 200

    def test_whoever_may_not_is_told_the_permission(self, ground: Any, target: str) -> None:
        acting = self.impersonate(ground, ground.account("roles/editor"), target)
        with pytest.raises(exceptions.RefreshError) as caught:
            acting.refresh(Request())
        refusal = json.loads(caught.value.args[1])["error"]
        assert refusal["status"] == "PERMISSION_DENIED"
        assert refusal["details"][0]["metadata"]["permission"] == "iam.serviceAccounts.getAccessToken"

    def test_a_role_on_the_account_alone_is_enough(self, ground: Any, target: str) -> None:
        source = ground.account()
        owner = session(ground.deployer())
        account = f"{ground.endpoint('iam')}/v1/projects/polyserve-emulated/serviceAccounts/{target}"
        policy = owner.post(f"{account}:getIamPolicy", json={}).json()
        member = f"serviceAccount:{source.service_account_email}"
        policy["bindings"] = [{"role": "roles/iam.serviceAccountTokenCreator", "members": [member]}]
        assert owner.post(f"{account}:setIamPolicy", json={"policy": policy}).status_code == 200
        acting = self.impersonate(ground, source, target)
        acting.refresh(Request())
        assert acting.token

    def call(self, ground: Any, credentials: Any, target: str, verb: str, body: dict[str, Any]) -> Any:
        place = f"{ground.endpoint('iamcredentials')}/v1/projects/-/serviceAccounts/{target}:{verb}"
        return session(credentials).post(place, json=body)

    def test_an_id_token_is_given_for_an_audience(self, ground: Any, target: str) -> None:
        body = {"audience": AUDIENCE, "includeEmail": True}
        answer = self.call(ground, ground.deployer(), target, "generateIdToken", body)
        assert claims_of(ground, answer.json()["token"])["email"] == target
        without = self.call(ground, ground.deployer(), target, "generateIdToken", {"audience": AUDIENCE})
        assert "email" not in claims_of(ground, without.json()["token"])
        assert self.call(ground, ground.deployer(), target, "generateIdToken", {}).status_code == 400

    @pytest.mark.parametrize("lifetime", ["7200s", "0s", "soon"])
    def test_a_lifetime_beyond_an_hour_is_refused(self, ground: Any, target: str, lifetime: str) -> None:
        body = {"scope": SCOPES, "lifetime": lifetime}
        assert self.call(ground, ground.deployer(), target, "generateAccessToken", body).status_code == 400

    def test_nobodys_address_is_not_found(self, ground: Any) -> None:
        answer = self.call(ground, ground.deployer(), "nobody@example.com", "generateAccessToken", {"scope": SCOPES})
        assert answer.status_code == 404

    def test_a_signed_token_is_an_assertion_as_from_a_key_file(self, ground: Any, target: str) -> None:
        now = int(time.time())
        claims = {
            "iss": target,
            "aud": "https://oauth2.googleapis.com/token",
            "iat": now,
            "exp": now + 600,
            "target_audience": AUDIENCE,
        }
        signed = self.call(ground, ground.deployer(), target, "signJwt", {"payload": json.dumps(claims)}).json()[
            "signedJwt"
        ]
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": signed}
        given = httpx.post(f"{ground.endpoint('oauth2')}/token", data=form).json()
        assert claims_of(ground, given["id_token"])["email"] == target


@pytest.fixture
def metadata(ground: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The metadata server of an account, for `google.auth`, which reads where it is when it is imported."""
    made = ground.ground.identities.add_service_account(f"runtime-{time.monotonic_ns()}")
    place = ground.run(ground.ground.metadata.address(made.email))
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", place)
    monkeypatch.setenv("GCE_METADATA_IP", place)
    return str(made.email)


class TestMetadata:
    """What an instance is told, as `google.auth.compute_engine` asks for it."""

    def test_an_instance_gets_an_access_token_of_its_account(self, ground: Any, metadata: str) -> None:
        given = google.auth.compute_engine.Credentials()
        given.refresh(Request())
        assert given.service_account_email == metadata
        caller = ground.ground.identities.read_access_token(f"Bearer {given.token}", "run.googleapis.com")
        assert caller.email == metadata

    def test_an_instance_gets_an_id_token_for_an_audience(self, ground: Any, metadata: str) -> None:
        given = google.auth.compute_engine.IDTokenCredentials(Request(), AUDIENCE, use_metadata_identity_endpoint=True)
        given.refresh(Request())
        assert claims_of(ground, given.token)["email"] == metadata

    def test_an_instance_is_told_its_project(self, ground: Any, metadata: str) -> None:
        assert _metadata.get_project_id(Request()) == "polyserve-emulated"
        assert _metadata.ping(Request())

    def test_whoever_does_not_say_what_it_wants_gets_nothing(self, ground: Any, metadata: str) -> None:
        place = f"http://{ground.run(ground.ground.metadata.address(metadata))}/computeMetadata/v1"
        assert httpx.get(f"{place}/instance/service-accounts/default/token").status_code == 403
        fields = {"metadata-flavor": "Google"}
        assert httpx.get(f"{place}/instance/service-accounts/default/identity", headers=fields).status_code == 400
        assert httpx.get(f"{place}/instance/attributes/ssh-keys", headers=fields).status_code == 404
        others = urllib.parse.quote("somebody@example.com")
        assert httpx.get(f"{place}/instance/service-accounts/{others}/token", headers=fields).status_code == 404


def test_signing_through_the_api_is_as_good_as_with_a_key(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = ground.account()
    endpoint = ground.endpoint("iamcredentials") + "/v1/projects/-/serviceAccounts/{}:signBlob"
    monkeypatch.setattr(iam, "_IAM_SIGN_ENDPOINT", endpoint)
    creator = ground.account("roles/iam.serviceAccountTokenCreator").with_scopes(SCOPES)
    signer = iam.Signer(Request(), creator, target.service_account_email)
    signature = signer.sign(b"what is signed")
    identities = ground.ground.identities
    assert identities.verify(target.service_account_email, signature, b"what is signed") is not None
    assert identities.verify(target.service_account_email, signature, b"something else") is None
