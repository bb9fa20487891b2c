"""The options of the Google Cloud provider, validated where profiles are read. Credentials are none of them: google-auth finds those."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["GcpSettings"]

Project = Annotated[str, msgspec.Meta(pattern=r"^(([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9])?$")]
Email = Annotated[str, msgspec.Meta(pattern=r"^([^@\s]+@[^@\s]+)?$")]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^/\s?#]+[^\s?#]*$")]
Host = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.-]+$")]
Secret = Annotated[
    str, msgspec.Meta(pattern=r"^(projects/[^/\s]+/secrets/)?[A-Za-z0-9_-]{1,255}((:|/versions/)(\d+|latest))?$")
]
Variable = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class GcpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which project, and how functions run there.

    Attributes:
        project: Project; that of the credentials, or `GOOGLE_CLOUD_PROJECT`, where it is empty.
        region: Region of functions and of buckets that are made.
        platform: What runs models: `functions` (Cloud Functions v2 API, the source is built by Cloud Build) or `run` (Cloud Run Admin
            API, nothing is built, revisions and weights are the platform's own).
        credentials_file: A file with credentials, as google-auth reads them; Application Default Credentials where it is empty.
        impersonate: Service account that those credentials act as.
        service_account: Service account that functions run as; the project's default one where it is empty.
        build_service_account: Service account that Cloud Build works as; its own choice where it is empty. `functions` only.
        cpu: Processors of one instance, such as 1 or 0.5; the fewest that go with the memory where it is 0.
        concurrency: Requests that one instance answers at a time; one where it has less than a processor.
        worker: What answers in an instance: `threads`, or one loop of `asyncio`, which answers together what came in meanwhile. `functions`
            only.
        ingress: From where functions can be called.
        public: Whether everybody may call them, without credentials.
        kms_key: Key of Cloud KMS that encrypts buckets and functions, `projects/P/locations/L/keyRings/R/cryptoKeys/K`; Google's own where
            it is empty.
        sealed: Environment variables whose values are in Secret Manager: name of the secret, with `:VERSION` where it is not the latest.
        vpc_connector: Serverless VPC Access connector that functions call out through.
        network: VPC network that they call out through without a connector. `run` only.
        subnetwork: Subnetwork of that network. `run` only.
        egress: What goes through the VPC: calls to private addresses, or all.
        retry_s: Least seconds to wait before a function that is being changed, and takes no other change meanwhile, is asked again.
        endpoints: Address by host of a Google API, such as `{"storage.googleapis.com": "https://storage-x.p.googleapis.com"}`; the host's
            own where it is not named.
    """

    project: Project = ""
    region: Annotated[str, msgspec.Meta(pattern=r"^[a-z]+-[a-z]+\d+$")] = "us-central1"
    platform: Literal["functions", "run"] = "functions"
    credentials_file: str = ""
    impersonate: Email = ""
    service_account: Email = ""
    build_service_account: Email = ""
    cpu: Annotated[float, msgspec.Meta(ge=0, le=8)] = 0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    worker: Literal["threads", "asyncio"] = "threads"
    ingress: Literal["all", "internal", "internal-and-load-balancer"] = "all"
    public: bool = False
    kms_key: Annotated[
        str, msgspec.Meta(pattern=r"^(projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+)?$")
    ] = ""
    sealed: dict[Variable, Secret] = {}
    vpc_connector: str = ""
    network: str = ""
    subnetwork: str = ""
    egress: Literal["private", "all"] = "private"
    retry_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    endpoints: dict[Host, Url] = {}

    def address(self, host: str) -> str:
        """Return where a Google API is called, such as `storage.googleapis.com`; without a trailing slash."""
        return self.endpoints.get(host, f"https://{host}").rstrip("/")
