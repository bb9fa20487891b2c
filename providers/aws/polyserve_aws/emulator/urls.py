"""Function URLs: their settings, and the requests that come in through them.

On AWS each has a host name of its own. Here each has a port of its own on 127.0.0.1, so that clients need no name
server and paths stay as they are.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_aws.emulator.access import Access
from polyserve_aws.emulator.asking import Ask
from polyserve_aws.emulator.describing import url_configuration
from polyserve_aws.emulator.errors import ServiceError, conflict, invalid, missing
from polyserve_aws.emulator.events import make_event, read_response
from polyserve_aws.emulator.functions import LATEST, Function, Functions, UrlConfig, stamp
from polyserve_aws.emulator.identities import ACCOUNT, Principal
from polyserve_aws.emulator.invoking import REQUEST_LIMIT, Invoking
from polyserve_aws.emulator.policies import Verdict, judge

Handler = Callable[[Call], Awaitable[Answer]]


class Urls:
    """The operations on function URLs, and their data plane.

    Args:
        functions: All functions.
        invoking: Runs them.
        access: Checks signatures and policies.
        listen: Opens a listener for a handler; returns its port.
        close: Closes the listener on a port.
    """

    def __init__(
        self,
        functions: Functions,
        invoking: Invoking,
        access: Access,
        *,
        listen: Callable[[Handler], Awaitable[int]],
        close: Callable[[int], Awaitable[None]],
    ) -> None:
        self._functions, self._invoking, self._access = functions, invoking, access
        self._listen, self._close = listen, close

    def operations(self) -> Mapping[str, Callable[[Ask], Awaitable[Answer]]]:
        """Return the operations by name."""
        return {
            "CreateFunctionUrlConfig": self.create,
            "GetFunctionUrlConfig": self.get,
            "UpdateFunctionUrlConfig": self.update,
            "DeleteFunctionUrlConfig": self.delete,
            "ListFunctionUrlConfigs": self.list_urls,
        }

    async def create(self, ask: Ask) -> Answer:
        """Give a function or an alias an address."""
        function, qualifier = self._found(ask)
        if qualifier in function.urls:
            raise conflict(
                f"Failed to create function url config for [functionArn = {function.arn(qualifier)}]. "
                "Error message:  FunctionUrlConfig exists for this Lambda function"
            )
        auth_type, invoke_mode = _modes(ask.body, "NONE", "BUFFERED")
        config = UrlConfig(
            url_id=secrets.token_hex(16), url="", auth_type=auth_type, cors=dict(ask.body.get("Cors") or {}), invoke_mode=invoke_mode,
            qualifier=qualifier,
        )  # fmt: skip

        async def handle(call: Call) -> Answer:
            return await self._answer(function, config, call)

        function.urls[qualifier] = config
        config.url = f"http://127.0.0.1:{await self._listen(handle)}/"
        return json_answer(201, url_configuration(function, config))

    async def get(self, ask: Ask) -> Answer:
        """Describe an address."""
        function, qualifier = self._found(ask)
        return json_answer(200, url_configuration(function, _config(function, qualifier)))

    async def update(self, ask: Ask) -> Answer:
        """Change who may use an address, and how."""
        function, qualifier = self._found(ask)
        config = _config(function, qualifier)
        config.auth_type, config.invoke_mode = _modes(ask.body, config.auth_type, config.invoke_mode)
        config.cors = dict(ask.body.get("Cors") or config.cors)
        config.modified = stamp()
        return json_answer(200, url_configuration(function, config))

    async def delete(self, ask: Ask) -> Answer:
        """Take an address away."""
        function, qualifier = self._found(ask)
        config = _config(function, qualifier)
        del function.urls[qualifier]
        await self._close(_port(config))
        return Answer(204)

    async def list_urls(self, ask: Ask) -> Answer:
        """List the addresses of a function."""
        function = ask.function(self._functions)
        shown = [url_configuration(function, config) for config in function.urls.values()]
        return json_answer(200, {"FunctionUrlConfigs": shown})

    async def forget(self, function: Function) -> None:
        """Close the addresses of a function that is gone."""
        for config in function.urls.values():
            await self._close(_port(config))

    def _found(self, ask: Ask) -> tuple[Function, str]:
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        qualifier = "" if reference.qualifier == LATEST else reference.qualifier
        if qualifier and qualifier not in function.aliases:
            if qualifier.isdigit():
                raise invalid("Function URLs are for $LATEST and for aliases, not for versions.")
            raise missing(f"Function not found: {function.arn(qualifier)}")
        return function, qualifier

    async def _answer(self, function: Function, config: UrlConfig, call: Call) -> Answer:
        """Answer one request to an address."""
        try:
            context = self._authorize(function, config, call)
            if len(call.body) > REQUEST_LIMIT:
                return json_answer(413, {"Message": "Request Too Long"})
            event = make_event(
                call,
                api_id=config.url_id,
                host=call.headers.get("Host", ""),
                request_id=str(uuid.uuid4()),
                context=context,
            )
            outcome = await self._invoking.run(function, config.qualifier, event)
        except ServiceError as error:
            return _refusal(error)
        headers = {"x-amzn-requestid": outcome.request_id}
        if outcome.error:
            # The function's own message stays in its log, as on AWS.
            fields = {"content-type": "application/json", "x-amzn-errortype": "InternalServerErrorException", **headers}
            return Answer(502, fields, b"Internal Server Error")
        try:
            answer = read_response(outcome.payload)
        except ValueError:
            return Answer(502, {"content-type": "application/json", **headers}, b"Internal Server Error")
        return Answer(answer.status, {**headers, **answer.headers}, answer.body)

    def _authorize(self, function: Function, config: UrlConfig, call: Call) -> dict[str, Any]:
        """Let a request through, and return what the event says about its sender.

        Both actions are needed since October 2025 ("Control access to Lambda function URLs", Lambda's developer guide).
        """
        principal: Principal | None = None
        if config.auth_type == "AWS_IAM":
            principal, signature = self._access.authenticate(call)
            if signature.service != "lambda" or signature.region != function.region:
                raise ServiceError(
                    403, "InvalidSignatureException", "Credential should be scoped to a valid region and service."
                )
        context = {"lambda:functionurlauthtype": config.auth_type, "lambda:invokedviafunctionurl": "true"}
        rules = function.rules.get(config.qualifier, [])
        resource = [function.arn(config.qualifier)]
        for action in ("lambda:InvokeFunctionUrl", "lambda:InvokeFunction"):
            theirs = judge(rules, action, resource, context, [principal.arn if principal else "*"])
            own = judge(principal.rules(), action, resource, context) if principal else Verdict.SILENT
            if Verdict.DENIED in (own, theirs) or Verdict.ALLOWED not in (own, theirs):
                raise ServiceError(403, "AccessDeniedException", f"Forbidden: {action} is not allowed on {resource[0]}")
        if principal is None:
            return {}
        iam = {
            "accessKey": principal.key_id,
            "accountId": ACCOUNT,
            "callerId": principal.key_id,
            "cognitoIdentity": None,
        }
        return {
            "accountId": ACCOUNT,
            "authorizer": {"iam": iam | {"userArn": principal.arn, "userId": principal.key_id}},
        }


def _config(function: Function, qualifier: str) -> UrlConfig:
    found = function.urls.get(qualifier)
    if found is None:
        raise missing("The resource you requested does not exist.")
    return found


def _modes(body: Mapping[str, Any], auth_type: str, invoke_mode: str) -> tuple[str, str]:
    auth_type, invoke_mode = body.get("AuthType", auth_type), body.get("InvokeMode", invoke_mode)
    if auth_type not in {"AWS_IAM", "NONE"}:
        raise ServiceError(400, "ValidationException", f"AuthType {auth_type} is neither AWS_IAM nor NONE.")
    if invoke_mode not in {"BUFFERED", "RESPONSE_STREAM"}:
        raise ServiceError(
            400, "ValidationException", f"InvokeMode {invoke_mode} is neither BUFFERED nor RESPONSE_STREAM."
        )
    return auth_type, invoke_mode


def _port(config: UrlConfig) -> int:
    return int(config.url.rstrip("/").rpartition(":")[2])


def _refusal(error: ServiceError) -> Answer:
    """Return a refusal in the words of a function URL, which say less than Lambda's API."""
    text = {403: "Forbidden", 429: "Too Many Requests", 404: "Not Found"}.get(error.status, error.message)
    if error.code == "AccessDeniedException":
        text = f"{text}. For troubleshooting Function URL authorization issues, see: https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"
    elif error.status == 403:
        text = error.message
    return json_answer(error.status, {"Message": text}, x_amzn_errortype=error.code)
