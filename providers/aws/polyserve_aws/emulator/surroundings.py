"""What a function's settings refer to outside of Lambda: subnets, and the key that its variables are encrypted with.

There is no network and no encryption here. What is held to the rules is who may use them, and what the key's state is.

Sources: "Giving Lambda functions access to resources in an Amazon VPC", "Securing Lambda environment variables", Lambda's
developer guide, 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from polyserve_aws.emulator.asking import Ask
from polyserve_aws.emulator.errors import ServiceError, invalid
from polyserve_aws.emulator.identities import Identities
from polyserve_aws.emulator.releases import Settings
from polyserve_aws.emulator.services import state_of_key
from polyserve_aws.emulator.strictness import violation

MOST = {"SubnetIds": 16, "SecurityGroupIds": 5}
"""How many of them a function has at most: VpcConfig in Lambda's API reference, 2026-11."""
_FORMS = {"SubnetIds": re.compile(r"subnet-[0-9a-z]*"), "SecurityGroupIds": re.compile(r"sg-[0-9a-zA-Z]*")}
_CALLERS = ("ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeVpcs")
_UNREADABLE = "Lambda was unable to decrypt the environment variables because the KMS"
_LOOK = "Please check the function's KMS key settings."
_ROLES = ("ec2:CreateNetworkInterface", "ec2:DescribeNetworkInterfaces", "ec2:DeleteNetworkInterface")


def check_surroundings(ask: Ask, settings: Settings, before: Settings | None, identities: Identities) -> None:
    """Refuse subnets and keys that a function cannot use, or that its deployer may not give it.

    Args:
        ask: The call that gives them.
        settings: The settings that it asks for.
        before: Those so far; `None` for a new function.
        identities: What the execution role may do.

    Raises:
        ServiceError: Lambda would refuse it.
    """
    if settings.vpc.get("SubnetIds") and (before is None or before.vpc != settings.vpc):
        _check_network(ask, settings, identities)
    if settings.key and (before is None or before.key != settings.key):
        _check_key(ask, settings.key)


def _check_network(ask: Ask, settings: Settings, identities: Identities) -> None:
    for name, form in _FORMS.items():
        given = list(settings.vpc.get(name) or ())
        wrong = next((each for each in given if not form.fullmatch(each)), None)
        if wrong is not None:
            place = f"vpcConfig.{name[0].lower()}{name[1:]}"
            raise violation(wrong, place, f"satisfy regular expression pattern: {form.pattern}")
        if len(given) > MOST[name]:
            raise violation(
                given, f"vpcConfig.{name[0].lower()}{name[1:]}", f"have length less than or equal to {MOST[name]}"
            )
    for action in _CALLERS:
        ask.permit(action, "*")
    for action in _ROLES:
        if not identities.role_allows(settings.role, action, "*"):
            operation = action.removeprefix("ec2:")
            raise invalid(f"The provided execution role does not have permissions to call {operation} on EC2")


def _check_key(ask: Ask, key: str) -> None:
    if not state_of_key(key):
        raise invalid(
            "Lambda was unable to configure access to your environment variables because the KMS key is invalid for CreateGrant. "
            f"Please check your KMS key settings. KMS Exception: NotFoundException KMS Message: Key '{key}' does not exist"
        )
    for action in ("kms:CreateGrant", "kms:Encrypt"):
        ask.permit(action, key)


def check_readable(settings: Settings) -> None:
    """Make sure that a function's variables can be decrypted for an environment of it.

    Raises:
        ServiceError: The key is disabled, or on its way out.
    """
    state = state_of_key(settings.key) if settings.key else "Enabled"
    if state == "Disabled":
        message = f"{_UNREADABLE} key used is disabled. {_LOOK}"
        raise ServiceError(502, "KMSDisabledException", message)
    if state != "Enabled":
        message = f"{_UNREADABLE} key used is in state {state or 'Deleted'}, which is not valid for Decrypt. {_LOOK}"
        raise ServiceError(502, "KMSInvalidStateException", message)


def shown_to(ask: Ask, settings: Settings, found: dict[str, Any]) -> Mapping[str, Any]:
    """Return a configuration as whoever asks may see it: variables only with the permission to decrypt them."""
    if not settings.key or "Environment" not in found or ask.access.may(ask.principal, "kms:Decrypt", settings.key):
        return found
    message = "Lambda was unable to decrypt your environment variables because the KMS access was denied."
    return found | {"Environment": {"Error": {"ErrorCode": "AccessDeniedException", "Message": message}}}
