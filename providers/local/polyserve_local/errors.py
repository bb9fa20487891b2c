"""What can go wrong on this machine, and which `ErrorCode` each of it is.

The drivers of this provider raise plain `OSError`s and the small errors below; `classify` sorts them. It is pure: it looks at the error
and at nothing else.
"""

from __future__ import annotations

import errno
from datetime import timedelta

from polyserve.driver import ErrorCode

__all__ = [
    "BucketNotEmptyError",
    "DamagedObjectError",
    "GatewayError",
    "InvalidNameError",
    "PreconditionError",
    "UnsupportedOperationError",
    "classify",
    "retry_after",
]


class GatewayError(Exception):
    """An answer of the gateway's control interface that is not a success.

    Args:
        code: What kind of failure the gateway says it was.
        message: One sentence for people.
        retry_after: How long to wait before a retry, if the gateway asked for it.
    """

    def __init__(self, code: ErrorCode, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after


class PreconditionError(Exception):
    """An `if_absent` or `if_match` that does not hold. Nothing was written."""


class InvalidNameError(ValueError):
    """A bucket's name, a key or a page token that this store cannot take."""


class BucketNotEmptyError(Exception):
    """A bucket that cannot be removed because it has objects, or because somebody is writing one."""


class DamagedObjectError(Exception):
    """A file in a bucket's directory that this store did not write, or that was changed behind its back."""


class UnsupportedOperationError(NotImplementedError):
    """An operation that files cannot do, such as a signed URL."""


_BY_TYPE: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (PreconditionError, ErrorCode.FAILED_PRECONDITION),
    (BucketNotEmptyError, ErrorCode.FAILED_PRECONDITION),
    (InvalidNameError, ErrorCode.INVALID_ARGUMENT),
    (DamagedObjectError, ErrorCode.INTERNAL),
    (UnsupportedOperationError, ErrorCode.UNSUPPORTED),
)

_BY_ERRNO = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.ESRCH: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.PERMISSION_DENIED,
    errno.EPERM: ErrorCode.PERMISSION_DENIED,
    errno.EROFS: ErrorCode.PERMISSION_DENIED,
    errno.EEXIST: ErrorCode.ALREADY_EXISTS,
    errno.EADDRINUSE: ErrorCode.ALREADY_EXISTS,
    errno.ENOTEMPTY: ErrorCode.FAILED_PRECONDITION,
    errno.ENOTDIR: ErrorCode.FAILED_PRECONDITION,
    errno.EISDIR: ErrorCode.FAILED_PRECONDITION,
    # A full disk, a full quota and too many open files or processes all pass when something else lets go.
    errno.ENOSPC: ErrorCode.RESOURCE_EXHAUSTED,
    errno.EDQUOT: ErrorCode.RESOURCE_EXHAUSTED,
    errno.EFBIG: ErrorCode.RESOURCE_EXHAUSTED,
    errno.EMFILE: ErrorCode.RESOURCE_EXHAUSTED,
    errno.ENFILE: ErrorCode.RESOURCE_EXHAUSTED,
    errno.ENOMEM: ErrorCode.RESOURCE_EXHAUSTED,
    # fork(2) and pthread_create(3) at the limit of processes.
    errno.EAGAIN: ErrorCode.RESOURCE_EXHAUSTED,
    errno.EINVAL: ErrorCode.INVALID_ARGUMENT,
    errno.ENAMETOOLONG: ErrorCode.INVALID_ARGUMENT,
    errno.ELOOP: ErrorCode.INVALID_ARGUMENT,
    errno.ECONNREFUSED: ErrorCode.UNAVAILABLE,
    errno.ECONNRESET: ErrorCode.UNAVAILABLE,
    errno.ECONNABORTED: ErrorCode.UNAVAILABLE,
    errno.EPIPE: ErrorCode.UNAVAILABLE,
    errno.EHOSTUNREACH: ErrorCode.UNAVAILABLE,
    errno.ENETUNREACH: ErrorCode.UNAVAILABLE,
    errno.EBUSY: ErrorCode.UNAVAILABLE,
    errno.ESTALE: ErrorCode.UNAVAILABLE,
    errno.ETIMEDOUT: ErrorCode.DEADLINE_EXCEEDED,
    errno.ENOTSUP: ErrorCode.UNSUPPORTED,
    errno.ENOSYS: ErrorCode.UNSUPPORTED,
    errno.EIO: ErrorCode.INTERNAL,
}

_BY_BUILTIN: tuple[tuple[type[Exception], ErrorCode], ...] = (
    # Raised without an errno by sockets, asyncio and http.client.
    (TimeoutError, ErrorCode.DEADLINE_EXCEEDED),
    (ConnectionError, ErrorCode.UNAVAILABLE),
    (FileNotFoundError, ErrorCode.NOT_FOUND),
    (FileExistsError, ErrorCode.ALREADY_EXISTS),
    (PermissionError, ErrorCode.PERMISSION_DENIED),
    (MemoryError, ErrorCode.RESOURCE_EXHAUSTED),
)


def classify(error: Exception) -> ErrorCode:
    """Sort an error that a driver of this provider raised; UNKNOWN for what it has never heard of."""
    if isinstance(error, GatewayError):
        return error.code
    for kind, code in _BY_TYPE:
        if isinstance(error, kind):
            return code
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    for kind, code in _BY_BUILTIN:
        if isinstance(error, kind):
            return code
    return ErrorCode.UNKNOWN


def retry_after(error: Exception) -> timedelta | None:
    """Return how long the gateway asked to wait before a retry, if it did."""
    return error.retry_after if isinstance(error, GatewayError) else None
