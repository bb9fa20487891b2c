"""The provider of this machine: files as the object store, processes as functions. No account, no key, no network."""

from datetime import timedelta

from polyserve.driver import Capability, Limits, ProviderInfo

INFO = ProviderInfo(
    name="local",
    title="This machine",
    store_service="files",
    function_service="processes behind a gateway on loopback",
    factory="polyserve_local.provider:LocalProvider",
    settings="polyserve_local.settings:LocalSettings",
    entrypoint="polyserve_local.entrypoint",
    extra="",
    capabilities=frozenset(
        {
            Capability.CONDITIONAL_PUT,
            Capability.TRAFFIC_SPLIT,
            Capability.SCALE_TO_ZERO,
            Capability.MIN_INSTANCES,
            Capability.MAX_INSTANCES,
        }
    ),
    limits=Limits(
        name_pattern=r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
        name_rule="1 to 63 lower-case letters, digits and hyphens, starting with a letter, not ending with a hyphen",
        memory_mb=(64, 1_048_576),
        timeout=timedelta(hours=1),
        request_bytes=1 << 30,
        pythons=("3.11", "3.12", "3.13", "3.14"),
        architectures=("x86_64", "arm64"),
        max_instances=256,
        source="polyserve's own choice, 2026-11",
    ),
    # The gateway has them, for all functions of a home.
    unversioned=frozenset(
        {
            "home",
            "idle_timeout_s",
            "concurrency",
            "queue_ms",
            "start_timeout_s",
            "start_attempts",
            "retry_s",
            "log_bytes",
            "linger_s",
        }
    ),
)
