"""The provider of Microsoft Azure: Blob Storage as the object store, Functions on Flex Consumption as the function platform."""

from datetime import timedelta

from polyserve.driver import BundleForm, Capability, Limits, Price, ProviderInfo

INFO = ProviderInfo(
    name="azure",
    title="Azure",
    store_service="Azure Blob Storage",
    function_service="Azure Functions (Flex Consumption)",
    factory="polyserve_azure.provider:AzureProvider",
    settings="polyserve_azure.settings:AzureSettings",
    entrypoint="polyserve_azure.entrypoint",
    extra="azure",
    # Flex Consumption has no weights: front and canary, which the core puts before its apps, has them.
    capabilities=frozenset(Capability),
    limits=Limits(
        # A function app's own 60 less the revision, `-r12345`, and what makes the name the only one in the world.
        name_pattern=r"[a-z]([a-z0-9-]{0,37}[a-z0-9])?",
        name_rule="1 to 39 lower-case letters, digits and hyphens, starting with a letter, not ending with a hyphen",
        memory_mb=(512, 4096),
        memory_choices=(512, 2048, 4096),
        # The load balancer gives an answer 230 seconds; one is kept for an answer that says that the time is over.
        timeout=timedelta(seconds=229),
        request_bytes=209_715_200,
        pythons=("3.11", "3.12", "3.13"),
        architectures=("x86_64",),
        max_instances=1000,
        source="https://learn.microsoft.com/azure/azure-functions/flex-consumption-plan and functions-scale, read 2026-11-20",
    ),
    bundle=BundleForm(
        entrypoint="function_app.py",
        dependencies=".python_packages/lib/site-packages",
        # The library is split by the version of Python: docs/providers/azure.md.
        requirements=(
            "azure-functions==1.26.0; python_version < '3.13'",
            "azure-functions==2.3.0; python_version >= '3.13'",
        ),
        files={
            "host.json": (
                '{"version":"2.0","functionTimeout":"00:05:00","extensions":{"http":{"routePrefix":""}},'
                '"logging":{"applicationInsights":{"samplingSettings":{"isEnabled":false}}}}\n'
            )
        },
        # Debian 11 up to 3.11, Debian 12 from 3.12 on: github.com/Azure/azure-functions-python-worker, issues 1651 and 1397.
        glibc={"3.11": (2, 31), "3.12": (2, 36), "3.13": (2, 36)},
    ),
    price=Price(
        per_million_requests=0.40,
        per_gb_second=0.000026,
        source="https://azure.microsoft.com/pricing/details/functions/, Flex Consumption on demand in East US, read 2026-11",
    ),
    emulator="polyserve_azure.emulator",
    unversioned=frozenset(
        {
            "subscription_id",
            "tenant_id",
            "location",
            "resource_group",
            "storage_account",
            "app_prefix",
            "app_suffix",
            "patience_s",
            "storage_login",
            "storage_sku",
            "token_file",
            "management_url",
            "app_url_template",
            "scm_url_template",
            "insights_url",
            "authority_url",
        }
    ),
)
