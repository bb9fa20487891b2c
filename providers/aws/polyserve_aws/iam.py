"""The execution role of a deployment's function, with no permission that it does not need, and the permissions of who deploys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from polyserve.driver import ErrorCode, FunctionSpec
from polyserve_aws.clients import Clients
from polyserve_aws.errors import RevisionError, code_of
from polyserve_aws.names import function_name, log_group, payload_prefix, role_name
from polyserve_aws.settings import AwsSettings

__all__ = ["Roles", "deployer_policy", "execution_policy", "permissions"]

POLICY = "polyserve"
"""Name of the one policy in a role."""

_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}

_NETWORK = (
    # What AWSLambdaVPCAccessExecutionRole has for functions in subnets; none of them knows resources.
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
)


class Roles:
    """Execution roles.

    Args:
        clients: The SDK's clients.
        settings: Whether there is one that exists already.
    """

    def __init__(self, clients: Clients, settings: AwsSettings) -> None:
        self._clients = clients
        self._settings = settings

    def ensure(self, spec: FunctionSpec) -> str:
        """Make the role of a function be what it has to be, and return its ARN; one that was given is left as it is."""
        if self._settings.role_arn:
            return self._settings.role_arn
        iam, name = self._clients.get("iam"), self._name(spec.name)
        try:
            role = iam.get_role(RoleName=name)["Role"]
        except iam.exceptions.NoSuchEntityException:
            role = iam.create_role(
                RoleName=name,
                AssumeRolePolicyDocument=json.dumps(_TRUST),
                Description=f"Runs the function of polyserve deployment {spec.name!r}".replace("'", ""),
                Tags=[{"Key": key, "Value": value} for key, value in spec.labels.items()],
            )["Role"]
        else:
            tags = {tag["Key"]: tag["Value"] for tag in role.get("Tags", ())}
            if not spec.labels.items() <= tags.items():
                message = (
                    f"role {name!r} exists and is not of this deployment: delete it, or give another with role_arn"
                )
                raise RevisionError(ErrorCode.ALREADY_EXISTS, message)
        arn = str(role["Arn"])
        wanted = execution_policy(spec, self._settings, arn=arn, region=self._region)
        if self._policy(name) != wanted:
            iam.put_role_policy(RoleName=name, PolicyName=POLICY, PolicyDocument=json.dumps(wanted))
        return arn

    def _policy(self, name: str) -> Any:
        iam = self._clients.get("iam")
        try:
            document = iam.get_role_policy(RoleName=name, PolicyName=POLICY)["PolicyDocument"]
        except iam.exceptions.NoSuchEntityException:
            return None
        return json.loads(document) if isinstance(document, str) else document

    def delete(self, name: str) -> bool:
        """Delete the role of a function, and return whether there was one."""
        if self._settings.role_arn:
            return False
        iam, role = self._clients.get("iam"), self._name(name)
        try:
            for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]:
                iam.delete_role_policy(RoleName=role, PolicyName=policy)
            iam.delete_role(RoleName=role)
        except iam.exceptions.ClientError as error:
            if code_of(error) != "NoSuchEntity":
                raise
            return False
        return True

    def _name(self, name: str) -> str:
        return role_name(name, self._region)

    @property
    def _region(self) -> str:
        return str(self._clients.get("lambda").meta.region_name)


def execution_policy(spec: FunctionSpec, settings: AwsSettings, *, arn: str, region: str) -> dict[str, Any]:
    """Return what a function may do: write its log, read its model and what is too large for an event, write answers that are.

    Also use its network and its key, where it has them.

    Args:
        spec: The function.
        settings: Its subnets and its key.
        arn: The role's own ARN, which has the partition and the account.
        region: The region.
    """
    _, partition, _, _, account, _ = arn.split(":", 5)
    group = f"arn:{partition}:logs:{region}:{account}:log-group:{log_group(spec.name)}:*"
    statements: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": ["logs:CreateLogStream", "logs:PutLogEvents"], "Resource": group},
    ]
    payloads = f"arn:{partition}:s3:::{spec.artifact.bucket}/{payload_prefix(spec)}*"
    statements.append({"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": payloads})
    places = sorted({f"{model.bucket}/{PurePosixPath(model.key).parent}/*" for model in spec.models})
    if places:
        resources = [f"arn:{partition}:s3:::{place}" for place in places]
        statements.append({"Effect": "Allow", "Action": "s3:GetObject", "Resource": resources})
    if settings.kms_key_id.startswith("arn:"):
        actions = ["kms:Decrypt", "kms:GenerateDataKey"]
        statements.append({"Effect": "Allow", "Action": actions, "Resource": settings.kms_key_id})
    if settings.environment_key_arn:
        statements.append({"Effect": "Allow", "Action": "kms:Decrypt", "Resource": settings.environment_key_arn})
    if settings.subnet_ids:
        statements.append({"Effect": "Allow", "Action": list(_NETWORK), "Resource": "*"})
    return {"Version": "2012-10-17", "Statement": statements}


_BUCKET_ACTIONS = (
    "s3:CreateBucket", "s3:DeleteBucket", "s3:ListBucket", "s3:ListBucketMultipartUploads",
)  # fmt: skip
_OBJECT_ACTIONS = ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject")
_FUNCTION_ACTIONS = (
    "lambda:CreateAlias", "lambda:CreateFunction", "lambda:DeleteFunction", "lambda:DeleteFunctionConcurrency",
    "lambda:DeleteProvisionedConcurrencyConfig", "lambda:GetAlias", "lambda:GetFunction", "lambda:GetFunctionConfiguration",
    "lambda:GetProvisionedConcurrencyConfig", "lambda:InvokeFunction",
    # Without it GetFunction leaves the tags out: its page in Lambda's API reference, 2026-11.
    "lambda:ListTags", "lambda:ListVersionsByFunction",
    "lambda:PutFunctionConcurrency", "lambda:PutProvisionedConcurrencyConfig", "lambda:TagResource", "lambda:UntagResource",
    "lambda:UpdateAlias", "lambda:UpdateFunctionCode", "lambda:UpdateFunctionConfiguration",
)  # fmt: skip
_URL_ACTIONS = ("lambda:CreateFunctionUrlConfig", "lambda:InvokeFunctionUrl", "lambda:UpdateFunctionUrlConfig")
_CLOSING_ACTIONS = ("lambda:DeleteFunctionUrlConfig", "lambda:GetFunctionUrlConfig", "lambda:RemovePermission")
"""What takes away a URL that was there before the options were changed, or makes it a private one."""
_OPENING_ACTIONS = ("lambda:AddPermission",)
_API_ACTIONS = ("apigateway:DELETE", "apigateway:GET", "apigateway:PATCH", "apigateway:POST", "apigateway:TagResource")
_ROLE_ACTIONS = (
    "iam:CreateRole", "iam:DeleteRole", "iam:DeleteRolePolicy", "iam:GetRole", "iam:GetRolePolicy", "iam:ListRolePolicies",
    "iam:PutRolePolicy", "iam:TagRole",
)  # fmt: skip
_LOG_ACTIONS = (
    "logs:CreateLogGroup", "logs:DeleteLogGroup", "logs:DeleteRetentionPolicy", "logs:FilterLogEvents", "logs:PutRetentionPolicy",
    "logs:TagResource",
)  # fmt: skip


def deployer_policy(spec: FunctionSpec, settings: AwsSettings, *, region: str) -> dict[str, Any]:
    """Return the policy document of who deploys, calls, watches and destroys this function, and nothing else.

    The account is `*` in it: which one that is nobody knows before the first call.
    """
    partition = "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
    place = region or "*"
    function = f"arn:{partition}:lambda:{place}:*:function:{function_name(spec.name)}"
    role = settings.role_arn or f"arn:{partition}:iam::*:role/{role_name(spec.name, place)}"
    bucket = f"arn:{partition}:s3:::{spec.artifact.bucket}"

    def allow(actions: Sequence[str], resources: str | list[str], **more: Any) -> Mapping[str, Any]:
        return {"Effect": "Allow", "Action": sorted(actions), "Resource": resources, **more}

    statements = [
        allow(_BUCKET_ACTIONS, bucket),
        allow(_OBJECT_ACTIONS, f"{bucket}/*"),
        allow(_functions_of(settings), [function, f"{function}:*"]),
        allow(("lambda:ListFunctions",), "*"),
        allow(_LOG_ACTIONS, f"arn:{partition}:logs:{place}:*:log-group:{log_group(spec.name)}:*"),
        allow(("iam:PassRole",), role, Condition={"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}),
    ]
    if not settings.role_arn:
        statements.append(allow(_ROLE_ACTIONS, role))
    if settings.invoke == "http-api":
        # Which API it will be nobody knows before it is made.
        gateway = f"arn:{partition}:apigateway:{place}::"
        statements.append(allow(_API_ACTIONS, [f"{gateway}/apis", f"{gateway}/apis/*"]))
        # What is made with tags is tagged in the caller's name, and refusals name the second form, too:
        # https://github.com/aws-cloudformation/cloudformation-coverage-roadmap/issues/997
        tags = [f"{gateway}/tags/*", f"{gateway}{gateway}/tags/*"]
        statements.append(allow(("apigateway:POST", "apigateway:PUT"), tags))
        statements.append(allow(("execute-api:Invoke",), f"arn:{partition}:execute-api:{place}:*:*/$default/*"))
    if settings.subnet_ids:
        statements.append(allow(("ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeVpcs"), "*"))
    if settings.kms_key_id.startswith("arn:"):
        statements.append(allow(("kms:Decrypt", "kms:GenerateDataKey"), settings.kms_key_id))
    if settings.environment_key_arn:
        statements.append(allow(("kms:CreateGrant", "kms:Decrypt", "kms:Encrypt"), settings.environment_key_arn))
    if settings.image_uri:
        # Lambda lets itself read the repository, in the caller's name: "Amazon ECR permissions", developer guide, 2026-11.
        repository = settings.image_uri.partition("@")[0].partition("/")[2]
        images = (
            "ecr:BatchGetImage",
            "ecr:GetDownloadUrlForLayer",
            "ecr:GetRepositoryPolicy",
            "ecr:SetRepositoryPolicy",
        )
        statements.append(allow(images, f"arn:{partition}:ecr:{place}:*:repository/{repository}"))
    return {"Version": "2012-10-17", "Statement": statements}


def permissions(spec: FunctionSpec, settings: AwsSettings) -> Sequence[str]:
    """Return the actions of that policy, each once."""
    found: set[str] = set()
    for statement in deployer_policy(spec, settings, region=settings.region)["Statement"]:
        found.update(statement["Action"])
    return sorted(found)


def _functions_of(settings: AwsSettings) -> Sequence[str]:
    urls = _URL_ACTIONS if settings.invoke == "url" else ()
    opening = _OPENING_ACTIONS if settings.public or settings.invoke == "http-api" else ()
    return (*_FUNCTION_ACTIONS, *urls, *_CLOSING_ACTIONS, *opening)
