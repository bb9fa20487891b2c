"""What Lambda cannot be asked for: settings that exclude each other, sizes that it has not got, variables that are its own. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from polyserve.driver import FunctionSpec, Scaling
from polyserve_aws.settings import AwsSettings

__all__ = ["never_warm", "obstacles", "storage_mb"]

STORAGE_MB = (512, 10_240)
"""Smallest and largest `/tmp`: Lambda's quotas, 2026-11."""
SPARE_STORAGE_MB = 256
"""Kept free in `/tmp` beside the files of a model: the rest of the package is copied there, too."""
_RESERVED = """
_HANDLER _X_AMZN_TRACE_ID AWS_ACCESS_KEY AWS_ACCESS_KEY_ID AWS_DEFAULT_REGION AWS_EXECUTION_ENV AWS_LAMBDA_FUNCTION_MEMORY_SIZE
AWS_LAMBDA_FUNCTION_NAME AWS_LAMBDA_FUNCTION_VERSION AWS_LAMBDA_INITIALIZATION_TYPE AWS_LAMBDA_LOG_GROUP_NAME
AWS_LAMBDA_LOG_STREAM_NAME AWS_LAMBDA_RUNTIME_API AWS_REGION AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN LAMBDA_RUNTIME_DIR
LAMBDA_TASK_ROOT
"""
RESERVED = frozenset(_RESERVED.split())
"""Variables that nobody else may set: "Defined runtime environment variables", Lambda's developer guide, 2026-11."""


def obstacles(spec: FunctionSpec, settings: AwsSettings) -> tuple[str, ...]:
    """Return why a revision cannot be under these settings, each reason with the way out; nothing where it can."""
    return (*_of_variables(spec), *_of_storage(spec, settings), *_of_snapstart(spec, settings))


def storage_mb(spec: FunctionSpec, settings: AwsSettings) -> int:
    """Return the size of `/tmp` that a function needs: what was asked for, or more where its model stays in the bucket."""
    needed = math.ceil(sum(model.size for model in spec.models) / (1 << 20))
    return max(settings.ephemeral_storage_mb, needed + SPARE_STORAGE_MB if needed else 0)


def never_warm(scaling: Scaling, settings: AwsSettings) -> str | None:
    """Return why these bounds cannot be, or `None`."""
    least = scaling.min_instances
    if not (least and settings.snapstart):
        return None
    return f"min_instances is {least}, and SnapStart and instances that are kept warm exclude each other: leave out one"


def _of_variables(spec: FunctionSpec) -> Iterator[str]:
    for name in sorted(spec.environment):
        if name in RESERVED:
            yield f"environment variable {name!r} is Lambda's own: rename it"
        elif not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]+", name):
            yield f"environment variable {name!r}: on Lambda names have two characters or more and start with a letter: rename it"


def _of_storage(spec: FunctionSpec, settings: AwsSettings) -> Iterator[str]:
    size, most = storage_mb(spec, settings), STORAGE_MB[1]
    if size > most:
        yield f"the model needs {size:,} MB in /tmp and Lambda has {most:,} at most: a smaller model, or another provider"


def _of_snapstart(spec: FunctionSpec, settings: AwsSettings) -> Iterator[str]:
    # All of it: "Improving startup performance with Lambda SnapStart", Lambda's developer guide, 2026-11.
    if not settings.snapstart:
        return
    if settings.image_uri:
        yield "SnapStart is for archives, and image_uri names an image: leave out one"
    elif spec.python == "3.11":
        yield (
            f"SnapStart is there from Python 3.12 on, and the functions run under {spec.python}: package the model under a later "
            "Python, or leave out snapstart"
        )
    if told := never_warm(spec.scaling, settings):
        yield told
    size, least = storage_mb(spec, settings), STORAGE_MB[0]
    if size > least:
        asked = size == settings.ephemeral_storage_mb
        why = "as ephemeral_storage_mb says" if asked else "for the files of its model that stay in the bucket"
        yield f"SnapStart is for functions whose /tmp is {least} MB, and this one has {size:,} MB {why}: leave out snapstart"
