"""What Cloud Functions takes for a function, what it fills in, and the Cloud Run service that it makes of it.

What is real there but not emulated is refused too, and says so: nothing that is asked for is silently left out.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from google.cloud import functions_v2, run_v2

from polyserve_gcp.emulator.errors import ServiceError, invalid
from polyserve_gcp.emulator.installing import check_runtime
from polyserve_gcp.emulator.run_rules import LONGEST_S, MOST_INSTANCES, RESERVED, check_labels, check_variables
from polyserve_gcp.emulator.sizes import check_compute, default_cpu, read_cpu, read_memory_mb

FIXED = frozenset({
    "name", "state", "update_time", "create_time", "state_messages", "environment", "url", "satisfies_pzs",
})  # fmt: skip
"""What of a function nobody can set."""
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LOG_EXECUTION_ID = "LOG_EXECUTION_ID"
"""Variable that every function has: the framework then notes which request a line belongs to."""
_RESERVED = RESERVED | {"FUNCTION_TARGET", "FUNCTION_SIGNATURE_TYPE", "FUNCTION_SOURCE"}
_INGRESS = {
    functions_v2.ServiceConfig.IngressSettings.ALLOW_ALL: run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL,
    functions_v2.ServiceConfig.IngressSettings.ALLOW_INTERNAL_ONLY: run_v2.IngressTraffic.INGRESS_TRAFFIC_INTERNAL_ONLY,
    functions_v2.ServiceConfig.IngressSettings.ALLOW_INTERNAL_AND_GCLB: run_v2.IngressTraffic.INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER,
}  # fmt: skip


def check_function_id(name: str) -> None:
    """Refuse what is no name of a function."""
    if NAME.fullmatch(name) is None:
        raise invalid(
            f"function_id: '{name}' must begin with a lowercase letter, have at most 63 lowercase letters, digits and hyphens, "
            "and not end with a hyphen."
        )


def complete(function: Any, account: str) -> Any:
    """Return a function as Cloud Functions keeps it: with what it fills in, if it takes it at all.

    Args:
        function: What a caller wants.
        account: Address of the account that it runs as unless it says.

    Raises:
        ServiceError: It is refused.
    """
    found = functions_v2.Function(function)
    if found.event_trigger:
        raise _not_emulated("event_trigger")
    if found.kms_key_name:
        raise invalid(f"kms_key_name: Key {found.kms_key_name} was not found, or may not be used by Cloud Functions.")
    check_labels(found.labels)
    found.environment = functions_v2.Environment.GEN_2
    _complete_build(found)
    _complete_service(found.service_config, account)
    return found


def _complete_build(function: Any) -> None:
    build = function.build_config
    if not build.runtime:
        raise invalid("build_config.runtime: must be set.")
    check_runtime(build.runtime)
    build.entry_point = build.entry_point or function.name.rpartition("/")[2]
    if build.source.repo_source or build.source.git_uri:
        raise _not_emulated("build_config.source but for storage_source")
    if not build.source.storage_source.bucket or not build.source.storage_source.object_:
        raise invalid("build_config.source.storage_source: bucket and object must be set.")
    for field in ("worker_pool", "docker_repository", "service_account"):
        if getattr(build, field):
            raise _not_emulated(f"build_config.{field}")
    check_variables(build.environment_variables, ())


def _complete_service(config: Any, account: str) -> None:
    config.available_memory = config.available_memory or "256M"
    memory = read_memory_mb(config.available_memory, "service_config.available_memory")
    config.available_cpu = config.available_cpu or f"{default_cpu(memory):g}"
    config.timeout_seconds = config.timeout_seconds or 60
    config.max_instance_request_concurrency = config.max_instance_request_concurrency or 1
    config.max_instance_count = config.max_instance_count or 100
    config.service_account_email = config.service_account_email or account
    config.ingress_settings = config.ingress_settings or functions_v2.ServiceConfig.IngressSettings.ALLOW_ALL
    check_variables(
        (*config.environment_variables, *(one.key for one in config.secret_environment_variables)), _RESERVED
    )
    config.environment_variables.setdefault(LOG_EXECUTION_ID, "true")
    if not 1 <= config.timeout_seconds <= LONGEST_S:
        raise invalid(
            f"service_config.timeout_seconds: must be between 1 and {LONGEST_S}, not {config.timeout_seconds}."
        )
    if not 0 <= config.min_instance_count <= config.max_instance_count <= MOST_INSTANCES:
        raise invalid(
            f"service_config: min_instance_count {config.min_instance_count} must be at most max_instance_count "
            f"{config.max_instance_count}, and that at most {MOST_INSTANCES}."
        )
    cpu = read_cpu(config.available_cpu, "service_config.available_cpu")
    check_compute(cpu, memory, config.max_instance_request_concurrency, "service_config.available")
    if config.secret_volumes:
        raise _not_emulated("service_config.secret_volumes")
    for secret in config.secret_environment_variables:
        if not (secret.key and secret.secret and secret.version):
            raise invalid("service_config.secret_environment_variables: key, secret and version must be set.")
    if config.vpc_connector:
        raise invalid(f"service_config.vpc_connector: VPC connector {config.vpc_connector} does not exist.")
    if config.binary_authorization_policy:
        raise _not_emulated("service_config.binary_authorization_policy")


def make_service(function: Any, image: str) -> Any:
    """Return the Cloud Run service of a function.

    Args:
        function: The function, complete.
        image: Name of what was built of it.
    """
    config = function.service_config
    secrets = [
        run_v2.EnvVar(
            name=one.key,
            value_source={
                "secret_key_ref": {"secret": f"projects/{one.project_id}/secrets/{one.secret}", "version": one.version}
            },
        )
        for one in config.secret_environment_variables
    ]
    container = run_v2.Container(
        image=image,
        env=[
            *(run_v2.EnvVar(name=name, value=value) for name, value in sorted(config.environment_variables.items())),
            *secrets,
        ],
        resources=run_v2.ResourceRequirements(limits={"cpu": config.available_cpu, "memory": config.available_memory}),
    )
    template = run_v2.RevisionTemplate(
        labels=dict(function.labels),
        annotations={"cloudfunctions.googleapis.com/trigger-type": "HTTP_TRIGGER"},
        containers=[container],
        scaling=run_v2.RevisionScaling(
            min_instance_count=config.min_instance_count, max_instance_count=config.max_instance_count
        ),
        timeout=timedelta(seconds=config.timeout_seconds),
        service_account=config.service_account_email,
        max_instance_request_concurrency=config.max_instance_request_concurrency,
    )
    return run_v2.Service(
        description=function.description, labels=dict(function.labels), template=template,
        ingress=_INGRESS[config.ingress_settings],
    )  # fmt: skip


def _not_emulated(field: str) -> ServiceError:
    return ServiceError("UNIMPLEMENTED", f"The emulator has no {field}: leave it out, or try it on a real project.")
