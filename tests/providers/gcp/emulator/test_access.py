"""Permissions, policies, roles, service accounts and enabled APIs, over the HTTP session of google.auth."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account

PROJECT = "projects/polyserve-emulated"
BELOW = {"title": "below", "expression": "resource.name.startsWith('projects/_/buckets/')"}
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


class Api:
    """Asks an API as somebody, and shows what came back."""

    def __init__(self, ground: Any, credentials: Any) -> None:
        self._ground, self._session = ground, AuthorizedSession(credentials.with_scopes(SCOPES))

    def __call__(self, service: str, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        answer = self._session.request(method, f"{self._ground.endpoint(service)}{path}", json=body)
        return answer.status_code, answer.json()


@pytest.fixture
def owner(ground: Any) -> Api:
    return Api(ground, ground.deployer())


def grant(owner: Api, role: str, member: str) -> None:
    """Give somebody a role on the project, as anybody with the right to would."""
    _, policy = owner("cloudresourcemanager", "POST", f"/v3/{PROJECT}:getIamPolicy", {})
    policy["bindings"].append({"role": role, "members": [member]})
    status, _ = owner("cloudresourcemanager", "POST", f"/v3/{PROJECT}:setIamPolicy", {"policy": policy})
    assert status == 200


def permission_of(refusal: dict[str, Any]) -> str:
    assert refusal["error"]["status"] == "PERMISSION_DENIED"
    found: str = refusal["error"]["details"][0]["metadata"]["permission"]
    assert found in refusal["error"]["message"]
    return found


class TestRefusals:
    """Who may not do something is told which permission that needs."""

    @pytest.mark.parametrize(
        ("service", "method", "path", "body", "permission"),
        [
            ("cloudresourcemanager", "GET", f"/v3/{PROJECT}", None, "resourcemanager.projects.get"),
            ("cloudresourcemanager", "POST", f"/v1/{PROJECT}:getIamPolicy", {}, "resourcemanager.projects.getIamPolicy"),
            ("cloudresourcemanager", "POST", f"/v1/{PROJECT}:setIamPolicy", {}, "resourcemanager.projects.setIamPolicy"),
            ("serviceusage", "GET", f"/v1/{PROJECT}/services", None, "serviceusage.services.list"),
            ("serviceusage", "POST", f"/v1/{PROJECT}/services/run.googleapis.com:disable", {}, "serviceusage.services.disable"),
            ("iam", "POST", f"/v1/{PROJECT}/serviceAccounts", {"accountId": "somebody"}, "iam.serviceAccounts.create"),
            ("iam", "DELETE", f"/v1/{PROJECT}/serviceAccounts/x@y.z", None, "iam.serviceAccounts.delete"),
            ("iam", "POST", f"/v1/{PROJECT}/roles", {"roleId": "something"}, "iam.roles.create"),
        ],
    )  # fmt: skip
    def test_the_permission_is_named(
        self, ground: Any, service: str, method: str, path: str, body: Any, permission: str
    ) -> None:
        status, refusal = Api(ground, ground.account())(service, method, path, body)
        assert status == 403
        assert permission_of(refusal) == permission

    def test_an_owner_may_what_an_editor_may_not(self, ground: Any, owner: Api) -> None:
        path, body = (
            f"/v1/{PROJECT}:testIamPermissions",
            {"permissions": ["run.services.create", "run.services.setIamPolicy"]},
        )
        assert owner("cloudresourcemanager", "POST", path, body)[1] == body
        editor = Api(ground, ground.account("roles/editor"))
        assert editor("cloudresourcemanager", "POST", path, body)[1] == {"permissions": ["run.services.create"]}
        nobody = Api(ground, ground.account())
        assert nobody("cloudresourcemanager", "POST", path, body)[1] == {}

    def test_another_project_is_nobodys_business(self, owner: Api) -> None:
        status, refusal = owner("cloudresourcemanager", "GET", "/v3/projects/somebody-elses")
        assert status == 403
        assert permission_of(refusal) == "resourcemanager.projects.get"

    def test_a_call_is_counted_for_a_project_that_the_caller_may_use(self, ground: Any, bucket: Any) -> None:
        place = f"{ground.endpoint('storage')}/storage/v1/b/{bucket.name}"
        field = {"x-goog-user-project": "polyserve-emulated"}
        admin = ground.account("roles/storage.admin")
        refused = AuthorizedSession(admin.with_scopes(SCOPES)).get(place, headers=field)
        assert refused.status_code == 403
        assert refused.json()["error"]["details"][0]["reason"] == "USER_PROJECT_DENIED"
        assert "serviceusage.services.use" in refused.json()["error"]["message"]
        owner = AuthorizedSession(ground.deployer().with_scopes(SCOPES))
        assert owner.get(place, headers=field).status_code == 200
        assert owner.get(place, headers={"x-goog-user-project": "somebody-elses"}).status_code == 403

    def test_storage_says_who_lacks_what(self, ground: Any, bucket: Any) -> None:
        reader = ground.account("roles/storage.objectViewer")
        mine = ground.client(reader).bucket(bucket.name)
        with pytest.raises(exceptions.Forbidden) as caught:
            mine.blob("x").upload_from_string("1")
        assert f"{reader.service_account_email} does not have storage.objects.create access" in str(caught.value)

    def test_who_may_not_list_is_not_told_what_is_missing(self, ground: Any, bucket: Any) -> None:
        writer = ground.client(ground.account("roles/storage.objectCreator")).bucket(bucket.name)
        with pytest.raises(exceptions.Forbidden, match=r"storage\.objects\.get"):
            writer.blob("x").download_as_bytes()
        legacy = ground.client(ground.account("roles/storage.legacyObjectReader")).bucket(bucket.name)
        with pytest.raises(exceptions.Forbidden, match=r"storage\.objects\.list"):
            legacy.blob("x").download_as_bytes()

    def test_who_may_create_only_cannot_write_over(self, ground: Any, bucket: Any) -> None:
        writer = ground.client(ground.account("roles/storage.objectCreator")).bucket(bucket.name)
        writer.blob("x").upload_from_string("1")
        with pytest.raises(exceptions.Forbidden, match=r"storage\.objects\.delete"):
            writer.blob("x").upload_from_string("2")


class TestServices:
    """APIs that are not enabled."""

    def test_a_disabled_api_says_so_and_where_it_is_enabled(self, ground: Any, owner: Api, bucket: Any) -> None:
        path = f"/v1/{PROJECT}/services/storage.googleapis.com"
        try:
            status, operation = owner("serviceusage", "POST", f"{path}:disable", {})
            assert (status, operation["done"]) == (200, True)
            assert owner("serviceusage", "GET", f"/v1/{operation['name']}")[1] == operation
            assert owner("serviceusage", "GET", path)[1]["state"] == "DISABLED"
            with pytest.raises(exceptions.Forbidden) as caught:
                bucket.reload()
            assert "has not been used in project 100000000001 before or it is disabled" in str(caught.value)
            info = next(one for one in caught.value.response.json()["error"]["details"] if one.get("reason"))
            assert (info["reason"], info["metadata"]["service"]) == ("SERVICE_DISABLED", "storage.googleapis.com")
        finally:
            owner("serviceusage", "POST", f"{path}:enable", {})
        bucket.reload()
        assert owner("serviceusage", "GET", path)[1]["state"] == "ENABLED"

    def test_what_is_enabled_can_be_listed(self, owner: Api) -> None:
        found = owner("serviceusage", "GET", f"/v1/{PROJECT}/services?filter=state:ENABLED")[1]["services"]
        assert {"cloudfunctions.googleapis.com", "run.googleapis.com"} <= {one["config"]["name"] for one in found}
        names = "&".join(f"names={PROJECT}/services/{one}.googleapis.com" for one in ("run", "iam"))
        named = owner("serviceusage", "GET", f"/v1/{PROJECT}/services:batchGet?{names}")[1]["services"]
        assert [one["config"]["name"] for one in named] == ["run.googleapis.com", "iam.googleapis.com"]
        body = {"serviceIds": ["run.googleapis.com", "iam.googleapis.com"]}
        enabled = owner("serviceusage", "POST", f"/v1/{PROJECT}/services:batchEnable", body)[1]["response"]
        assert len(enabled["services"]) == 2

    def test_an_api_that_is_none_cannot_be_enabled(self, owner: Api) -> None:
        assert owner("serviceusage", "POST", f"/v1/{PROJECT}/services/compute.googleapis.com:enable", {})[0] == 403


class TestAccounts:
    """Service accounts and their keys."""

    def test_an_account_is_made_described_changed_and_deleted(self, owner: Api) -> None:
        every = f"/v1/{PROJECT}/serviceAccounts"
        name = f"scorer-{time.monotonic_ns() % 10**9}"
        status, made = owner("iam", "POST", every, {"accountId": name, "serviceAccount": {"displayName": "Scorer"}})
        assert status == 200
        assert made["email"] == f"{name}@polyserve-emulated.iam.gserviceaccount.com"
        assert owner("iam", "POST", every, {"accountId": name})[0] == 409
        assert owner("iam", "GET", f"{every}/{made['email']}")[1] == made
        assert owner("iam", "GET", f"{every}/{made['uniqueId']}")[1] == made
        assert made["email"] in {one["email"] for one in owner("iam", "GET", every)[1]["accounts"]}
        body = {"serviceAccount": {"displayName": "Another"}, "updateMask": "displayName"}
        assert owner("iam", "PATCH", f"{every}/{made['email']}", body)[1]["displayName"] == "Another"
        assert owner("iam", "DELETE", f"{every}/{made['email']}") == (200, {})
        assert owner("iam", "GET", f"{every}/{made['email']}")[0] == 404

    @pytest.mark.parametrize("name", ["short", "Capital", "1digit-first", "x" * 31, "ends-with-", ""])
    def test_a_name_that_is_none_is_refused(self, owner: Api, name: str) -> None:
        status, refusal = owner("iam", "POST", f"/v1/{PROJECT}/serviceAccounts", {"accountId": name})
        assert (status, refusal["error"]["status"]) == (400, "INVALID_ARGUMENT")

    def test_a_key_that_was_made_is_good_until_it_is_deleted(self, ground: Any, owner: Api) -> None:
        account = ground.account("roles/viewer").service_account_email
        place = f"/v1/{PROJECT}/serviceAccounts/{account}/keys"
        made = owner("iam", "POST", place, {})[1]
        content = json.loads(base64.b64decode(made["privateKeyData"]))
        mine = service_account.Credentials.from_service_account_info(content)
        assert Api(ground, mine)("cloudresourcemanager", "GET", f"/v3/{PROJECT}")[0] == 200
        assert made["name"] in {key["name"] for key in owner("iam", "GET", place)[1]["keys"]}
        assert owner("iam", "DELETE", f"/v1/{made['name']}") == (200, {})
        with pytest.raises(Exception, match="invalid JWT signature"):
            Api(ground, service_account.Credentials.from_service_account_info(content))(
                "cloudresourcemanager", "GET", f"/v3/{PROJECT}"
            )


class TestPolicies:
    """Who has which role."""

    def test_a_role_that_is_given_is_there_at_once_and_gone_at_once(self, ground: Any, owner: Api) -> None:
        mine = ground.account()
        asks = Api(ground, mine)
        member = f"serviceAccount:{mine.service_account_email}"
        assert asks("cloudresourcemanager", "GET", f"/v3/{PROJECT}")[0] == 403
        grant(owner, "roles/browser", member)
        assert asks("cloudresourcemanager", "GET", f"/v3/{PROJECT}")[0] == 200
        _, policy = owner("cloudresourcemanager", "POST", f"/v1/{PROJECT}:getIamPolicy", {})
        policy["bindings"] = [one for one in policy["bindings"] if member not in one["members"]]
        owner("cloudresourcemanager", "POST", f"/v1/{PROJECT}:setIamPolicy", {"policy": policy})
        assert asks("cloudresourcemanager", "GET", f"/v3/{PROJECT}")[0] == 403

    def test_of_two_who_change_a_policy_one_has_to_begin_anew(self, ground: Any, owner: Api) -> None:
        _, policy = owner("cloudresourcemanager", "POST", f"/v3/{PROJECT}:getIamPolicy", {})
        grant(owner, "roles/viewer", f"serviceAccount:{ground.account().service_account_email}")
        status, refusal = owner("cloudresourcemanager", "POST", f"/v3/{PROJECT}:setIamPolicy", {"policy": policy})
        assert (status, refusal["error"]["status"]) == (409, "ABORTED")

    @pytest.mark.parametrize(
        "binding",
        [
            {"role": "roles/made.up", "members": ["allUsers"]},
            {"role": "roles/viewer", "members": ["somebody@example.com"]},
            {"role": "roles/viewer", "members": ["serviceAccount:nobody@polyserve-emulated.iam.gserviceaccount.com"]},
            {
                "role": "roles/browser",
                "members": ["domain:example.com"],
                "condition": {"title": "no", "expression": "false"},
            },
            {"role": "roles/owner", "members": ["domain:example.com"], "condition": BELOW},
            {"role": "roles/browser", "members": ["allUsers"], "condition": BELOW},
        ],
    )
    def test_a_policy_that_means_nothing_is_refused(self, owner: Api, binding: dict[str, Any]) -> None:
        _, policy = owner("cloudresourcemanager", "POST", f"/v3/{PROJECT}:getIamPolicy", {})
        policy["version"] = 3
        policy["bindings"].append(binding)
        status, refusal = owner("cloudresourcemanager", "POST", f"/v3/{PROJECT}:setIamPolicy", {"policy": policy})
        assert (status, refusal["error"]["status"]) == (400, "INVALID_ARGUMENT")


class TestRoles:
    """Roles of the project's own."""

    def test_a_custom_role_allows_what_it_names_and_no_more(self, ground: Any, owner: Api) -> None:
        identifier = f"deployer{time.monotonic_ns()}"
        role = {
            "title": "Deployer",
            "includedPermissions": ["storage.buckets.create", "storage.buckets.get"],
            "stage": "GA",
        }
        status, made = owner("iam", "POST", f"/v1/{PROJECT}/roles", {"roleId": identifier, "role": role})
        assert (status, made["name"]) == (200, f"{PROJECT}/roles/{identifier}")
        mine = ground.account()
        grant(owner, made["name"], f"serviceAccount:{mine.service_account_email}")
        client = ground.client(mine)
        bucket = client.create_bucket(f"custom-{time.monotonic_ns()}")
        with pytest.raises(exceptions.Forbidden, match=r"storage\.buckets\.delete"):
            bucket.delete()
        wider = {
            "includedPermissions": [*role["includedPermissions"], "storage.buckets.delete", "storage.objects.list"]
        }
        assert owner("iam", "PATCH", f"/v1/{made['name']}?updateMask=includedPermissions", wider)[0] == 200
        bucket.delete()
        assert owner("iam", "DELETE", f"/v1/{made['name']}")[1]["deleted"] is True
        with pytest.raises(exceptions.Forbidden):
            client.create_bucket(f"custom-{time.monotonic_ns()}")
        assert owner("iam", "POST", f"/v1/{made['name']}:undelete", {})[0] == 200
        assert made["name"] in {one["name"] for one in owner("iam", "GET", f"/v1/{PROJECT}/roles")[1]["roles"]}

    def test_a_role_with_what_is_no_permission_is_refused(self, owner: Api) -> None:
        body = {"roleId": "wrong", "role": {"includedPermissions": ["storage.*"]}}
        assert owner("iam", "POST", f"/v1/{PROJECT}/roles", body)[0] == 400
        assert owner("iam", "GET", f"/v1/{PROJECT}/roles/wrong")[0] == 404

    def test_a_predefined_role_says_what_it_allows(self, owner: Api) -> None:
        found = owner("iam", "GET", "/v1/roles/run.invoker")[1]
        assert "run.routes.invoke" in found["includedPermissions"]
        assert "roles/owner" in {one["name"] for one in owner("iam", "GET", "/v1/roles")[1]["roles"]}


def test_what_is_not_emulated_says_so(owner: Api) -> None:
    status, refusal = owner("cloudresourcemanager", "GET", "/v3/folders")
    assert status == 404
    assert "The emulator has no 'GET /v3/folders'" in refusal["error"]["message"]
