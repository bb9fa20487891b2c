"""What Lambda refuses and moto lets pass is refused."""

import io
import zipfile

import pytest
from botocore.exceptions import ClientError

REFUSED = {
    "a runtime of the past": ({"Runtime": "python3.7"}, "InvalidParameterValueException", "python3.7"),
    "a runtime that nobody has": ({"Runtime": "python2.5"}, "InvalidParameterValueException", "python2.5"),
    "memory over the limit": ({"MemorySize": 10_241}, "InvalidParameterValueException", "10240"),
    "a timeout over the limit": ({"Timeout": 901}, "ValidationException", "900"),
    "disk over the limit": ({"EphemeralStorage": {"Size": 10_241}}, "ValidationException", "10240"),
    "no handler": ({"Handler": ""}, "InvalidParameterValueException", "mandatory"),
    "variables over 4 KB": ({"Environment": {"Variables": {"NAME": "x" * 4096}}}, "InvalidParameterValueException", "4KB"),
    "a variable of Lambda's own": (
        {"Environment": {"Variables": {"AWS_REGION": "x"}}}, "InvalidParameterValueException", "AWS_REGION"
    ),
    "SnapStart on a runtime without": (
        {"SnapStart": {"ApplyOn": "PublishedVersions"}}, "InvalidParameterValueException", "SnapStart"
    ),
    "a role that is not there": (
        {"Role": "arn:aws:iam::123456789012:role/nobody"}, "InvalidParameterValueException", "cannot be assumed by Lambda"
    ),
    "a role that is no role": ({"Role": "nobody"}, "ValidationException", "role"),
    "a name that is no name": ({"FunctionName": "a.b"}, "ValidationException", "functionName"),
    "another machine's code": ({"Architectures": ["arm64"]}, "InvalidParameterValueException", "cannot run arm64"),
    "no archive": ({"Code": {"ZipFile": b"not a zip"}}, "InvalidParameterValueException", "Could not unzip"),
    "no code": ({"Code": {}}, "InvalidParameterValueException", "source for function code"),
    "a bucket that is not there": (
        {"Code": {"S3Bucket": "no-such-bucket", "S3Key": "k"}}, "InvalidParameterValueException", "NoSuchBucket"
    ),
    "what the emulator does not have": (
        {"DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:123456789012:q"}}, "InvalidParameterValueException",
        "dead-letter",
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def role(account):
    """Return a role that Lambda may assume."""
    return account.role()


@pytest.mark.parametrize(("settings", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_a_function_that_lambda_refuses_is_refused(account, role, upload, settings, code, message):
    given = {
        "FunctionName": "refused", "Role": role, "Runtime": "python3.11", "Handler": "app.handler", "Code": {"ZipFile": upload()}
    }  # fmt: skip

    with pytest.raises(ClientError, match=message) as caught:
        account.client("lambda").create_function(**(given | settings))
    assert caught.value.response["Error"]["Code"] == code


def test_a_missing_object_is_no_code(account, role, bucket):
    with pytest.raises(ClientError, match="NoSuchKey"):
        account.client("lambda").create_function(
            FunctionName="refused", Role=role, Runtime="python3.11", Handler="app.handler",
            Code={"S3Bucket": bucket, "S3Key": "nothing"},
        )  # fmt: skip


def test_a_damaged_archive_is_no_code(account, role, upload):
    code = bytearray(upload())
    code[60] ^= 0xFF

    with pytest.raises(ClientError, match="Could not unzip"):
        account.client("lambda").create_function(
            FunctionName="refused",
            Role=role,
            Runtime="python3.11",
            Handler="app.handler",
            Code={"ZipFile": bytes(code)},
        )


def test_an_archive_that_unpacks_to_too_much_is_refused(account, role, bucket):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as found:
        found.writestr("large", bytes(262_144_001))
    account.client("s3").put_object(Bucket=bucket, Key="large.zip", Body=target.getvalue())

    with pytest.raises(ClientError, match="Unzipped size must be smaller than 262144000 bytes"):
        account.client("lambda").create_function(
            FunctionName="refused", Role=role, Runtime="python3.11", Handler="app.handler",
            Code={"S3Bucket": bucket, "S3Key": "large.zip"},
        )  # fmt: skip


def test_an_archive_over_50_mb_cannot_come_with_the_call(account, role):
    with pytest.raises(ClientError, match="RequestEntityTooLargeException"):
        account.client("lambda").create_function(
            FunctionName="refused", Role=role, Runtime="python3.11", Handler="app.handler",
            Code={"ZipFile": bytes(50 * 2**20 + 1)},
        )  # fmt: skip


def test_the_same_name_twice_is_a_conflict(account, function, role, upload):
    client = account.client("lambda")

    with pytest.raises(client.exceptions.ResourceConflictException, match="already exist"):
        client.create_function(
            FunctionName=function, Role=role, Runtime="python3.11", Handler="app.handler", Code={"ZipFile": upload()}
        )


def test_code_comes_from_s3_with_its_own_digest(account, bucket, upload):
    account.client("s3").put_object(Bucket=bucket, Key="code.zip", Body=upload("stored"))
    stored = account.function(Code={"S3Bucket": bucket, "S3Key": "code.zip"})
    direct = account.function(upload("stored"))
    client = account.client("lambda")
    digests = {client.get_function_configuration(FunctionName=name)["CodeSha256"] for name in (stored, direct)}

    assert account.invoke(stored, {}).value["mark"] == "stored"
    assert len(digests) == 1


def test_settings_come_back_as_they_were_given(account, upload):
    settings = {
        "MemorySize": 512, "Timeout": 7, "Description": "what it is", "EphemeralStorage": {"Size": 1024},
        "Environment": {"Variables": {"NAME": "b"}}, "Architectures": ["x86_64"],
    }  # fmt: skip
    name = account.function(upload(), Tags={"made": "by a test"}, **settings)
    found = account.client("lambda").get_function(FunctionName=name)

    assert {key: found["Configuration"][key] for key in settings} == settings
    assert found["Tags"] == {"made": "by a test"}


def test_what_the_emulator_does_not_have_is_refused_by_name(account, function):
    with pytest.raises(ClientError, match="does not have GetFunctionScalingConfig"):
        account.client("lambda").get_function_scaling_config(FunctionName=function, Qualifier="1")


def test_a_service_that_the_emulator_does_not_have_is_refused_by_name(account):
    with pytest.raises(ClientError, match="The emulator has no 'sqs'"):
        account.client("sqs").list_queues()
