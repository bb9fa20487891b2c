"""The harness of the AWS provider: the emulator in a process of its own, and plain boto3 beside the driver.

The oracle knows how keys are written from the documentation of `polyserve_aws.keys` and shares no code with it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from polyserve.driver import ErrorCode, FunctionSpec
from polyserve.testing.emulators import start_emulator
from polyserve.testing.harness import ErrorCase, RawObject, sample_spec
from polyserve_aws.errors import (
    BucketNotEmptyError,
    InvalidKeyError,
    InvocationError,
    PreconditionError,
    RevisionError,
    UnsupportedOperationError,
)
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

BUNDLES = "contract-bundles"


def open_harness(directory: Path, **changed: Any) -> AwsHarness:
    """Give the harness, with other settings where some are given; every provider's module has this."""
    return AwsHarness(directory, **changed)


def name_of(key: str) -> str:
    """Return the name that an object of that key has in S3."""
    dotted = "/".join(piece.replace(".", ".~", 1) if piece.startswith(".") else piece for piece in key.split("/"))
    name = ""
    for at, char in enumerate(dotted):
        following = dotted[at + 1 : at + 2]
        if ord(char) < 32:
            name += "  " + chr(64 + ord(char))
        elif char == " " and (not following or ord(following) <= 32):
            name += "  ~"
        else:
            name += char
    return name


def key_of(name: str) -> str:
    """Return the key of an object that has that name in S3."""
    pieces = re.split(r"  (.)", name, flags=re.DOTALL)
    escapes = [" " if letter == "~" else chr(ord(letter) - 64) for letter in pieces[1::2]]
    plain = "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces[::2], escapes, fillvalue="")))
    return "/".join("." + piece[2:] if piece.startswith(".~") else piece for piece in plain.split("/"))


class AwsHarness:
    """The AWS provider over the emulator."""

    name = "aws"
    key_bytes = 1024

    def __init__(self, directory: Path, **changed: Any) -> None:
        self._emulator, self.options = start_emulator(
            "polyserve_aws.emulator", directory, _variables(), "--settle", "0.03", patience_s=60.0
        )
        settings = AwsSettings(**{**self.options, **changed})
        self._provider = AwsProvider(settings)
        core = botocore.session.Session(profile="default")
        core.set_config_variable("credentials_file", settings.shared_credentials_file)
        self._session = boto3.Session(botocore_session=core, region_name=settings.region)
        self._clients: dict[str, Any] = {}
        self._s3 = self.client("s3")
        self._numbers = itertools.count(1)

    def client(self, service: str) -> Any:
        """Return a client of plain boto3."""
        if service not in self._clients:
            config = Config(signature_version="s3v4" if service == "s3" else None, s3={"addressing_style": "path"})
            url = self.options["endpoint_url"]
            self._clients[service] = self._session.client(service, endpoint_url=url, config=config)
        return self._clients[service]

    def provider(self) -> AwsProvider:
        return self._provider

    def fresh_bucket(self) -> str:
        name = f"contract-{next(self._numbers)}"
        self._s3.create_bucket(Bucket=name)
        return name

    def drop_bucket(self, bucket: str) -> None:
        try:
            for name in self._names(bucket):
                self._s3.delete_object(Bucket=bucket, Key=name)
            self._s3.delete_bucket(Bucket=bucket)
        except self._s3.exceptions.NoSuchBucket:
            pass

    def raw_put(self, bucket: str, key: str, value: RawObject) -> None:
        about = {"ContentType": value.content_type, "Metadata": dict(value.metadata)}
        self._s3.put_object(Bucket=bucket, Key=name_of(key), Body=value.body, **about)

    def raw_get(self, bucket: str, key: str) -> RawObject:
        found = self._s3.get_object(Bucket=bucket, Key=name_of(key))
        return RawObject(body=found["Body"].read(), content_type=found["ContentType"], metadata=found["Metadata"])

    def raw_list(self, bucket: str) -> Sequence[str]:
        return [key_of(name) for name in self._names(bucket)]

    def _names(self, bucket: str) -> list[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def inventory(self) -> Sequence[str]:
        found = []
        for bucket in self._s3.list_buckets()["Buckets"]:
            name = bucket["Name"]
            found += [f"bucket {name}", *(f"object {name}/{key}" for key in self._names(name))]
            found += [
                f"upload {each['Key']}" for each in self._s3.list_multipart_uploads(Bucket=name).get("Uploads", ())
            ]
        found += [f"function {each['FunctionName']}" for each in self.client("lambda").list_functions()["Functions"]]
        found += [f"HTTP API {each['Name']}" for each in self.client("apigatewayv2").get_apis()["Items"]]
        iam = self.client("iam")
        found += [f"role {each['RoleName']}" for each in iam.list_roles()["Roles"]]
        found += [f"policy {each['PolicyName']}" for each in iam.list_policies(Scope="Local")["Policies"]]
        found += [
            f"log group {each['logGroupName']}" for each in self.client("logs").describe_log_groups()["logGroups"]
        ]
        # Bundles of the functions' own suite stay from test to test.
        return [each for each in found if BUNDLES not in each]

    def error_cases(self) -> Sequence[ErrorCase]:
        return [*_service_cases(), *_sdk_cases(), *_own_cases()]

    def function_spec(self, name: str, revision: int) -> FunctionSpec:
        self._provider.ensure_bucket(BUNDLES)
        return sample_spec(self._provider, BUNDLES, name, revision)

    def close(self) -> None:
        self._provider.close()
        self._emulator.terminate()
        self._emulator.wait(timeout=30)


def _variables() -> dict[str, str]:
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}


def client_error(
    code: str, message: str = "no", status: int = 400, operation: str = "Any", **headers: str
) -> ClientError:
    """Return an error as boto3 makes it of an answer."""
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return ClientError(response, operation)


_SERVICE = {
    ErrorCode.NOT_FOUND: "NoSuchBucket NoSuchKey 404 ResourceNotFoundException NotFoundException NoSuchEntity "
    "ProvisionedConcurrencyConfigNotFoundException",
    ErrorCode.ALREADY_EXISTS: "BucketAlreadyExists EntityAlreadyExists ResourceAlreadyExistsException",
    ErrorCode.CONFLICT: "OperationAborted ConcurrentModification PreconditionFailedException",
    ErrorCode.FAILED_PRECONDITION: "PreconditionFailed 412 BucketNotEmpty DeleteConflict InvalidZipFileException InvalidRuntimeException "
    "KMSDisabledException CodeStorageExceededException LimitExceeded AliasLimitExceededException InvalidSubnetIDException",
    ErrorCode.PERMISSION_DENIED: "AccessDenied AccessDeniedException 403 AllAccessDisabled",
    ErrorCode.UNAUTHENTICATED: "ExpiredToken ExpiredTokenException InvalidAccessKeyId InvalidClientTokenId SignatureDoesNotMatch "
    "InvalidSignatureException UnrecognizedClientException RequestTimeTooSkewed MissingAuthenticationToken",
    ErrorCode.INVALID_ARGUMENT: "InvalidParameterValueException ValidationException InvalidBucketName KeyTooLongError EntityTooLarge "
    "MetadataTooLarge RequestTooLargeException MalformedPolicyDocument InvalidArgument PermanentRedirect",
    ErrorCode.RESOURCE_EXHAUSTED: "SlowDown TooManyRequestsException Throttling ThrottlingException RequestLimitExceeded "
    "EC2ThrottledException",
    ErrorCode.UNAVAILABLE: "InternalError ServiceException ServiceUnavailable ServiceFailure 503 BadDigest EC2UnexpectedException "
    "ResourceNotReadyException ConditionalRequestConflict",
    ErrorCode.DEADLINE_EXCEEDED: "RequestTimeout RequestTimeoutException",
    ErrorCode.UNSUPPORTED: "NotImplemented MethodNotAllowed",
}  # fmt: skip


def _service_cases() -> list[ErrorCase]:
    cases = [
        ErrorCase(name=name, error=client_error(name), code=code)
        for code, names in _SERVICE.items()
        for name in names.split()
    ]
    role = client_error(
        "InvalidParameterValueException", "The role defined for the function cannot be assumed by Lambda."
    )
    gone = client_error(
        "InvalidParameterValueException",
        "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: gone",
    )
    return [
        *cases,
        ErrorCase(
            name="throttled, with a time",
            error=client_error("SlowDown", status=503, **{"retry-after": "3"}),
            code=ErrorCode.RESOURCE_EXHAUSTED,
            retry_after=timedelta(seconds=3),
        ),
        ErrorCase(name="a status alone", error=client_error("Whatever", status=503), code=ErrorCode.UNAVAILABLE),
        ErrorCase(name="a new role", error=role, code=ErrorCode.UNAVAILABLE, retry_after=timedelta(seconds=2)),
        ErrorCase(name="no bundle", error=gone, code=ErrorCode.NOT_FOUND),
        ErrorCase(
            name="no concurrency left",
            error=client_error(
                "InvalidParameterValueException",
                "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
                "below its minimum value of [100].",
            ),
            code=ErrorCode.FAILED_PRECONDITION,
        ),
        ErrorCase(
            name="a function that exists",
            error=client_error("ResourceConflictException", "Function already exist: polyserve-iris", 409),
            code=ErrorCode.ALREADY_EXISTS,
        ),
        ErrorCase(
            name="an update in progress",
            error=client_error(
                "ResourceConflictException",
                "The operation cannot be performed at this time. An update is in progress",
                409,
            ),
            code=ErrorCode.UNAVAILABLE,
            retry_after=timedelta(seconds=0.2),
        ),
        ErrorCase(
            name="another conflict",
            error=client_error("ResourceConflictException", "The function was changed meanwhile", 409),
            code=ErrorCode.CONFLICT,
        ),
    ]


def _sdk_cases() -> list[ErrorCase]:
    sdk = botocore.exceptions
    url = "https://s3.eu-central-1.amazonaws.com/"
    made: list[tuple[Exception, ErrorCode]] = [
        (sdk.NoCredentialsError(), ErrorCode.UNAUTHENTICATED),
        (sdk.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), ErrorCode.UNAUTHENTICATED),
        (sdk.CredentialRetrievalError(provider="custom-process", error_msg="no"), ErrorCode.UNAUTHENTICATED),
        (sdk.UnauthorizedSSOTokenError(), ErrorCode.UNAUTHENTICATED),
        (sdk.NoRegionError(), ErrorCode.FAILED_PRECONDITION),
        (sdk.ProfileNotFound(profile="dev"), ErrorCode.FAILED_PRECONDITION),
        (sdk.InvalidRegionError(region_name="no/region"), ErrorCode.INVALID_ARGUMENT),
        (sdk.ParamValidationError(report="Bucket"), ErrorCode.INVALID_ARGUMENT),
        (sdk.EndpointConnectionError(endpoint_url=url), ErrorCode.UNAVAILABLE),
        (sdk.ConnectTimeoutError(endpoint_url=url), ErrorCode.UNAVAILABLE),
        (sdk.ConnectionClosedError(endpoint_url=url), ErrorCode.UNAVAILABLE),
        (sdk.ProxyConnectionError(proxy_url="http://127.0.0.1:1"), ErrorCode.UNAVAILABLE),
        (sdk.ResponseStreamingError(error="broken"), ErrorCode.UNAVAILABLE),
        (sdk.IncompleteReadError(actual_bytes=1, expected_bytes=2), ErrorCode.UNAVAILABLE),
        (sdk.ReadTimeoutError(endpoint_url=url), ErrorCode.DEADLINE_EXCEEDED),
        (sdk.SSLError(endpoint_url=url, error="certificate"), ErrorCode.FAILED_PRECONDITION),
    ]
    return [ErrorCase(name=type(error).__name__, error=error, code=code) for error, code in made]


def _own_cases() -> list[ErrorCase]:
    asked = timedelta(seconds=1)
    return [
        ErrorCase(name="a key", error=InvalidKeyError("key '\\x00'"), code=ErrorCode.INVALID_ARGUMENT),
        ErrorCase(name="a version", error=PreconditionError("object 'k'"), code=ErrorCode.FAILED_PRECONDITION),
        ErrorCase(name="a bucket", error=BucketNotEmptyError("bucket 'b'"), code=ErrorCode.FAILED_PRECONDITION),
        ErrorCase(name="three weights", error=UnsupportedOperationError("two versions"), code=ErrorCode.UNSUPPORTED),
        ErrorCase(
            name="a revision", error=RevisionError(ErrorCode.ALREADY_EXISTS, "another"), code=ErrorCode.ALREADY_EXISTS
        ),
        ErrorCase(
            name="throttled by Lambda",
            error=InvocationError(ErrorCode.RESOURCE_EXHAUSTED, "Rate Exceeded", retry_after=asked),
            code=ErrorCode.RESOURCE_EXHAUSTED,
            retry_after=asked,
        ),
    ]
