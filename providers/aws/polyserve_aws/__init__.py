"""The provider of Amazon Web Services: S3 as the object store, Lambda as the function platform."""

from datetime import timedelta

from polyserve.driver import BundleForm, Capability, Limits, Price, ProviderInfo

INFO = ProviderInfo(
    name="aws",
    title="AWS",
    store_service="Amazon S3",
    function_service="AWS Lambda",
    factory="polyserve_aws.provider:AwsProvider",
    settings="polyserve_aws.settings:AwsSettings",
    entrypoint="polyserve_aws.entrypoint",
    extra="aws",
    capabilities=frozenset(Capability),
    limits=Limits(
        # Lambda's own 64 less `polyserve-` and, in the role's name, which is of the whole account, the region.
        name_pattern=r"[a-z]([a-z0-9-]{0,37}[a-z0-9])?",
        name_rule="1 to 39 lower-case letters, digits and hyphens, starting with a letter, not ending with a hyphen",
        memory_mb=(128, 10_240),
        # One second of Lambda's 900 is kept for an answer that says that the time is over.
        timeout=timedelta(seconds=899),
        # What does not fit Lambda's own 6 MB goes through S3, with the whole of it in the function's memory.
        request_bytes=1 << 30,
        response_bytes=1 << 30,
        # Through S3 an archive may have any size whose content is within the next figure.
        bundle_bytes=262_144_000,
        bundle_unpacked_bytes=262_144_000,
        # Lambda's 4 KB less the variables of our own.
        environment_bytes=4096 - 512,
        pythons=("3.11", "3.12", "3.13", "3.14"),
        architectures=("x86_64", "arm64"),
        # The concurrency of a fresh account, of which 100 cannot be reserved.
        max_instances=900,
        # An alias and one additional version: "AdditionalVersionWeights", Lambda's API reference.
        traffic_revisions=2,
        source="https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html, read 2026-11-20",
    ),
    bundle=BundleForm(
        entrypoint="polyserve_entrypoint.py",
        dependencies=".",
        # Amazon Linux 2 under 3.11, Amazon Linux 2023 from 3.12 on: docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html, 2026-11.
        glibc={"3.11": (2, 26), "3.12": (2, 34), "3.13": (2, 34), "3.14": (2, 34)},
    ),
    price=Price(
        per_million_requests=0.20,
        per_gb_second=0.0000166667,
        source="https://aws.amazon.com/lambda/pricing/, x86_64 in us-east-1, read 2026-11",
    ),
    emulator="polyserve_aws.emulator",
    unversioned=frozenset({"region", "profile", "endpoint_url", "shared_credentials_file", "fast_transfers"}),
)
