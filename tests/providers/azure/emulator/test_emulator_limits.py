"""What takes minutes or much memory on Azure, with an emulator whose limits are small; and the official messages."""

import json
import os
import select

import pytest

from polyserve_azure.emulator import Emulator
from polyserve_azure.emulator.limits import Limits


@pytest.fixture(scope="module")
def small(session_root, sign_in):
    """Yield an emulator with small limits, which drives the engine with the official messages of the wire."""
    limits = Limits(idle_s=0.05, request_bytes=1000, official_messages=True, broken_publish_succeeds=True)
    found = Emulator(session_root / "small", settle_s=0.0, limits=limits)
    found.start()
    cloud = sign_in(found.options)
    cloud.ensure_group()
    yield cloud
    cloud.http.close()
    found.close()


def wait_for_end(pid):
    """Wait until a process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 20)[0], "the process did not end"
    finally:
        os.close(handle)


def test_official_messages_carry_the_same_request_and_answer(small, app, package):
    official = small.make_app()
    official.publish(package(0))

    def ask(one):
        found = one.call("/a/b?x=%C3%A4&y=", "PUT", content=bytes(range(256)), headers={"x-mine": "1, 2"})
        said = found.json()
        return (
            found.status_code,
            found.headers["x-mark"],
            [said[name] for name in ("path", "method", "query", "length")],
        )

    assert ask(official) == ask(app)
    assert official.call("/x?do=raise").status_code == app.call("/x?do=raise").status_code == 500
    assert official.call("/x?do=text").text == app.call("/x?do=text").text == "text"


def test_a_body_over_the_limit_is_refused_before_the_app_sees_it(small, package):
    app = small.make_app()
    app.publish(package())

    assert app.call("/x", content=b"x" * 1001).status_code == 413
    assert app.call("/x", content=b"x" * 1000).json()["length"] == 1000
    assert app.call("/" + "x" * 9000).status_code == 414


def test_an_idle_instance_is_ended_and_one_that_is_always_ready_is_not(small, package):
    app = small.make_app()
    app.publish(package())
    idle = app.call("/x").json()["pid"]
    wait_for_end(idle)
    assert app.call("/x").json()["pid"] != idle

    ready = small.make_app(scaleAndConcurrency={"alwaysReady": [{"name": "http", "instanceCount": 1}]})
    ready.publish(package())
    first = ready.call("/x").json()["pid"]
    other = app.call("/x").json()["pid"]
    wait_for_end(other)  # as idle for as long
    assert ready.call("/x").json()["pid"] == first


def test_an_answer_that_takes_too_long_is_given_up(small, package):
    control = f"{small.options['management_url']}/_emulator/limits"
    app = small.make_app()
    app.publish(package())
    assert small.http.post(control, json={"response_s": 0.2}).status_code == 204

    try:
        assert app.call("/x?do=sleep").status_code == 504
    finally:
        small.http.post(control, json={"response_s": 230})
    assert small.http.post(control, json={"patience": 1}).status_code == 400


def test_a_function_that_takes_longer_than_host_json_allows_ends_its_worker(small, package):
    host = {"version": "2.0", "functionTimeout": "00:00:00.2", "extensions": {"http": {"routePrefix": ""}}}
    app = small.make_app()
    app.publish(package(host=host))

    assert app.call("/x?do=sleep").status_code == 500
    assert app.call("/x").status_code == 200


def test_a_deployment_can_be_a_success_of_an_app_without_functions(small, pack):
    app = small.make_app()

    deployed = app.publish(pack({"host.json": json.dumps({"version": "2.0"}), "function_app.py": "import nowhere"}))

    assert deployed["status"] == 4
    assert small.get(f"{app.path}/functions").json()["value"] == []
    assert app.call("/api/x").status_code == 404


def test_an_instance_that_takes_more_memory_than_it_has_is_ended(small, package):
    app = small.make_app(scaleAndConcurrency={"instanceMemoryMB": 512})
    app.publish(package())

    assert app.call("/x?do=hold&mb=600").status_code == 500
    assert app.call("/x").status_code == 200


def test_a_change_that_changes_nothing_of_an_app_lets_its_instances_be_and_a_restart_does_not(small, package):
    small.http.post(f"{small.options['management_url']}/_emulator/limits", json={"idle_s": 300})
    app = small.make_app()
    app.publish(package())
    first = app.call("/x").json()["pid"]
    body = small.site(small.get(app.path).json()["properties"]["serverFarmId"])

    assert small.put(app.path, body | {"tags": {"other": "tag"}}).json()["status"] == "Succeeded"
    assert app.call("/x").json()["pid"] == first

    assert small.post(f"{app.path}/restart").status_code == 200
    assert app.call("/x").json()["pid"] != first


def test_what_was_assigned_at_a_resource_is_gone_with_it(small):
    group = f"{small.subscription}/resourceGroups/assigned"
    identity = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/holder"
    account = f"{group}/providers/Microsoft.Storage/storageAccounts/assigned"
    assert small.put(group, {"location": "eastus"}).status_code == 201
    principal = small.put(identity, {"location": "eastus"}).json()["properties"]["principalId"]
    assert small.put(account, {"location": "eastus", "sku": {"name": "Standard_LRS"}}).status_code == 200
    role = (
        f"{small.subscription}/providers/Microsoft.Authorization/roleDefinitions/acdd72a7-3385-48ef-bd42-f606fba81ae7"
    )
    assignments = f"{small.subscription}/providers/Microsoft.Authorization/roleAssignments"
    given = {"properties": {"roleDefinitionId": role, "principalId": principal}}
    path = f"{account}/providers/Microsoft.Authorization/roleAssignments/{principal}"
    assert small.ask("PUT", path, given).status_code == 201

    def assigned():
        return small.get(assignments, **{"$filter": f"principalId eq '{principal}'"}).json()["value"]

    assert len(assigned()) == 1
    assert small.delete(account).status_code == 200
    assert assigned() == []
