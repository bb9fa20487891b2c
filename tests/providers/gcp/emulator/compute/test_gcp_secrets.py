"""Secret Manager, and secrets in the environment of functions and services."""

import base64

import pytest
from google.api_core import exceptions
from google.cloud import run_v2

PROJECT = "polyserve-emulated"
SECRETS = f"/v1/projects/{PROJECT}/secrets"


def add(cloud, name, *values):
    """Make a secret with versions."""
    made = cloud.rest("secretmanager", "POST", f"{SECRETS}?secretId={name}", json={"replication": {"automatic": {}}})
    assert made.status_code == 200, made.text
    for value in values:
        payload = {"payload": {"data": base64.b64encode(value.encode()).decode()}}
        answer = cloud.rest("secretmanager", "POST", f"{SECRETS}/{name}:addVersion", json=payload)
        assert answer.json()["state"] == "ENABLED", answer.text


def let(cloud, name, account):
    """Let an account read a secret."""
    binding = {"role": "roles/secretmanager.secretAccessor", "members": [f"serviceAccount:{account}"]}
    answer = cloud.rest(
        "secretmanager", "POST", f"{SECRETS}/{name}:setIamPolicy", json={"policy": {"bindings": [binding]}}
    )
    assert answer.status_code == 200, answer.text


def test_a_secret_is_in_the_environment_of_a_function_that_may_read_it(cloud, emulator, source):
    account = emulator.identities.default_account.email
    name = cloud.name("secret")
    add(cloud, name, "old", "new")
    given = [
        {"key": "TOKEN", "project_id": PROJECT, "secret": name, "version": "latest"},
        {"key": "FIRST", "project_id": PROJECT, "secret": name, "version": "1"},
    ]
    with pytest.raises(exceptions.InvalidArgument, match=r"Permission denied on secret.*secretAccessor"):
        cloud.make(source(), secret_environment_variables=given)
    let(cloud, name, account)
    made = cloud.make(source(), secret_environment_variables=given)
    environment = made.call().json()["environment"]
    assert (environment["TOKEN"], environment["FIRST"]) == ("new", "old")
    found = cloud.services.get_service(name=made.service)
    assert "new" not in str(found)
    made.update(secret_environment_variables=[])
    assert "TOKEN" not in made.call().json()["environment"]


def test_a_version_that_there_is_not_fails_the_revision(cloud, emulator, served):
    name = cloud.name("secret")
    add(cloud, name)
    let(cloud, name, emulator.identities.default_account.email)
    template = cloud.template(served())
    template.containers[0].env = [
        run_v2.EnvVar(name="A", value_source={"secret_key_ref": {"secret": name, "version": "latest"}})
    ]
    with pytest.raises(exceptions.GoogleAPICallError, match="was not found"):
        cloud.serve(template=template)


def test_versions_are_read_disabled_and_destroyed(cloud):
    name = cloud.name("secret")
    add(cloud, name, "one", "two")
    access = cloud.rest("secretmanager", "GET", f"{SECRETS}/{name}/versions/latest:access").json()
    assert base64.b64decode(access["payload"]["data"]) == b"two"
    assert access["name"].endswith(f"{name}/versions/2")
    assert cloud.rest("secretmanager", "POST", f"{SECRETS}/{name}/versions/2:disable").json()["state"] == "DISABLED"
    assert cloud.rest("secretmanager", "GET", f"{SECRETS}/{name}/versions/latest:access").status_code == 400
    assert cloud.rest("secretmanager", "POST", f"{SECRETS}/{name}/versions/1:destroy").json()["state"] == "DESTROYED"
    assert cloud.rest("secretmanager", "POST", f"{SECRETS}/{name}/versions/1:enable").status_code == 400
    states = [
        one["state"] for one in cloud.rest("secretmanager", "GET", f"{SECRETS}/{name}/versions").json()["versions"]
    ]
    assert states == ["DISABLED", "DESTROYED"]
    assert cloud.rest("secretmanager", "DELETE", f"{SECRETS}/{name}").status_code == 200
    assert cloud.rest("secretmanager", "GET", f"{SECRETS}/{name}").status_code == 404


def test_a_secret_is_nobodys_to_read_without_the_permission(cloud):
    name = cloud.name("secret")
    add(cloud, name, "hidden")
    editor = cloud.as_account("roles/editor")
    answer = editor.rest("secretmanager", "GET", f"{SECRETS}/{name}/versions/1:access")
    assert answer.status_code == 403
    assert "secretmanager.versions.access" in answer.json()["error"]["message"]
    taken = cloud.rest("secretmanager", "POST", f"{SECRETS}?secretId={name}", json={"replication": {"automatic": {}}})
    assert taken.status_code == 409
