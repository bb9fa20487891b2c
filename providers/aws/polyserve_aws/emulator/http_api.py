"""HTTP APIs of API Gateway: requests are matched with routes and passed on to functions.

moto has the control plane. Each API has a port of its own on 127.0.0.1, which stands for its host name in
`ApiEndpoint`. Lambda proxy integrations with payload format 2.0 are served; whatever else an API can have is answered
with the name of what is missing.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from polyserve.emulation.http import Answer, Call, json_answer
from polyserve_aws.emulator.access import Access
from polyserve_aws.emulator.actions import Need
from polyserve_aws.emulator.errors import ServiceError
from polyserve_aws.emulator.events import make_event, read_response
from polyserve_aws.emulator.functions import Functions
from polyserve_aws.emulator.identities import ACCOUNT
from polyserve_aws.emulator.invoking import Invoking
from polyserve_aws.emulator.policies import Verdict, judge
from polyserve_aws.emulator.services import find_api, list_apis

PAYLOAD_LIMIT = 10 * 1024 * 1024
"""Largest request through an HTTP API, in bytes (API Gateway quotas, read 2026-11-20)."""
GATEWAY = "apigateway.amazonaws.com"
_ENDPOINT = re.compile(rb"https://([a-z]{8})\.execute-api\.[a-z0-9-]+\.amazonaws\.com")
_INVOCATIONS = re.compile(r"arn:aws:apigateway:[a-z0-9-]+:lambda:path/2015-03-31/functions/(.+)/invocations")
Handler = Callable[[Call], Awaitable[Answer]]


class HttpApis:
    """The data plane of all HTTP APIs.

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
        self._ports: dict[str, int] = {}

    def check(self, call: Call) -> None:
        """Refuse what the control plane would take and the data plane cannot honour.

        Raises:
            ServiceError: The call wants an API that is not an HTTP API, or made in one step.
        """
        if call.method == "POST" and call.path.rstrip("/") == "/v2/apis":
            if call.json.get("protocolType") != "HTTP":
                raise ServiceError(501, "BadRequestException", "The emulator has HTTP APIs only, none for WebSockets.")
            if call.json.get("target"):
                message = "The emulator does not make APIs in one step: leave Target out, and make integration, route and stage."
                raise ServiceError(501, "BadRequestException", message)

    async def follow(self, answer: Answer) -> Answer:
        """Give every API its port, and name the port in an answer of the control plane."""
        there = {api_id for _, api_id in list_apis()}
        for api_id in there - self._ports.keys():
            self._ports[api_id] = await self._listen(self._handler(api_id))
        for api_id in self._ports.keys() - there:
            await self._close(self._ports.pop(api_id))

        def local(found: re.Match[bytes]) -> bytes:
            port = self._ports.get(found[1].decode())
            return found[0] if port is None else f"http://127.0.0.1:{port}".encode()

        headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
        return replace(answer, headers=headers, body=_ENDPOINT.sub(local, answer.body))

    def _handler(self, api_id: str) -> Handler:
        async def handle(call: Call) -> Answer:
            try:
                return await self._answer(api_id, call)
            except ServiceError as error:
                return json_answer(error.status, {"message": error.message}, apigw_requestid=str(uuid.uuid4()))

        return handle

    async def _answer(self, api_id: str, call: Call) -> Answer:
        found = find_api(api_id)
        if found is None:
            raise ServiceError(404, "NotFoundException", "Not Found")
        region, api = found
        if len(call.body) > PAYLOAD_LIMIT:
            raise ServiceError(413, "RequestTooLarge", "Request Too Large")
        stage, path = _stage(api, call.path)
        route, parameters = _route(api, call.method, path)
        if stage is None or route is None:
            raise ServiceError(404, "NotFoundException", "Not Found")
        arn = f"arn:aws:execute-api:{region}:{ACCOUNT}:{api_id}/{stage}/{call.method}{path}"
        context = self._authorize(route, call, arn)
        qualified = _function_of(api, route)
        reference = self._functions.read(qualified, region)
        failure = ServiceError(500, "InternalServerError", "Internal Server Error")
        if not self._functions.has(reference.region, reference.name):
            raise failure
        function = self._functions.find(reference)
        rules = function.rules.get(reference.qualifier, [])
        source = {"aws:sourcearn": arn, "aws:sourceaccount": ACCOUNT}
        resources = [function.arn(reference.qualifier)]
        if judge(rules, "lambda:InvokeFunction", resources, source, [GATEWAY]) is not Verdict.ALLOWED:
            raise failure  # API Gateway tells its callers no more than that, either
        request_id = str(uuid.uuid4())
        event = make_event(
            call,
            api_id=api_id,
            host=call.headers.get("Host", ""),
            request_id=request_id,
            context={"accountId": ACCOUNT, "stage": stage, "routeKey": route.route_key, **context},
            routeKey=route.route_key,
            **({"pathParameters": parameters} if parameters else {}),
        )
        outcome = await self._invoking.run(function, reference.qualifier, event)
        if outcome.error:
            raise failure
        try:
            answer = read_response(outcome.payload)
        except ValueError:
            raise failure from None
        return Answer(answer.status, {**answer.headers, "apigw-requestid": request_id}, answer.body)

    def _authorize(self, route: Any, call: Call, arn: str) -> dict[str, Any]:
        kind = route.authorization_type or "NONE"
        if kind == "NONE":
            return {}
        if kind != "AWS_IAM":
            raise ServiceError(501, "NotImplemented", f"The emulator has no {kind} authorizers, only AWS_IAM.")
        try:
            principal, signature = self._access.authenticate(call)
            if signature.service != "execute-api":
                raise ServiceError(403, "Forbidden", "Credential should be scoped to correct service: 'execute-api'.")
            self._access.permit(principal, Need("execute-api:Invoke", (arn,)), service="execute-api")
        except ServiceError as error:
            raise ServiceError(403, error.code, "Forbidden") from error
        iam = {
            "accessKey": principal.key_id,
            "accountId": ACCOUNT,
            "userArn": principal.arn,
            "userId": principal.key_id,
        }
        return {"authorizer": {"iam": iam}}


def _stage(api: Any, path: str) -> tuple[str | None, str]:
    """Return the stage that a path leads to, and the path within it."""
    first = path.lstrip("/").partition("/")[0]
    if first in api.stages:
        return first, path.removeprefix(f"/{first}") or "/"
    return ("$default", path) if "$default" in api.stages else (None, path)


def _route(api: Any, method: str, path: str) -> tuple[Any, dict[str, str]]:
    """Return the most specific route for a request: whole paths before greedy ones, methods before ANY."""
    best: tuple[int, Any, dict[str, str]] | None = None
    for route in api.routes.values():
        if route.route_key == "$default":
            rank, parameters = 0, {}
        else:
            wanted, _, pattern = route.route_key.partition(" ")
            found = _path_pattern(pattern).fullmatch(path)
            if found is None or wanted not in {method, "ANY"}:
                continue
            rank = 1 + (wanted != "ANY") + 2 * ("+}" not in pattern) + 4 * ("{" not in pattern)
            parameters = {name: value for name, value in found.groupdict().items() if value is not None}
        if best is None or rank > best[0]:
            best = (rank, route, parameters)
    return (None, {}) if best is None else (best[1], best[2])


def _path_pattern(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern)
    text = re.sub(r"\\\{(\w+)\\\+\\\}", r"(?P<\1>.+)", text)
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", text))


def _function_of(api: Any, route: Any) -> str:
    integration = api.integrations.get((route.target or "").removeprefix("integrations/"))
    if integration is None:
        raise ServiceError(500, "InternalServerError", "Internal Server Error")
    if integration.integration_type != "AWS_PROXY" or integration.payload_format_version != "2.0":
        message = "The emulator serves AWS_PROXY integrations with payload format version 2.0 only."
        raise ServiceError(501, "NotImplemented", message)
    uri = str(integration.integration_uri)
    found = _INVOCATIONS.fullmatch(uri)
    return found[1] if found else uri
