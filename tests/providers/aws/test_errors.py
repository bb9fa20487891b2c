"""Every error that the services' own models have and a user can meet is sorted, and a refusal names the permission."""

from types import SimpleNamespace

import botocore.exceptions
import botocore.session
import pytest

from polyserve.driver import Address, ErrorCode, HttpReply
from polyserve_aws.errors import CODES, InvocationError, classify, code_of, explain_refusal
from polyserve_aws.invoker import LambdaInvoker, Way
from polyserve_aws.signing import Signer

# What these drivers cannot meet, because they never call what raises it.
NOT_CALLED = {
    "lambda": set(),
    # Annotations, append-only objects, storage classes and object lambdas of S3.
    "s3": {
        "AnnotationLimitExceeded", "AnnotationNameTooLong", "IdempotencyParameterMismatch", "InvalidAnnotationName", "NoSuchAnnotation",
        "ObjectAlreadyInActiveTierError", "ObjectNotInActiveTierError",
    },
    # Users, certificates, keys, reports, organizations, passwords and service-linked roles of IAM.
    "iam": {
        "AccountNotManagementOrDelegatedAdministratorException", "CallerIsNotManagementAccountException", "DuplicateCertificate",
        "DuplicateSSHPublicKey", "FeatureEnabled", "InvalidAuthenticationCode", "InvalidCertificate", "InvalidPublicKey",
        "InvalidUserType", "KeyPairMismatch", "MalformedCertificate", "OpenIdIdpCommunicationError", "OrganizationNotFoundException",
        "OrganizationNotInAllFeaturesModeException", "PasswordPolicyViolation", "PolicyEvaluation", "ReportExpired",
        "ReportGenerationLimitExceeded", "ReportInProgress", "ReportNotPresent", "RoleModified", "RoleTemplateDisabled",
        "ServiceAccessNotEnabledException", "UnrecognizedPublicKeyEncoding",
    },
    # Queries, sequence tokens and live tails of CloudWatch Logs.
    "logs": {
        "DataAlreadyAcceptedException", "InvalidSequenceTokenException", "MalformedQueryException", "SessionStreamingException",
    },
    # Roles by web identity, and messages that are decoded: the SDK's own chain of credentials meets what is left.
    "sts": {
        "ExpiredTradeInTokenException", "InvalidAuthorizationMessageException", "JWTPayloadSizeExceededException",
        "OutboundWebIdentityFederationDisabledException", "SessionDurationEscalationException",
    },
}  # fmt: skip


def client_error(code, message="no", status=400, operation="GetFunction", **headers):
    about = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return botocore.exceptions.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": about}, operation
    )


@pytest.mark.parametrize("service", NOT_CALLED)
def test_every_error_of_the_services_models_is_sorted_or_cannot_be_met(service):
    model = botocore.session.get_session().get_service_model(service)
    names = {shape.error_code for shape in model.error_shapes}

    sorted_ones = {name for name in names if classify(client_error(name)) is not ErrorCode.UNKNOWN}

    assert names - sorted_ones == set()
    assert {name for name in names if name not in CODES and name != "ResourceConflictException"} == NOT_CALLED[service]


def test_every_error_of_the_sdk_itself_about_credentials_and_connections_is_sorted():
    kinds = [
        kind
        for kind in vars(botocore.exceptions).values()
        if isinstance(kind, type)
        and issubclass(
            kind,
            botocore.exceptions.HTTPClientError
            | botocore.exceptions.NoCredentialsError
            | botocore.exceptions.CredentialRetrievalError
            | botocore.exceptions.SSOError,
        )
    ]

    found = {kind.__name__: classify(kind.__new__(kind)) for kind in kinds}

    assert len(found) > 8
    assert ErrorCode.UNKNOWN not in found.values()


@pytest.mark.parametrize(
    ("service", "operation", "action"),
    [
        ("s3", "HeadObject", "s3:GetObject"),
        ("s3", "ListObjectsV2", "s3:ListBucket"),
        ("s3", "UploadPart", "s3:PutObject"),
        ("lambda", "CreateFunction", "lambda:CreateFunction"),
        ("iam", "PutRolePolicy", "iam:PutRolePolicy"),
    ],
)
def test_a_refusal_that_does_not_name_the_permission_is_completed(service, operation, action):
    model = botocore.session.get_session().get_service_model(service).operation_model(operation)
    parsed = {"Error": {"Code": "403", "Message": "Forbidden"}}

    explain_refusal(SimpleNamespace(status_code=403), parsed, model)

    assert parsed["Error"]["Message"] == f"Forbidden (the caller may lack the permission {action})"


def test_a_refusal_that_names_the_permission_and_every_other_error_stay_as_they_are():
    told = "User: arn:aws:iam::1:user/u is not authorized to perform: lambda:CreateFunction on resource: r"
    model = botocore.session.get_session().get_service_model("lambda").operation_model("CreateFunction")
    for code, status, message in (("AccessDeniedException", 403, told), ("ResourceNotFoundException", 404, "no")):
        parsed = {"Error": {"Code": code, "Message": message}}
        explain_refusal(SimpleNamespace(status_code=status), parsed, model)
        assert parsed["Error"]["Message"] == message
    parsed = {}
    explain_refusal(SimpleNamespace(status_code=403), parsed, model)
    assert parsed == {}


def test_the_name_of_an_error_is_the_services_own():
    assert code_of(client_error("SlowDown")) == "SlowDown"
    assert code_of(ValueError()) == ""


# --- what Lambda answers instead of the function ------------------------------------------------------------------------------------


def address(*, direct):
    signer = Signer("AKID", "secret", None, region="eu-central-1", service="lambda")
    way = Way(
        signer=signer, host="h", path="/x", query="", direct=direct, public=False, storage=signer.for_service("s3"),
        payloads=("https://s3", "/b/p/"),
    )  # fmt: skip
    return Address(url="https://h", context=way)


def parsed(status, body, *, direct, **headers):
    reply = HttpReply(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}, body=body)
    with pytest.raises(InvocationError) as raised:
        LambdaInvoker.parse(None, address(direct=direct), reply)
    return raised.value


CRASH = {"x_amz_function_error": "Unhandled"}


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        (
            b'{"errorType":"Sandbox.Timedout","errorMessage":"Task timed out after 3.00 seconds"}',
            "DEADLINE_EXCEEDED",
            "3.00",
        ),
        (
            b'{"errorType":"Runtime.ExitError","errorMessage":"Runtime exited with error: signal: killed"}',
            "INTERNAL",
            "--memory",
        ),
        (
            b'{"errorType":"Runtime.ExitError","errorMessage":"Runtime exited with error: exit status 70"}',
            "UNAVAILABLE",
            "70",
        ),
        (b'{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"too large"}', "INVALID_ARGUMENT", "too large"),
        (
            b'{"errorType":"Runtime.ImportModuleError","errorMessage":"No module named x"}',
            "INTERNAL",
            "ImportModuleError",
        ),
        (b"null", "INTERNAL", "the function failed"),
        (b"no json", "INTERNAL", "the function failed"),
    ],
)
def test_an_environment_that_ended_is_sorted_by_how(body, code, told):
    error = parsed(200, body, direct=True, **CRASH)

    assert classify(error) == code
    assert told in str(error)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("status", "name", "body", "code"),
    [
        (
            429,
            "TooManyRequestsException",
            b'{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded"}',
            "RESOURCE_EXHAUSTED",
        ),
        (403, "AccessDeniedException", b'{"Message":"Forbidden"}', "PERMISSION_DENIED"),
        (403, "InvalidSignatureException", b'{"message":"Signature expired"}', "UNAUTHENTICATED"),
        (403, "", b'{"message":"The security token included in the request is expired"}', "UNAUTHENTICATED"),
        (404, "ResourceNotFoundException", b'{"Message":"Function not found"}', "NOT_FOUND"),
        (413, "RequestTooLargeException", b"{}", "INVALID_ARGUMENT"),
        (500, "ServiceException", b"{}", "UNAVAILABLE"),
        (502, "", b"Internal Server Error", "INTERNAL"),
        (503, "", b"<html>", "UNAVAILABLE"),
        (504, "", b"", "DEADLINE_EXCEEDED"),
        (418, "", b"[]", "INVALID_ARGUMENT"),
    ],
)
def test_lambdas_own_answers_are_sorted(status, name, body, code, direct):
    headers = {"x_amzn_errortype": f"{name}:http://internal.amazon.com/"} if name else {}

    assert classify(parsed(status, body, direct=direct, **headers)) == code


def test_the_time_that_lambda_asks_for_is_told():
    error = parsed(429, b"{}", direct=True, x_amzn_errortype="TooManyRequestsException", retry_after="2")

    assert error.retry_after.total_seconds() == 2


def test_a_refused_call_names_the_permission():
    assert "lambda:InvokeFunctionUrl" in str(parsed(403, b'{"Message":"Forbidden"}', direct=False))
