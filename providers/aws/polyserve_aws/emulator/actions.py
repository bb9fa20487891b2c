"""What a request asks to do, in the words of IAM: the actions and the resources that policies name.

Sources: the "Actions, resources, and condition keys" pages of the Service Authorization Reference for S3, IAM, STS,
ECR, CloudWatch Logs and API Gateway. Lambda's are beside its routes, in `routes.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from urllib.parse import parse_qs, unquote

from polyserve.emulation.http import Call
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.identities import ACCOUNT


@dataclass(frozen=True, slots=True)
class Need:
    """One permission that a request needs: an action, and the names by which its resource may be given."""

    action: str
    resources: tuple[str, ...] = ("*",)


# Sub-resource in the query -> (for GET, for PUT, for DELETE); the first that is there decides.
_BUCKET_PARTS = {
    "location": ("GetBucketLocation", "", ""),
    "uploads": ("ListBucketMultipartUploads", "", ""),
    "versions": ("ListBucketVersions", "", ""),
    "versioning": ("GetBucketVersioning", "PutBucketVersioning", ""),
    "policy": ("GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy"),
    "policyStatus": ("GetBucketPolicyStatus", "", ""),
    "acl": ("GetBucketAcl", "PutBucketAcl", ""),
    "tagging": ("GetBucketTagging", "PutBucketTagging", "PutBucketTagging"),
    "logging": ("GetBucketLogging", "PutBucketLogging", ""),
    "cors": ("GetBucketCORS", "PutBucketCORS", "PutBucketCORS"),
    "lifecycle": ("GetLifecycleConfiguration", "PutLifecycleConfiguration", "PutLifecycleConfiguration"),
    "encryption": ("GetEncryptionConfiguration", "PutEncryptionConfiguration", "PutEncryptionConfiguration"),
    "notification": ("GetBucketNotification", "PutBucketNotification", ""),
    "publicAccessBlock": ("GetBucketPublicAccessBlock", "PutBucketPublicAccessBlock", "PutBucketPublicAccessBlock"),
    "ownershipControls": (
        "GetBucketOwnershipControls",
        "PutBucketOwnershipControls",
        "PutBucketOwnershipControls",
    ),
    "object-lock": ("GetBucketObjectLockConfiguration", "PutBucketObjectLockConfiguration", ""),
    "website": ("GetBucketWebsite", "PutBucketWebsite", "DeleteBucketWebsite"),
}
_OBJECT_PARTS = {
    "tagging": ("GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging"),
    "acl": ("GetObjectAcl", "PutObjectAcl", ""),
    "attributes": ("GetObjectAttributes", "", ""),
    "retention": ("GetObjectRetention", "PutObjectRetention", ""),
    "legal-hold": ("GetObjectLegalHold", "PutObjectLegalHold", ""),
}
_METHODS = {"GET": 0, "HEAD": 0, "PUT": 1, "DELETE": 2}


def needs(call: Call, service: str, region: str) -> list[Need]:
    """Return the permissions that a request needs.

    Args:
        call: The request.
        service: Signing name of its service.
        region: Region that it was signed for.

    Raises:
        ServiceError: The emulator does not have the service.
    """
    if service == "s3":
        return _s3(call)
    if service in {"iam", "sts", "monitoring"}:
        return _query(call, service)
    if service == "kms":
        return _keys(call, region)
    if service in {"ecr", "logs"}:
        return _target(call, service, region)
    if service == "apigateway":
        base, path = f"arn:aws:apigateway:{region}::", call.path.removeprefix("/v2")
        found = [Need(f"apigateway:{call.method}", (base + path,))]
        if call.method == "POST" and call.json.get("tags"):
            # Tagged in the caller's name: https://github.com/aws-cloudformation/cloudformation-coverage-roadmap/issues/997
            found += [Need("apigateway:TagResource", (base + path,)), Need("apigateway:POST", (f"{base}/tags/",))]
        return found
    message = f"The emulator has no {service!r}: it has apigateway, ecr, iam, kms, lambda, logs, s3 and sts."
    raise ServiceError(501, "NotImplemented", message)


def _s3(call: Call) -> list[Need]:
    bucket, _, key = unquote(call.raw_path).lstrip("/").partition("/")
    if not bucket:
        return [Need("s3:ListAllMyBuckets")]
    names = _names_of_query(call)
    if key:
        return _s3_object(call, bucket, key, names)
    resource = (f"arn:aws:s3:::{bucket}",)
    if call.method == "POST" and "delete" in names:
        keys = re.findall(r"<Key>(.*?)</Key>", call.body.decode("utf-8", "replace"), re.DOTALL)
        return [Need("s3:DeleteObject", (f"arn:aws:s3:::{bucket}/{unescape(name)}",)) for name in keys]
    for part, actions in _BUCKET_PARTS.items():
        action = actions[_METHODS.get(call.method, 0)]
        if part in names and action:
            return [Need(f"s3:{action}", resource)]
    plain = {"PUT": "CreateBucket", "DELETE": "DeleteBucket", "POST": "PutObject"}
    return [Need(f"s3:{plain.get(call.method, 'ListBucket')}", resource)]


def _s3_object(call: Call, bucket: str, key: str, names: set[str]) -> list[Need]:
    resource = (f"arn:aws:s3:::{bucket}/{key}",)
    for part, actions in _OBJECT_PARTS.items():
        action = actions[_METHODS.get(call.method, 0)]
        if part in names and action:
            return [Need(f"s3:{action}", resource)]
    if call.method in {"GET", "HEAD"}:
        if "uploadId" in names:
            return [Need("s3:ListMultipartUploadParts", resource)]
        return [Need("s3:GetObjectVersion" if "versionId" in names else "s3:GetObject", resource)]
    if call.method == "DELETE":
        if "uploadId" in names:
            return [Need("s3:AbortMultipartUpload", resource)]
        return [Need("s3:DeleteObjectVersion" if "versionId" in names else "s3:DeleteObject", resource)]
    found = [Need("s3:PutObject", resource)]
    source = call.headers.get("x-amz-copy-source")
    if source:
        path = unquote(source.partition("?")[0]).lstrip("/")
        found.append(Need("s3:GetObject", (f"arn:aws:s3:::{path}",)))
    return found


def _names_of_query(call: Call) -> set[str]:
    return {unquote(part.partition("=")[0]) for part in call.raw_query.split("&") if part}


def _query(call: Call, service: str) -> list[Need]:
    form = {name: values[0] for name, values in parse_qs(call.body.decode("utf-8", "replace")).items()}
    form = call.query | form
    service = "cloudwatch" if service == "monitoring" else service
    action = form.get("Action", "") or call.headers.get("X-Amz-Target", "").rpartition(".")[2]
    resource = "*"
    if "RoleArn" in form:
        resource = form["RoleArn"]
    elif "RoleName" in form:
        resource = f"arn:aws:iam::{ACCOUNT}:role{form.get('Path', '/')}{form['RoleName']}"
    elif "UserName" in form:
        resource = f"arn:aws:iam::{ACCOUNT}:user{form.get('Path', '/')}{form['UserName']}"
    elif "PolicyArn" in form:
        resource = form["PolicyArn"]
    elif "PolicyName" in form:
        resource = f"arn:aws:iam::{ACCOUNT}:policy{form.get('Path', '/')}{form['PolicyName']}"
    return [Need(f"{service}:{action}", (resource,))]


def _keys(call: Call, region: str) -> list[Need]:
    action = f"kms:{call.headers.get('X-Amz-Target', '').rpartition('.')[2]}"
    key = str(call.json.get("KeyId") or "*")
    if key == "*" or key.startswith("arn:"):
        return [Need(action, (key,))]
    return [Need(action, (f"arn:aws:kms:{region}:{ACCOUNT}:{'' if key.startswith('alias/') else 'key/'}{key}",))]


def _target(call: Call, service: str, region: str) -> list[Need]:
    action = f"{service}:{call.headers.get('X-Amz-Target', '').rpartition('.')[2]}"
    if service == "ecr":
        name = call.json.get("repositoryName") or next(iter(call.json.get("repositoryNames") or []), None)
        if not name:
            return [Need(action, ("*", f"arn:aws:ecr:{region}:{ACCOUNT}:repository/*"))]
        return [Need(action, (f"arn:aws:ecr:{region}:{ACCOUNT}:repository/{name}",))]
    group = call.json.get("logGroupName") or call.json.get("logGroupIdentifier") or call.json.get("logGroupNamePrefix")
    base = f"arn:aws:logs:{region}:{ACCOUNT}:log-group:{str(group or '').rpartition(':log-group:')[2]}"
    stream = call.json.get("logStreamName")
    # AWS documents log groups with a trailing ":*", and takes policies without it as well.
    return [Need(action, (f"{base}:log-stream:{stream}", f"{base}:*", base) if stream else (f"{base}:*", base))]
