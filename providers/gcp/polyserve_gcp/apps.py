"""What a function is made of: its resource in the Cloud Functions API, from an app and back. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from polyserve.driver import AppSpec, Phase, Scaling
from polyserve_gcp.names import APP_LABEL, FRONT_LABEL, MAX_LABEL, READY_LABEL, REVISION_LABEL, is_ours
from polyserve_gcp.settings import GcpSettings
from polyserve_gcp.sizes import concurrency_of, cpu_of, seconds_of

__all__ = [
    "BUILD",
    "SERVICE",
    "app_of",
    "asked",
    "described",
    "labels_of",
    "mark_of",
    "max_label",
    "moment",
    "phase_of",
    "reason_of",
    "scale_of",
    "scaling_of",
    "secret_of",
    "variables_of",
]

BUILD = ("build_config.runtime", "build_config.entry_point", "build_config.source", "build_config.service_account")
"""Fields of a function that take a build where they change."""
SERVICE = (
    "labels",
    "kms_key_name",
    *(
        f"service_config.{field}"
        for field in (
            "available_memory",
            "available_cpu",
            "timeout_seconds",
            "max_instance_request_concurrency",
            "min_instance_count",
            "max_instance_count",
            "ingress_settings",
            "service_account_email",
            "environment_variables",
            "secret_environment_variables",
            "vpc_connector",
            "vpc_connector_egress_settings",
        )
    ),
)
"""All other fields that a function is described by. What is named in a mask and not in the body goes back to its default."""

_INGRESS = {
    "all": "ALLOW_ALL",
    "internal": "ALLOW_INTERNAL_ONLY",
    "internal-and-load-balancer": "ALLOW_INTERNAL_AND_GCLB",
}
_EGRESS = {"private": "PRIVATE_RANGES_ONLY", "all": "ALL_TRAFFIC"}
_PHASES = {
    "ACTIVE": Phase.READY,
    "DEPLOYING": Phase.PROVISIONING,
    "DELETING": Phase.DELETING,
    "DETACHED": Phase.FAILED,
    # "The function deployment failed and its serving state is undefined" (google/cloud/functions/v2/functions.proto).
    "UNKNOWN": Phase.FAILED,
    "FAILED": Phase.FAILED,
}


def described(
    app: AppSpec, settings: GcpSettings, *, source: Mapping[str, str], forwards: Mapping[str, str], project: str
) -> dict[str, Any]:
    """Return the function of an app, as the API takes it.

    Args:
        app: The app.
        settings: How functions run.
        source: Where its bundle is: bucket, object and generation.
        forwards: Address by name of each app that requests are passed on to.
        project: The project.
    """
    spec = app.spec
    cpu = cpu_of(settings, spec.memory_mb)
    concurrency = concurrency_of(settings, cpu)
    entry = "answer_async" if settings.worker == "asyncio" else "answer"
    build: dict[str, Any] = {
        "runtime": f"python{spec.python.replace('.', '')}",
        "entryPoint": entry,
        "source": {"storageSource": dict(source)},
    }
    if settings.build_service_account:
        build["serviceAccount"] = f"projects/{project}/serviceAccounts/{settings.build_service_account}"
    service: dict[str, Any] = {
        "availableMemory": f"{spec.memory_mb}Mi",
        "availableCpu": f"{cpu:g}",
        "timeoutSeconds": seconds_of(spec.timeout.total_seconds()),
        "maxInstanceRequestConcurrency": concurrency,
        **scale_of(app.scaling),
        "ingressSettings": _INGRESS[settings.ingress],
        "environmentVariables": variables_of(app, settings, concurrency=concurrency, forwards=forwards),
    }
    if settings.service_account:
        service["serviceAccountEmail"] = settings.service_account
    if settings.sealed:
        service["secretEnvironmentVariables"] = [
            {"key": name, **secret_of(value, project)} for name, value in sorted(settings.sealed.items())
        ]
    if settings.vpc_connector:
        service |= {"vpcConnector": settings.vpc_connector, "vpcConnectorEgressSettings": _EGRESS[settings.egress]}
    body: dict[str, Any] = {
        "environment": "GEN_2",
        "labels": _labels(app),
        "buildConfig": build,
        "serviceConfig": service,
    }
    if settings.kms_key:
        body["kmsKeyName"] = settings.kms_key
    return body


def variables_of(
    app: AppSpec, settings: GcpSettings, *, concurrency: int, forwards: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment variables of an app."""
    values = {
        **app.spec.environment,
        "POLYSERVE_APP": app.to_json(),
        "POLYSERVE_CONCURRENCY": str(concurrency),
        # What functions-framework reads: one worker, whose threads share the model.
        "WORKERS": "1",
        "THREADS": str(concurrency),
    }
    if settings.worker == "asyncio":
        values["FUNCTION_USE_ASGI"] = "true"
    if forwards:
        values["POLYSERVE_FORWARDS"] = json.dumps(dict(forwards), sort_keys=True)
    if app.spec.models:
        values["POLYSERVE_STORAGE"] = settings.address("storage.googleapis.com")
    return values


def secret_of(value: str, project: str) -> dict[str, str]:
    """Return project, secret and version of a reference such as `key`, `key:3` or `projects/p/secrets/key/versions/3`."""
    place, _, name = value.rpartition("/secrets/") if "/secrets/" in value else ("", "", value)
    secret, _, version = name.replace("/versions/", ":").partition(":")
    return {
        "projectId": place.removeprefix("projects/") or project,
        "secret": secret,
        "version": version or "latest",
    }


def scale_of(scaling: Scaling) -> dict[str, int]:
    """Return the bounds of an app as the API takes them; what nobody asked for is left to the platform."""
    found = {"minInstanceCount": scaling.min_instances}
    return found if scaling.max_instances is None else found | {"maxInstanceCount": scaling.max_instances}


def max_label(scaling: Scaling) -> dict[str, str]:
    """Return the label that says whether somebody asked for an upper bound."""
    return {} if scaling.max_instances is None else {MAX_LABEL: str(scaling.max_instances)}


def scaling_of(function: Mapping[str, Any]) -> Scaling:
    """Return the bounds of a function."""
    asked_for = (function.get("labels") or {}).get(MAX_LABEL)
    least = int((function.get("serviceConfig") or {}).get("minInstanceCount") or 0)
    return Scaling(min_instances=least, max_instances=int(asked_for) if asked_for else None)


def asked(function: Mapping[str, Any]) -> str:
    """Return the description of the app that a function was last asked to be; empty for a function that is none of ours."""
    variables = (function.get("serviceConfig") or {}).get("environmentVariables") or {}
    return str(variables.get("POLYSERVE_APP") or "")


def app_of(function: Mapping[str, Any]) -> str:
    """Return the name of the app that a function is; empty for one that is none of ours, or is on its way out."""
    if function.get("state") == "DELETING" or not asked(function):
        return ""
    return str((function.get("labels") or {}).get(APP_LABEL, ""))


def labels_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a resource that are the core's."""
    return {key: value for key, value in (resource.get("labels") or {}).items() if not is_ours(key)}


def phase_of(function: Mapping[str, Any]) -> Phase:
    """Return where a function is in its life."""
    state = str(function.get("state") or "")
    if state == "DEPLOYING" and (function.get("labels") or {}).get(READY_LABEL) == mark_of(asked(function)):
        # Only its bounds are being changed: it answers as what it was asked to be, and did so before.
        return Phase.READY
    if state == "ACTIVE" and _problems(function):
        # What it was before goes on answering; what it was last asked to be has failed.
        return Phase.FAILED
    return _PHASES.get(state, Phase.PROVISIONING)


def reason_of(function: Mapping[str, Any]) -> str | None:
    """Return why a function failed."""
    if phase_of(function) is not Phase.FAILED:
        return None
    said = "; ".join(_problems(function))
    return (
        said
        or f"Cloud Functions gives no reason (state {function.get('state')}): look at the function's log and at its build's"
    )


def _problems(function: Mapping[str, Any]) -> list[str]:
    messages = function.get("stateMessages") or ()
    return [str(each.get("message") or each.get("type")) for each in messages if each.get("severity") == "ERROR"]


def mark_of(text: str) -> str:
    """Return the mark of an app's description, short enough for a label."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def moment(text: object) -> datetime | None:
    """Return the moment that a time of Google's is, or `None`."""
    if not isinstance(text, str) or not text:
        return None
    # Up to nine digits of a second, where Python reads six.
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")


def _labels(app: AppSpec) -> dict[str, str]:
    return {
        **app.spec.labels,
        APP_LABEL: app.app,
        REVISION_LABEL: str(app.spec.revision),
        FRONT_LABEL: "1" if app.front else "0",
        **max_label(app.scaling),
    }
