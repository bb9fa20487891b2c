"""What Cloud Run takes for a service, and what it fills in.

What is real there but not emulated is refused too, and says so: nothing that is asked for is silently left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any

from google.cloud import run_v2

from polyserve_gcp.emulator.errors import ServiceError, invalid
from polyserve_gcp.emulator.sizes import check_compute, read_cpu, read_memory_mb

FIXED = frozenset({
    "name", "uid", "generation", "create_time", "update_time", "delete_time", "expire_time", "creator", "last_modifier",
    "observed_generation", "terminal_condition", "conditions", "latest_ready_revision", "latest_created_revision",
    "traffic_statuses", "uri", "urls", "satisfies_pzs", "reconciling", "etag", "threat_detection_enabled",
})  # fmt: skip
"""What of a service nobody can set."""
SCRATCH = "scratch"
"""Name of the image of a service whose source runs on a base image, without a build."""
NAME = re.compile(r"[a-z]([-a-z0-9]{0,47}[a-z0-9])?")
LABEL_KEY, LABEL_VALUE = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[a-z0-9_-]{0,63}")
RESERVED = frozenset({"K_SERVICE", "K_REVISION", "K_CONFIGURATION", "PORT"})
"""Variables that Cloud Run sets itself ("Container runtime contract", read 2026-11-21)."""
LONGEST_S, MOST_INSTANCES = 3600, 1000
LATEST = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
ONE_REVISION = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION
_RUNTIME = re.compile(r"(?:.*/)?(python3\d+)(?::[^/]+)?")
_NOT_EMULATED = {
    "template": (
        "service_mesh",
        "node_selector",
        "volumes",
        "encryption_key",
        "session_affinity",
        "health_check_disabled",
    ),
    "container": ("volume_mounts", "working_dir", "liveness_probe", "depends_on"),
    "service": ("binary_authorization", "iap_enabled", "multi_region_settings", "default_uri_disabled", "build_config"),
}


def check_service_id(name: str) -> None:
    """Refuse what is no name of a service."""
    if NAME.fullmatch(name) is None:
        raise invalid(
            "service_id must contain only lowercase letters, digits and hyphens; must begin with a letter; cannot end with "
            f"a hyphen; and must be less than 50 characters: '{name}'"
        )


def check_labels(labels: Any) -> None:
    """Refuse labels that Google Cloud does not take."""
    if len(labels) > 64:
        raise invalid(f"labels: at most 64 are allowed, not {len(labels)}.")
    for key, value in labels.items():
        if LABEL_KEY.fullmatch(key) is None or LABEL_VALUE.fullmatch(value) is None:
            raise invalid(
                f"labels: '{key}={value}': keys begin with a lowercase letter; keys and values have at most 63 characters, "
                "which are lowercase letters, digits, underscores and hyphens."
            )


def check_variables(names: Iterable[str], reserved: Collection[str]) -> None:
    """Refuse names of environment variables that cannot be set.

    Args:
        names: The names.
        reserved: Those that are the platform's.
    """
    given = list(names)
    taken = sorted({name for name in given if name in reserved or name.startswith("X_GOOGLE_")})
    if taken:
        raise invalid(
            f"The following reserved env names were provided: {', '.join(taken)}. These values are automatically set by the system."
        )
    for name in given:
        if not name or "=" in name or "\0" in name:
            raise invalid(f"env: '{name}' is not a name of an environment variable.")
        if given.count(name) > 1:
            raise invalid(f"env: '{name}' is set more than once.")


def complete(service: Any, account: str) -> Any:
    """Return a service as Cloud Run keeps it: with what it fills in, if it takes it at all.

    Args:
        service: What a caller wants.
        account: Address of the account that it runs as unless it says.

    Raises:
        ServiceError: It is refused.
    """
    found = run_v2.Service(service)
    _refuse_unknown(found, "service", "")
    check_labels(found.labels)
    template = found.template
    _refuse_unknown(template, "template", "template.")
    check_labels(template.labels)
    _complete_containers(template)
    _complete_scaling(found)
    template.service_account = template.service_account or account
    if not template.timeout:
        template.timeout = timedelta(seconds=300)
    if not 1 <= template.timeout.total_seconds() <= LONGEST_S:
        raise invalid(f"template.timeout: must be between 1 and {LONGEST_S} seconds.")
    limits = template.containers[0].resources.limits
    cpu = read_cpu(limits["cpu"], "template.containers[0].resources.limits.cpu")
    memory = read_memory_mb(limits["memory"], "template.containers[0].resources.limits.memory")
    template.max_instance_request_concurrency = template.max_instance_request_concurrency or (80 if cpu >= 1 else 1)
    check_compute(cpu, memory, template.max_instance_request_concurrency, "template.containers[0].resources.limits")
    if template.execution_environment == run_v2.ExecutionEnvironment.EXECUTION_ENVIRONMENT_GEN2 and memory < 512:
        raise invalid(
            "template.containers[0].resources.limits.memory: Total memory < 512 Mi is not supported with gen2 execution environment."
        )
    if template.vpc_access.connector:
        raise invalid(f"template.vpc_access.connector: VPC connector {template.vpc_access.connector} does not exist.")
    if template.vpc_access.network_interfaces:
        raise _not_emulated("template.vpc_access.network_interfaces")
    found.ingress = found.ingress or run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL
    return found


def read_base_image(uri: str) -> str:
    """Return the runtime of a base image: `.../google-22/runtimes/python311` is `python311`.

    Raises:
        ServiceError: The emulator has no such image.
    """
    match = _RUNTIME.fullmatch(uri)
    if match is None:
        raise invalid(
            f"template.containers[0].base_image_uri: the emulator has no base image '{uri}', only those of Python."
        )
    return match[1]


def check_revision_name(name: str, service: str) -> None:
    """Refuse a name that a revision of a service cannot have."""
    if not name.startswith(f"{service}-") or re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) is None:
        raise invalid(
            f"template.revision: '{name}' must be prefixed by '{service}-', have at most 63 lowercase letters, digits and "
            "hyphens, and not end with a hyphen."
        )


def check_traffic(targets: Iterable[Any], revisions: Collection[str]) -> None:
    """Refuse traffic that cannot be routed.

    Args:
        targets: What is wanted.
        revisions: Names of the revisions that there are, and of the one that is made.

    Raises:
        ServiceError: It is refused.
    """
    given, tags = list(targets), []
    for number, target in enumerate(given):
        where = f"traffic[{number}]"
        if target.type_ == LATEST and target.revision:
            raise invalid(f"{where}.revision: must be empty where the type is TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST.")
        if target.type_ != LATEST:
            if not target.type_:
                raise invalid(f"{where}.type: must be set.")
            if target.revision not in revisions:
                raise invalid(f"{where}.revision: Revision named '{target.revision}' does not exist.")
        if not 0 <= target.percent <= 100:
            raise invalid(f"{where}.percent: must be between 0 and 100, not {target.percent}.")
        if target.tag and re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", target.tag) is None:
            raise invalid(
                f"{where}.tag: '{target.tag}' must have lowercase letters, digits and hyphens, and begin with a letter."
            )
        tags += [target.tag] if target.tag else []
    if len(tags) != len(set(tags)):
        raise invalid(f"traffic: a tag must be used once: {', '.join(tags)}.")
    total = sum(target.percent for target in given)
    if given and total != 100:
        raise invalid(f"traffic: The sum of percentages must be 100, not {total}.")


def _complete_containers(template: Any) -> None:
    if len(template.containers) != 1:
        raise invalid("template.containers: one container is needed." if not template.containers else _SIDECARS)
    container = template.containers[0]
    _refuse_unknown(container, "container", "template.containers[0].")
    for probe in ("http_get", "grpc"):
        if probe in container.startup_probe:
            raise _not_emulated(f"template.containers[0].startup_probe.{probe}")
    check_variables((one.name for one in container.env), RESERVED)
    for one in container.env:
        reference = one.value_source.secret_key_ref
        if bool(reference.secret) != bool(reference.version):
            raise invalid(f"template.containers[0].env: '{one.name}': a secret and its version must both be set.")
    _check_source(container)
    limits = container.resources.limits
    limits["cpu"] = limits.get("cpu") or "1000m"
    limits["memory"] = limits.get("memory") or "512Mi"
    unknown = sorted(set(limits) - {"cpu", "memory"})
    if unknown:
        raise _not_emulated(f"template.containers[0].resources.limits[{unknown[0]}]")
    if any(port.name not in {"", "http1"} for port in container.ports):
        raise _not_emulated("template.containers[0].ports but for http1")
    if not container.ports:
        container.ports = [run_v2.ContainerPort(name="http1", container_port=8080)]


def _check_source(container: Any) -> None:
    source = container.source_code.cloud_storage_source
    if not container.image:
        raise invalid("template.containers[0].image: must be set.")
    if container.image != SCRATCH:
        if source.bucket:
            raise invalid(f"template.containers[0].source_code: goes with the image '{SCRATCH}' only.")
        return
    if not source.bucket or not source.object_:
        raise invalid("template.containers[0].source_code.cloud_storage_source: bucket and object must be set.")
    read_base_image(container.base_image_uri)
    if not container.command:
        raise invalid("template.containers[0].command: must be set where the source is deployed without a build.")


def _complete_scaling(service: Any) -> None:
    scaling = service.template.scaling
    scaling.max_instance_count = scaling.max_instance_count or 100
    if not 0 <= scaling.min_instance_count <= scaling.max_instance_count <= MOST_INSTANCES:
        raise invalid(
            f"template.scaling: min_instance_count {scaling.min_instance_count} must be at most max_instance_count "
            f"{scaling.max_instance_count}, and that at most {MOST_INSTANCES}."
        )
    if service.scaling.scaling_mode == run_v2.ServiceScaling.ScalingMode.MANUAL:
        raise _not_emulated("scaling.scaling_mode MANUAL")
    least, most = service.scaling.min_instance_count, service.scaling.max_instance_count
    if least < 0 or (most and not least <= most <= MOST_INSTANCES):
        raise invalid(
            f"scaling: min_instance_count {least} must be at most max_instance_count {most}, and that at most {MOST_INSTANCES}."
        )


def _refuse_unknown(message: Any, kind: str, where: str) -> None:
    for field in _NOT_EMULATED[kind]:
        if getattr(message, field):
            raise _not_emulated(f"{where}{field}")


def _not_emulated(field: str) -> ServiceError:
    return ServiceError("UNIMPLEMENTED", f"The emulator has no {field}: leave it out, or try it on a real project.")


_SIDECARS = "template.containers: the emulator runs one container, and no sidecars."
