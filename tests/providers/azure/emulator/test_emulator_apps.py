"""Apps: published through the SCM site, run under the real engine, and called through the HTTP front."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event

import pytest
from azure.storage.blob import BlobServiceClient

ROLLING = {"siteUpdateStrategy": {"type": "RollingUpdate"}}
MINUTE = timedelta(minutes=1)


@contextmanager
def meeting():
    """Yield a port at which calls say that they run, and what waits for one and lets it go on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        waiting = []

        def arrive():
            connection, _ = server.accept()
            connection.recv(1)
            waiting.append(connection)

        def leave():
            with waiting.pop(0) as connection:
                connection.sendall(b"1")

        yield server.getsockname()[1], arrive, leave
        for connection in waiting:
            connection.close()


def read_traces(cloud, component, app, since):
    """Return the messages of an app, as Application Insights has them."""
    query = (
        f"traces | where cloud_RoleName == '{app}' and timestamp >= datetime({since.isoformat()}) "
        "| order by timestamp asc | project timestamp, message, cloud_RoleInstance, customDimensions"
    )
    answer = cloud.http.post(
        f"{cloud.options['insights_url']}/v1/apps/{component['AppId']}/query", json={"query": query}
    )
    assert answer.status_code == 200, answer.text
    table = answer.json()["tables"][0]
    names = [column["name"] for column in table["columns"]]
    return [dict(zip(names, row, strict=True)) for row in table["rows"]]


def test_an_app_answers_what_its_function_returns(app):
    found = app.call("/v2/models/a%20b/infer?x=1&x=2", content=b"12345", headers={"X-Mine": "here"})

    assert (found.status_code, found.headers["x-mark"], found.headers["content-type"]) == (200, "0", "application/json")
    said = found.json()
    assert (said["path"], said["method"], said["length"]) == ("v2/models/a b/infer", "POST", 5)
    # What a function sees is the address that the app has on Azure.
    assert said["url"] == f"https://{app.name}.azurewebsites.net/v2/models/a%20b/infer?x=1&x=2"
    assert said["headers"]["x-mine"] == "here"


def test_a_key_opens_it_in_either_place_and_nothing_else_does(app):
    assert app.http.get("/x").status_code == 401
    assert app.http.get("/x", headers={"x-functions-key": "guess"}).status_code == 401
    assert app.http.get("/x", params={"code": app.key}).status_code == 200
    assert app.http.get("/x", headers={"x-functions-key": app.master}).status_code == 200


def test_a_key_that_was_renewed_opens_it_and_the_old_one_does_not(cloud, app):
    path = f"{app.path}/host/default/functionKeys/renewed"

    first = cloud.ask("PUT", path, {"properties": {"name": "renewed"}})
    second = cloud.ask("PUT", path, {"properties": {"name": "renewed"}})
    assert (first.status_code, second.status_code) == (201, 200)
    old, new = (one.json()["properties"]["value"] for one in (first, second))
    assert app.http.get("/x", params={"code": new}).status_code == 200
    assert app.http.get("/x", params={"code": old}).status_code == 401
    assert cloud.post(f"{app.path}/host/default/listkeys").json()["functionKeys"]["renewed"] == new
    assert cloud.delete(path).status_code == 204
    assert app.http.get("/x", params={"code": new}).status_code == 401


def test_the_host_tells_its_state_to_the_master_key(app):
    assert app.http.get("/admin/host/status", params={"code": app.key}).status_code == 401
    assert app.http.get("/admin/host/status", params={"code": app.master}).json()["state"] == "Running"


def test_what_a_function_raises_stays_in_the_log(app):
    found = app.call("/x?do=raise")

    assert (found.status_code, found.content) == (500, b"")


def test_the_real_engine_takes_text_and_refuses_a_dict(app):
    assert app.call("/x?do=text").text == "text"
    assert app.call("/x?do=dict").status_code == 500


def test_a_process_that_ends_is_replaced(app):
    assert app.call("/x?do=exit").status_code == 500
    assert app.call("/x").status_code == 200


def test_an_app_sees_its_package_and_nothing_of_the_emulators_environment(app):
    found = app.call("/x").json()

    assert all("venv" not in path and "polyserve_azure" not in path for path in found["search"])
    assert app.call("/x?do=import&name=polyserve_azure").status_code == 500
    assert app.call("/x?do=import&name=aiohttp").status_code == 500
    assert not {"POLYSERVE_HOME", "VIRTUAL_ENV", "PYTHONPATH"} & set(found["environment"])
    assert found["environment"]["WEBSITE_SITE_NAME"] == app.name


def test_routes_have_prefixes_parameters_and_methods(cloud, pack):
    code = """
import azure.functions as func
app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

@app.route(route="items/{id:int}", methods=["GET"])
def numbered(req): return func.HttpResponse("number " + req.route_params["id"])

@app.route(route="items/{name}", methods=["GET"])
def named(req): return func.HttpResponse("name " + req.route_params["name"])

@app.route(route="items/{name}/{*rest}")
def below(req): return func.HttpResponse("rest " + req.route_params.get("rest", ""))

@app.route(methods=["GET"])
def numbers(req): return func.HttpResponse("numbers")

@app.route()
def plain(req): return func.HttpResponse("plain")

@app.route(auth_level=func.AuthLevel.ADMIN)
def guarded(req): return func.HttpResponse("guarded")
"""
    app = cloud.make_app()
    deployed = app.publish(pack({"host.json": '{"version":"2.0"}', "function_app.py": code}))
    assert deployed["status"] == 4, deployed

    assert [app.http.get(f"/api/{path}").text for path in ("items/7", "items/seven", "items/a/b/c", "plain")] == [
        "number 7", "name seven", "rest b/c", "plain",
    ]  # fmt: skip
    assert app.http.get("/items/7").status_code == 404
    # Another method is not 405: Azure/azure-functions-host#10098.
    assert app.http.post("/api/numbers").status_code == 404
    assert app.http.get("/api/guarded", params={"code": app.key}).status_code == 401
    assert app.http.get("/api/guarded", params={"code": app.master}).text == "guarded"
    assert sorted(one["properties"]["name"] for one in cloud.get(f"{app.path}/functions").json()["value"]) == [
        "below", "guarded", "named", "numbered", "numbers", "plain",
    ]  # fmt: skip


def test_a_package_is_kept_in_the_deployment_container_and_only_the_last(cloud, package):
    app = cloud.make_app()
    for mark in (1, 2):
        app.publish(package(mark))

    with BlobServiceClient.from_connection_string(cloud.connection_string) as blobs:
        kept = blobs.get_blob_client("packages", "released-package.zip").download_blob().readall()
    assert kept == package(2)
    assert app.mark() == 2


def test_one_deployment_at_a_time(cloud, package):
    app = cloud.make_app()
    assert cloud.scm(app.name, "GET", "/api/deployments/latest").status_code == 404

    first = cloud.scm(app.name, "POST", "/api/publish", content=package(1))
    second = cloud.scm(app.name, "POST", "/api/publish", content=package(2))

    assert (first.status_code, second.status_code) == (202, 409)
    deployed = app.deployed()
    assert (deployed["id"], deployed["status"], deployed["active"]) == (first.json(), 4, True)


def test_publishing_needs_a_role(cloud, emulator, app, package, sign_in):
    _, token = emulator.add_principal(("acdd72a7-3385-48ef-bd42-f606fba81ae7", cloud.group))

    refused = sign_in(cloud.options, token).scm(app.name, "POST", "/api/publish", content=package())

    assert refused.status_code == 403
    assert "Microsoft.Web/sites/publish/Action" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param({"function_app.py": "x = 1"}, "host.json was not found", id="no-host-json"),
        pytest.param(
            {"host.json": "{}", "function_app.py": "import nowhere_to_be_found"}, "ModuleNotFoundError", id="import"
        ),
        pytest.param({"host.json": "{}", "function_app.py": "def broken(:"}, "SyntaxError", id="syntax"),
        pytest.param({"host.json": "{}", "function_app.py": "import os; os._exit(4)"}, "exited with code 4", id="exit"),
    ],
)
def test_a_broken_package_fails_and_rolling_keeps_the_old_one(cloud, pack, package, files, why):
    app = cloud.make_app(**ROLLING)
    app.publish(package("old"))

    deployed = app.publish(pack(files))

    assert deployed["status"] == 3
    assert why in deployed["status_text"]
    assert app.mark() == "old"


def test_a_broken_package_ends_an_app_that_is_recreated(cloud, pack, package):
    app = cloud.make_app()
    app.publish(package("old"))

    assert app.publish(pack({"host.json": "{}", "function_app.py": "import nowhere_to_be_found"}))["status"] == 3

    assert app.call("/api/x").status_code == 404
    assert cloud.get(f"{app.path}/functions").json()["value"] == []
    assert app.publish(package("new"))["status"] == 4
    assert app.mark() == "new"


def test_a_deployment_can_be_made_to_fail(cloud, app, package, faults):
    faults.add(match=f"POST .*{app.name}/api/publish", kind="deployment", message="the platform is out of sorts")

    deployed = app.publish(package("never"))

    assert (deployed["status"], deployed["status_text"]) == (3, "Deployment failed: the platform is out of sorts")
    assert app.mark() == 0


def test_a_package_that_nobody_may_write_to_the_container_fails(cloud, package):
    storage = {
        "type": "blobContainer",
        "value": f"{cloud.endpoint}packages",
        "authentication": {"type": "SystemAssignedIdentity"},
    }
    app = cloud.make_app(deployment={"storage": storage})

    without = app.publish(package())
    assert without["status"] == 3
    assert "which the app does not have" in without["status_text"]

    site = cloud.ask("PATCH", app.path, {"identity": {"type": "SystemAssigned"}})
    cloud.wait(site)
    principal = cloud.get(app.path).json()["identity"]["principalId"]
    assert "may not write blobs" in app.publish(package())["status_text"]

    role = (
        f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/ba92f5b4-2d11-453d-a403-e96b0029c9fe"
    )
    assignment = f"{cloud.account}/providers/Microsoft.Authorization/roleAssignments/{principal}"
    given = {"roleDefinitionId": role, "principalId": principal, "principalType": "ServicePrincipal"}
    assert cloud.ask("PUT", assignment, {"properties": given}).status_code == 201
    assert app.publish(package("written"))["status"] == 4
    assert app.mark() == "written"


def test_old_instances_answer_until_a_rolling_update_is_there(cloud, package, pack):
    app = cloud.make_app(**ROLLING)
    app.publish(package("old"))
    with meeting() as (port, arrive, leave), ThreadPoolExecutor(2) as threads:
        slow = threads.submit(app.call, f"/x?do=meet&port={port}")
        arrive()
        # The new instance says that it starts, and is not let go on yet.
        starts = f"meet({port})\n"
        publishing = threads.submit(app.publish, package("new", more=starts))
        arrive()

        assert app.mark() == "old"
        leave()
        assert slow.result().json()["mark"] == "old"
        leave()
        assert publishing.result()["status"] == 4
    assert app.mark() == "new"


def test_no_request_is_lost_while_an_app_rolls(cloud, package):
    app = cloud.make_app(**ROLLING)
    app.publish(package("old"))
    over = Event()

    def call():
        found = []
        while not over.is_set():
            answer = app.call("/x")
            found.append((answer.status_code, answer.headers.get("x-mark")))
        return found

    with ThreadPoolExecutor(4) as threads:
        calling = [threads.submit(call) for _ in range(4)]
        try:
            assert app.publish(package("new"))["status"] == 4
            assert app.mark() == "new"
        finally:
            over.set()
        answers = [one for calls in calling for one in calls.result()]
    assert set(answers) <= {(200, "old"), (200, "new")}
    assert (200, "old") in answers


def test_a_request_under_way_is_lost_where_an_app_is_recreated_and_finished_where_it_rolls(cloud, package):
    outcomes = []
    for config in ({}, ROLLING):
        app = cloud.make_app(**config)
        app.publish(package("old"))
        with meeting() as (port, arrive, leave), ThreadPoolExecutor(1) as threads:
            slow = threads.submit(app.call, f"/x?do=meet&port={port}")
            arrive()
            assert app.publish(package("new"))["status"] == 4
            leave()
            outcomes.append(slow.result().status_code)
        assert app.mark() == "new"
    assert outcomes == [502, 200]


def test_settings_are_variables_of_new_instances(cloud, package):
    app = cloud.make_app()
    app.publish(package())
    before = app.call("/x").json()
    made_at = cloud.get(app.path).json()["properties"]["lastModifiedTimeUtc"]

    assert app.set(MODEL="v2").status_code == 200
    assert cloud.get(app.path).json()["properties"]["lastModifiedTimeUtc"] > made_at

    after = app.call("/x").json()
    assert (before["environment"].get("MODEL"), after["environment"]["MODEL"]) == (None, "v2")
    assert before["pid"] != after["pid"]


def test_an_instance_takes_as_many_requests_at_a_time_as_it_may_and_no_more_are_started_than_may_be(cloud, package):
    scale = {"maximumInstanceCount": 2, "triggers": {"http": {"perInstanceConcurrency": 2}}}
    app = cloud.make_app(scaleAndConcurrency=scale)
    app.publish(package())
    with meeting() as (port, arrive, leave), ThreadPoolExecutor(5) as threads:
        slow = [threads.submit(app.call, f"/x?do=meet&port={port}") for _ in range(5)]
        for _ in range(4):
            arrive()
        # The fifth waits for room, it is not refused.
        assert not any(one.done() for one in slow)
        leave()
        arrive()
        for _ in range(4):
            leave()
        answers = [one.result() for one in slow]
    assert [one.status_code for one in answers] == [200] * 5
    assert len({one.json()["pid"] for one in answers}) == 2


def test_logged_and_printed_lines_are_read_back_from_the_component_that_the_app_names(cloud, package, eventually):
    path = f"{cloud.group}/providers/Microsoft.Insights/components/lines"
    made = cloud.put(path, {"location": "eastus", "kind": "web", "properties": {"Application_Type": "web"}})
    component = made.json()["properties"]
    app = cloud.make_app()
    app.set(APPLICATIONINSIGHTS_CONNECTION_STRING=component["ConnectionString"])
    app.publish(package("spoken"))
    since = datetime.now(UTC)
    app.call("/x?do=log")
    app.call("/x?do=raise")

    def told():
        return [one["message"].splitlines()[0] for one in read_traces(cloud, component, app.name, since)]

    eventually(lambda: {"a warning of spoken", "printed by spoken", "ValueError: broken on purpose"} <= set(told()))
    traces = read_traces(cloud, component, app.name, since)
    assert [one["timestamp"] for one in traces] == sorted(one["timestamp"] for one in traces)
    levels = {one["message"]: json.loads(one["customDimensions"])["LogLevel"] for one in traces}
    assert levels["a warning of spoken"] == "Warning"
    assert read_traces(cloud, component, app.name, since + MINUTE) == []
    assert read_traces(cloud, component, "another", since) == []


def test_a_query_that_is_not_understood_is_refused(cloud):
    path = f"{cloud.group}/providers/Microsoft.Insights/components/queries"
    made = cloud.put(path, {"location": "eastus", "kind": "web", "properties": {"Application_Type": "web"}})
    address = f"{cloud.options['insights_url']}/v1/apps/{made.json()['properties']['AppId']}/query"

    refused = cloud.http.post(address, json={"query": "requests | count"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BadArgumentError")


def test_an_identity_gets_a_token_inside_of_its_app(cloud, package):
    app = cloud.make_app()
    cloud.wait(cloud.ask("PATCH", app.path, {"identity": {"type": "SystemAssigned"}}))
    app.publish(package())
    variables = app.call("/x").json()["environment"]
    principal = cloud.get(app.path).json()["identity"]["principalId"]

    found = cloud.http.get(
        variables["IDENTITY_ENDPOINT"], params={"resource": "https://storage.azure.com/", "api-version": "2019-08-01"},
        headers={"X-IDENTITY-HEADER": variables["IDENTITY_HEADER"]},
    )  # fmt: skip

    assert found.status_code == 200
    assert found.json()["resource"] == "https://storage.azure.com"
    assert principal
    assert cloud.http.get(variables["IDENTITY_ENDPOINT"], params={"resource": "x"}).status_code == 400


def test_an_app_can_want_a_token_of_its_callers(cloud, emulator, package):
    app = cloud.make_app()
    app.publish(package())
    rules = {
        "platform": {"enabled": True},
        "globalValidation": {"requireAuthentication": True, "unauthenticatedClientAction": "Return401"},
        "identityProviders": {"azureActiveDirectory": {"validation": {"allowedAudiences": ["api://polyserve"]}}},
    }
    principal, _ = emulator.add_principal()
    form = {"grant_type": "client_credentials", "client_id": principal.client_id, "client_secret": principal.secret}
    address = f"{cloud.options['authority_url']}/{cloud.options['tenant_id']}/oauth2/v2.0/token"
    token = cloud.http.post(address, data={**form, "scope": "api://polyserve/.default"}).json()["access_token"]

    assert cloud.ask("PUT", f"{app.path}/config/authsettingsV2", {"properties": rules}).status_code == 200

    assert app.call("/x").status_code == 401
    assert app.call("/x", headers={"authorization": f"Bearer {cloud.token}x"}).status_code == 401
    assert app.call("/x", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_a_stopped_app_refuses_and_a_started_one_answers(cloud, package):
    app = cloud.make_app()
    app.publish(package())

    assert cloud.post(f"{app.path}/stop").status_code == 200
    assert app.call("/x").status_code == 403
    assert cloud.post(f"{app.path}/start").status_code == 200
    assert app.call("/x").status_code == 200


def test_a_deleted_app_is_gone_with_its_instances(cloud, package):
    app = cloud.make_app()
    app.publish(package())
    assert app.mark() == 0

    assert cloud.delete(app.path).status_code == 200

    assert app.call("/x").status_code == 404
    assert cloud.scm(app.name, "GET", "/api/deployments/latest").status_code == 404


def test_an_app_that_was_never_published_to_has_no_content(cloud):
    app = cloud.make_app()

    assert app.call("/x").status_code == 404
