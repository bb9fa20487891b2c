"""The Cloud Run Admin API, as Google's own client sees it."""

import gzip

import httpx
import pytest
from google.api_core import exceptions
from google.cloud import run_v2
from google.iam.v1 import policy_pb2

LATEST = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
ONE = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION
SUCCEEDED, FAILED = run_v2.Condition.State.CONDITION_SUCCEEDED, run_v2.Condition.State.CONDITION_FAILED


def to(revision, percent, tag=""):
    return run_v2.TrafficTarget(type_=ONE, revision=revision, percent=percent, tag=tag)


def names(cloud, service):
    """Return the revisions of a service, newest first."""
    return [one.name.rpartition("/")[2] for one in cloud.revisions.list_revisions(parent=service.name)]


def failure(operation, cloud):
    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        operation.result(polling=cloud.polling, timeout=60)
    return caught.value


def test_a_service_runs_its_source_without_a_build(cloud, service):
    found = service.get()
    assert found.terminal_condition.state == SUCCEEDED
    assert not found.reconciling
    assert found.latest_ready_revision == found.latest_created_revision
    assert found.template.max_instance_request_concurrency == 80
    assert found.template.timeout.total_seconds() == 300
    assert dict(found.template.containers[0].resources.limits) == {"cpu": "1000m", "memory": "512Mi"}
    assert [(one.type_, one.percent) for one in found.traffic_statuses] == [(LATEST, 100)]
    answer = service.call().json()
    assert answer["mark"] == "shared"
    assert answer["environment"]["K_SERVICE"] == service.short
    assert not [path for path in answer["search"] if "site-packages" in path and "gcp" not in path]


def test_a_source_may_be_a_zip_too(cloud, pack, served, pack_tar):
    made = cloud.serve(pack({"app.py": gzip.decompress(served("zipped"))[512:].partition(b"\0")[0]}))
    assert made.mark() == "zipped"


def test_traffic_is_split_and_taken_back_without_a_new_revision(cloud, served):
    made = cloud.serve(template=cloud.template(served("one"), revision="split-one"), name="split")
    made.update(
        "template",
        "traffic",
        template=cloud.template(served("two"), revision="split-two"),
        traffic=[to("split-one", 100)],
    )
    assert {made.mark() for _ in range(5)} == {"one"}
    made.update("traffic", traffic=[to("split-one", 50), to("split-two", 50)])
    assert {made.mark() for _ in range(24)} == {"one", "two"}
    made.update("traffic", traffic=[to("split-two", 100)])
    assert {made.mark() for _ in range(5)} == {"two"}
    made.update("traffic", traffic=[to("split-one", 100)])
    assert made.mark() == "one"
    assert names(cloud, made) == ["split-two", "split-one"]


def test_a_tag_has_an_address_of_its_own_and_the_services_audience(cloud, served):
    made = cloud.serve(template=cloud.template(served("old"), revision="tagged-old"), name="tagged")
    made.update(
        "template", "traffic", template=cloud.template(served("new"), revision="tagged-new"),
        traffic=[to("tagged-old", 100), to("tagged-new", 0, "canary")],
    )  # fmt: skip
    status = next(one for one in made.get().traffic_statuses if one.tag)
    assert status.tag == "canary"
    assert made.mark(status.uri) == "new"
    assert made.mark() == "old"
    made.update("traffic", traffic=[to("tagged-old", 100)])
    assert made.call(status.uri).status_code == 404


def test_a_template_that_is_the_same_makes_no_revision(cloud, served):
    template = cloud.template(served("same"))
    made = cloud.serve(template=template)
    before = made.get()
    after = made.update("template", "labels", template=template, labels={"a": "b"})
    assert after.latest_created_revision == before.latest_created_revision
    assert after.generation == before.generation + 1
    assert after.etag != before.etag
    changed = run_v2.RevisionTemplate(template, max_instance_request_concurrency=3)
    assert made.update("template", template=changed).latest_created_revision != before.latest_created_revision


def test_a_revision_that_does_not_start_leaves_the_one_before(cloud, served, pack_tar):
    made = cloud.serve(served("good"))
    broken = cloud.template(pack_tar({"app.py": "raise SystemExit(3)"}))
    request = run_v2.UpdateServiceRequest(
        service=run_v2.Service(name=made.name, template=broken), update_mask={"paths": ["template"]}
    )
    error = failure(cloud.services.update_service(request), cloud)
    assert error.grpc_status_code.name == "FAILED_PRECONDITION"
    assert "failed to start and listen" in str(error)
    assert "exit(3)" in str(error)
    found = made.get()
    assert found.terminal_condition.state == FAILED
    assert found.latest_created_revision != found.latest_ready_revision
    assert made.mark() == "good"
    # What is not about the template makes no revision, and goes through.
    ready = found.latest_ready_revision.rpartition("/")[2]
    after = made.update("traffic", "labels", traffic=[to(ready, 100, "kept")], labels={"a": "b"})
    assert after.latest_created_revision == found.latest_created_revision
    assert made.mark(after.traffic_statuses[0].uri) == "good"
    assert made.update("template", template=cloud.template(served("better"))).terminal_condition.state == SUCCEEDED
    assert made.mark() == "good"
    made.update("traffic", traffic=[run_v2.TrafficTarget(type_=LATEST, percent=100)])
    assert made.mark() == "better"


def test_a_revision_is_deleted_once_nothing_leads_to_it(cloud, served):
    made = cloud.serve(template=cloud.template(served(1), revision="gone-1"), name="gone")
    made.update("template", template=cloud.template(served(2), revision="gone-2"))
    error = failure(cloud.revisions.delete_revision(name=f"{made.name}/revisions/gone-2"), cloud)
    assert "actively serving traffic" in str(error)
    cloud.revisions.delete_revision(name=f"{made.name}/revisions/gone-1").result(polling=cloud.polling)
    assert names(cloud, made) == ["gone-2"]
    with pytest.raises(exceptions.NotFound):
        cloud.revisions.get_revision(name=f"{made.name}/revisions/gone-1")


def test_a_service_is_deleted_with_its_address(cloud):
    made = cloud.serve()
    url = made.get().uri
    cloud.services.delete_service(name=made.name).result(polling=cloud.polling)
    with pytest.raises(exceptions.NotFound):
        made.get()
    with pytest.raises(httpx.ConnectError):
        cloud.http.get(url)
    assert made.name not in {one.name for one in cloud.services.list_services(parent=cloud.parent)}


def test_a_source_that_nothing_runs_from_is_deleted(cloud, served, session_root, monkeypatch):
    from polyserve_gcp.emulator import building

    sources = session_root / "gcp" / "sources"

    def unpacked():
        return [app for app in sources.glob("*/app.py") if "'kept for two'" in app.read_text()]

    template = cloud.template(served("kept for two"))
    first, second = cloud.serve(template=template), cloud.serve(template=template)
    assert len(unpacked()) == 1
    monkeypatch.setattr(building, "KEPT_S", 0)
    cloud.services.delete_service(name=first.name).result(polling=cloud.polling)
    assert second.mark() == "kept for two"
    cloud.services.delete_service(name=second.name).result(polling=cloud.polling)
    assert unpacked() == []


def test_what_is_only_validated_is_not_done(cloud, served, service):
    wanted = run_v2.Service(template=cloud.template(served("never")))
    request = {"parent": cloud.parent, "service_id": "never", "service": wanted, "validate_only": True}
    cloud.services.create_service(run_v2.CreateServiceRequest(request)).result(polling=cloud.polling)
    with pytest.raises(exceptions.NotFound):
        cloud.services.get_service(name=f"{cloud.parent}/services/never")
    wanted.name = service.name
    cloud.services.update_service(run_v2.UpdateServiceRequest(service=wanted, validate_only=True)).result(
        polling=cloud.polling
    )
    assert service.mark() == "shared"
    cloud.services.delete_service(run_v2.DeleteServiceRequest(name=service.name, validate_only=True)).result(
        polling=cloud.polling
    )
    assert service.mark() == "shared"
    wanted.template.max_instance_request_concurrency = 1001
    with pytest.raises(exceptions.BadRequest):
        cloud.services.update_service(run_v2.UpdateServiceRequest(service=wanted, validate_only=True))


def test_an_update_makes_a_missing_service_where_it_is_allowed_to(cloud, served):
    wanted = run_v2.Service(name=f"{cloud.parent}/services/missing", template=cloud.template(served("upserted")))
    with pytest.raises(exceptions.NotFound):
        cloud.services.update_service(service=wanted)
    request = run_v2.UpdateServiceRequest(service=wanted, allow_missing=True)
    assert cloud.services.update_service(request).result(polling=cloud.polling).uri
    cloud.services.delete_service(name=wanted.name).result(polling=cloud.polling)


def test_an_etag_that_is_not_current_is_refused(cloud, service):
    found = service.get()
    stale = run_v2.Service(name=service.name, etag='"stale"', labels={"a": "b"})
    with pytest.raises(exceptions.Conflict, match="etag"):
        cloud.services.update_service(service=stale, update_mask={"paths": ["labels"]})
    with pytest.raises(exceptions.Conflict, match="etag"):
        cloud.services.delete_service(run_v2.DeleteServiceRequest(name=service.name, etag='"stale"'))
    assert service.get() == found


@pytest.mark.parametrize(
    ("traffic", "said"),
    [
        ([to("none", 100)], "Revision named 'none' does not exist"),
        ([run_v2.TrafficTarget(type_=LATEST, percent=90)], "sum of percentages must be 100"),
        ([run_v2.TrafficTarget(type_=LATEST, percent=100, revision="x")], "must be empty"),
        ([run_v2.TrafficTarget(percent=100)], "type: must be set"),
        ([run_v2.TrafficTarget(type_=LATEST, percent=100, tag="UP")], "tag"),
        (
            [run_v2.TrafficTarget(type_=LATEST, percent=one, tag="twice") for one in (50, 50)],
            "a tag must be used once",
        ),
    ],
)
def test_traffic_that_cannot_be_routed_is_refused(cloud, service, traffic, said):
    wanted = run_v2.Service(name=service.name, traffic=traffic)
    with pytest.raises(exceptions.BadRequest, match=said):
        cloud.services.update_service(service=wanted, update_mask={"paths": ["traffic"]})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"limits": {"cpu": "500m"}, "max_instance_request_concurrency": 2}, "cpu < 1 is not supported"),
        ({"limits": {"cpu": "4", "memory": "1Gi"}}, "memory must be between 2048Mi"),
        ({"limits": {"nvidia.com/gpu": "1"}}, "nvidia.com/gpu"),
        ({"variables": {"PORT": "1"}}, "reserved env names"),
        ({"revision": "another-name"}, "must be prefixed by"),
        ({"timeout": {"seconds": 4000}}, "timeout"),
        ({"scaling": {"min_instance_count": 2, "max_instance_count": 1}}, "min_instance_count 2"),
        ({"service_account": "nobody@nowhere.iam.gserviceaccount.com"}, r"iam\.serviceaccounts\.actAs"),
        ({"vpc_access": {"connector": "projects/p/locations/l/connectors/c"}}, "VPC connector"),
        ({"node_selector": {"accelerator": "nvidia-l4"}}, "The emulator has no template.node_selector"),
    ],
)
def test_a_template_that_cannot_be_is_refused(cloud, served, fields, said):
    wanted = run_v2.Service(template=cloud.template(served(), **fields))
    with pytest.raises(exceptions.GoogleAPICallError, match=said):
        cloud.services.create_service(parent=cloud.parent, service_id="refused", service=wanted)
    with pytest.raises(exceptions.NotFound):
        cloud.services.get_service(name=f"{cloud.parent}/services/refused")


@pytest.mark.parametrize("name", ["Upper", "1st", "ends-", "x" * 50])
def test_a_name_that_no_service_can_have_is_refused(cloud, served, name):
    with pytest.raises(exceptions.BadRequest, match="service_id"):
        cloud.serve(served(), name=name)


def test_a_name_of_a_revision_is_taken_for_good(cloud, served):
    made = cloud.serve(template=cloud.template(served(1), revision="taken-1"), name="taken")
    wanted = run_v2.Service(name=made.name, template=cloud.template(served(2), revision="taken-1"))
    with pytest.raises(exceptions.Conflict, match="different configuration already exists"):
        cloud.services.update_service(service=wanted)
    with pytest.raises(exceptions.Conflict, match="already exists"):
        cloud.serve(name="taken")


def test_an_image_that_there_is_not_fails_the_operation(cloud):
    template = run_v2.RevisionTemplate(containers=[run_v2.Container(image="us-docker.pkg.dev/p/r/no:1")])
    operation = cloud.services.create_service(
        parent=cloud.parent, service_id=cloud.name(), service=run_v2.Service(template=template)
    )
    assert "not found" in str(failure(operation, cloud))


def test_a_source_over_250_mib_and_one_that_is_none_fail_the_operation(cloud, monkeypatch):
    from polyserve_gcp.emulator import building

    for content, said in ((b"neither zip nor tar", "cannot be unpacked"), (b"x" * 100, "at most 250 MiB")):
        monkeypatch.setattr(building, "NO_BUILD_BYTES", 50)
        operation = cloud.services.create_service(
            parent=cloud.parent, service_id=cloud.name(), service=run_v2.Service(template=cloud.template(content))
        )
        assert said in str(failure(operation, cloud))


def test_a_tarball_that_leads_out_of_its_directory_is_refused(cloud, pack_tar):
    operation = cloud.services.create_service(
        parent=cloud.parent, service_id=cloud.name(),
        service=run_v2.Service(template=cloud.template(pack_tar({"../outside.py": "", "app.py": ""}))),
    )  # fmt: skip
    assert "outside" in str(failure(operation, cloud))


def test_services_are_listed_by_pages(cloud, service):
    made = cloud.serve()
    found = {one.name for one in cloud.services.list_services(request={"parent": cloud.parent, "page_size": 1})}
    assert {service.name, made.name} <= found


def test_each_method_needs_its_permission(cloud, service, served):
    viewer = cloud.as_account("roles/run.viewer")
    assert viewer.services.get_service(name=service.name).name == service.name
    assert list(viewer.revisions.list_revisions(parent=service.name))
    wanted = run_v2.Service(name=service.name, labels={"a": "b"})
    for permission, call in (
        ("run.services.create", lambda: viewer.serve(served())),
        ("run.services.update", lambda: viewer.services.update_service(service=wanted)),
        ("run.services.delete", lambda: viewer.services.delete_service(name=service.name)),
        ("run.services.setIamPolicy", lambda: viewer.services.set_iam_policy(request={"resource": service.name})),
    ):
        with pytest.raises(exceptions.Forbidden, match=permission):
            call()
    held = viewer.services.test_iam_permissions(
        request={"resource": service.name, "permissions": ["run.services.get", "run.services.delete"]}
    )
    assert list(held.permissions) == ["run.services.get"]


def test_a_policy_is_set_over_what_was_read_and_not_over_something_else(cloud):
    made = cloud.serve()
    policy = cloud.services.get_iam_policy(request={"resource": made.name})
    policy.bindings.add(role="roles/run.invoker", members=["allUsers"])
    cloud.services.set_iam_policy(request={"resource": made.name, "policy": policy})
    with pytest.raises(exceptions.Conflict):
        cloud.services.set_iam_policy(request={"resource": made.name, "policy": policy})
    wrong = policy_pb2.Policy(bindings=[policy_pb2.Binding(role="roles/none", members=["allUsers"])])
    with pytest.raises(exceptions.BadRequest, match="roles/none"):
        cloud.services.set_iam_policy(request={"resource": made.name, "policy": wrong})


def test_a_functions_service_can_have_its_traffic_split_until_the_next_update(cloud, source):
    made = cloud.make(source("one"))
    first = cloud.functions.get_function(name=made.name).service_config.revision
    made.update(source("two"))
    second = cloud.functions.get_function(name=made.name).service_config.revision
    wanted = run_v2.Service(name=made.service, traffic=[to(first, 100), to(second, 0, "new")])
    mask = {"paths": ["traffic"]}
    cloud.services.update_service(service=wanted, update_mask=mask).result(polling=cloud.polling)
    assert made.mark() == "one"
    made.update(source("three"))
    assert made.mark() == "three"
