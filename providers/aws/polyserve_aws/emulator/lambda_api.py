"""Lambda's API: a request is matched with the service's own model, let through, and given to its operation.

The routes are botocore's, so that every operation that a client can send is known; those that the emulator does not
have are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import botocore.session

from polyserve.emulation.http import Answer, Call
from polyserve_aws.emulator.access import Access
from polyserve_aws.emulator.actions import Need
from polyserve_aws.emulator.asking import Ask
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.functions import Functions
from polyserve_aws.emulator.identities import ACCOUNT, Principal
from polyserve_aws.emulator.signatures import Signature

Operation = Callable[[Ask], Awaitable[Answer]]

# Operations whose permission has another name (Service Authorization Reference, "AWS Lambda").
_ACTIONS = {"Invoke": "InvokeFunction", "InvokeWithResponseStream": "InvokeFunction"}
# Operations that act on no function in particular.
_GLOBAL = frozenset({"ListFunctions", "GetAccountSettings"})
_LABEL = re.compile(r"\\\{(\w+)\\\}")


class LambdaApi:
    """Answers the requests to Lambda's API.

    Args:
        functions: All functions.
        access: Checks policies.
        operations: What the emulator has, by the model's names.
    """

    def __init__(self, functions: Functions, access: Access, operations: Mapping[str, Operation]) -> None:
        self._functions, self._access, self._operations = functions, access, operations
        self._routes: list[tuple[str, re.Pattern[str], str, str]] = []
        model = botocore.session.get_session().get_service_model("lambda")
        for name in model.operation_names:
            http = model.operation_model(name).http
            path, _, query = http["requestUri"].partition("?")
            pattern = re.compile(_LABEL.sub(r"(?P<\1>[^/]+)", re.escape(path)) + "/?")
            self._routes.append((http["method"], pattern, query, name))
        # Of two operations on one path, the one with a fixed query comes first.
        self._routes.sort(key=lambda route: not route[2])

    async def answer(self, call: Call, principal: Principal, signature: Signature) -> Answer:
        """Answer a request that was rightly signed.

        Raises:
            ServiceError: No policy allows it, or the operation refuses it.
        """
        name, labels = self.match(call)
        operation = self._operations.get(name)
        if operation is None:
            message = f"The emulator does not have {name}: try it on a real account."
            raise ServiceError(501, "UnsupportedOperationException", message)
        ask = Ask(
            operation=name, labels=labels, call=call, region=signature.region, principal=principal, access=self._access
        )
        self._permit(ask)
        return await operation(ask)

    def _permit(self, ask: Ask) -> None:
        action = f"lambda:{_ACTIONS.get(ask.operation, ask.operation)}"
        if ask.operation in _GLOBAL:
            self._access.permit(ask.principal, Need(action), service="lambda")
            return
        resource_arn = ask.labels.get("Resource")
        reference = self._functions.read(resource_arn, ask.region) if resource_arn else ask.reference(self._functions)
        base = f"arn:aws:lambda:{reference.region}:{ACCOUNT}:function:{reference.name}"
        resource = f"{base}:{reference.qualifier}" if reference.qualifier else base
        rules: list[Mapping[str, Any]] = []
        if self._functions.has(reference.region, reference.name):
            rules = self._functions.find(reference).rules.get(reference.qualifier, [])
        need = Need(action, (resource,))
        self._access.permit(ask.principal, need, service="lambda", context=_context(ask), resource_rules=rules)

    def match(self, call: Call) -> tuple[str, dict[str, str]]:
        """Return the operation that a request is for, and what its path holds.

        Raises:
            ServiceError: There is no such operation.
        """
        for method, pattern, query, name in self._routes:
            if method != call.method or (query and query not in call.raw_query):
                continue
            found = pattern.fullmatch(call.raw_path)
            if found:
                return name, {label: unquote(value) for label, value in found.groupdict().items()}
        raise ServiceError(404, "UnknownOperationException", f"Lambda has no {call.method} {call.raw_path}")


def _context(ask: Ask) -> dict[str, str]:
    """Return the condition keys of a call that policies of deployers look at (Service Authorization Reference)."""
    keys = {"AuthType": "lambda:functionurlauthtype", "FunctionUrlAuthType": "lambda:functionurlauthtype"}
    keys |= {"Principal": "lambda:principal"}
    found = (
        {key: str(ask.body[name]) for name, key in keys.items() if name in ask.body}
        if ask.operation != "Invoke"
        else {}
    )
    if ask.operation in {"CreateFunction", "TagResource"}:
        found |= {f"aws:requesttag/{name}".lower(): str(value) for name, value in (ask.body.get("Tags") or {}).items()}
    return found
