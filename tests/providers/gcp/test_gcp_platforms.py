"""What only Google Cloud has: two platforms of one provider, functions that are built or not, who may call them, and what is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.auth.credentials import Credentials
from google.cloud import storage
from google.cloud.functions_v2 import FunctionServiceClient

from polyserve.bundle import build
from polyserve.driver import LABEL, ErrorCode, FunctionSpec, Provider, Scaling
from polyserve.layers.fronting import fronted
from polyserve.layers.retrying import retrying
from polyserve.rollout import wait_ready
from polyserve.runtime.messages import Request
from polyserve.testing.functions import NAME, Functions
from polyserve.testing.harness import sample_spec
from polyserve.testing.packages import BREAKS_IMPORT, times
from polyserve_gcp.errors import AppError, classify
from polyserve_gcp.provider import provider
from polyserve_gcp.settings import GcpSettings

FUNCTIONS, RUN = "cloudfunctions.googleapis.com", "run.googleapis.com"


class Changed:
    """The world of a harness with other settings."""

    def __init__(self, harness: Any, **changed: Any) -> None:
        self.settings = GcpSettings(**{**harness.options, **changed})
        self._harness = harness
        self._provider = retrying(fronted(provider(self.settings)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._harness, name)

    def provider(self) -> Provider:
        return self._provider

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        # The bucket of the bundles is made there.
        bucket = self._harness.function_spec(name, revision).artifact.bucket
        return sample_spec(self._provider, bucket, name, revision)


@pytest.fixture(scope="module")
def harness(harness_of: Callable[..., Any]) -> Any:
    """Give the harness of the contract suites."""
    return harness_of("gcp")


@pytest.fixture
def functions_with(harness: Any) -> Iterator[Callable[..., Functions]]:
    """Return what gives a function platform with other settings; takes away what a test made."""
    given: list[Functions] = []

    def functions_with(**changed: Any) -> Functions:
        given.append(Functions(Changed(harness, **changed)))
        return given[-1]

    yield functions_with
    for functions in given:
        functions.gone()
        functions.provider.close()
    assert list(harness.inventory()) == []


@pytest.fixture(params=["functions", "run"])
def functions(request: pytest.FixtureRequest, functions_with: Callable[..., Functions]) -> Functions:
    """Give each platform."""
    return functions_with(platform=request.param)


def settings_of(functions: Functions) -> GcpSettings:
    harness: Any = functions.harness
    return harness.settings  # type: ignore[no-any-return]


# --- who may call --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["functions", "run"])
def test_a_public_function_is_called_by_everybody_and_a_private_one_again_by_nobody(platform, functions_with):
    public = functions_with(platform=platform, public=True)
    public.applied(2)
    with public.endpoint(2) as endpoint:
        assert endpoint.invoke([[1.0, 1.0]]) == [[2.0, 2.0]]
    public.route({2: 100})
    url = public.provider.invoker.resolve(NAME).url

    assert httpx.post(f"{url}/invocations", content=b"[[1, 2]]", trust_env=False).json() == [[2.0, 4.0]]

    private = functions_with(platform=platform)
    private.applied(3)
    private.route({3: 100})
    status = httpx.post(f"{url}/invocations", content=b"[[1, 2]]", trust_env=False).status_code
    assert status in {401, 403}


def test_a_token_for_another_service_does_not_open_a_function(functions):
    functions.applied(1)
    functions.route({1: 100})
    invoker = functions.provider.invoker
    address = invoker.resolve(NAME)
    call = invoker.prepare(address, Request(method="GET", path="/v2/health/ready"))
    other = {"authorization": call.headers["authorization"][:-12] + "A" * 12}

    assert httpx.get(call.url, headers=dict(call.headers), trust_env=False).status_code == 200
    assert httpx.get(call.url, headers=other, trust_env=False).status_code == 401


# --- what is made, and of what -------------------------------------------------------------------------------------------------


def test_a_front_that_only_passes_on_other_shares_is_not_built_again(functions_with):
    functions = functions_with()
    functions.applied(2, 3)
    functions.route({2: 100})
    harness = functions.harness

    def native() -> Any:
        return harness.call("GET", FUNCTIONS, f"/v2/{harness.location}/functions/{NAME}")

    built = native()["buildConfig"]["build"]
    functions.route({2: 60, 3: 40})
    assert native()["buildConfig"]["build"] == built

    functions.route({3: 100})
    assert native()["buildConfig"]["build"] != built


def test_a_function_is_found_by_its_labels_in_the_console_too(functions):
    functions.applied(1)
    harness, kind = functions.harness, settings_of(functions).platform
    host, collection = (FUNCTIONS, "functions") if kind == "functions" else (RUN, "services")
    name = f"{NAME}-r1" if kind == "functions" else NAME

    labels = harness.call("GET", host, f"/v2/{harness.location}/{collection}/{name}")["labels"]

    assert labels[LABEL] == NAME


def test_what_has_that_name_already_is_not_taken_over(functions):
    harness, kind = functions.harness, settings_of(functions).platform
    functions.applied(1)
    host, collection = (FUNCTIONS, "functions") if kind == "functions" else (RUN, "services")
    name = f"{NAME}-r1" if kind == "functions" else NAME
    path = f"/v2/{harness.location}/{collection}/{name}"
    there = harness.call("GET", host, path)
    ours = {key: value for key, value in there["labels"].items() if key != LABEL}
    harness.call(
        "PATCH", host, path, {"name": there["name"], "labels": {**ours, LABEL: "another"}}, updateMask="labels"
    )
    try:
        assert functions.code(lambda: functions.platform.apply(functions.spec(1))) is ErrorCode.ALREADY_EXISTS
    finally:
        harness.settled()
        harness.call("DELETE", host, path)


def test_bundles_carry_the_framework_for_nobody_and_never_the_client_of_its_name():
    built, run = provider(GcpSettings()).info, provider(GcpSettings(platform="run")).info
    bundle = build(times(2), built, python="3.11", architecture="x86_64")
    with zipfile.ZipFile(bundle.path) as opened:
        names = opened.namelist()
        assert opened.read("requirements.txt") == b"functions-framework==3.10.2\n"
    assert "main.py" in names
    assert not any(name.startswith(("google/", "functions_framework/")) for name in names)

    packed = build(times(2), run, python="3.11", architecture="x86_64")
    assert Path(packed.path).name.endswith(".tar.gz")
    assert packed.package_digest == bundle.package_digest


# --- under the framework, and on one loop -----------------------------------------------------------------------------------------


def test_a_worker_on_one_loop_answers_many_together_and_late_ones_in_time(functions_with):
    functions = functions_with(worker="asyncio")
    spec = replace(functions.spec(2), timeout=timedelta(seconds=2), request_bytes=1000)
    functions.platform.apply(spec)
    functions.wait(spec)
    functions.route({2: 100})
    with functions.endpoint() as endpoint, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: endpoint.invoke([[float(n), 0.0]]), range(200)))

    assert answers == [[[2.0 * n, 0.0]] for n in range(200)]
    assert functions.send("/v2/health/ready").status == 200
    assert functions.send("/nowhere").status == 404
    assert functions.send("/invocations", method="POST", body=b" " * 1001).status == 413
    late = functions.send("/invocations", method="POST", body=b"[[-3, 0]]", **{"x-request-id": "abc"})
    assert (late.status, late.headers["x-request-id"]) == (504, "abc")


def test_a_body_larger_than_the_frameworks_own_bound_is_answered(functions):
    functions.applied(2)
    functions.route({2: 100})
    rows = [[float(number), 1.0] for number in range(500_000)]

    with functions.endpoint() as endpoint:
        assert endpoint.invoke(rows)[-1] == [2.0 * 499_999, 2.0]


# --- refusals and failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "memory_mb", "words"),
    [
        ({"network": "default"}, 512, "network and subnetwork"),
        ({"platform": "run", "worker": "asyncio"}, 512, "worker"),
        ({"platform": "run", "build_service_account": "b@p.iam.gserviceaccount.com"}, 512, "build_service_account"),
        ({"platform": "run", "vpc_connector": "c", "network": "default"}, 512, "exclude each other"),
        ({"cpu": 3}, 512, "can be 1, 2, 4, 6 or 8"),
        ({"cpu": 1}, 8192, "memory_mb 8192 takes 2"),
        ({"cpu": 4}, 512, "takes memory_mb 2048"),
        ({"cpu": 0.25}, 1024, "memory_mb 512 at most"),
        ({"cpu": 0.05, "platform": "run"}, 256, "smallest part"),
    ],
    ids=str,
)
def test_settings_that_the_platform_has_not_got_are_refused_before_anything_is_made(
    changed, memory_mb, words, functions_with
):
    functions = functions_with(**changed)
    spec = replace(functions.spec(1), memory_mb=memory_mb)

    with pytest.raises(AppError, match=words) as caught:
        functions.platform.apply(spec)

    assert classify(caught.value) is ErrorCode.INVALID_ARGUMENT


def test_files_of_a_model_that_leave_an_instance_no_memory_are_refused(functions):
    spec = functions.spec(1)
    model = replace(spec.artifact, key=f"m/{'0' * 64}", sha256="0" * 64, size=300 << 20)

    with pytest.raises(AppError, match=r"takes 728"):
        functions.platform.apply(replace(spec, models=(model,)))


def test_an_api_that_is_not_enabled_is_named_with_the_command_that_enables_it(functions):
    harness, host = functions.harness, "serviceusage.googleapis.com"
    api = FUNCTIONS if settings_of(functions).platform == "functions" else RUN
    service = f"/v1/projects/{harness.settings.project}/services/{api}"
    harness.call("POST", host, f"{service}:disable", {})
    try:
        with pytest.raises(Exception, match=f"gcloud services enable {api}") as caught:
            functions.platform.apply(functions.spec(1))
    finally:
        harness.call("POST", host, f"{service}:enable", {})

    assert classify(caught.value) is ErrorCode.FAILED_PRECONDITION


def test_a_revision_that_failed_is_no_obstacle_to_the_traffic_of_the_others(functions):
    functions.applied(2, 3)
    functions.route({2: 100})
    broken = replace(functions.spec(4), environment={BREAKS_IMPORT: "1"})
    functions.platform.apply(broken)
    if settings_of(functions).platform == "run":
        with pytest.raises(Exception, match="failed on gcp"):
            wait_ready(functions.provider, broken, renew=lambda: None, within=timedelta(seconds=60))
    else:
        functions.wait(broken)

    functions.route({3: 100})

    with functions.endpoint() as endpoint:
        assert endpoint.invoke([[1.0, 1.0]]) == [[3.0, 3.0]]


def test_more_instances_than_a_revision_was_made_for_are_refused_with_a_way_out(functions_with):
    functions = functions_with(platform="run")
    functions.applied(1)
    functions.route({1: 100})

    functions.platform.scale(NAME, Scaling(max_instances=100))
    with pytest.raises(AppError, match="deploy again"):
        functions.platform.scale(NAME, Scaling(max_instances=101))

    assert functions.platform.describe(NAME).scaling == Scaling(max_instances=100)


# --- the way out ----------------------------------------------------------------------------------------------------------------------


def test_googles_own_clients_are_given_away(functions):
    functions.applied(1)
    given, harness = functions.provider, functions.harness

    buckets = given.unwrap(storage.Client)
    assert buckets is not None
    assert functions.spec(1).artifact.bucket in {bucket.name for bucket in buckets.list_buckets()}
    client = given.unwrap(FunctionServiceClient)
    assert client is not None
    with client:
        names = [each.name.rpartition("/")[2] for each in client.list_functions(parent=harness.location)]
    assert names == ([f"{NAME}-r1"] if settings_of(functions).platform == "functions" else [])
    assert given.unwrap(httpx.Client) is not None
    assert given.unwrap(Credentials) is not None
    assert given.unwrap(int) is None
