"""Every error polyserve raises, and the one place where a provider's error becomes one of them.

    PolyserveError
     +-- InvalidArgumentError (ValueError)          a value the caller can correct
     |    +-- PlanRefused                           what cannot be carried out, with every reason
     |    +-- PackageError                          something that is not, or cannot become, a model package
     |    +-- SettingsError                         a setting that does not validate
     +-- UnauthenticatedError (PermissionError)     no credential, or one that is not valid
     +-- PermissionDeniedError (PermissionError)    a credential that may not do this
     +-- NotFoundError (LookupError)
     +-- AlreadyExistsError
     +-- ConflictError                              somebody else is changing the same deployment
     +-- FailedPreconditionError                    the state of things does not allow it
     |    +-- VerificationError                     a revision that answers differently from its package
     +-- ResourceExhaustedError                     throttled, or over a quota
     +-- DeadlineExceededError (TimeoutError)
     +-- UnavailableError (ConnectionError)         nothing answers, or the answer was lost
     +-- UnsupportedError (NotImplementedError)     the provider has no such capability
     +-- InternalError                              the model or the service failed
     +-- MissingDependencyError (ImportError)       a package that this needs is not installed

`code` says what kind of failure it was; act upon it or upon the class, never upon the message. `retryable`
is true where the same call may succeed later: UNAVAILABLE, RESOURCE_EXHAUSTED and, for calls that can be
repeated, DEADLINE_EXCEEDED.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import ClassVar

from polyserve.driver import ErrorCode, Provider

RETRYABLE = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.RESOURCE_EXHAUSTED})
"""Codes after which the same call may succeed, whatever the call."""


class PolyserveError(Exception):
    """Root of the tree.

    Attributes:
        code: What kind of failure it was.
        provider: The provider it happened on, or an empty string.
        operation: The verb that failed, such as `"put"`.
        resource: What it was done to, such as an object's key.
        request_id: The request that failed, where it was one.
        retry_after: How long the service asked to wait, if it did.
    """

    code: ErrorCode = ErrorCode.UNKNOWN
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        operation: str = "",
        resource: str = "",
        request_id: str = "",
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.provider = provider
        self.operation = operation
        self.resource = resource
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message  # KeyError's and OSError's own __str__ would quote or prefix it

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code in RETRYABLE


class InvalidArgumentError(PolyserveError, ValueError):
    """A value that the caller can correct."""

    code = ErrorCode.INVALID_ARGUMENT
    exit_code = 2


class PlanRefused(InvalidArgumentError):
    """A plan, or a change to what is there, that cannot be carried out. Nothing was changed.

    Attributes:
        refusals: Every reason, each naming the value, the limit and the way out.
    """

    def __init__(
        self,
        message: str,
        *,
        refusals: Sequence[str],
        provider: str = "",
        resource: str = "",
        operation: str = "plan",
    ) -> None:
        super().__init__(message, provider=provider, operation=operation, resource=resource)
        self.refusals = tuple(refusals)


class PackageError(InvalidArgumentError):
    """Something that is not, or cannot become, a model package."""


class SettingsError(InvalidArgumentError):
    """A setting that does not validate; names where it was read."""


class UnauthenticatedError(PolyserveError, PermissionError):
    """No credential, or one that is not valid."""

    code = ErrorCode.UNAUTHENTICATED
    exit_code = 4


class PermissionDeniedError(PolyserveError, PermissionError):
    """A credential that may not do this."""

    code = ErrorCode.PERMISSION_DENIED
    exit_code = 4


class NotFoundError(PolyserveError, LookupError):
    """Nothing of that name."""

    code = ErrorCode.NOT_FOUND
    exit_code = 3


class AlreadyExistsError(PolyserveError):
    """Something else of that name."""

    code = ErrorCode.ALREADY_EXISTS
    exit_code = 5


class ConflictError(PolyserveError):
    """Somebody else is changing the same deployment."""

    code = ErrorCode.CONFLICT
    exit_code = 5


class FailedPreconditionError(PolyserveError):
    """The state of things does not allow it."""

    code = ErrorCode.FAILED_PRECONDITION
    exit_code = 5


class VerificationError(FailedPreconditionError):
    """A revision that answers differently from its package. It never had traffic."""

    exit_code = 6


class ResourceExhaustedError(PolyserveError):
    """Throttled, or over a quota."""

    code = ErrorCode.RESOURCE_EXHAUSTED
    exit_code = 7


class DeadlineExceededError(PolyserveError, TimeoutError):
    """It took longer than it was allowed to."""

    code = ErrorCode.DEADLINE_EXCEEDED
    exit_code = 7


class UnavailableError(PolyserveError, ConnectionError):
    """Nothing answers, or the answer was lost. Retry."""

    code = ErrorCode.UNAVAILABLE
    exit_code = 7


class UnsupportedError(PolyserveError, NotImplementedError):
    """The provider has no such capability."""

    code = ErrorCode.UNSUPPORTED
    exit_code = 2


class InternalError(PolyserveError):
    """The model or the service failed; its log has the reason."""

    code = ErrorCode.INTERNAL


class MissingDependencyError(PolyserveError, ImportError):
    """A package that this needs is not installed; the message has the command that installs it."""

    code = ErrorCode.FAILED_PRECONDITION
    exit_code = 2


_BY_CODE: dict[ErrorCode, type[PolyserveError]] = {
    kind.code: kind
    for kind in (
        InvalidArgumentError,
        UnauthenticatedError,
        PermissionDeniedError,
        NotFoundError,
        AlreadyExistsError,
        ConflictError,
        FailedPreconditionError,
        ResourceExhaustedError,
        DeadlineExceededError,
        UnavailableError,
        UnsupportedError,
        InternalError,
    )
}


def error_for(code: ErrorCode) -> type[PolyserveError]:
    """Return the class that is raised for a code; `PolyserveError` itself for UNKNOWN."""
    return _BY_CODE.get(code, PolyserveError)


class _Translation:
    """The block of a `with` statement whose errors are wrapped. Written out, because every call to a provider is in one."""

    __slots__ = ("_operation", "_provider", "_resource")

    def __init__(self, provider: Provider, operation: str, resource: str) -> None:
        self._provider = provider
        self._operation = operation
        self._resource = resource

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, PolyserveError):
            return
        name = self._provider.info.name
        reason = str(error) or type(error).__name__
        raise error_for(self._provider.classify(error))(
            f"{self._operation} {self._resource!r} failed on {name}: {reason}",
            provider=name,
            operation=self._operation,
            resource=self._resource,
            retry_after=self._provider.retry_after(error),
        ) from error


def translating(provider: Provider, operation: str, resource: str) -> AbstractContextManager[None]:
    """Wrap what a driver raises, once: the only place where a provider's error becomes one of ours.

    Errors of ours pass through, and so do KeyboardInterrupt and its like.

    Raises:
        PolyserveError: Of the class that `provider.classify` names, with the driver's error as its cause.
    """
    return _Translation(provider, operation, resource)
