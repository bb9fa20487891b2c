"""What only Lambda has: settings of a version, the way to it, and what its own state says."""

from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from polyserve.driver import Artifact, ErrorCode, Phase, Scaling
from polyserve.rollout import wait_ready, wait_routed
from polyserve.testing.functions import NAME
from polyserve_aws.names import Mark, payload_prefix
from polyserve_aws.obstacles import storage_mb
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

FUNCTION = f"polyserve-{NAME}"


@pytest.fixture
def lambda_(aws):
    return aws.client("lambda")


@pytest.fixture
def provider(aws):
    """Give a function that makes a provider with other options."""
    made = []

    def given(**more):
        made.append(AwsProvider(AwsSettings(**{**aws.options, **more})))
        return made[-1]

    yield given
    for each in made:
        each.close()


def made(provider, spec):
    """Make a revision with a provider, and wait until it is ready."""
    provider.functions.apply(spec)
    return wait_ready(provider, spec, renew=lambda: None, within=timedelta(seconds=60))


def routed(provider, weights):
    provider.functions.route(NAME, weights)
    wait_routed(provider, NAME, weights, renew=lambda: None, within=timedelta(seconds=60))


def test_a_version_has_what_was_asked_for(functions, lambda_, provider):
    spec = replace(functions.spec(1), environment={"MINE": "1"}, timeout=timedelta(seconds=9.5), memory_mb=384)
    made(provider(ephemeral_storage_mb=700, log_retention_days=3), spec)

    found = lambda_.get_function(FunctionName=FUNCTION, Qualifier="1")
    config = found["Configuration"]

    assert (config["Runtime"], config["Handler"]) == ("python3.11", "polyserve_entrypoint.handler")
    assert (config["MemorySize"], config["Timeout"], config["EphemeralStorage"]) == (384, 11, {"Size": 700})
    assert config["Architectures"] == [spec.architecture]
    assert config["Environment"]["Variables"]["MINE"] == "1"
    assert Mark.read(config["Description"]) == Mark.of(spec)
    assert spec.labels.items() <= lambda_.list_tags(Resource=config["FunctionArn"].rpartition(":")[0])["Tags"].items()
    (group,) = functions.harness.client("logs").describe_log_groups()["logGroups"]
    assert (group["logGroupName"], group["retentionInDays"]) == (f"/aws/lambda/{FUNCTION}", 3)


def test_a_revision_after_the_first_takes_settings_then_code(functions, lambda_):
    functions.applied(2)
    spec = functions.spec(3)
    first = functions.platform.apply(spec)
    told = [first.revision(3).phase]
    while not (status := functions.platform.describe(NAME).revision(3)).incomplete:
        told.append(status.phase)

    assert set(told) == {Phase.PROVISIONING}
    assert len(lambda_.list_versions_by_function(FunctionName=FUNCTION)["Versions"]) == 2
    second = functions.platform.apply(spec)
    assert not second.revision(3).incomplete
    assert functions.wait(spec).phase is Phase.READY
    assert len(lambda_.list_versions_by_function(FunctionName=FUNCTION)["Versions"]) == 3


def test_another_revision_takes_the_place_of_one_that_was_begun_and_given_up(functions):
    functions.applied(2)
    functions.platform.apply(functions.spec(3))
    while not functions.platform.describe(NAME).revision(3).incomplete:
        pass

    functions.applied(4)

    assert [revision.number for revision in functions.platform.describe(NAME).revisions] == [2, 4]


def test_a_revision_that_was_removed_is_not_on_its_way_again_and_can_be_made_again(functions):
    functions.applied(2, 3)
    functions.route({2: 100})
    functions.platform.remove_revision(NAME, 3)

    assert [revision.number for revision in functions.platform.describe(NAME).revisions] == [2]
    functions.applied(3)
    with functions.endpoint(3) as endpoint:
        assert endpoint.invoke([[1.0, 1.0]]) == [[3.0, 3.0]]


def test_three_weights_are_refused_by_the_driver_too(functions):
    functions.applied(2, 3, 4)

    split = {2: 40, 3: 30, 4: 30}

    assert functions.code(lambda: functions.platform.route(NAME, split)) is ErrorCode.UNSUPPORTED
    assert functions.code(lambda: functions.platform.route(NAME, {2: 60, 3: 60})) is ErrorCode.INVALID_ARGUMENT
    assert functions.platform.describe(NAME).weights == {}


def test_weights_are_told_once_the_whole_way_is_there(functions, lambda_):
    functions.applied(2)
    lambda_.create_alias(FunctionName=FUNCTION, Name="live", FunctionVersion="1")

    assert functions.platform.describe(NAME).weights == {}
    functions.route({2: 100})
    assert functions.platform.describe(NAME).url


def test_a_function_is_public_only_while_that_is_asked_for(functions, provider):
    open_to_all, closed = provider(public=True), provider()
    made(open_to_all, functions.spec(2))
    routed(open_to_all, {2: 100})
    url = open_to_all.functions.describe(NAME).url
    answer = httpx.post(f"{url}/invocations", content=b"[[1, 2]]", timeout=60, trust_env=False)

    closed.functions.route(NAME, {2: 100})
    refused = httpx.post(f"{url}/invocations", content=b"[[1, 2]]", timeout=60, trust_env=False)

    assert (answer.status_code, answer.json()) == (200, [[2, 4]])
    assert refused.status_code == 403
    closed.functions.route(NAME, {2: 100})


def test_the_invoke_api_needs_no_url(functions, provider, lambda_):
    direct = provider(invoke="api")
    made(direct, functions.spec(2))
    routed(direct, {2: 100})

    assert lambda_.list_function_url_configs(FunctionName=FUNCTION)["FunctionUrlConfigs"] == []
    assert direct.functions.describe(NAME).url.endswith(f"/functions/{FUNCTION}")


def test_bounds_that_a_function_is_made_with_are_set_as_soon_as_it_takes_them(functions, lambda_):
    spec = replace(functions.spec(1), scaling=Scaling(min_instances=1, max_instances=3))

    functions.platform.apply(spec)
    functions.wait(spec)

    assert lambda_.get_function_concurrency(FunctionName=FUNCTION)["ReservedConcurrentExecutions"] == 3
    assert functions.platform.describe(NAME).scaling == Scaling(min_instances=1, max_instances=3)
    functions.route({1: 100})
    kept = lambda_.get_provisioned_concurrency_config(FunctionName=FUNCTION, Qualifier="live")
    assert kept["RequestedProvisionedConcurrentExecutions"] == 1
    functions.platform.scale(NAME, Scaling())
    assert functions.platform.describe(NAME).scaling == Scaling()


def test_a_function_of_somebody_else_is_left_alone(aws, functions, lambda_):
    role = aws.client("iam").create_role(RoleName="theirs", AssumeRolePolicyDocument=TRUST)["Role"]["Arn"]
    spec = functions.spec(1)
    code = {"S3Bucket": spec.artifact.bucket, "S3Key": spec.artifact.key}
    lambda_.create_function(FunctionName=FUNCTION, Runtime="python3.11", Handler="a.b", Role=role, Code=code)
    try:
        assert functions.code(lambda: functions.platform.apply(spec)) is ErrorCode.ALREADY_EXISTS
        assert list(functions.platform.list(labels={"polyserve": NAME})) == []
    finally:
        lambda_.delete_function(FunctionName=FUNCTION)
        aws.client("iam").delete_role(RoleName="theirs")


TRUST = """{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]}"""


def test_a_role_that_is_given_is_used_and_kept(aws, functions, provider, lambda_):
    iam = aws.client("iam")
    role = iam.create_role(RoleName="given", AssumeRolePolicyDocument=TRUST)["Role"]["Arn"]
    mine = provider(role_arn=role)
    made(mine, functions.spec(1))

    assert lambda_.get_function_configuration(FunctionName=FUNCTION)["Role"] == role
    mine.functions.delete(NAME)
    assert [each["RoleName"] for each in iam.list_roles()["Roles"]] == ["given"]
    iam.delete_role(RoleName="given")


def test_what_a_delete_left_that_was_cut_short_is_deleted_by_the_next(aws, functions, lambda_):
    functions.applied(1)
    lambda_.delete_function(FunctionName=FUNCTION)

    functions.platform.delete(NAME)

    assert not [each for each in aws.inventory() if NAME in each]
    assert functions.code(lambda: functions.platform.delete(NAME)) is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    ("more", "change", "reason"),
    [
        ({"snapstart": True}, {"python": "3.11"}, "3.12"),
        ({"snapstart": True}, {"python": "3.12", "scaling": Scaling(min_instances=1)}, "warm"),
        ({"snapstart": True, "ephemeral_storage_mb": 1024}, {"python": "3.12"}, "512 MB"),
        ({}, {"models": (Artifact(bucket="b", key="m/1", sha256="1", size=11 << 30),)}, "10,240"),
    ],
)
def test_what_cannot_be_together_is_refused_before_anything_is_made(aws, functions, provider, more, change, reason):
    spec = replace(functions.spec(1), **change)
    given = provider(**more)

    with pytest.raises(NotImplementedError, match=reason):
        given.functions.apply(spec)

    assert not [each for each in aws.inventory() if NAME in each]


def test_tmp_is_as_large_as_the_model_in_the_bucket_needs(functions):
    model = Artifact(bucket="b", key="m/1", sha256="1", size=3 << 30)
    spec = functions.spec(1)

    assert storage_mb(spec, AwsSettings()) == 512
    assert storage_mb(spec, AwsSettings(ephemeral_storage_mb=900)) == 900
    assert storage_mb(replace(spec, models=(model,)), AwsSettings()) == 3072 + 256


def test_payloads_are_beside_the_bundles(functions):
    spec = functions.spec(1)

    assert payload_prefix(spec) == f"deployments/{NAME}/payloads/"
    assert payload_prefix(replace(spec, artifact=replace(spec.artifact, key="bundle.zip"))) == "payloads/"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"public": True, "invoke": "api"}, "public"), ({"subnet_ids": ("s",)}, "together")],
)
def test_settings_that_contradict_each_other_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        AwsSettings(**options)
