"""What a function and a service answer at their own address: identity, limits, scaling, and what the front says by itself."""

import gzip
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from google.api_core import exceptions
from google.auth.transport.requests import Request
from google.cloud import functions_v2, run_v2
from google.iam.v1 import policy_pb2
from google.oauth2 import service_account

INTERNAL = functions_v2.ServiceConfig.IngressSettings.ALLOW_INTERNAL_ONLY


def let(cloud, service, member):
    """Let somebody invoke a service."""
    policy = cloud.services.get_iam_policy(request={"resource": service})
    policy.bindings.append(policy_pb2.Binding(role="roles/run.invoker", members=[member]))
    cloud.services.set_iam_policy(request={"resource": service, "policy": policy})


def test_a_function_sees_the_request_as_it_was_sent(function):
    answer = function.call("/v2/models/a%20b/infer?x=1&x=2", content=b"12345", headers={"X-Mine": "here"})
    assert answer.status_code == 200
    assert answer.headers["x-mark"] == "shared"
    found = answer.json()
    assert found["path"] == "/v2/models/a b/infer"
    assert found["query"] == "x=1&x=2"
    assert found["method"] == "POST"
    assert found["length"] == 5
    assert found["headers"]["x-mine"] == "here"
    assert found["headers"]["x-forwarded-proto"] == "https"
    assert len(found["headers"]["traceparent"]) == 55


def test_a_function_runs_under_the_real_framework_and_sees_no_package_of_ours(function):
    found = function.call().json()
    environment = found["environment"]
    assert environment["FUNCTION_TARGET"] == "act"
    assert environment["FUNCTION_SIGNATURE_TYPE"] == "http"
    assert environment["K_SERVICE"] == environment["K_CONFIGURATION"] == function.short
    assert environment["LOG_EXECUTION_ID"] == "true"
    assert not [path for path in found["search"] if path.startswith(sys.prefix)]


def test_an_exception_is_the_frameworks_500(function):
    answer = function.call("/?do=raise")
    assert answer.status_code == 500
    assert answer.headers["x-google-status"] == "crash"
    assert b"broken on purpose" not in answer.content


def test_nobody_gets_in_without_a_good_id_token(cloud, function):
    url = function.url
    assert cloud.http.post(url).status_code == 403
    answer = cloud.http.post(url, headers={"authorization": "Bearer rubbish"})
    assert answer.status_code == 401
    assert "invalid_token" in answer.headers["www-authenticate"]
    wrong = cloud.id_token("http://127.0.0.1:1")
    assert cloud.http.post(url, headers={"authorization": f"Bearer {wrong}"}).status_code == 401
    assert cloud.http.post(url, headers={"authorization": f"Bearer {cloud.token}"}).status_code == 401


def test_the_signature_of_a_token_does_not_reach_the_function(function):
    found = function.call().json()["headers"]["authorization"]
    assert found.endswith(".SIGNATURE_REMOVED_BY_GOOGLE")


def test_the_second_header_for_identity_leaves_the_first_to_the_function(cloud, function):
    url = function.url
    own = {"authorization": "Bearer mine", "x-serverless-authorization": f"Bearer {cloud.id_token(url)}"}
    assert cloud.http.post(url, headers=own).json()["headers"]["authorization"] == "Bearer mine"


def test_googles_own_library_fetches_the_token(cloud, function):
    url = function.url
    found = service_account.IDTokenCredentials.from_service_account_file(
        cloud.options["credentials_file"], target_audience=url
    )
    found.refresh(Request())
    assert cloud.http.post(url, headers={"authorization": f"Bearer {found.token}"}).status_code == 200


def test_invokers_are_those_of_the_cloud_run_service(cloud):
    made = cloud.make()
    url = made.url
    caller = cloud.as_account()
    headers = {"authorization": f"Bearer {caller.id_token(url)}"}
    assert cloud.http.post(url, headers=headers).status_code == 403
    let(cloud, made.service, f"serviceAccount:{caller.email}")
    assert cloud.http.post(url, headers=headers).status_code == 200
    assert cloud.http.post(url).status_code == 403
    let(cloud, made.service, "allUsers")
    assert cloud.http.post(url).status_code == 200


def test_a_service_that_checks_no_invoker_lets_everybody_in(cloud, served):
    made = cloud.serve(served("open"))
    assert cloud.http.post(made.get().uri).status_code == 403
    made.update("invoker_iam_disabled", invoker_iam_disabled=True)
    assert cloud.http.post(made.get().uri).status_code == 200


def test_a_custom_audience_is_as_good_as_the_address(cloud, served):
    made = cloud.serve(served("named"), custom_audiences=["https://models.example.com"])
    headers = {"authorization": f"Bearer {cloud.id_token('https://models.example.com')}"}
    assert cloud.http.post(made.get().uri, headers=headers).status_code == 200


def test_an_internal_function_is_not_there_for_the_outside(cloud):
    made = cloud.make(ingress_settings=INTERNAL)
    assert made.call().status_code == 404


def test_a_request_over_32_mib_is_refused_and_one_below_is_not(function, emulator):
    limit = emulator.limits.request_bytes
    assert limit == 32 * 2**20
    assert function.call(content=b"x" * (limit + 1)).status_code == 413
    assert function.call(content=b"x" * (limit - 1)).json()["length"] == limit - 1


def test_a_response_over_the_limit_is_an_error(function, emulator, monkeypatch):
    monkeypatch.setattr(emulator.limits, "response_bytes", 1000)
    assert function.call("/?do=large&bytes=1000").status_code == 200
    assert function.call("/?do=large&bytes=1001").status_code == 500


def test_a_streamed_response_arrives_whole(function):
    answer = function.call("/?do=stream")
    assert answer.text == "piece 0\npiece 1\npiece 2\n"
    assert "transfer-encoding" in answer.headers


@pytest.mark.parametrize("what", ["do=exit", "do=exit&all=1"])
def test_an_instance_that_ends_is_a_503_and_the_next_request_has_a_new_one(cloud, what):
    made = cloud.make()
    before = made.call().json()["pid"]
    assert made.call(f"/?{what}").status_code == 503
    assert made.call().json()["pid"] != before


def test_a_function_that_takes_too_much_memory_is_ended(cloud, emulator):
    made = cloud.make(available_memory="128M")
    answer = made.call("/?do=hold&mb=200")
    assert answer.status_code == 500
    assert made.call().status_code == 200
    wanted = f'resource.labels.service_name="{made.short}" AND textPayload:"Memory limit of 128 MiB exceeded"'
    body = {"resourceNames": ["projects/polyserve-emulated"], "filter": wanted}
    assert len(cloud.rest("logging", "POST", "/v2/entries:list", json=body).json()["entries"]) == 1


def test_a_function_that_takes_too_long_is_a_504(cloud, meeting):
    made = cloud.make(timeout_seconds=1)
    with meeting() as (port, arrive, leave):
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(made.call, f"/?do=meet&port={port}")
            arrive()
            assert answer.result().status_code == 504
        leave()


def test_an_instance_takes_as_many_requests_as_it_may_and_then_another_starts(cloud, meeting, emulator):
    made = cloud.make(max_instance_request_concurrency=2, available_cpu="1", max_instance_count=2)
    with meeting() as (port, arrive, leave), ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(made.call, f"/?do=meet&port={port}") for _ in range(2)]
        arrive(), arrive()
        assert len(emulator.instances(made.service)) == 1
        answers += [pool.submit(made.call, f"/?do=meet&port={port}") for _ in range(2)]
        arrive(), arrive()
        assert len(emulator.instances(made.service)) == 2
        # All there may be are busy: the next waits for a while, and is refused.
        refused = made.call()
        assert refused.status_code == 429
        assert refused.text == "Rate exceeded."
        for _ in range(4):
            leave()
        assert {answer.result().status_code for answer in answers} == {200}
    assert made.call().status_code == 200


def test_idle_instances_go_and_the_next_request_starts_one(cloud, emulator, monkeypatch, eventually):
    monkeypatch.setattr(emulator.limits, "idle_s", 0.05)
    made = cloud.make()
    eventually(lambda: not emulator.instances(made.service))
    assert made.call().status_code == 200


def test_as_many_instances_stay_as_are_kept(cloud, emulator, monkeypatch, eventually):
    monkeypatch.setattr(emulator.limits, "idle_s", 0.05)
    made = cloud.make(min_instance_count=2, max_instance_count=3)
    eventually(lambda: len(emulator.instances(made.service)) == 2)
    pids = set(emulator.instances(made.service))
    assert made.call().status_code == 200
    made.update(min_instance_count=0)
    eventually(lambda: pids.isdisjoint(emulator.instances(made.service)))


def test_a_services_bounds_hold_for_its_revisions(cloud, served, emulator, monkeypatch, eventually):
    monkeypatch.setattr(emulator.limits, "idle_s", 0.05)
    made = cloud.serve(served("bounds"), scaling={"min_instance_count": 2})
    eventually(lambda: len(emulator.instances(made.name)) == 2)
    made.update("scaling", scaling={"min_instance_count": 1, "max_instance_count": 1})
    eventually(lambda: len(emulator.instances(made.name)) == 1)
    assert len(list(cloud.revisions.list_revisions(parent=made.name))) == 1


def test_what_runs_finishes_though_a_new_revision_has_taken_over(cloud, source, meeting):
    made = cloud.make(source("old"))
    with meeting() as (port, arrive, leave), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(made.call, f"/?do=meet&port={port}")
        arrive()
        made.update(source("new"))
        assert made.mark() == "new"
        leave()
        assert answer.result().json()["mark"] == "old"


def test_an_instance_finds_out_who_it_is_from_its_own_metadata_server(cloud, function):
    environment = function.call().json()["environment"]
    host = environment["GCE_METADATA_HOST"]
    assert host.startswith("127.0.0.1:")
    assert environment["GCE_METADATA_IP"] == host
    answer = cloud.http.get(
        f"http://{host}/computeMetadata/v1/instance/service-accounts/default/email",
        headers={"metadata-flavor": "Google"},
    )
    assert answer.text == cloud.functions.get_function(name=function.name).service_config.service_account_email


def test_requirements_are_installed_once_for_the_same_text(cloud, pack):
    wheel = pack(
        {
            "tiny_gcp/__init__.py": "NAME = 'tiny'",
            "tiny_gcp-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-gcp\nVersion: 1.0\n",
            "tiny_gcp-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "tiny_gcp-1.0.dist-info/RECORD": "",
        }
    )
    main = "import tiny_gcp\ndef act(request):\n    return tiny_gcp.NAME + ' ' + tiny_gcp.__file__"
    files = {
        "main.py": main,
        "requirements.txt": "./tiny_gcp-1.0-py3-none-any.whl\n",
        "tiny_gcp-1.0-py3-none-any.whl": wheel,
    }
    made = cloud.make(pack(files))
    first = made.call().text
    assert first.startswith("tiny ")
    assert cloud.make(pack(files)).call().text == first


def test_a_vendored_package_beside_the_function_is_found(cloud, pack):
    files = {"main.py": "import beside\ndef act(request):\n    return beside.NAME", "beside.py": "NAME = 'here'"}
    assert cloud.make(pack(files)).call().text == "here"


def test_an_asynchronous_function_is_run_too(cloud, pack):
    main = "import functions_framework.aio\n@functions_framework.aio.http\nasync def act(request):\n    return 'asynchronous'\n"
    assert cloud.make(pack({"main.py": main})).call().text == "asynchronous"


def test_a_service_without_a_revision_that_is_ready_is_not_found(cloud, pack_tar):
    service = run_v2.Service(template=cloud.template(pack_tar({"app.py": "1 / 0"})))
    name = cloud.name()
    operation = cloud.services.create_service(parent=cloud.parent, service_id=name, service=service)
    with pytest.raises(exceptions.GoogleAPICallError):
        operation.result(polling=cloud.polling, timeout=30)
    found = cloud.services.get_service(name=f"{cloud.parent}/services/{name}")
    headers = {"authorization": f"Bearer {cloud.id_token(found.uri)}"}
    assert cloud.http.post(found.uri, headers=headers).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_method_reaches_the_function(function, method):
    assert function.call(method=method).json()["method"] == method


def test_a_caller_that_hangs_up_takes_no_place_for_good(cloud, pack):
    main = """
from flask import Response
def act(request):
    size = 2**20
    if request.args.get("do") == "endless":
        return Response((b"x" * size for _ in range(100_000)), mimetype="application/octet-stream")
    return "here"
"""
    made = cloud.make(pack({"main.py": main}), max_instance_count=1)
    url = made.url
    headers = {"authorization": f"Bearer {cloud.id_token(url)}"}
    with cloud.http.stream("POST", f"{url}/?do=endless", headers=headers) as answer:
        assert next(answer.iter_raw())
    assert made.call().text == "here"


def test_a_response_that_is_cut_short_does_not_look_whole(cloud, pack):
    main = """
import os
from flask import Response
def pieces():
    yield "first"
    os._exit(1)
def act(request):
    return Response(pieces(), mimetype="text/plain")
"""
    made = cloud.make(pack({"main.py": main}))
    with pytest.raises(httpx.RemoteProtocolError):
        made.call()


def test_an_idle_instance_is_asked_to_end_before_it_is_killed(
    cloud, pack_tar, served, emulator, monkeypatch, eventually
):
    monkeypatch.setattr(emulator.limits, "idle_s", 0.05)
    app = """
import os, signal, sys
import served
def leave(number, frame):
    print("asked to end", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
served.Server((os.environ["HOST"], int(os.environ["PORT"])), served.Handler).serve_forever()
"""
    library = gzip.decompress(served("polite"))[512:].partition(b"\0")[0]
    made = cloud.serve(pack_tar({"app.py": app, "served.py": library}))
    wanted = f'resource.labels.service_name="{made.short}" AND textPayload="asked to end"'
    body = {"resourceNames": ["projects/polyserve-emulated"], "filter": wanted}
    eventually(lambda: cloud.rest("logging", "POST", "/v2/entries:list", json=body).json()["entries"] != [])
    assert made.mark() == "polite"
