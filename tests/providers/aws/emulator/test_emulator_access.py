"""Signatures and policies are checked for every service, and functions are held to their roles."""

import json
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

CALLS = {
    "s3": lambda client: client.list_buckets(),
    "lambda": lambda client: client.list_functions(),
    "iam": lambda client: client.list_roles(),
    "ecr": lambda client: client.describe_repositories(),
    "logs": lambda client: client.describe_log_groups(),
    "apigatewayv2": lambda client: client.get_apis(),
}


@pytest.fixture(scope="session")
def nobody(account, request):
    """Return the clients of a user who may do nothing."""
    document = json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "x:Y", "Resource": "*"}]}
    )
    return account.user(document)


@pytest.mark.parametrize("service", CALLS)
def test_who_may_do_it_does_it(account, service):
    assert CALLS[service](account.client(service))["ResponseMetadata"]["HTTPStatusCode"] == 200


@pytest.mark.parametrize("service", CALLS)
def test_a_wrong_secret_is_refused(account, service):
    client = account.client(service, aws_secret_access_key="another" * 6)

    with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|InvalidSignatureException"):
        CALLS[service](client)


@pytest.mark.parametrize("service", CALLS)
def test_an_unknown_key_is_refused(account, service):
    client = account.client(service, aws_access_key_id="AKIANOBODYHASTHISKEY")

    with pytest.raises(ClientError, match=r"InvalidAccessKeyId|InvalidClientTokenId|UnrecognizedClientException"):
        CALLS[service](client)


@pytest.mark.parametrize("service", CALLS)
def test_a_missing_permission_is_named(nobody, service):
    with pytest.raises(ClientError, match=r"AccessDenied.*is not authorized to perform: \w+:\w+"):
        CALLS[service](nobody.client(service))


def test_everybody_may_ask_who_he_is(nobody):
    assert ":user/" in nobody.client("sts").get_caller_identity()["Arn"]


def test_a_permission_for_one_object_is_not_for_another(account, bucket, policy):
    account.client("s3").put_object(Bucket=bucket, Key="mine/a", Body=b"a")
    account.client("s3").put_object(Bucket=bucket, Key="yours/a", Body=b"a")
    reader = account.user(policy("s3:GetObject", resource=f"arn:aws:s3:::{bucket}/mine/*")).client("s3")

    assert reader.get_object(Bucket=bucket, Key="mine/a")["Body"].read() == b"a"
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.get_object(Bucket=bucket, Key="yours/a")


def test_who_may_not_list_is_not_told_what_is_missing(account, bucket, policy):
    reader = account.user(policy("s3:GetObject")).client("s3")

    with pytest.raises(ClientError, match="AccessDenied"):
        reader.get_object(Bucket=bucket, Key="nothing")
    with pytest.raises(ClientError, match="NoSuchKey"):
        account.client("s3").get_object(Bucket=bucket, Key="nothing")


def test_a_denial_wins_over_an_allowance(account, bucket):
    statements = [
        {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/locked/*"},
    ]
    writer = account.user(json.dumps({"Version": "2012-10-17", "Statement": statements})).client("s3")

    assert writer.put_object(Bucket=bucket, Key="open", Body=b"x")
    with pytest.raises(ClientError, match="explicit deny"):
        writer.put_object(Bucket=bucket, Key="locked/a", Body=b"x")


def test_deleting_many_objects_needs_the_permission_for_each(account, bucket, policy):
    eraser = account.user(policy("s3:DeleteObject", resource=f"arn:aws:s3:::{bucket}/mine/*")).client("s3")

    assert eraser.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "mine/a"}, {"Key": "mine/b"}]})
    with pytest.raises(ClientError, match="AccessDenied"):
        eraser.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "mine/a"}, {"Key": "yours"}]})


def test_invoking_needs_the_permission_for_that_function(account, function, policy):
    arn = account.client("lambda").get_function_configuration(FunctionName=function)["FunctionArn"]
    caller = account.user(policy("lambda:InvokeFunction", resource=arn))

    assert caller.invoke(function, {}).status == 200
    with pytest.raises(ClientError, match="lambda:InvokeFunction"):
        caller.invoke(f"{function}-other", {})
    with pytest.raises(ClientError, match="lambda:GetFunction"):
        caller.client("lambda").get_function(FunctionName=function)


def test_a_function_may_let_others_in_by_its_own_policy(account, nobody, upload):
    name = account.function(upload())
    user = nobody.client("sts").get_caller_identity()["Arn"]
    account.client("lambda").add_permission(
        FunctionName=name, StatementId="s", Action="lambda:InvokeFunction", Principal=user
    )

    assert nobody.invoke(name, {}).status == 200


def test_making_a_function_needs_the_permission_to_pass_its_role(account, policy, upload):
    maker = account.user(policy("lambda:*"))

    with pytest.raises(ClientError, match="iam:PassRole"):
        maker.client("lambda").create_function(
            FunctionName="passed",
            Role=account.role(),
            Runtime="python3.11",
            Handler="app.handler",
            Code={"ZipFile": upload()},
        )


def test_a_role_that_does_not_trust_lambda_is_refused(account, upload):
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
    }

    with pytest.raises(ClientError, match="cannot be assumed by Lambda"):
        account.function(upload(), Role=account.role(trust=trust))


def test_a_function_may_do_what_its_role_may_and_nothing_else(account, bucket, upload):
    account.client("s3").put_object(Bucket=bucket, Key="k", Body=b"x")
    event = {"do": "call", "service": "s3", "method": "get_object", "args": {"Bucket": bucket, "Key": "k"}}
    reader = account.function(upload(), Role=account.role("s3:GetObject", resource=f"arn:aws:s3:::{bucket}/*"))
    other = account.function(upload(), Role=account.role("s3:ListBucket"))
    refused = account.invoke(other, event)

    assert account.invoke(reader, event).value == 200
    assert refused.error == "Unhandled"
    assert "is not authorized to perform: s3:GetObject" in refused.value["errorMessage"]


def test_a_presigned_url_works_without_other_credentials(account, bucket):
    s3 = account.client("s3", signature_version="s3v4")
    put = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "a b+c/ä"})
    get = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a b+c/ä"})
    urlopen(Request(put, data=b"signed", method="PUT")).close()
    with urlopen(get) as answer:
        found = answer.read()

    assert found == b"signed"


def test_a_presigned_url_is_for_what_it_was_signed_for(account, bucket):
    s3 = account.client("s3", signature_version="s3v4")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "mine"})

    with pytest.raises(HTTPError) as caught:
        urlopen(url.replace("/mine?", "/yours?"))
    assert b"SignatureDoesNotMatch" in caught.value.read()
    caught.value.close()


def test_a_presigned_url_expires(account, bucket, monkeypatch):
    s3 = account.client("s3", signature_version="s3v4")
    past = datetime.now(UTC) - timedelta(hours=2)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: past.replace(tzinfo=None))
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=3600)

    with pytest.raises(HTTPError) as caught:
        urlopen(url)
    assert b"Request has expired" in caught.value.read()
    caught.value.close()


def test_signature_version_2_is_refused(account, bucket):
    url = account.client("s3", signature_version="s3").generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": "k"}
    )

    with pytest.raises(HTTPError) as caught:
        urlopen(url)
    assert b"Please use AWS4-HMAC-SHA256" in caught.value.read()
    caught.value.close()


def test_a_request_without_a_signature_is_refused(account):
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{account.url}/some-bucket/key")

    assert caught.value.code == 403
    caught.value.close()


def test_a_role_may_be_passed_under_the_condition_that_it_goes_to_lambda(account, upload):
    condition = {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}
    statements = [
        {"Effect": "Allow", "Action": "lambda:*", "Resource": "*"},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "*", "Condition": condition},
    ]
    maker = account.user(json.dumps({"Version": "2012-10-17", "Statement": statements}))

    made = maker.client("lambda").create_function(
        FunctionName="conditional",
        Role=account.role(),
        Runtime="python3.11",
        Handler="app.handler",
        Code={"ZipFile": upload()},
    )
    assert made["State"] == "Pending"


def test_a_role_can_be_assumed_by_whom_it_trusts_and_then_may_what_its_policies_say(account, bucket, policy):
    user = account.user(policy("sts:AssumeRole"))
    arn = user.client("sts").get_caller_identity()["Arn"]
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"AWS": arn}, "Action": "sts:AssumeRole"}],
    }
    role = account.role("s3:PutObject", trust=trust)
    keys = user.client("sts").assume_role(RoleArn=role, RoleSessionName="session")["Credentials"]
    s3 = account.client(
        "s3",
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )

    assert s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    with pytest.raises(ClientError, match=r"assumed-role/.*s3:GetObject"):
        s3.get_object(Bucket=bucket, Key="k")
    with pytest.raises(ClientError, match="AccessDenied"):
        user.client("sts").assume_role(RoleArn=account.role(), RoleSessionName="session")
