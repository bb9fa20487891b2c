"""Resource Manager: driven by azure-mgmt-web, Microsoft's own client, and by plain HTTP."""

import sys
import time
import uuid

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.mgmt.web import WebSiteManagementClient
from azure.mgmt.web import models as web

from polyserve_azure.emulator import Emulator

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
READER = "acdd72a7-3385-48ef-bd42-f606fba81ae7"
CONTRIBUTOR = "b24988ac-6180-42a0-ab88-20f7382dd24c"


class Token:
    """A credential as the SDK wants one."""

    def __init__(self, token):
        self.token = token

    def get_token(self, *scopes, **more):
        """Return the token, whatever it is for."""
        return AccessToken(self.token, int(time.time()) + 3600)


@pytest.fixture(scope="module")
def client(cloud):
    """Return Microsoft's client. Without TLS it wants to be told so at each call."""
    subscription = cloud.options["subscription_id"]
    with WebSiteManagementClient(
        Token(cloud.token), subscription, base_url=cloud.options["management_url"], polling_interval=0
    ) as found:
        yield found


HTTP = {"enforce_https": False}


def site_model(cloud, plan):
    """Return an app as Microsoft's client has it."""
    storage = web.FunctionsDeploymentStorage(
        type="blobContainer",
        value=f"{cloud.endpoint}packages",
        authentication=web.FunctionsDeploymentStorageAuthentication(
            type="StorageAccountConnectionString", storage_account_connection_string_name="STORE"
        ),
    )
    return web.Site(
        location="eastus", kind="functionapp,linux", server_farm_id=plan, tags={"polyserve": "iris"},
        identity=web.ManagedServiceIdentity(type="SystemAssigned"),
        site_config=web.SiteConfig(app_settings=[web.NameValuePair(name="STORE", value=cloud.connection_string)]),
        function_app_config=web.FunctionAppConfig(
            deployment=web.FunctionsDeployment(storage=storage),
            runtime=web.FunctionsRuntime(name="python", version=PYTHON),
            scale_and_concurrency=web.FunctionsScaleAndConcurrency(instance_memory_mb=512, maximum_instance_count=7),
        ),
    )  # fmt: skip


def test_microsofts_client_makes_configures_describes_and_deletes_an_app(client, cloud):
    plan = web.AppServicePlan(location="East US", kind="functionapp", reserved=True, sku=web.SkuDescription(name="FC1"))
    made = client.app_service_plans.begin_create_or_update("tests", "mgmt-plan", plan, **HTTP).result()
    assert (made.sku.tier, made.location) == ("FlexConsumption", "eastus")

    site = client.web_apps.begin_create_or_update("tests", "mgmt-app", site_model(cloud, made.id), **HTTP).result()
    assert site.state == "Running"
    assert site.tags == {"polyserve": "iris"}
    assert site.identity.principal_id
    assert site.function_app_config.scale_and_concurrency.instance_memory_mb == 512
    assert (
        client.web_apps.list_application_settings("tests", "mgmt-app", **HTTP).properties["STORE"]
        == cloud.connection_string
    )

    settings = web.StringDictionary(properties={"STORE": cloud.connection_string, "MODEL": "v2"})
    assert (
        client.web_apps.update_application_settings("tests", "mgmt-app", settings, **HTTP).properties["MODEL"] == "v2"
    )
    assert client.web_apps.list_host_keys("tests", "mgmt-app", **HTTP).function_keys["default"]
    assert [one.name for one in client.web_apps.list_by_resource_group("tests", **HTTP) if one.name == "mgmt-app"] == [
        "mgmt-app"
    ]
    assert list(client.web_apps.list_functions("tests", "mgmt-app", **HTTP)) == []

    client.web_apps.delete("tests", "mgmt-app", **HTTP)
    with pytest.raises(ResourceNotFoundError):
        client.web_apps.get("tests", "mgmt-app", **HTTP)
    # The last app takes its plan along, unless told otherwise.
    with pytest.raises(HttpResponseError, match="serverFarms/mgmt-plan"):
        client.app_service_plans.get("tests", "mgmt-plan", **HTTP)


def test_an_operation_that_fails_in_the_end_says_so_to_microsofts_client(client, cloud, faults):
    plan = cloud.make_plan()
    faults.add(match="PUT .*/sites/late", kind="operation", code="QuotaExceeded", message="no quota is left")

    with pytest.raises(HttpResponseError) as raised:
        client.web_apps.begin_create_or_update("tests", "late", site_model(cloud, plan), **HTTP).result()

    assert raised.value.error.code == "QuotaExceeded"


def test_an_operation_is_asked_after_until_it_is_done(cloud, sign_in, session_root):
    slow = Emulator(session_root / "slow", settle_s=0.3)
    slow.start()
    try:
        mine = sign_in(slow.options)
        assert mine.put(mine.group, {"location": "eastus"}).status_code == 201
        begun = mine.ask("DELETE", mine.group)
        asked = mine.http.get(begun.headers["location"])
        assert (begun.status_code, asked.status_code) == (202, 202)
        assert mine.get(mine.group).json()["properties"]["provisioningState"] == "Deleting"
        assert mine.wait(asked).status_code == 200
        assert mine.get(mine.group).status_code == 404
    finally:
        slow.close()


def test_a_throttled_call_says_when_to_come_back_and_microsofts_client_does(client, cloud, faults):
    plan = cloud.make_plan().rpartition("/")[2]
    faults.add(
        match=f"GET .*/{plan}",
        status=429,
        code="TooManyRequests",
        message="Too many requests.",
        retry_after="0",
        times=2,
    )

    assert client.app_service_plans.get("tests", plan, **HTTP).name == plan


def test_a_failure_can_come_after_the_call_was_carried_out(cloud, faults):
    path = f"{cloud.subscription}/resourceGroups/lost-answer"
    faults.add(match="PUT .*/lost-answer", status=503, code="ServiceUnavailable", late=True)

    assert cloud.ask("PUT", path, {"location": "eastus"}).status_code == 503
    assert cloud.ask("HEAD", path).status_code == 204


def test_no_call_goes_without_a_token_or_a_version(cloud, emulator):
    without = cloud.http.get(cloud.group, headers={"authorization": ""})
    assert (without.status_code, without.json()["error"]["code"]) == (401, "AuthenticationFailed")
    unknown = cloud.http.get(cloud.group, headers={"authorization": "Bearer mine"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "InvalidAuthenticationToken")
    assert "www-authenticate" in unknown.headers

    unversioned = cloud.http.get(cloud.group)
    assert (unversioned.status_code, unversioned.json()["error"]["code"]) == (400, "MissingApiVersionParameter")


def test_a_service_principal_gets_tokens_for_one_audience_each(cloud, emulator):
    principal, _ = emulator.add_principal((READER, cloud.subscription))
    address = f"{cloud.options['authority_url']}/{cloud.options['tenant_id']}/oauth2/v2.0/token"
    form = {"grant_type": "client_credentials", "client_id": principal.client_id, "client_secret": principal.secret}

    found = cloud.http.post(address, data={**form, "scope": "https://management.azure.com/.default"}).json()[
        "access_token"
    ]
    assert (
        cloud.http.get(
            cloud.group, params={"api-version": "2024-04-01"}, headers={"authorization": f"Bearer {found}"}
        ).status_code
        == 200
    )

    other = cloud.http.post(address, data={**form, "scope": "https://storage.azure.com/.default"}).json()[
        "access_token"
    ]
    refused = cloud.http.get(
        cloud.group, params={"api-version": "2024-04-01"}, headers={"authorization": f"Bearer {other}"}
    )
    assert refused.json()["error"]["code"] == "InvalidAuthenticationTokenAudience"

    assert cloud.http.post(address, data={**form, "client_secret": "guess", "scope": "x/.default"}).status_code == 401


def test_a_principal_without_a_role_is_refused_with_the_action_and_the_scope(cloud, emulator, sign_in):
    plan = cloud.make_plan()
    _, token = emulator.add_principal((READER, cloud.group))
    reader = sign_in(cloud.options, token)
    path = f"{cloud.group}/providers/Microsoft.Web/sites/forbidden"

    assert reader.get(cloud.group).status_code == 200
    refused = reader.ask("PUT", path, cloud.site(plan))

    assert refused.status_code == 403
    error = refused.json()["error"]
    assert error["code"] == "AuthorizationFailed"
    assert "'Microsoft.Web/sites/Write'" in error["message"]
    assert path in error["message"]


def test_a_role_that_is_assigned_opens_what_its_definition_allows(cloud, emulator, sign_in):
    principal, token = emulator.add_principal()
    caller, role = sign_in(cloud.options, token), str(uuid.uuid4())
    definition = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{role}"
    permissions = [{"actions": ["Microsoft.Web/sites/*"], "notActions": ["Microsoft.Web/sites/Delete"]}]
    custom = {"roleName": f"deployer {role}", "permissions": permissions, "assignableScopes": [cloud.group]}
    assert cloud.ask("PUT", definition, {"properties": custom}).status_code == 201
    given = {"properties": {"roleDefinitionId": definition, "principalId": principal.object_id}}
    assignment = f"{cloud.group}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    sites, plan = f"{cloud.group}/providers/Microsoft.Web/sites", cloud.make_plan()
    assert caller.get(sites).status_code == 403

    assert cloud.ask("PUT", assignment, given).status_code == 201
    assert caller.get(sites).status_code == 200
    assert caller.delete(f"{sites}/none").status_code == 403
    # To put an app into a plan is an action on the plan.
    linked = caller.ask("PUT", f"{sites}/linked-app", cloud.site(plan) | {"location": "eastus"})
    assert linked.json()["error"]["code"] == "LinkedAuthorizationFailed"
    assert "Microsoft.Web/serverFarms/join/action" in linked.json()["error"]["message"]

    again = cloud.ask("PUT", assignment.rpartition("/")[0] + f"/{uuid.uuid4()}", given)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "RoleAssignmentExists")
    assert cloud.delete(assignment).status_code == 200
    assert caller.get(sites).status_code == 403


def test_an_assignment_for_nobody_is_refused_as_it_is_for_identities_that_are_too_new(cloud):
    path = f"{cloud.group}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    role = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}"

    refused = cloud.ask("PUT", path, {"properties": {"roleDefinitionId": role, "principalId": str(uuid.uuid4())}})

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "PrincipalNotFound")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        pytest.param({"scaleAndConcurrency": {"instanceMemoryMB": 1024}}, "InstanceMemoryMB", id="memory"),
        pytest.param({"scaleAndConcurrency": {"maximumInstanceCount": 1001}}, "MaximumInstanceCount", id="instances"),
        pytest.param(
            {"scaleAndConcurrency": {"triggers": {"http": {"perInstanceConcurrency": 0}}}},
            "PerInstance",
            id="concurrency",
        ),
        pytest.param(
            {"scaleAndConcurrency": {"alwaysReady": [{"name": "web", "instanceCount": 1}]}},
            "AlwaysReady.Name",
            id="always-ready",
        ),
        pytest.param({"runtime": {"name": "python", "version": "3.7"}}, "Runtime.Version", id="version"),
        pytest.param({"siteUpdateStrategy": {"type": "BlueGreen"}}, "SiteUpdateStrategy", id="strategy"),
        pytest.param({"deployment": {"storage": {"type": "fileShare"}}}, "Deployment.Storage", id="storage"),
    ],
)
def test_what_no_flex_app_can_be_is_refused_by_name(cloud, config, named):
    path, plan = (
        f"{cloud.group}/providers/Microsoft.Web/sites/impossible",
        f"{cloud.group}/providers/Microsoft.Web/serverfarms/rules",
    )
    cloud.put(plan, {"location": "eastus", "sku": {"name": "FC1"}, "properties": {"reserved": True}})

    refused = cloud.ask("PUT", path, cloud.site(plan, **config))

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BadRequest")
    assert named in refused.json()["error"]["message"]


def test_a_python_that_is_not_on_this_machine_is_refused_with_the_way_out(cloud, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    other = "3.12" if PYTHON != "3.12" else "3.13"

    body = cloud.site(cloud.make_plan(), runtime={"name": "python", "version": other})
    refused = cloud.ask("PUT", f"{cloud.group}/providers/Microsoft.Web/sites/other-python", body)

    assert refused.status_code == 400
    assert f"no python{other} on its PATH" in refused.json()["error"]["message"]
    assert f"deploy for {PYTHON}" in refused.json()["error"]["message"]


def test_an_app_setting_of_other_plans_is_refused(cloud, app):
    refused = app.set(WEBSITE_RUN_FROM_PACKAGE="1")

    assert refused.status_code == 400
    assert "AppSettings.WEBSITE_RUN_FROM_PACKAGE" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["a", "-app", "app-", "under_score", "x" * 61])
def test_a_name_that_no_app_can_have_is_refused(cloud, app, name):
    body = cloud.site(cloud.get(app.path).json()["properties"]["serverFarmId"])

    assert cloud.ask("PUT", f"{cloud.group}/providers/Microsoft.Web/sites/{name}", body).status_code == 400


def test_a_plan_has_one_app_and_stays_as_long_as_it_has(cloud, app):
    plan = cloud.get(app.path).json()["properties"]["serverFarmId"]

    second = cloud.ask("PUT", f"{cloud.group}/providers/Microsoft.Web/sites/second-app", cloud.site(plan))
    assert (second.status_code, second.json()["error"]["code"]) == (409, "Conflict")
    assert cloud.delete(plan).status_code == 409


def test_app_names_are_the_only_ones_in_the_world(cloud, app):
    elsewhere = f"{cloud.subscription}/resourceGroups/elsewhere"
    cloud.put(elsewhere, {"location": "eastus"})

    taken = cloud.ask("PUT", f"{elsewhere}/providers/Microsoft.Web/sites/{app.name}", cloud.site(cloud.make_plan()))

    assert taken.status_code == 409
    assert f"Website with given name {app.name} already exists" in taken.json()["error"]["message"]


def test_lists_come_in_pages_and_are_filtered_by_tag(cloud):
    group = f"{cloud.subscription}/resourceGroups/many"
    cloud.put(group, {"location": "eastus"})
    identities = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities"
    for number in range(25):
        body = {"location": "eastus", "tags": {"number": str(number), "kind": "odd" if number % 2 else "even"}}
        assert cloud.ask("PUT", f"{identities}/identity-{number}", body).status_code == 201

    first = cloud.get(identities).json()
    rest = cloud.http.get(first["nextLink"]).json()
    assert [len(first["value"]), len(rest["value"]), "nextLink" in rest] == [20, 5, False]
    odd = cloud.get(f"{group}/resources", **{"$filter": "tagName eq 'kind' and tagValue eq 'odd'"}).json()["value"]
    assert sorted(int(one["tags"]["number"]) for one in odd) == list(range(1, 25, 2))

    assert cloud.delete(group).status_code == 200
    assert cloud.get(identities).json()["error"]["code"] == "ResourceGroupNotFound"


def test_a_region_is_asked_what_it_offers(cloud):
    path = f"{cloud.subscription}/providers/Microsoft.Web/locations/{{}}/functionAppStacks"

    stacks = cloud.get(path.format("eastus"), stack="python", sku="FC1").json()["value"][0]
    versions = {one["value"]: one for one in stacks["properties"]["majorVersions"][0]["minorVersions"]}
    sku = versions["3.11"]["stackSettings"]["linuxRuntimeSettings"]["Sku"][0]
    assert [one["size"] for one in sku["instanceMemoryMB"]] == [512, 2048, 4096]
    assert cloud.get(path.format("westindia"), stack="python", sku="FC1").json()["value"] == []


def test_what_is_not_emulated_is_said_to_be_not(cloud):
    found = cloud.get(f"{cloud.group}/providers/Microsoft.Compute/virtualMachines")

    assert (found.status_code, found.json()["error"]["code"]) == (404, "InvalidResourceType")
