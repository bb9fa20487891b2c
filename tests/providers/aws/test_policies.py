"""The policy that is printed is enough for a whole life of a deployment, and the function's own for what it does; no more."""

import configparser
import json
from datetime import timedelta

import boto3
import pytest

from polyserve.bucket import Bucket
from polyserve.driver import Artifact, FunctionSpec, Scaling
from polyserve.errors import PermissionDeniedError, translating
from polyserve.rollout import Target, desire, roll_out
from polyserve.teardown import destroy
from polyserve.testing.deployments import World
from polyserve.testing.packages import times
from polyserve_aws.iam import deployer_policy, execution_policy
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

NAME = "contract"


class Elsewhere:
    """The harness as a user sees it who may do no more than a policy says."""

    def __init__(self, aws, provider):
        self._aws, self._provider = aws, provider

    def __getattr__(self, name):
        return getattr(self._aws, name)

    def provider(self):
        return self._provider


@pytest.fixture
def user(aws, tmp_path):
    """Give a function that makes a provider with the credentials of a user who has one policy."""
    iam = aws.client("iam")
    iam.create_user(UserName="deployer")
    key = iam.create_access_key(UserName="deployer")["AccessKey"]
    written = configparser.ConfigParser()
    written["default"] = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    with (tmp_path / "credentials").open("w") as file:
        written.write(file)
    options = {**aws.options, "shared_credentials_file": str(tmp_path / "credentials")}
    made = []

    def given(policy, **more):
        iam.put_user_policy(UserName="deployer", PolicyName="only", PolicyDocument=json.dumps(policy))
        made.append(AwsProvider(AwsSettings(**options, **more)))
        return made[-1]

    yield given
    for provider in made:
        provider.close()
    iam.delete_user_policy(UserName="deployer", PolicyName="only")
    iam.delete_access_key(UserName="deployer", AccessKeyId=key["AccessKeyId"])
    iam.delete_user(UserName="deployer")


def spec_of(provider, bucket):
    desired, _ = desire(times(2), Target(provider=provider, bucket=Bucket(provider, bucket)), name=NAME)
    return desired.spec(1)


NETWORK = {"subnet_ids": ("subnet-1",), "security_group_ids": ("sg-1",)}
WAYS = [{}, {"invoke": "api", **NETWORK}, {"public": True}, {"invoke": "http-api", "environment_key_arn": "a key"}]


@pytest.mark.parametrize("more", WAYS, ids=["url", "api, in subnets", "public", "http-api, with a key"])
def test_the_printed_policy_is_enough_for_the_whole_life_of_a_deployment(aws, user, more):
    if "environment_key_arn" in more:
        more = more | {"environment_key_arn": aws.client("kms").create_key()["KeyMetadata"]["Arn"]}
    bucket = "contract-of-the-deployer"
    settings = AwsSettings(**aws.options, **more)
    policy = deployer_policy(spec_of(aws.provider(), bucket), settings, region=settings.region)
    world = World(Elsewhere(aws, user(policy, **more)), bucket)

    world.deploy(times(2))
    world.deploy(times(3), canary=50)
    deployment = world.deployment()
    deployment.scale(min_instances=1, max_instances=2)
    deployment.scale(min_instances=0, max_instances=None)
    deployment.promote()
    assert world.answer() == 3.0
    deployment.rollback()
    assert world.answer() == 2.0
    assert deployment.metrics().total.requests
    assert [status.name for status in world.target.provider.functions.list(labels={"polyserve": NAME})] == [NAME]
    destroy(world.target, NAME)

    assert [each for each in aws.inventory() if "deployer" not in each] == []


def test_what_is_missing_in_a_policy_is_named(aws, user):
    bucket = "contract-of-the-deployer"
    policy = deployer_policy(spec_of(aws.provider(), bucket), AwsSettings(**aws.options), region="us-east-1")
    for statement in policy["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != "lambda:CreateFunction"]
    world = World(Elsewhere(aws, user(policy)), bucket)

    with pytest.raises(PermissionDeniedError, match="lambda:CreateFunction"):
        world.deploy(times(2))

    destroy(world.target, NAME)


def test_a_refusal_of_s3_names_the_permission_too(aws, user):
    provider = user({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]})
    store = provider.store("contract-nowhere")

    for call, action in ((lambda: store.head("k"), "s3:GetObject"), (lambda: store.delete("k"), "s3:GetObject")):
        with pytest.raises(PermissionDeniedError, match=action), translating(provider, "head", "k"):
            call()


def a_spec(**more):
    artifact = Artifact(bucket="models", key="deployments/iris/bundles/1.zip", sha256="0" * 64, size=1)
    fields = {
        "name": "iris", "revision": 1, "artifact": artifact, "package_digest": "0" * 64, "entrypoint": "polyserve_entrypoint",
        "python": "3.12", "architecture": "arm64", "requirements": (), "memory_mb": 512, "timeout": timedelta(seconds=30),
        "environment": {}, "request_bytes": 1, "scaling": Scaling(), "labels": {"polyserve": "iris"},
    }  # fmt: skip
    return FunctionSpec(**(fields | more))


def test_a_function_may_write_its_log_and_read_and_write_its_own_payloads_and_nothing_else():
    arn = "arn:aws-cn:iam::123456789012:role/r"

    found = execution_policy(a_spec(), AwsSettings(), arn=arn, region="cn-north-1")

    assert found["Statement"] == [
        {
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": "arn:aws-cn:logs:cn-north-1:123456789012:log-group:/aws/lambda/polyserve-iris:*",
        },
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject"],
            "Resource": "arn:aws-cn:s3:::models/deployments/iris/payloads/*",
        },
    ]


def test_models_a_network_and_a_key_are_allowed_where_there_are_any():
    model = Artifact(bucket="models", key="deployments/iris/models/" + "1" * 64, sha256="1" * 64, size=1)
    key = "arn:aws:kms:eu-west-1:123456789012:key/k"
    settings = AwsSettings(subnet_ids=("subnet-1",), security_group_ids=("sg-1",), kms_key_id=key)

    found = execution_policy(
        a_spec(models=(model,)), settings, arn="arn:aws:iam::123456789012:role/r", region="eu-west-1"
    )

    allowed = {action for statement in found["Statement"] for action in statement["Action"]}
    places = [statement["Resource"] for statement in found["Statement"]]
    assert ["arn:aws:s3:::models/deployments/iris/models/*"] in places
    assert {"ec2:CreateNetworkInterface", "kms:Decrypt"} <= allowed
    assert key in places


def test_a_policy_has_no_rights_to_roles_where_one_is_given_and_none_to_make_it_public_unless_asked():
    given = AwsSettings(role_arn="arn:aws:iam::123456789012:role/mine")

    actions = {
        action
        for statement in deployer_policy(a_spec(), given, region="eu-west-1")["Statement"]
        for action in statement["Action"]
    }

    assert {action for action in actions if action.startswith("iam:")} == {"iam:PassRole"}
    assert "lambda:AddPermission" not in actions


def test_the_native_session_is_the_one_that_is_used(aws):
    session = aws.provider().unwrap(boto3.Session)

    assert session is aws.provider().unwrap(boto3.Session)
    assert session.client("sts", endpoint_url=aws.options["endpoint_url"]).get_caller_identity()["Account"]
    assert aws.provider().unwrap(dict) is None


def test_the_native_session_knows_what_boto3_knows_and_what_a_user_adds(aws, tmp_path, monkeypatch):
    own = AwsProvider(AwsSettings(**aws.options)).unwrap(boto3.Session)
    described = tmp_path / "homemade" / "2026-01-01"
    described.mkdir(parents=True)
    (described / "service-2.json").write_text("{}")
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    adding = AwsProvider(AwsSettings(**aws.options)).unwrap(boto3.Session)

    assert own is not adding
    assert "s3" in own.get_available_resources()
    assert "homemade" in adding.get_available_services()
    assert "homemade" not in own.get_available_services()


def test_a_role_that_is_not_of_the_deployment_is_left_alone(aws, bucket):
    iam = aws.client("iam")
    iam.create_role(RoleName=f"polyserve-{NAME}-us-east-1", AssumeRolePolicyDocument="{}")
    world = World(aws, bucket)
    try:
        desired, bundle = desire(times(2), world.target, name=NAME, memory_mb=256)
        with pytest.raises(Exception, match="not of this deployment"):
            roll_out(world.target, desired, times(2), bundle)
    finally:
        iam.delete_role(RoleName=f"polyserve-{NAME}-us-east-1")
        destroy(world.target, NAME)
