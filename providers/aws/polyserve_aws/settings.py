"""The options of the AWS provider, validated where profiles are read. Credentials are none of them: the SDK finds those."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class AwsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which account, and how functions run there.

    Attributes:
        region: Region, such as `eu-central-1`; the SDK's own choice (`AWS_REGION`, the AWS profile) where it is empty.
        profile: Profile of the SDK's configuration files; the SDK's own choice where it is empty.
        endpoint_url: Another address for every service, such as an emulator's.
        shared_credentials_file: Another file of credentials; the environment's are not looked at then.
        invoke: How functions are called: by their function URL (`url`), Lambda's Invoke API (`api`), or an HTTP API (`http-api`).
        public: Whether anybody may call the function URL or the HTTP API; by default only who has the permission.
        role_arn: An execution role that exists. One is made for each deployment where it is empty.
        subnet_ids: Subnets that functions are attached to; none where it is empty.
        security_group_ids: Security groups of functions in subnets.
        ephemeral_storage_mb: Size of `/tmp` in MiB.
        snapstart: Whether instances start from a snapshot of one that has loaded its model; Python 3.12 and later.
        image_uri: An image in ECR, by digest, that functions run instead of the bundle's archive; it has to hold the same bundle.
        kms_key_id: Key of objects in S3; those of S3 itself where it is empty.
        environment_key_arn: Key of KMS that encrypts functions' environment variables and snapshots; Lambda's own where it is empty.
        log_retention_days: Days that logs are kept; for ever if 0.
        fast_transfers: Whether objects' contents go through obstore where it is installed; otherwise through boto3.
    """

    region: str = ""
    profile: str = ""
    endpoint_url: str = ""
    shared_credentials_file: str = ""
    invoke: Literal["url", "api", "http-api"] = "url"
    public: bool = False
    role_arn: Annotated[str, msgspec.Meta(pattern=r"^(arn:aws[a-z-]*:iam::\d{12}:role/.+)?$")] = ""
    subnet_ids: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    ephemeral_storage_mb: Annotated[int, msgspec.Meta(ge=512, le=10_240)] = 512
    snapstart: bool = False
    image_uri: Annotated[str, msgspec.Meta(pattern=r"^([^\s@]+@sha256:[0-9a-f]{64})?$")] = ""
    kms_key_id: str = ""
    environment_key_arn: Annotated[str, msgspec.Meta(pattern=r"^(arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/.+)?$")] = ""
    # What CloudWatch takes: PutRetentionPolicy in its API reference, 2026-11.
    log_retention_days: Literal[0, 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 3653] = 30
    fast_transfers: bool = True

    def __post_init__(self) -> None:
        if self.public and self.invoke == "api":
            raise ValueError(
                "public is about the function URL or the HTTP API, and with invoke='api' there is neither: leave out one of them"
            )
        if bool(self.subnet_ids) != bool(self.security_group_ids):
            raise ValueError("subnet_ids and security_group_ids go together: give both or none")
