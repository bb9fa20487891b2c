"""What Lambda refuses in a function's settings, with its own codes and messages.

botocore checks types and little else: its shapes allow 32 GB of memory and 5400 seconds, which only Lambda's newer
kinds of function have. Sources: Lambda quotas and the CreateFunction reference (read 2026-11-20), and the messages of
real refusals where they are public.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polyserve_aws.emulator.errors import ServiceError, invalid
from polyserve_aws.emulator.interpreters import find_interpreter
from polyserve_aws.emulator.releases import Settings

PYTHON_RUNTIMES = ("python3.9", "python3.10", "python3.11", "python3.12", "python3.13", "python3.14")
"""What a function can be created with (runtime deprecation policy, read 2026-11-20)."""
SNAP_START_RUNTIMES = ("python3.12", "python3.13", "python3.14")
ENVIRONMENT_LIMIT = 4096
"""Largest size of all variables together, as JSON, in bytes."""
RESERVED_VARIABLES = frozenset({
    "_HANDLER", "_X_AMZN_TRACE_ID", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR",
})  # fmt: skip
"""Variables that Lambda sets itself (Lambda's developer guide, "Defined runtime environment variables")."""
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
ABSENT = {
    "CapacityProviderConfig": "managed instances", "CodeSigningConfigArn": "code signing", "DeadLetterConfig": "dead-letter queues",
    "DurableConfig": "durable functions", "FileSystemConfigs": "file systems",
    "Layers": "layers",
    "TenancyConfig": "tenant isolation", "AcceleratorConfig": "accelerators",
}  # fmt: skip
"""What the emulator does not have, so that it says so where it is asked for."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ROLE = re.compile(r"arn:aws[a-zA-Z-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_VARIABLE = re.compile(r"[a-zA-Z][a-zA-Z0-9_]+")


def violation(value: object, place: str, rule: str) -> ServiceError:
    """Return the refusal of a value that breaks a rule of the API's own model."""
    message = (
        f"1 validation error detected: Value '{value}' at '{place}' failed to satisfy constraint: Member must {rule}"
    )
    return ServiceError(400, "ValidationException", message)


def check_name(name: str) -> None:
    """Refuse a name that a new function cannot have."""
    if not _NAME.fullmatch(name):
        raise violation(
            name, "functionName", "satisfy regular expression pattern: [a-zA-Z0-9-_]+ and be at most 64 characters"
        )


def read_settings(body: Mapping[str, Any], before: Settings | None = None) -> Settings:
    """Return the settings of a new function, or those of an old one after a change.

    Args:
        body: Parameters of CreateFunction or UpdateFunctionConfiguration.
        before: The settings so far; `None` for a new function.

    Raises:
        ServiceError: Lambda would refuse a value, or the emulator cannot honour it.
    """
    for name, what in ABSENT.items():
        if body.get(name):
            raise invalid(f"The emulator has no {what}: leave {name} out, or try it on a real account.")
    start = before or Settings(role="", package_type=body.get("PackageType", "Zip"))
    changes: dict[str, Any] = {}
    plain = {
        "Role": "role", "Handler": "handler", "Runtime": "runtime", "Timeout": "timeout", "MemorySize": "memory",
        "Description": "description", "KMSKeyArn": "key",
    }  # fmt: skip
    changes |= {field: body[name] for name, field in plain.items() if name in body}
    if "Environment" in body:
        changes["environment"] = dict(body["Environment"].get("Variables") or {})
    if "EphemeralStorage" in body:
        changes["storage"] = body["EphemeralStorage"]["Size"]
    if "Architectures" in body:
        changes["architecture"] = _one_architecture(body["Architectures"])
    if "SnapStart" in body:
        changes["snap_start"] = body["SnapStart"].get("ApplyOn", "None")
    if "TracingConfig" in body:
        changes["tracing"] = body["TracingConfig"].get("Mode", "PassThrough")
    changes |= {
        field: dict(body[name])
        for name, field in {"VpcConfig": "vpc", "LoggingConfig": "logging", "ImageConfig": "image_config"}.items()
        if name in body
    }
    settings = replace(start, **changes)
    check_settings(settings)
    return settings


def check_settings(settings: Settings) -> None:
    """Refuse settings that Lambda refuses, or that cannot be honoured here."""
    if not _ROLE.fullmatch(settings.role):
        raise violation(
            settings.role,
            "role",
            "satisfy regular expression pattern: arn:(aws[a-zA-Z-]*)?:iam::\\d{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+",
        )
    _check_numbers(settings)
    _check_environment(settings.environment)
    if settings.package_type == "Image":
        if settings.runtime or settings.handler:
            raise invalid("Runtime and Handler are not allowed for functions created with container images.")
    else:
        if not settings.runtime or not settings.handler:
            raise invalid(
                "Runtime and Handler are mandatory parameters for functions created with deployment packages."
            )
        _check_runtime(settings)
    here = MACHINES.get(platform.machine().lower(), platform.machine())
    if settings.architecture != here:
        raise invalid(
            f"The emulator cannot run {settings.architecture} code on this {here} machine: deploy for {here}."
        )
    if settings.logging.get("LogFormat", "Text") != "Text":
        raise invalid("The emulator writes logs as Text only: leave LogFormat out, or try it on a real account.")


def _check_numbers(settings: Settings) -> None:
    if not 128 <= settings.memory <= 10240:
        bound = "greater than or equal to 128" if settings.memory < 128 else "less than or equal to 10240"
        raise invalid(f"'MemorySize' value failed to satisfy constraint: Member must have value {bound}")
    if not 1 <= settings.timeout <= 900:
        bound = "greater than or equal to 1" if settings.timeout < 1 else "less than or equal to 900"
        raise violation(settings.timeout, "timeout", f"have value {bound}")
    if not 512 <= settings.storage <= 10240:
        bound = "greater than or equal to 512" if settings.storage < 512 else "less than or equal to 10240"
        raise violation(settings.storage, "ephemeralStorage.size", f"have value {bound}")
    if len(settings.description) > 256:
        raise violation(settings.description, "description", "have length less than or equal to 256")
    if len(settings.handler) > 128:
        raise violation(settings.handler, "handler", "have length less than or equal to 128")


def _check_runtime(settings: Settings) -> None:
    runtime = settings.runtime
    if not runtime.startswith("python"):
        raise invalid(f"The emulator runs Python only, and {runtime} is none of {', '.join(PYTHON_RUNTIMES)}.")
    if runtime not in PYTHON_RUNTIMES:
        raise invalid(
            f"Value {runtime} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: "
            f"[{', '.join(PYTHON_RUNTIMES)}] or be a valid ARN"
        )
    if settings.snap_start != "None":
        if runtime not in SNAP_START_RUNTIMES:
            raise invalid(f"{runtime} is not supported for SnapStart enabled functions.")
        if settings.storage > 512:
            raise invalid("SnapStart is not supported for functions with more than 512 MB of ephemeral storage.")
    find_interpreter(runtime)


def _check_environment(variables: Mapping[str, str]) -> None:
    text = json.dumps(dict(variables), separators=(",", ":"), ensure_ascii=False)
    start = (
        "Lambda was unable to configure your environment variables because the environment variables you have provided"
    )
    if len(text.encode()) > ENVIRONMENT_LIMIT:
        raise invalid(f"{start} exceeded the 4KB limit. String measured: {text}")
    reserved = sorted(RESERVED_VARIABLES & variables.keys())
    if reserved:
        raise invalid(
            f"{start} contains reserved keys that are currently not supported for modification. "
            f"Reserved keys used in this request: {', '.join(reserved)}"
        )
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            raise violation(
                name, "environment.variables", "satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+"
            )


def _one_architecture(given: list[str]) -> str:
    if len(given) != 1 or given[0] not in {"x86_64", "arm64"}:
        raise violation(given, "architectures", "satisfy enum value set: [x86_64, arm64] and have exactly one item")
    return given[0]
