"""What hangs on a function besides its versions: its resource policy, its tags, how its events are retried."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_aws.emulator.asking import Ask
from polyserve_aws.emulator.errors import conflict, invalid, missing
from polyserve_aws.emulator.functions import Function, Functions

_ACTION = re.compile(r"lambda:[*]|lambda:[a-zA-Z]+|[*]")


class Grants:
    """The operations on policies, tags and event settings.

    Args:
        functions: All functions.
    """

    def __init__(self, functions: Functions) -> None:
        self._functions = functions

    def operations(self) -> Mapping[str, Callable[[Ask], Awaitable[Answer]]]:
        """Return the operations by name."""
        return {
            "AddPermission": self.add_permission,
            "GetPolicy": self.get_policy,
            "RemovePermission": self.remove_permission,
            "TagResource": self.tag,
            "UntagResource": self.untag,
            "ListTags": self.list_tags,
            "PutFunctionEventInvokeConfig": self.put_event_config,
            "GetFunctionEventInvokeConfig": self.get_event_config,
            "DeleteFunctionEventInvokeConfig": self.delete_event_config,
        }

    async def add_permission(self, ask: Ask) -> Answer:
        """Let somebody else invoke a function."""
        function, qualifier, body = *self._found(ask), ask.body
        ask.check_revision(function.rules_revision)
        rules = function.rules.setdefault(qualifier, [])
        statement_id = str(body["StatementId"])
        if any(rule["Sid"] == statement_id for rule in rules):
            raise conflict(
                f"The statement id ({statement_id}) provided already exists. Please provide a new statement id, or "
                "remove the existing statement."
            )
        if not _ACTION.fullmatch(str(body["Action"])):
            raise invalid(f"The action {body['Action']} is no action of Lambda.")
        rule = {
            "Sid": statement_id,
            "Effect": "Allow",
            "Principal": _principal(str(body["Principal"])),
            "Action": body["Action"],
            "Resource": function.arn(qualifier),
        }
        conditions = _conditions(body)
        if conditions:
            rule["Condition"] = conditions
        rules.append(rule)
        function.rules_revision = str(uuid.uuid4())
        return json_answer(201, {"Statement": json.dumps(rule)})

    async def get_policy(self, ask: Ask) -> Answer:
        """Return the resource policy."""
        function, qualifier = self._found(ask)
        rules = function.rules.get(qualifier)
        if not rules:
            raise missing("The resource you requested does not exist.")
        document = json.dumps({"Version": "2012-10-17", "Id": "default", "Statement": rules})
        return json_answer(200, {"Policy": document, "RevisionId": function.rules_revision})

    async def remove_permission(self, ask: Ask) -> Answer:
        """Take a permission back."""
        function, qualifier = self._found(ask)
        ask.check_revision(function.rules_revision)
        rules = function.rules.get(qualifier, [])
        kept = [rule for rule in rules if rule["Sid"] != ask.labels["StatementId"]]
        if len(kept) == len(rules):
            raise missing(f"Statement {ask.labels['StatementId']} is not found in resource policy.")
        function.rules[qualifier] = kept
        function.rules_revision = str(uuid.uuid4())
        return Answer(204)

    async def tag(self, ask: Ask) -> Answer:
        """Add tags to a function."""
        function = self._tagged(ask)
        tags = function.tags | {str(name): str(value) for name, value in ask.body["Tags"].items()}
        if len(tags) > 50:
            raise invalid("The number of tags exceeds the limit of 50.")
        function.tags = tags
        return Answer(204)

    async def untag(self, ask: Ask) -> Answer:
        """Take tags from a function."""
        from urllib.parse import parse_qs

        function = self._tagged(ask)
        for name in parse_qs(ask.call.raw_query).get("tagKeys", []):
            function.tags.pop(name, None)
        return Answer(204)

    async def list_tags(self, ask: Ask) -> Answer:
        """Return the tags of a function."""
        return json_answer(200, {"Tags": self._tagged(ask).tags})

    async def put_event_config(self, ask: Ask) -> Answer:
        """Say how events that wait are retried."""
        function, qualifier = self._found(ask)
        function.event_config[qualifier] = {
            name: ask.body[name] for name in ("MaximumRetryAttempts", "MaximumEventAgeInSeconds") if name in ask.body
        }
        return await self.get_event_config(ask)

    async def get_event_config(self, ask: Ask) -> Answer:
        """Tell how events that wait are retried."""
        function, qualifier = self._found(ask)
        config: dict[str, Any] | None = function.event_config.get(qualifier)
        if config is None:
            raise missing(f"The function {function.arn(qualifier or '$LATEST')} doesn't have an EventInvokeConfig")
        return json_answer(200, {"FunctionArn": function.arn(qualifier or "$LATEST"), "LastModified": 0.0} | config)

    async def delete_event_config(self, ask: Ask) -> Answer:
        """Go back to two retries."""
        function, qualifier = self._found(ask)
        function.event_config.pop(qualifier, None)
        return Answer(204)

    def _found(self, ask: Ask) -> tuple[Function, str]:
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        if reference.qualifier:
            function.resolve(reference.qualifier)
        return function, reference.qualifier

    def _tagged(self, ask: Ask) -> Function:
        return self._functions.find(self._functions.read(ask.labels["Resource"], ask.region))


def _principal(text: str) -> Any:
    if text == "*":
        return "*"
    if text.isdigit():
        return {"AWS": f"arn:aws:iam::{text}:root"}
    return {"AWS": text} if text.startswith("arn:") else {"Service": text}


def _conditions(body: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    if body.get("SourceArn"):
        found["ArnLike"] = {"AWS:SourceArn": str(body["SourceArn"])}
    if body.get("SourceAccount"):
        found["StringEquals"] = {"AWS:SourceAccount": str(body["SourceAccount"])}
    if body.get("FunctionUrlAuthType"):
        found.setdefault("StringEquals", {})["lambda:FunctionUrlAuthType"] = str(body["FunctionUrlAuthType"])
    if body.get("InvokedViaFunctionUrl") is not None:
        found["Bool"] = {"lambda:InvokedViaFunctionUrl": str(body["InvokedViaFunctionUrl"]).lower()}
    return found
