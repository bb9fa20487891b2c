"""The provider of Google Cloud: Cloud Storage as the object store, Cloud Run functions or Cloud Run itself as the function platform."""

from datetime import timedelta

from polyserve.driver import BundleForm, Capability, Limits, Price, ProviderInfo

FRAMEWORK = "functions-framework==3.10.2"
"""What functions run under. Never beside google-cloud-functions, whose files have the same names: functions-framework-python, issue 184."""

INFO = ProviderInfo(
    name="gcp",
    title="Google Cloud",
    store_service="Cloud Storage",
    function_service="Cloud Run functions",
    factory="polyserve_gcp.provider:provider",
    settings="polyserve_gcp.settings:GcpSettings",
    entrypoint="polyserve_gcp.entrypoint",
    extra="gcp",
    # Through the Cloud Functions API there are no weights: front and canary, which the core puts before its apps, has them.
    capabilities=frozenset(Capability),
    limits=Limits(
        # Cloud Run's 49 less the revision, `-r12345`; a name and the tag of a revision before it have no more than 46 between them.
        name_pattern=r"[a-z]([a-z0-9-]{0,37}[a-z0-9])?",
        name_rule="1 to 39 lower-case letters, digits and hyphens, starting with a letter, not ending with a hyphen",
        memory_mb=(128, 32_768),
        # One second of the hour is kept for an answer that says that the time is over.
        timeout=timedelta(seconds=3599),
        # Of HTTP/1, both ways.
        request_bytes=33_554_432,
        response_bytes=33_554_432,
        # 32 KB less what is told to the entrypoint.
        environment_bytes=16_384,
        pythons=("3.11", "3.12", "3.13", "3.14"),
        architectures=("x86_64",),
        max_instances=1000,
        source="https://cloud.google.com/functions/quotas and https://cloud.google.com/run/quotas, read 2026-11-20",
    ),
    bundle=BundleForm(
        entrypoint="main.py",
        # What a model needs was chosen, slimmed and tried out here: Cloud Build adds the framework and looks for nothing else.
        dependencies=".",
        files={"requirements.txt": f"{FRAMEWORK}\n"},
        # Ubuntu 22.04 up to 3.13, Ubuntu 24.04 from 3.14 on: cloud.google.com/run/docs/runtimes/python, 2026-11.
        glibc={"3.11": (2, 35), "3.12": (2, 35), "3.13": (2, 35), "3.14": (2, 39)},
    ),
    price=Price(
        per_million_requests=0.40,
        per_gb_second=0.0000025,
        per_second=0.000024,
        source="https://cloud.google.com/run/pricing, request-based, one processor, tier 1, read 2026-11",
    ),
    emulator="polyserve_gcp.emulator",
    unversioned=frozenset(
        {
            "project",
            "region",
            "platform",
            "credentials_file",
            "impersonate",
            "build_service_account",
            "retry_s",
            "endpoints",
        }
    ),
)
