"""What a function can have beside code and memory, each deployed and called: a network, a snapshot, keys, kept instances, images."""

import base64
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import boto3
import pytest
from botocore.config import Config

from polyserve.bucket import Bucket
from polyserve.bundle import find_python, machine
from polyserve.bundle.image import ImageConfig, layers_of, make
from polyserve.bundle.publishing import push
from polyserve.bundle.references import parse
from polyserve.bundle.registry import Registry
from polyserve.bundle.registry_auth import Credentials
from polyserve.desired import Target, desire
from polyserve.driver import ErrorCode, Scaling
from polyserve.endpoint import Endpoint
from polyserve.errors import FailedPreconditionError, PlanRefused, translating
from polyserve.model import ModelPackage
from polyserve.planner import Observed, plan
from polyserve.rollout import refuse, wait_ready
from polyserve.testing.functions import NAME
from polyserve.testing.harness import sample_spec
from polyserve.testing.packages import times
from polyserve_aws import INFO
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

FUNCTION = f"polyserve-{NAME}"
BUNDLES = "contract-bundles"
NETWORK = {"subnet_ids": ("subnet-0a1b", "subnet-0c2d"), "security_group_ids": ("sg-0e3f",)}
LATER = "3.12"
MINUTE = timedelta(seconds=60)


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
    """Make a revision with a provider, and return its settings once it is ready."""
    with translating(provider, "apply", spec.name):
        provider.functions.apply(spec)
    wait_ready(provider, spec, renew=lambda: None)
    found = provider.functions.describe(spec.name)
    assert found.revision(spec.revision).phase.value == "ready"


def answer(provider, revision, rows=((1.0, 2.0),)):
    """Return what a revision answers."""
    signature = times(revision).signature
    with Endpoint(
        provider, NAME, model="contract-times", signature=signature, revision=revision, timeout=MINUTE
    ) as endpoint:
        return endpoint.invoke([list(row) for row in rows])


def settings_of(lambda_, version="1"):
    return lambda_.get_function_configuration(FunctionName=FUNCTION, Qualifier=version)


# --- subnets --------------------------------------------------------------------------------------------------------


def test_a_function_is_in_its_subnets_until_a_revision_has_none(functions, provider, lambda_):
    inside = provider(**NETWORK)
    made(inside, functions.spec(2))

    given = settings_of(lambda_)["VpcConfig"]
    assert (given["SubnetIds"], given["SecurityGroupIds"]) == (["subnet-0a1b", "subnet-0c2d"], ["sg-0e3f"])
    assert answer(inside, 2) == [[2.0, 4.0]]
    made(provider(), functions.spec(3))
    assert settings_of(lambda_, "2")["VpcConfig"]["SubnetIds"] == []


def test_a_role_that_may_not_use_a_network_is_named_and_tried_again(aws, functions, provider):
    iam = aws.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="no-network", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    inside = provider(role_arn=role, **NETWORK)
    try:
        with pytest.raises(Exception, match="permissions to call CreateNetworkInterface") as caught:
            inside.functions.apply(functions.spec(1))
        # A policy that was written a moment ago is not known everywhere yet.
        assert inside.classify(caught.value) is ErrorCode.UNAVAILABLE
        assert inside.retry_after(caught.value).total_seconds() == 2
    finally:
        iam.delete_role(RoleName="no-network")
        aws.client("logs").delete_log_group(logGroupName=f"/aws/lambda/{FUNCTION}")


def test_what_is_no_subnet_is_refused(functions, provider):
    wrong = provider(subnet_ids=("eu-central-1a",), security_group_ids=("sg-0e3f",))

    with pytest.raises(ValueError, match="eu-central-1a"), translating(wrong, "apply", NAME):
        wrong.functions.apply(functions.spec(1))

    wrong.functions.delete(NAME)


# --- snapshots ------------------------------------------------------------------------------------------------------


def under(package, python, into):
    """Return the same package as if it had been made under another Python."""
    shutil.copytree(package.root, into)
    manifest = json.loads((into / "manifest.json").read_bytes()) | {"python": python}
    (into / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    return ModelPackage.open(into)


@pytest.mark.skipif(find_python(LATER) is None, reason=f"there is no Python {LATER} here, and SnapStart takes one")
def test_an_instance_starts_from_a_snapshot_and_asks_for_its_credentials(aws, functions, provider, lambda_, tmp_path):
    quick = provider(snapstart=True)
    aws.function_spec(NAME, 1)  # makes the bucket
    package = under(times(2), LATER, tmp_path / "package")
    made(quick, sample_spec(quick, BUNDLES, NAME, 2, package=package))
    made(provider(), sample_spec(quick, BUNDLES, NAME, 3, package=package))

    assert settings_of(lambda_, "2")["SnapStart"]["ApplyOn"] == "None"
    assert settings_of(lambda_)["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "On"}
    # Over what an event takes: it comes through S3, with credentials that the instance had to ask for.
    rows = [[float(number), 1.0] for number in range(300_000)]
    assert answer(quick, 2, rows)[-1] == [2.0 * 299_999, 2.0]


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(aws):
    """Give a key of KMS, which is on its way out afterwards."""
    kms = aws.client("kms")
    made = kms.create_key()["KeyMetadata"]["Arn"]
    yield made
    kms.schedule_key_deletion(KeyId=made.rpartition("/")[2], PendingWindowInDays=7)


def test_variables_are_encrypted_with_a_key_of_ones_own(aws, functions, provider, lambda_, key):
    secret = provider(environment_key_arn=key)
    made(secret, functions.spec(2))

    assert settings_of(lambda_)["KMSKeyArn"] == key
    assert answer(secret, 2) == [[2.0, 4.0]]
    kms, name = aws.client("kms"), key.rpartition("/")[2]
    kms.disable_key(KeyId=name)
    with pytest.raises(FailedPreconditionError, match="KMS key used is disabled"):
        answer(secret, 2)
    kms.enable_key(KeyId=name)
    made(provider(), functions.spec(3))
    assert "KMSKeyArn" not in settings_of(lambda_, "2")


def test_a_key_that_is_not_there_is_refused(functions, provider):
    lost = provider(environment_key_arn="arn:aws:kms:us-east-1:123456789012:key/lost")

    with pytest.raises(ValueError, match="KMS key is invalid"), translating(lost, "apply", NAME):
        lost.functions.apply(functions.spec(1))

    lost.functions.delete(NAME)


# --- instances ------------------------------------------------------------------------------------------------------


def test_no_more_instances_than_are_reserved_answer_at_once(aws, functions, provider):
    spec = replace(functions.spec(2), scaling=Scaling(max_instances=1))
    mine = provider()
    mine.functions.apply(spec)
    functions.wait(spec)
    lambda_ = mine.unwrap(boto3.Session).client(
        "lambda", endpoint_url=aws.options["endpoint_url"], config=Config(retries={"total_max_attempts": 1})
    )

    def invoke(_):
        event = {
            "polyserve": 1,
            "method": "POST",
            "path": "/invocations",
            "headers": {"content-type": "application/json"},
        }
        event["body"] = base64.b64encode(b"[[-0.3, -0.3]]").decode()
        try:
            lambda_.invoke(FunctionName=FUNCTION, Qualifier="1", Payload=json.dumps(event))
        except lambda_.exceptions.TooManyRequestsException as error:
            return mine.classify(error)
        return None

    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(invoke, range(3)))

    assert sorted(told, key=str) == [None, ErrorCode.RESOURCE_EXHAUSTED, ErrorCode.RESOURCE_EXHAUSTED]


def test_an_instance_that_is_kept_warm_is_there_before_the_first_call(aws, functions, provider, lambda_):
    spec = replace(functions.spec(2), scaling=Scaling(min_instances=1))
    functions.platform.apply(spec)
    functions.wait(spec)
    functions.route({2: 100})
    where = {"FunctionName": FUNCTION, "Qualifier": "live"}
    while lambda_.get_provisioned_concurrency_config(**where)["Status"] == "IN_PROGRESS":
        pass
    event = {"polyserve": 1, "method": "GET", "path": "/v2/health/ready", "headers": {}, "body": ""}

    answered = lambda_.invoke(**where, LogType="Tail", Payload=json.dumps(event))

    assert "Init Duration" not in base64.b64decode(answered["LogResult"]).decode()
    functions.platform.scale(NAME, Scaling())


# --- images and processors ------------------------------------------------------------------------------------------


@pytest.fixture
def image_of(aws):
    """Give a function that puts the bundle of a package into an image, pushes it to ECR, and returns its place by digest."""
    ecr = aws.client("ecr")
    repository = ecr.create_repository(repositoryName="models/contract")["repository"]["repositoryUri"]
    token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")

    def given(provider, package):
        _, bundle = desire(package, Target(provider=provider, bucket=Bucket(provider, BUNDLES)), name=NAME)
        config = ImageConfig(cmd=("polyserve_entrypoint.handler",), working_dir="/var/task")
        image = make(layers_of(bundle, INFO, root="/var/task"), config, architecture=machine())
        place = parse(f"{repository}:latest")
        with Registry(place.host, credentials=Credentials(username=user, password=password)) as registry:
            return str(push(image, registry, place))

    yield given
    ecr.delete_repository(repositoryName="models/contract", force=True)


def test_a_function_runs_the_image_that_holds_its_bundle(functions, provider, lambda_, image_of):
    place = image_of(provider(), times(2))
    boxed = provider(image_uri=place)
    made(boxed, functions.spec(2))

    found = lambda_.get_function(FunctionName=FUNCTION, Qualifier="1")
    assert found["Configuration"]["PackageType"] == "Image"
    assert found["Code"]["ImageUri"] == place
    assert answer(boxed, 2) == [[2.0, 4.0]]
    another = provider(image_uri=image_of(provider(), times(3)))
    made(another, functions.spec(3))
    assert (answer(another, 3), answer(another, 2)) == ([[3.0, 6.0]], [[2.0, 4.0]])


def test_a_function_of_archives_does_not_become_one_of_images(functions, provider, image_of):
    functions.applied(2)
    boxed = provider(image_uri=image_of(provider(), times(3)))

    with pytest.raises(NotImplementedError, match="destroy the deployment first"), translating(boxed, "apply", NAME):
        boxed.functions.apply(functions.spec(3))


def test_an_image_that_is_not_there_is_refused(functions, provider):
    lost = provider(image_uri=f"123456789012.dkr.ecr.us-east-1.amazonaws.com/models@sha256:{'0' * 64}")

    with pytest.raises(ValueError, match="does not exist"), translating(lost, "apply", NAME):
        lost.functions.apply(functions.spec(1))

    lost.functions.delete(NAME)


def test_a_rehearsal_for_another_processor_is_refused_with_a_way_out(aws, functions):
    other = {"x86_64": "arm64", "arm64": "x86_64"}[machine()]
    target = Target(provider=aws.provider(), bucket=Bucket(aws.provider(), BUNDLES))
    desired, _ = desire(times(2), target, name=NAME, architecture=other, emulated=True)

    with pytest.raises(PlanRefused, match=f"rehearse with --arch {machine()}"):
        refuse(plan(desired, Observed()))

    with pytest.raises(ValueError, match=f"cannot run {other} code"), translating(aws.provider(), "apply", NAME):
        aws.provider().functions.apply(replace(functions.spec(1), architecture=other))
    aws.provider().functions.delete(NAME)
