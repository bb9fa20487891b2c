"""What Azure's services and SDKs can raise, and which `ErrorCode` each of it is.

Resource Manager, the publish API and Application Insights are called over plain HTTP: what they refuse is a `ServiceError` with their own
code. Blob Storage and Entra raise the errors of azure-core. Pure: looks at the error and at nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from polyserve.driver import ErrorCode

__all__ = [
    "AppError",
    "BucketNotEmptyError",
    "InvalidKeyError",
    "InvocationError",
    "PreconditionError",
    "ServiceError",
    "TokenError",
    "classify",
    "code_of",
    "retry_after",
]

BUSY_WAIT = timedelta(seconds=0.2)
"""When to ask again at the earliest where a resource is at another change and the service does not say."""


class ServiceError(Exception):
    """A refusal of Resource Manager, of the publish API or of Application Insights.

    Args:
        status: HTTP status.
        name: The service's own code, such as `AuthorizationFailed`; empty where it gave none.
        message: The service's sentence.
        retry_after: How long it asks to wait.
    """

    def __init__(self, status: int, name: str, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(f"{name}: {message}" if name else message)
        self.status = status
        self.name = name
        self.retry_after = retry_after


class AppError(Exception):
    """An app that is not there, is somebody else's, or cannot be what it is asked to be.

    Args:
        code: What kind of failure it is.
        message: One sentence for people.
        retry_after: How long to wait before it is asked for again.
    """

    def __init__(self, code: ErrorCode, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class InvocationError(AppError):
    """An answer of the platform in front of an app, not of the app."""


class TokenError(Exception):
    """A token file that has none, or one that is over."""


class InvalidKeyError(ValueError):
    """A key that has no name in Blob Storage."""


class BucketNotEmptyError(Exception):
    """A container that has blobs."""


class PreconditionError(Exception):
    """An `if_match` of an object that is not there any more."""


_NOT_FOUND = (
    "BlobNotFound ContainerNotFound ResourceNotFound ResourceGroupNotFound NotFound SubscriptionNotFound CannotVerifyCopySource "
    "ParentResourceNotFound InvalidResourceNamespace RoleDefinitionDoesNotExist ApplicationNotFoundError PathNotFoundError"
)
_ALREADY_EXISTS = (
    "ContainerAlreadyExists ResourceAlreadyExists StorageAccountAlreadyTaken StorageAccountAlreadyExists AccountAlreadyExists "
    "RoleAssignmentExists"
)
_CONFLICT = (
    "LeaseIdMissing LeaseAlreadyPresent LeaseIdMismatchWithBlobOperation BlobImmutableDueToPolicy ConflictingUserInput"
)
_UNAVAILABLE = (
    "ContainerBeingDeleted ContainerBeingDisabled PendingCopyOperation ResourceGroupBeingDeleted ServerBusy InternalError "
    "InternalServerError ServiceUnavailable StorageAccountOperationInProgress AnotherOperationInProgress "
    "AccountBeingCreated ServerTimeout GatewayTimeout RetryableError Md5Mismatch"
)
_FAILED_PRECONDITION = (
    "BlobAlreadyExists ConditionNotMet TargetConditionNotMet SourceConditionNotMet AppendPositionConditionNotMet "
    "AccountIsDisabled ScopeLocked ReadOnlyDisabledSubscription RequestDisallowedByPolicy MissingSubscriptionRegistration "
    "SkuNotAvailable LocationNotAvailableForResourceType LocationNotAvailableForResourceGroup InvalidResourceGroupLocation "
    "InvalidResourceLocation QuotaExceeded SubscriptionNotRegistered BlobArchived SnapshotsPresent BlobTypeMismatch"
)
_PERMISSION_DENIED = (
    "AuthorizationFailed LinkedAuthorizationFailed AuthorizationFailure AuthorizationPermissionMismatch "
    "AuthorizationProtocolMismatch AuthorizationResourceTypeMismatch AuthorizationServiceMismatch "
    "AuthorizationSourceIPMismatch InsufficientAccountPermissions InsufficientAccessError Forbidden PublicAccessNotPermitted"
)
_UNAUTHENTICATED = (
    "AuthenticationFailed InvalidAuthenticationToken ExpiredAuthenticationToken InvalidAuthenticationTokenAudience "
    "InvalidAuthenticationTokenTenant InvalidAuthenticationInfo NoAuthenticationInformation KeyBasedAuthenticationNotPermitted "
    "Unauthorized"
)
_RESOURCE_EXHAUSTED = (
    "TooManyRequests OperationNotAllowedThrottled SubscriptionRequestsThrottled AccountIopsLimitExceeded "
    "RequestRateTooHigh ResourceRequestsThrottled"
)
_INVALID_ARGUMENT = (
    "InvalidResourceName InvalidUri InvalidHeaderValue InvalidQueryParameterValue InvalidInput InvalidMetadata MetadataTooLarge "
    "EmptyMetadataKey RequestBodyTooLarge OutOfRangeInput InvalidBlockId InvalidBlockList BlockCountExceedsLimit ContainerNameInvalid "
    "AccountNameInvalid InvalidRequestContent InvalidParameter InvalidResourceGroup LocationRequired BadRequest BadArgumentError "
    "InvalidTagNameCharacters TagLimitExceeded InvalidOperation InvalidValuesForRequestParameters MissingRequiredHeader "
    "InvalidRequestPropertyValue UnsupportedMediaType"
)
CODES: Mapping[str, ErrorCode] = {
    name: code
    for code, names in (
        (ErrorCode.NOT_FOUND, _NOT_FOUND),
        (ErrorCode.ALREADY_EXISTS, _ALREADY_EXISTS),
        (ErrorCode.CONFLICT, _CONFLICT),
        (ErrorCode.UNAVAILABLE, _UNAVAILABLE),
        (ErrorCode.FAILED_PRECONDITION, _FAILED_PRECONDITION),
        (ErrorCode.PERMISSION_DENIED, _PERMISSION_DENIED),
        (ErrorCode.UNAUTHENTICATED, _UNAUTHENTICATED),
        (ErrorCode.RESOURCE_EXHAUSTED, _RESOURCE_EXHAUSTED),
        (ErrorCode.INVALID_ARGUMENT, _INVALID_ARGUMENT),
        (ErrorCode.DEADLINE_EXCEEDED, "OperationTimedOut RequestTimeout"),
        (ErrorCode.UNSUPPORTED, "APINotImplemented NotImplemented UnsupportedHttpVerb MethodNotAllowed FeatureVersionMismatch"),
    )
    for name in names.split()
}  # fmt: skip

_BY_STATUS: Mapping[int, ErrorCode] = {
    400: ErrorCode.INVALID_ARGUMENT,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.UNSUPPORTED,
    408: ErrorCode.DEADLINE_EXCEEDED,
    409: ErrorCode.CONFLICT,
    410: ErrorCode.NOT_FOUND,
    412: ErrorCode.FAILED_PRECONDITION,
    413: ErrorCode.INVALID_ARGUMENT,
    416: ErrorCode.INVALID_ARGUMENT,
    429: ErrorCode.RESOURCE_EXHAUSTED,
    500: ErrorCode.UNAVAILABLE,
    501: ErrorCode.UNSUPPORTED,
    502: ErrorCode.UNAVAILABLE,
    503: ErrorCode.UNAVAILABLE,
    504: ErrorCode.DEADLINE_EXCEEDED,
}

# One code stands for several failures: the message decides.
_BY_MESSAGE: tuple[tuple[str, re.Pattern[str], ErrorCode], ...] = (
    # The host of an app that was just made has no keys yet.
    ("BadRequest", re.compile(r"from host runtime", re.I), ErrorCode.UNAVAILABLE),
    ("InternalServerError", re.compile(r"from host runtime", re.I), ErrorCode.UNAVAILABLE),
    ("Conflict", re.compile(r"already exists", re.I), ErrorCode.ALREADY_EXISTS),
    ("Conflict", re.compile(r"in progress|being", re.I), ErrorCode.UNAVAILABLE),
    ("Conflict", re.compile(r"one app only|assigned to it|quota", re.I), ErrorCode.FAILED_PRECONDITION),
    ("Unauthorized", re.compile(r"quota|limit", re.I), ErrorCode.FAILED_PRECONDITION),
)

_BY_OWN_TYPE: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (InvalidKeyError, ErrorCode.INVALID_ARGUMENT),
    (PreconditionError, ErrorCode.FAILED_PRECONDITION),
    (BucketNotEmptyError, ErrorCode.FAILED_PRECONDITION),
    (TokenError, ErrorCode.UNAUTHENTICATED),
)

# By name, so that this module can be read without the SDKs; subclasses are found before what they derive from.
_BY_SDK_TYPE: Mapping[str, ErrorCode] = {
    "azure.identity.CredentialUnavailableError": ErrorCode.UNAUTHENTICATED,
    "azure.identity.AuthenticationRequiredError": ErrorCode.UNAUTHENTICATED,
    "azure.core.ClientAuthenticationError": ErrorCode.UNAUTHENTICATED,
    "azure.core.ServiceRequestTimeoutError": ErrorCode.UNAVAILABLE,
    "azure.core.ServiceResponseTimeoutError": ErrorCode.DEADLINE_EXCEEDED,
    "azure.core.ServiceRequestError": ErrorCode.UNAVAILABLE,
    "azure.core.IncompleteReadError": ErrorCode.UNAVAILABLE,
    "azure.core.ServiceResponseError": ErrorCode.UNAVAILABLE,
    "azure.core.StreamConsumedError": ErrorCode.INTERNAL,
    "azure.core.DecodeError": ErrorCode.UNAVAILABLE,
    "azure.core.ResourceNotFoundError": ErrorCode.NOT_FOUND,
    "azure.core.ResourceExistsError": ErrorCode.ALREADY_EXISTS,
    "azure.core.ResourceModifiedError": ErrorCode.FAILED_PRECONDITION,
    "azure.core.ResourceNotModifiedError": ErrorCode.FAILED_PRECONDITION,
    "httpx.ConnectTimeout": ErrorCode.UNAVAILABLE,
    "httpx.PoolTimeout": ErrorCode.UNAVAILABLE,
    "httpx.TimeoutException": ErrorCode.DEADLINE_EXCEEDED,
    "httpx.UnsupportedProtocol": ErrorCode.INVALID_ARGUMENT,
    "httpx.TransportError": ErrorCode.UNAVAILABLE,
    "httpx.InvalidURL": ErrorCode.INVALID_ARGUMENT,
}


def code_of(error: Exception) -> str:
    """Return the name that the service gives an error, or an empty string."""
    if isinstance(error, ServiceError):
        return error.name
    found = getattr(error, "error_code", None)
    return str(getattr(found, "value", found) or "")


def classify(error: Exception) -> ErrorCode:
    """Sort an error of these drivers or of the SDKs; UNKNOWN for what nobody has heard of."""
    if isinstance(error, AppError):
        return error.code
    for kind, code in _BY_OWN_TYPE:
        if isinstance(error, kind):
            return code
    name, status = code_of(error), _status_of(error)
    if name or status:
        found = _of_answer(name, status, str(error))
        if found is not None:
            return found
    for each in type(error).__mro__:
        library = ".".join(each.__module__.split(".")[:2]) if each.__module__.startswith("azure.") else "httpx"
        known = _BY_SDK_TYPE.get(f"{library}.{each.__name__}")
        if known is not None and each.__module__.partition(".")[0] in {"azure", "httpx"}:
            return known
    return ErrorCode.UNKNOWN


def _of_answer(name: str, status: int, message: str) -> ErrorCode | None:
    for wanted, pattern, code in _BY_MESSAGE:
        if name == wanted and pattern.search(message):
            return code
    if status == 404 and name == "BadRequest":
        return ErrorCode.NOT_FOUND
    return CODES.get(name) or _BY_STATUS.get(status)


def retry_after(error: Exception) -> timedelta | None:
    """Return how long the service asks to wait, if it does."""
    if isinstance(error, ServiceError | AppError):
        busy = isinstance(error, ServiceError) and error.status == 409 and classify(error) is ErrorCode.UNAVAILABLE
        return BUSY_WAIT if busy and error.retry_after is None else error.retry_after
    headers = getattr(getattr(error, "response", None), "headers", None)
    if not _status_of(error) or headers is None:
        return None
    return seconds_of(headers.get("retry-after") or headers.get("Retry-After") or "")


def seconds_of(text: str) -> timedelta | None:
    """Return the time that a `Retry-After` in seconds is; `None` for anything else."""
    return timedelta(seconds=float(text)) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _status_of(error: Exception) -> int:
    if isinstance(error, ServiceError):
        return error.status
    if not type(error).__module__.startswith("azure."):
        return 0
    found: Any = getattr(error, "status_code", None)
    return found if isinstance(found, int) else 0
