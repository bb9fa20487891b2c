"""Who there is: users and their keys, roles and their sessions, and which policies are theirs.

moto keeps them; this module is the only one that looks at moto's IAM and STS backends, and it writes nothing but the
operator's own key and the sessions of execution roles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.policies import Verdict, judge, statements

ACCOUNT: str = DEFAULT_ACCOUNT_ID
PARTITION = "aws"
LAMBDA_SERVICE = "lambda.amazonaws.com"
ADMINISTRATOR = "polyserve-operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who may sign requests.

    Attributes:
        arn: `arn:aws:iam::123456789012:user/ann`, or the assumed role with its session.
        key_id: Access key.
        secret: Secret of that key.
        token: Session token; empty for a user's own key.
        owner: The user or role in moto that has the policies.
    """

    arn: str
    key_id: str
    secret: str
    token: str
    owner: Any

    def rules(self) -> list[Mapping[str, Any]]:
        """Return the statements of all policies that this identity has, its groups' included."""
        return [rule for document in _documents(self.owner) for rule in statements(document)]


class Identities:
    """The users, roles and sessions of the account."""

    def find(self, key_id: str) -> Principal | None:
        """Return whose access key this is; `None` where it is nobody's."""
        for user in list(_iam().users.values()):
            for key in list(user.access_keys):
                if key.access_key_id == key_id and key.status == "Active":
                    arn = f"arn:aws:iam::{ACCOUNT}:user{user.path}{user.name}"
                    return Principal(arn=arn, key_id=key_id, secret=key.secret_access_key, token="", owner=user)
        for session in reversed(list(sts_backends[ACCOUNT][PARTITION].assumed_roles)):
            if session.access_key_id == key_id:
                return Principal(
                    arn=session.arn, key_id=key_id, secret=session.secret_access_key, token=session.session_token,
                    owner=_role(session.role_arn),
                )  # fmt: skip
        return None

    def make_administrator(self) -> tuple[str, str]:
        """Make the operator's user, who may do everything; returns his key and its secret."""
        user = _iam().create_user("us-east-1", ADMINISTRATOR)
        user.policies["everything"] = json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        )
        key = user.create_access_key(prefix="AKIA")
        return key.access_key_id, key.secret_access_key

    def check_role(self, arn: str) -> None:
        """Make sure that Lambda can take on an execution role.

        Raises:
            ServiceError: There is no such role, or its trust policy does not name Lambda.
        """
        role = _role(arn)
        refusal = ServiceError(
            400, "InvalidParameterValueException", "The role defined for the function cannot be assumed by Lambda."
        )
        if role is None:
            raise refusal
        if not self.trusts(arn, LAMBDA_SERVICE):
            raise refusal

    def trusts(self, role_arn: str, principal: str) -> bool:
        """Whether the trust policy of a role lets somebody take it on: a service, a user or another role."""
        role = _role(role_arn)
        rules = () if role is None else statements(_text(role.assume_role_policy_document))
        return judge(rules, "sts:AssumeRole", [role_arn], principals=[principal]) is Verdict.ALLOWED

    def assume(self, role_arn: str, session_name: str) -> Principal:
        """Start a session of a role, as Lambda does for an execution environment.

        Raises:
            ServiceError: Lambda cannot take on the role, or no longer can.
        """
        self.check_role(role_arn)
        session = sts_backends[ACCOUNT][PARTITION].assume_role(
            region_name="us-east-1", role_session_name=session_name, role_arn=role_arn, policy="", duration=43200,
            external_id="",
        )  # fmt: skip
        found = self.find(session.access_key_id)
        assert found is not None
        return found

    def end(self, principal: Principal) -> None:
        """End a session: its key is nobody's from now on."""
        sessions = sts_backends[ACCOUNT][PARTITION].assumed_roles
        sessions[:] = [session for session in sessions if session.access_key_id != principal.key_id]

    def role_allows(self, role_arn: str, action: str, resource: str) -> bool:
        """Whether the policies of a role allow an action."""
        rules = [rule for document in _documents(_role(role_arn)) for rule in statements(document)]
        return judge(rules, action, [resource]) is Verdict.ALLOWED


def _iam() -> Any:
    return iam_backends[ACCOUNT][PARTITION]


def _role(arn: str) -> Any:
    return next((role for role in list(_iam().roles.values()) if role.arn == arn), None)


def _text(document: Any) -> str:
    return document if isinstance(document, str) else json.dumps(document)


def _documents(owner: Any) -> list[str]:
    """Return the texts of an owner's inline and attached policies."""
    if owner is None:
        return []
    owners = [owner]
    if hasattr(owner, "access_keys"):
        owners += _iam().get_groups_for_user(owner.name)
    found: list[str] = []
    for one in owners:
        found += [_text(document) for document in list(one.policies.values())]
        for policy in list(one.managed_policies.values()):
            found += [version.document for version in policy.versions if version.is_default]
    return found
