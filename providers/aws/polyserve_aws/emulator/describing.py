"""Functions, versions and aliases in the words of Lambda's API."""

from __future__ import annotations

from typing import Any

from polyserve_aws.emulator.functions import LATEST, Alias, Function, UrlConfig, Version
from polyserve_aws.emulator.identities import ACCOUNT


def configuration(function: Function, version: Version, *, qualifier: str = "") -> dict[str, Any]:
    """Return a version as GetFunctionConfiguration does."""
    release = version.release
    settings = release.settings
    number = release.version
    found: dict[str, Any] = {
        "FunctionName": function.name,
        "FunctionArn": function.arn(qualifier or ("" if number == LATEST else number)),
        "Role": settings.role,
        "CodeSize": release.code.size,
        "CodeSha256": release.code.sha256,
        "Description": version.description or settings.description,
        "Timeout": settings.timeout,
        "MemorySize": settings.memory,
        "LastModified": version.modified,
        "Version": number,
        "TracingConfig": {"Mode": settings.tracing},
        "RevisionId": version.revision_id,
        "PackageType": settings.package_type,
        "Architectures": [settings.architecture],
        "EphemeralStorage": {"Size": settings.storage},
        "SnapStart": {
            "ApplyOn": settings.snap_start,
            "OptimizationStatus": "On"
            if settings.snap_start != "None" and number != LATEST and not version.pending
            else "Off",
        },
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": release.log_group},
    } | _state(version)
    if settings.package_type == "Zip":
        found |= {"Runtime": settings.runtime, "Handler": settings.handler}
        found["RuntimeVersionConfig"] = {
            "RuntimeVersionArn": f"arn:aws:lambda:{function.region}::runtime:{settings.runtime}"
        }
    if settings.environment:
        found["Environment"] = {"Variables": dict(settings.environment)}
    if settings.key:
        found["KMSKeyArn"] = settings.key
    if settings.vpc:
        found["VpcConfig"] = {
            "SubnetIds": [],
            "SecurityGroupIds": [],
            "VpcId": "",
            "Ipv6AllowedForDualStack": False,
        } | dict(settings.vpc)
    if settings.image_config:
        found["ImageConfigResponse"] = {"ImageConfig": dict(settings.image_config)}
    return found


def _state(version: Version) -> dict[str, str]:
    if version.pending:
        return {
            "State": "Pending", "StateReason": "The function is being created.", "StateReasonCode": "Creating",
            "LastUpdateStatus": "InProgress", "LastUpdateStatusReason": "The function is being created.",
            "LastUpdateStatusReasonCode": "Creating",
        }  # fmt: skip
    if version.failed:
        reason = {"StateReason": version.failed, "StateReasonCode": "FunctionError"}
        return {"State": "Failed", "LastUpdateStatus": "Failed", "LastUpdateStatusReason": version.failed} | reason
    if version.changing:
        return {
            "State": "Active", "LastUpdateStatus": "InProgress", "LastUpdateStatusReason": "The function is being updated.",
            "LastUpdateStatusReasonCode": "Creating",
        }  # fmt: skip
    return {"State": "Active", "LastUpdateStatus": "Successful"}


def alias_configuration(function: Function, alias: Alias) -> dict[str, Any]:
    """Return an alias as GetAlias does."""
    found: dict[str, Any] = {
        "AliasArn": function.arn(alias.name),
        "Name": alias.name,
        "FunctionVersion": alias.version,
        "Description": alias.description,
        "RevisionId": alias.revision_id,
    }
    if alias.weights:
        found["RoutingConfig"] = {"AdditionalVersionWeights": alias.weights}
    return found


def url_configuration(function: Function, config: UrlConfig) -> dict[str, Any]:
    """Return a function URL as GetFunctionUrlConfig does."""
    found: dict[str, Any] = {
        "FunctionUrl": config.url,
        "FunctionArn": function.arn(config.qualifier),
        "AuthType": config.auth_type,
        "CreationTime": config.created,
        "LastModifiedTime": config.modified,
        "InvokeMode": config.invoke_mode,
    }
    if config.cors:
        found["Cors"] = config.cors
    return found


def account_settings(functions: list[Function]) -> dict[str, Any]:
    """Return the account's limits and use."""
    reserved = sum(function.reserved or 0 for function in functions)
    size = sum(version.release.code.size for function in functions for version in function.all_versions())
    return {
        "AccountLimit": {
            "TotalCodeSize": 80530636800,
            "CodeSizeUnzipped": 262144000,
            "CodeSizeZipped": 52428800,
            "ConcurrentExecutions": 1000,
            "UnreservedConcurrentExecutions": 1000 - reserved,
        },
        "AccountUsage": {"TotalCodeSize": size, "FunctionCount": len(functions)},
        "AccountId": ACCOUNT,
    }
