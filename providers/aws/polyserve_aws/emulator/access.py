"""The door of every service: the signature is checked, then the policies.

A request that a real account would refuse for want of a permission is refused here with AWS's own sentence, which
names the principal, the action and the resource.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyserve.emulation.http import Call
from polyserve_aws.emulator.actions import Need, needs
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.identities import Identities, Principal
from polyserve_aws.emulator.policies import Verdict, judge, statements
from polyserve_aws.emulator.services import bucket_policy
from polyserve_aws.emulator.signatures import Signature, check_signature, read_signature


class Access:
    """Decides who may do what.

    Args:
        identities: The account's users, roles and sessions.
    """

    def __init__(self, identities: Identities) -> None:
        self.identities = identities

    def authenticate(self, call: Call, signature: Signature | None = None) -> tuple[Principal, Signature]:
        """Return who signed a request, and what for.

        Args:
            call: The request.
            signature: What it says about its signer, if that was read already.

        Raises:
            ServiceError: Nobody signed it, or not rightly.
        """
        signature = signature or read_signature(call)
        if signature is None:
            raise ServiceError(403, "MissingAuthenticationToken", "Missing Authentication Token")
        return check_signature(call, signature, self.identities), signature

    def permit_service_call(self, call: Call, principal: Principal, signature: Signature) -> None:
        """Let a request for one of moto's services through.

        Raises:
            ServiceError: A policy denies it, or none allows it.
        """
        wanted = needs(call, signature.service, signature.region)
        if signature.service == "sts" and wanted[0].action == "sts:GetCallerIdentity":
            return  # always allowed, whatever the policies say
        for need in wanted:
            self.permit(principal, need, service=signature.service, resource_rules=self._bucket_rules(need))
        if wanted[0].action == "sts:AssumeRole" and not self.identities.trusts(wanted[0].resources[0], principal.arn):
            message = f"User: {principal.arn} is not authorized to perform: sts:AssumeRole on resource: {wanted[0].resources[0]}"
            raise ServiceError(403, "AccessDenied", message)

    def permit(
        self,
        principal: Principal,
        need: Need,
        *,
        service: str,
        context: Mapping[str, str] | None = None,
        resource_rules: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Let a principal do one thing.

        Raises:
            ServiceError: A policy denies it, or none allows it.
        """
        own = judge(principal.rules(), need.action, need.resources, context)
        theirs = judge(resource_rules, need.action, need.resources, context, [principal.arn])
        if Verdict.DENIED not in (own, theirs) and Verdict.ALLOWED in (own, theirs):
            return
        why = (
            "with an explicit deny in a policy"
            if Verdict.DENIED in (own, theirs)
            else f"because no identity-based policy allows the {need.action} action"
        )
        message = (
            f"User: {principal.arn} is not authorized to perform: {need.action} on resource: {need.resources[0]} {why}"
        )
        code = "AccessDenied" if service in {"s3", "iam", "sts", "monitoring"} else "AccessDeniedException"
        raise ServiceError(403, code, message)

    def may(self, principal: Principal, action: str, resource: str) -> bool:
        """Whether the principal's own policies allow an action."""
        return judge(principal.rules(), action, [resource]) is Verdict.ALLOWED

    def _bucket_rules(self, need: Need) -> Sequence[Mapping[str, Any]]:
        if not need.resources[0].startswith("arn:aws:s3:::"):
            return ()
        return statements(bucket_policy(need.resources[0].removeprefix("arn:aws:s3:::").partition("/")[0]))
