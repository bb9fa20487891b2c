"""What the SDK and Lambda can raise, and which `ErrorCode` each of it is.

`CODES` has every error of the services' own models that these drivers can meet; where one name stands for several failures, its message
decides. Pure: looks at the error and at nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from polyserve.driver import ErrorCode

__all__ = [
    "CODES",
    "BucketNotEmptyError",
    "InvalidKeyError",
    "InvocationError",
    "PreconditionError",
    "RevisionError",
    "UnsupportedOperationError",
    "classify",
    "code_of",
    "explain_refusal",
    "retry_after",
]


class InvocationError(Exception):
    """An answer of Lambda itself, not of the function.

    Args:
        code: What kind of failure it is.
        message: One sentence for people.
        retry_after: How long Lambda asks to wait.
    """

    def __init__(self, code: ErrorCode, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class RevisionError(Exception):
    """A revision that is not there, has traffic, or is another than the one that is asked for.

    Args:
        code: What kind of failure it is.
        message: One sentence for people.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidKeyError(ValueError):
    """A key that has no name in S3."""


class BucketNotEmptyError(Exception):
    """A bucket that has objects."""


class PreconditionError(Exception):
    """An `if_match` of an object that is not there any more."""


class UnsupportedOperationError(NotImplementedError):
    """What Lambda cannot do."""


_NOT_FOUND = (
    "NoSuchBucket NoSuchKey NoSuchUpload NoSuchVersion NoSuchEntity NotFound NotFoundException 404 ResourceNotFoundException "
    "ProvisionedConcurrencyConfigNotFoundException CodeSigningConfigNotFoundException"
)
_ALREADY_EXISTS = "BucketAlreadyExists EntityAlreadyExists ResourceAlreadyExistsException"
_CONFLICT = (
    "BucketAlreadyOwnedByYou ConcurrentModification ConflictException NameConflict "
    "OperationAborted OperationAbortedException PreconditionFailedException ResourceInUseException"
)
_FAILED_PRECONDITION = (
    "412 PreconditionFailed BucketNotEmpty DeleteConflict EntityTemporarilyUnmodifiable UnmodifiableEntity FeatureDisabled "
    "InvalidObjectState InvalidBucketState NoPublishedVersionException CodeVerificationFailedException "
    "InvalidCodeSignatureException InvalidZipFileException InvalidRuntimeException InvalidSecurityGroupIDException "
    "InvalidSubnetIDException KMSDisabledException KMSInvalidStateException KMSNotFoundException "
    "KMS.DisabledException KMS.KMSInvalidStateException KMS.NotFoundException "
    "EFSIOException EFSMountConnectivityException EFSMountFailureException EFSMountTimeoutException "
    "S3FilesMountConnectivityException S3FilesMountFailureException S3FilesMountTimeoutException "
    "RecursiveInvocationException RegionDisabledException RuntimeAliasDeletedException RuntimeVersionDeletedException "
    "CodeArtifactUserDeletedException CodeArtifactUserFailedException "
    "SnapStartException SnapStartRegenerationFailureException SnapStartTimeoutException "
    "AliasLimitExceededException CapacityProviderLimitExceededException CodeStorageExceededException "
    "FunctionVersionsPerCapacityProviderLimitExceededException LimitExceeded LimitExceededException "
    "PolicyLengthExceededException ServiceQuotaExceededException TooManyBuckets TooManyTagsException PackedPolicyTooLarge "
    "EC2AccessDeniedException KMSAccessDeniedException KMS.AccessDeniedException NotSignedUp OptInRequired "
    "DurableExecutionAlreadyStartedException"
)
_PERMISSION_DENIED = (
    "403 Forbidden AccessDenied AccessDeniedException AllAccessDisabled AccountProblem AuthFailure UnauthorizedOperation "
    "PublicPolicyException InvalidPayer OperationNotPermitted"
)
_UNAUTHENTICATED = (
    "401 ExpiredToken ExpiredTokenException IncompleteSignature IncompleteSignatureException InvalidAccessKeyId "
    "InvalidClientTokenId InvalidIdentityToken InvalidSecurity InvalidSignatureException InvalidToken MissingAuthenticationToken "
    "MissingAuthenticationTokenException MissingSecurityHeader RequestExpired RequestTimeTooSkewed SignatureDoesNotMatch "
    "TokenRefreshRequired UnrecognizedClientException IDPRejectedClaim"
)
_INVALID_ARGUMENT = (
    "400 413 414 BadRequestException AuthorizationHeaderMalformed AuthorizationQueryParametersError EntityTooLarge EntityTooSmall "
    "IllegalLocationConstraintException InvalidArgument InvalidBucketName InvalidDigest InvalidEncryptionAlgorithmError "
    "EncryptionTypeMismatch InvalidInput InvalidLocationConstraint InvalidOperationException InvalidParameterCombination "
    "InvalidParameterException InvalidParameterValue InvalidParameterValueException InvalidPart InvalidPartOrder InvalidPrefix "
    "InvalidRange InvalidRequest InvalidRequestContentException InvalidStorageClass InvalidTag InvalidURI InvalidWriteOffset "
    "KeyTooLongError KMS.InvalidKeyUsageException MalformedPolicyDocument MalformedPolicy MalformedXML MaxMessageLengthExceeded "
    "MetadataTooLarge MissingContentLength PermanentRedirect PolicyNotAttachable RequestEntityTooLargeException "
    "RequestTooLargeException SerializedRequestEntityTooLargeException TooManyParts UnsupportedMediaType "
    "UnsupportedMediaTypeException UserKeyMustBeSpecified ValidationError ValidationException 301 416"
)
_RESOURCE_EXHAUSTED = (
    "429 SlowDown EC2ThrottledException PriorRequestNotComplete ProvisionedThroughputExceededException "
    "RequestLimitExceeded RequestThrottled RequestThrottledException ServiceQuotaThrottled Throttling ThrottlingException "
    "ThrottledException TooManyRequests TooManyRequestsException BandwidthLimitExceeded ENILimitReachedException "
    "SubnetIPAddressLimitReachedException"
)
_UNAVAILABLE = (
    "500 502 503 ConditionalRequestConflict BadDigest BadRequestBody InternalError InternalFailure InternalServerError "
    "InternalServerException "
    "InternalStreamingException ServiceException ServiceFailure ServiceUnavailable ServiceUnavailableException XAmzContentSHA256Mismatch "
    "XAmzContentChecksumMismatch IncompleteBody EC2UnexpectedException ENINotReadyException ResourceNotReadyException "
    "SnapStartNotReadyException CodeArtifactUserPendingException IDPCommunicationError Busy TemporaryRedirect"
)
_DEADLINE_EXCEEDED = "408 504 RequestTimeout RequestTimeoutException CallbackTimeoutException SessionTimeoutException"
_UNSUPPORTED = (
    "405 501 MethodNotAllowed NotImplemented ModeNotSupportedException NotSupportedService UnsupportedOperation"
)

CODES: Mapping[str, ErrorCode] = {
    name: code
    for names, code in (
        (_NOT_FOUND, ErrorCode.NOT_FOUND),
        (_ALREADY_EXISTS, ErrorCode.ALREADY_EXISTS),
        (_CONFLICT, ErrorCode.CONFLICT),
        (_FAILED_PRECONDITION, ErrorCode.FAILED_PRECONDITION),
        (_PERMISSION_DENIED, ErrorCode.PERMISSION_DENIED),
        (_UNAUTHENTICATED, ErrorCode.UNAUTHENTICATED),
        (_INVALID_ARGUMENT, ErrorCode.INVALID_ARGUMENT),
        (_RESOURCE_EXHAUSTED, ErrorCode.RESOURCE_EXHAUSTED),
        (_UNAVAILABLE, ErrorCode.UNAVAILABLE),
        (_DEADLINE_EXCEEDED, ErrorCode.DEADLINE_EXCEEDED),
        (_UNSUPPORTED, ErrorCode.UNSUPPORTED),
    )
    for name in names.split()
}
"""By the name that the service gives; S3's answers to HEAD have no body, so there the HTTP status stands for it."""

BUSY_WAIT = timedelta(seconds=0.2)
"""When to ask again at the earliest where a function is being changed, which nobody says."""

# What Lambda says of a role, or of the policy in it, that was made a moment ago and is not known everywhere yet.
_NEW_ROLE = re.compile(r"cannot be assumed by Lambda|execution role does not have permissions", re.I)

# One name, several failures: what the message says comes first.
_BY_MESSAGE: tuple[tuple[str, re.Pattern[str], ErrorCode], ...] = (
    ("ResourceConflictException", re.compile(r"already exist|exists for this", re.I), ErrorCode.ALREADY_EXISTS),
    # "The operation cannot be performed at this time. An update is in progress", "... is currently in the following state: Pending".
    ("ResourceConflictException", re.compile(r"in progress|state: ?Pending|Pending", re.I), ErrorCode.UNAVAILABLE),
    ("InvalidParameterValueException", _NEW_ROLE, ErrorCode.UNAVAILABLE),
    ("InvalidParameterValueException", re.compile(r"NoSuchKey|NoSuchBucket", re.I), ErrorCode.NOT_FOUND),
    (
        "InvalidParameterValueException",
        re.compile(r"UnreservedConcurrentExecution", re.I),
        ErrorCode.FAILED_PRECONDITION,
    ),
    ("CodeStorageExceededException", re.compile(""), ErrorCode.FAILED_PRECONDITION),
    ("ResourceConflictException", re.compile(""), ErrorCode.CONFLICT),
)

_BY_OWN_TYPE: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (InvalidKeyError, ErrorCode.INVALID_ARGUMENT),
    (PreconditionError, ErrorCode.FAILED_PRECONDITION),
    (BucketNotEmptyError, ErrorCode.FAILED_PRECONDITION),
    (UnsupportedOperationError, ErrorCode.UNSUPPORTED),
)

# By name, so that this module can be read without the SDK; subclasses come before what they derive from.
_BY_SDK_TYPE: Mapping[str, ErrorCode] = {
    "NoCredentialsError": ErrorCode.UNAUTHENTICATED,
    "PartialCredentialsError": ErrorCode.UNAUTHENTICATED,
    "CredentialRetrievalError": ErrorCode.UNAUTHENTICATED,
    "MetadataRetrievalError": ErrorCode.UNAUTHENTICATED,
    "NoAuthTokenError": ErrorCode.UNAUTHENTICATED,
    "TokenRetrievalError": ErrorCode.UNAUTHENTICATED,
    "SSOError": ErrorCode.UNAUTHENTICATED,
    "LoginError": ErrorCode.UNAUTHENTICATED,
    "RefreshWithMFAUnsupportedError": ErrorCode.UNAUTHENTICATED,
    "NoRegionError": ErrorCode.FAILED_PRECONDITION,
    "ProfileNotFound": ErrorCode.FAILED_PRECONDITION,
    "ConfigNotFound": ErrorCode.FAILED_PRECONDITION,
    "ConfigParseError": ErrorCode.FAILED_PRECONDITION,
    "UnknownCredentialError": ErrorCode.FAILED_PRECONDITION,
    "InvalidConfigError": ErrorCode.FAILED_PRECONDITION,
    "InfiniteLoopConfigError": ErrorCode.FAILED_PRECONDITION,
    "MissingDependencyException": ErrorCode.FAILED_PRECONDITION,
    "SSLError": ErrorCode.FAILED_PRECONDITION,
    "InvalidRegionError": ErrorCode.INVALID_ARGUMENT,
    "UnknownRegionError": ErrorCode.INVALID_ARGUMENT,
    "UnknownEndpointError": ErrorCode.INVALID_ARGUMENT,
    "EndpointProviderError": ErrorCode.INVALID_ARGUMENT,
    "ParamValidationError": ErrorCode.INVALID_ARGUMENT,
    "MissingParametersError": ErrorCode.INVALID_ARGUMENT,
    "ConnectTimeoutError": ErrorCode.UNAVAILABLE,
    "ReadTimeoutError": ErrorCode.DEADLINE_EXCEEDED,
    "EndpointConnectionError": ErrorCode.UNAVAILABLE,
    "ConnectionError": ErrorCode.UNAVAILABLE,
    "HTTPClientError": ErrorCode.UNAVAILABLE,
    "IncompleteReadError": ErrorCode.UNAVAILABLE,
    "FlexibleChecksumError": ErrorCode.UNAVAILABLE,
    "ChecksumError": ErrorCode.UNAVAILABLE,
}

_ACTIONS: Mapping[str, str] = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "CopyObject": "s3:GetObject and s3:PutObject",
    "UploadPartCopy": "s3:GetObject and s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "Invoke": "lambda:InvokeFunction",
}


def code_of(error: Exception) -> str:
    """Return the name that the service gives an error, or an empty string."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def classify(error: Exception) -> ErrorCode:
    """Sort an error of these drivers or of the SDK; UNKNOWN for what nobody has heard of."""
    if isinstance(error, InvocationError | RevisionError):
        return error.code
    for kind, code in _BY_OWN_TYPE:
        if isinstance(error, kind):
            return code
    response = _response(error)
    if response:
        return _of_response(response)
    for each in type(error).__mro__:
        if each.__module__ == "botocore.exceptions" and each.__name__ in _BY_SDK_TYPE:
            return _BY_SDK_TYPE[each.__name__]
    return ErrorCode.UNKNOWN


def _of_response(response: Mapping[str, Any]) -> ErrorCode:
    name, message = str(response["Error"].get("Code", "")), str(response["Error"].get("Message", ""))
    for wanted, pattern, code in _BY_MESSAGE:
        if name == wanted and pattern.search(message):
            return code
    if name in CODES:
        return CODES[name]
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return CODES.get(str(status), ErrorCode.UNKNOWN)


def retry_after(error: Exception) -> timedelta | None:
    """Return how long the service asks to wait, if it does."""
    if isinstance(error, InvocationError):
        return error.retry_after
    response = _response(error)
    if not response:
        return None
    if _NEW_ROLE.search(str(response["Error"].get("Message", ""))):
        # Nobody says how long; a new role is usually known everywhere within ten seconds.
        return timedelta(seconds=2)
    if code_of(error) == "ResourceConflictException" and _of_response(response) is ErrorCode.UNAVAILABLE:
        return BUSY_WAIT
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    told = headers.get("retry-after") or response.get("retryAfterSeconds") or ""
    return timedelta(seconds=float(told)) if re.fullmatch(r"\d+(\.\d+)?", str(told)) else None


def explain_refusal(http_response: Any, parsed: dict[str, Any], model: Any, **_: object) -> None:
    """Name the missing permission in a refusal that does not: S3 often says no more than `Forbidden`.

    A handler of botocore's event `after-call`. It also takes back that no retry is left: there never is one.
    """
    parsed.get("ResponseMetadata", {}).pop("MaxAttemptsReached", None)
    if http_response.status_code != 403 or "Error" not in parsed:
        return
    error = parsed["Error"]
    if CODES.get(str(error.get("Code"))) is ErrorCode.PERMISSION_DENIED and "perform" not in str(error.get("Message")):
        prefix = model.service_model.endpoint_prefix
        action = _ACTIONS.get(model.name, f"{prefix}:{model.name}")
        error["Message"] = f"{error.get('Message') or 'Forbidden'} (the caller may lack the permission {action})"


def _response(error: Exception) -> Mapping[str, Any]:
    """Return the parsed answer of a botocore `ClientError`, or nothing."""
    found = getattr(error, "response", None)
    return found if isinstance(found, dict) and isinstance(found.get("Error"), dict) else {}
