"""The Cloud Functions API, as Google's own client sees it."""

import httpx
import pytest
from google.api_core import exceptions
from google.cloud import functions_v2
from google.iam.v1 import policy_pb2

ACTIVE = functions_v2.Function.State.ACTIVE
PATH = "/v2/projects/polyserve-emulated/locations/us-central1"


def failure(operation, cloud):
    """Return how an operation fails."""
    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        operation.result(polling=cloud.polling, timeout=60)
    return caught.value


def test_a_function_is_made_from_an_upload_url_as_googles_client_does_it(cloud, source):
    given = cloud.functions.generate_upload_url(request={"parent": cloud.parent})
    answer = cloud.http.put(given.upload_url, content=source("uploaded"), headers={"content-type": "application/zip"})
    assert answer.status_code == 200, answer.text
    function = functions_v2.Function(
        build_config={
            "runtime": cloud.runtime,
            "entry_point": "act",
            "source": {"storage_source": given.storage_source},
        },
        labels={"made-by": "tests"},
    )
    name = cloud.name()
    operation = cloud.functions.create_function(parent=cloud.parent, function_id=name, function=function)
    assert operation.metadata.target == f"{cloud.parent}/functions/{name}"
    made = operation.result(polling=cloud.polling)
    assert made.state == ACTIVE
    assert made.environment == functions_v2.Environment.GEN_2
    assert made.service_config.revision.startswith(f"{name}-00001-")
    assert made.service_config.available_memory == "256M"
    assert made.service_config.timeout_seconds == 60
    assert made.service_config.max_instance_request_concurrency == 1
    assert made.url == made.service_config.uri
    assert dict(made.labels) == {"made-by": "tests"}
    assert cloud.functions.get_function(name=made.name) == made


def test_a_source_can_be_read_back(cloud, function):
    answer = cloud.functions.generate_download_url(request={"name": function.name})
    assert cloud.http.get(answer.download_url).content[:2] == b"PK"


def test_a_function_answers_with_its_own_service(cloud, function):
    found = cloud.services.get_service(name=function.service)
    assert found.uri == function.url
    assert found.labels["goog-managed-by"] == "cloudfunctions"
    assert found.template.max_instance_request_concurrency == 4


def test_an_update_replaces_what_the_mask_names_and_nothing_else(cloud, source):
    made = cloud.make(source("first"), environment_variables={"A": "1", "B": "2"}, timeout_seconds=30)
    url = made.url
    changed = made.update(environment_variables={"A": "3"})
    assert changed.service_config.timeout_seconds == 30
    found = made.call().json()
    assert found["mark"] == "first"
    assert found["environment"]["A"] == "3"
    assert "B" not in found["environment"]
    assert found["environment"]["K_REVISION"] == changed.service_config.revision != ""
    assert changed.service_config.revision.startswith(f"{made.short}-00002-")
    made.update(source("second"))
    assert made.mark() == "second"
    assert made.url == url


def test_an_update_without_a_mask_replaces_everything(cloud, source):
    made = cloud.make(source(), environment_variables={"A": "1"})
    whole = functions_v2.Function(name=made.name, build_config=cloud.build(source("whole")))
    cloud.functions.update_function(function=whole).result(polling=cloud.polling)
    found = made.call().json()
    assert found["mark"] == "whole"
    assert "A" not in found["environment"]


def test_what_does_not_start_fails_the_operation_and_what_served_goes_on(cloud, source):
    made = cloud.make(source("good"))
    function = functions_v2.Function(
        name=made.name, build_config=cloud.build(source("bad", more="raise RuntimeError('no')"))
    )
    operation = cloud.functions.update_function(function=function, update_mask={"paths": ["build_config"]})
    error = failure(operation, cloud)
    assert isinstance(error, exceptions.InvalidArgument)
    assert "Container Healthcheck failed" in str(error)
    assert made.mark() == "good"
    found = cloud.functions.get_function(name=made.name)
    assert found.state == ACTIVE
    assert "Container Healthcheck failed" in found.state_messages[0].message
    made.update(source("better"))
    assert made.mark() == "better"


def test_a_function_that_never_started_is_there_and_failed(cloud, source):
    name = cloud.name()
    error = failure(cloud.begin(source(more="1 / 0"), name), cloud)
    assert "Container Healthcheck failed" in str(error)
    full = f"{cloud.parent}/functions/{name}"
    assert cloud.functions.get_function(name=full).state == functions_v2.Function.State.FAILED
    with pytest.raises(exceptions.Conflict):
        cloud.begin(source(), name)
    cloud.functions.delete_function(name=full).result(polling=cloud.polling)
    with pytest.raises(exceptions.NotFound):
        cloud.functions.get_function(name=full)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"other.py": ""}, "missing main.py"),
        ({"main.py": "def act(request):\nreturn 1"}, "IndentationError"),
        ({"main.py": "", "requirements.txt": "./no-such-file.whl"}, "pip"),
        ({"main.py": "", "../outside.py": ""}, "leads out of it"),
    ],
    ids=["no main.py", "no Python", "no such requirement", "out of the source"],
)
def test_what_cannot_be_built_fails_the_operation(cloud, pack, files, said):
    error = failure(cloud.begin(pack(files)), cloud)
    assert isinstance(error, exceptions.InvalidArgument)
    assert "Build failed" in str(error)
    assert said in str(error)


def test_a_source_that_is_no_zip_cannot_be_built(cloud):
    assert "not a zip archive" in str(failure(cloud.begin(b"no zip"), cloud))


def test_a_source_that_is_not_there_fails_the_operation(cloud):
    function = functions_v2.Function(
        build_config={
            "runtime": cloud.runtime,
            "source": {"storage_source": {"bucket": "nobodys", "object_": "nothing"}},
        }
    )
    operation = cloud.functions.create_function(parent=cloud.parent, function_id=cloud.name(), function=function)
    assert "gs://nobodys/nothing" in str(failure(operation, cloud))


def test_a_deleted_function_is_gone_with_its_service(cloud):
    made = cloud.make()
    url = made.url
    cloud.functions.delete_function(name=made.name).result(polling=cloud.polling)
    for call in (
        lambda: cloud.functions.get_function(name=made.name),
        lambda: cloud.services.get_service(name=made.service),
        lambda: cloud.functions.delete_function(name=made.name),
    ):
        with pytest.raises(exceptions.NotFound):
            call()
    with pytest.raises(httpx.ConnectError):
        cloud.http.get(url)


def test_one_operation_at_a_time_is_under_way_on_a_function(cloud, source):
    made = cloud.make(source(1))
    function = functions_v2.Function(name=made.name, service_config={"environment_variables": {"A": "1"}})
    mask = {"paths": ["service_config.environment_variables"]}
    first = cloud.functions.update_function(function=function, update_mask=mask)
    with pytest.raises(exceptions.Conflict, match="unable to queue"):
        cloud.functions.delete_function(name=made.name)
    first.result(polling=cloud.polling)


def test_functions_are_listed_by_pages_by_location_and_by_label(cloud, source):
    function = functions_v2.Function(build_config=cloud.build(source("listed")), labels={"kind": "listed"})
    names = sorted(cloud.name("listed") for _ in range(2))
    for name in names:
        cloud.functions.create_function(parent=cloud.parent, function_id=name, function=function).result(
            polling=cloud.polling
        )
    project = cloud.options["project"]
    found = cloud.functions.list_functions(
        request={"parent": f"projects/{project}/locations/-", "filter": 'labels.kind="listed"', "page_size": 1}
    )
    pages = list(found.pages)
    assert [one.name.rpartition("/")[2] for page in pages for one in page.functions] == names
    assert [len(page.functions) for page in pages] == [1, 1]
    elsewhere = cloud.functions.list_functions(parent=f"projects/{project}/locations/europe-west1")
    assert list(elsewhere) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"available_memory": "256X"}, "available_memory"),
        ({"available_memory": "4G", "available_cpu": "1", "max_instance_request_concurrency": 2}, None),
        ({"available_memory": "8G", "available_cpu": "1"}, "must be between 128Mi and 4096Mi"),
        ({"available_memory": "1G", "available_cpu": "4"}, "must be between 2048Mi"),
        ({"available_cpu": "3"}, "Must be equal to one of"),
        ({"max_instance_request_concurrency": 10}, "Total cpu < 1 is not supported with concurrency > 1"),
        ({"available_cpu": "1", "max_instance_request_concurrency": 1001}, "between 1 and 1000"),
        ({"timeout_seconds": 3601}, "between 1 and 3600"),
        ({"min_instance_count": 3, "max_instance_count": 2}, "min_instance_count 3"),
        ({"environment_variables": {"PORT": "1"}}, "reserved env names were provided: PORT"),
        ({"environment_variables": {"K_SERVICE": "x"}}, "K_SERVICE"),
        ({"vpc_connector": "projects/p/locations/l/connectors/c"}, "VPC connector"),
        ({"secret_environment_variables": [{"key": "A", "project_id": "p", "secret": "s"}]}, "version must be set"),
        ({"service_account_email": "nobody@nowhere.iam.gserviceaccount.com"}, "iam.serviceaccounts.actAs"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_anything_is_made(cloud, config, said):
    name = cloud.name()
    function = functions_v2.Function(
        build_config={"runtime": cloud.runtime, "source": {"storage_source": {"bucket": "b", "object_": "o"}}},
        service_config=config,
    )
    if said is None:
        cloud.functions.create_function(parent=cloud.parent, function_id=name, function=function)
        return
    with pytest.raises((exceptions.InvalidArgument, exceptions.BadRequest, exceptions.Forbidden), match=said):
        cloud.functions.create_function(parent=cloud.parent, function_id=name, function=function)
    with pytest.raises(exceptions.NotFound):
        cloud.functions.get_function(name=f"{cloud.parent}/functions/{name}")


@pytest.mark.parametrize("name", ["Upper", "1st", "under_score", "ends-", "x" * 64])
def test_a_name_that_no_function_can_have_is_refused(cloud, name):
    with pytest.raises(exceptions.BadRequest, match="function_id"):
        cloud.begin(b"", name)


@pytest.mark.parametrize(("runtime", "said"), [("nodejs22", "is not supported"), ("python27", "is not supported")])
def test_a_runtime_that_there_is_not_is_refused_with_those_that_there_are(cloud, runtime, said):
    function = functions_v2.Function(
        build_config={"runtime": runtime, "source": {"storage_source": {"bucket": "b", "object_": "o"}}}
    )
    with pytest.raises(exceptions.BadRequest, match=f"{said}.*python311"):
        cloud.functions.create_function(parent=cloud.parent, function_id=cloud.name(), function=function)


def test_an_interpreter_that_this_machine_has_not_is_refused_with_a_way_out(monkeypatch):
    from polyserve_gcp.emulator import installing
    from polyserve_gcp.emulator.errors import ServiceError

    monkeypatch.setattr(installing, "OWN_RUNTIME", "python311")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installing, "_known_to_uv", lambda version: None)
    installing.find_interpreter.cache_clear()
    with pytest.raises(ServiceError, match=r"no python3\.14 on its PATH.*deploy for python311"):
        installing.check_runtime("python314")
    installing.find_interpreter.cache_clear()


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["name"], "cannot be updated"),
        (["state"], "cannot be updated"),
        (["service_config.no_such"], "no field 'no_such'"),
        (["no_such"], "no field 'no_such'"),
        (["labels.x"], "has no fields of its own"),
    ],
)
def test_a_mask_that_names_no_field_is_refused(cloud, function, paths, said):
    given = functions_v2.Function(name=function.name)
    with pytest.raises(exceptions.BadRequest, match=said):
        cloud.functions.update_function(function=given, update_mask={"paths": paths})


def test_calls_need_a_token_and_its_owner_the_permission(cloud, function):
    answer = cloud.http.get(f"{cloud.endpoint('cloudfunctions')}/v2/{function.name}")
    assert answer.status_code == 401
    stranger = cloud.as_account()
    with pytest.raises(exceptions.Forbidden, match=r"cloudfunctions\.functions\.get") as caught:
        stranger.functions.get_function(name=function.name)
    assert caught.value.reason == "IAM_PERMISSION_DENIED"
    viewer = cloud.as_account("roles/cloudfunctions.viewer")
    assert viewer.functions.get_function(name=function.name).name == function.name
    with pytest.raises(exceptions.Forbidden, match=r"cloudfunctions\.functions\.delete"):
        viewer.functions.delete_function(name=function.name)


def test_who_deploys_has_to_be_allowed_to_have_code_run_as_the_account(cloud, source):
    developer = cloud.as_account("roles/cloudfunctions.developer")
    with pytest.raises(exceptions.Forbidden, match=r"iam\.serviceaccounts\.actAs"):
        developer.begin(source())
    permitted = cloud.as_account("roles/cloudfunctions.developer", "roles/iam.serviceAccountUser")
    permitted.begin(source()).result(polling=cloud.polling)


def test_an_api_that_is_not_enabled_names_itself_and_where_to_enable_it(cloud, emulator, function):
    emulator.access.enabled.discard("cloudfunctions.googleapis.com")
    try:
        with pytest.raises(exceptions.Forbidden, match="Enable it by visiting") as caught:
            cloud.functions.get_function(name=function.name)
    finally:
        emulator.access.enabled.add("cloudfunctions.googleapis.com")
    assert caught.value.reason == "SERVICE_DISABLED"
    assert caught.value.metadata["service"] == "cloudfunctions.googleapis.com"


@pytest.mark.parametrize(
    "parent", ["projects/another/locations/us-central1", "projects/polyserve-emulated/locations/moon"]
)
def test_another_project_and_no_region_are_refused(cloud, parent):
    with pytest.raises(exceptions.Forbidden):
        list(cloud.functions.list_functions(parent=parent))


def test_the_policy_of_a_function_is_its_own_and_lets_nobody_invoke(cloud, source):
    made = cloud.make(source())
    stranger = cloud.as_account()
    policy = policy_pb2.Policy(
        bindings=[
            policy_pb2.Binding(
                role="roles/cloudfunctions.viewer",
                members=[f"serviceAccount:{stranger.email}"],
            )
        ]
    )
    cloud.functions.set_iam_policy(request={"resource": made.name, "policy": policy})
    assert stranger.functions.get_function(name=made.name).name == made.name
    url = made.url
    headers = {"authorization": f"Bearer {stranger.id_token(url)}"}
    assert cloud.http.post(url, headers=headers).status_code == 403
    found = cloud.functions.get_iam_policy(request={"resource": made.name})
    assert found.bindings[0].role == "roles/cloudfunctions.viewer"


def test_json_with_a_field_that_there_is_not_is_refused(cloud):
    answer = cloud.rest("cloudfunctions", "POST", f"{PATH}/functions?functionId=x", json={"buildConfigs": {}})
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert "buildConfigs" in answer.json()["error"]["message"]
    answer = cloud.rest("cloudfunctions", "POST", f"{PATH}/functions", content=b"{")
    assert answer.status_code == 400
    assert cloud.rest("cloudfunctions", "GET", f"{PATH}/functions?pageSiz=3").status_code == 400
    assert cloud.rest("cloudfunctions", "GET", "/v2/nothing").status_code == 404


def test_masks_are_read_in_both_spellings_and_enums_as_names(cloud, function):
    path = f"/v2/{function.name}"
    found = cloud.rest("cloudfunctions", "GET", path).json()
    assert found["state"] == "ACTIVE"
    assert cloud.rest("cloudfunctions", "GET", f"{path}?$alt=json;enum-encoding=int").json()["state"] == 1
    for mask in ("serviceConfig.noSuch", "service_config.no_such"):
        answer = cloud.rest("cloudfunctions", "PATCH", f"{path}?updateMask={mask}", json={})
        assert "no_such" in answer.json()["error"]["message"], mask


def test_operations_are_listed_and_the_runtimes_too(cloud, function):
    found = cloud.functions.list_operations({"name": cloud.parent}).operations
    assert any(one.done for one in found)
    assert cloud.runtime in {one.name for one in cloud.functions.list_runtimes(parent=cloud.parent).runtimes}
    with pytest.raises(exceptions.NotFound):
        cloud.functions.get_operation({"name": f"{cloud.parent}/operations/none"})
