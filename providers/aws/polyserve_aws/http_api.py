"""The HTTP API of API Gateway before a function's alias, where calls come through one: API, integration, route, permission, stage.

The API is found by a tag of the function, whatever the options say by then. Its stage is made last: an API that has it is complete.

Sources: https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from polyserve_aws.clients import Clients
from polyserve_aws.names import ALIAS, API_TAG, function_name
from polyserve_aws.observing import Observed
from polyserve_aws.settings import AwsSettings

__all__ = ["ANSWERED_S", "LONGEST_S", "HttpApi"]

_PERMISSION = "polyserve-http-api"
_ROUTE = "$default"
_STAGE = "$default"

LONGEST_S = 30
"""Seconds after which API Gateway gives up: "Quotas for configuring and running an HTTP API" in its developer guide, 2026-11."""
ANSWERED_S = 29.5
"""Seconds within which a function answers behind one, so that its callers are told that the time is over, and by whom."""


class HttpApi:
    """HTTP APIs of functions.

    Args:
        clients: The SDK's clients.
        settings: Whether functions are called by one, and by whom.
    """

    def __init__(self, clients: Clients, settings: AwsSettings) -> None:
        self._clients = clients
        self._settings = settings

    @property
    def _gateway(self) -> Any:
        return self._clients.get("apigatewayv2")

    @property
    def _lambda(self) -> Any:
        return self._clients.get("lambda")

    def open(self, found: Observed) -> None:
        """Make what is missing of the way to a function's alias, and let in whom the settings say."""
        api = self._api(found)
        api_id = api["ApiId"]
        target = self._integration(api_id, f"{found.config['FunctionArn']}:{ALIAS}")
        self._route(api_id, target)
        region, account = found.config["FunctionArn"].split(":")[3:5]
        partition = found.config["FunctionArn"].split(":")[1]
        with suppress(self._lambda.exceptions.ResourceConflictException):
            self._lambda.add_permission(
                FunctionName=function_name(found.name),
                Qualifier=ALIAS,
                StatementId=_PERMISSION,
                Action="lambda:InvokeFunction",
                Principal="apigateway.amazonaws.com",
                SourceArn=f"arn:{partition}:execute-api:{region}:{account}:{api_id}/*",
            )
        if found.url is None:
            try:
                self._gateway.get_stage(ApiId=api_id, StageName=_STAGE)
            except self._gateway.exceptions.NotFoundException:
                self._gateway.create_stage(ApiId=api_id, StageName=_STAGE, AutoDeploy=True)

    def _api(self, found: Observed) -> Mapping[str, Any]:
        """Return the API of a function; it is noted on the function before anything is put into it."""
        name = function_name(found.name)
        if known := found.tags.get(API_TAG):
            with suppress(self._gateway.exceptions.NotFoundException):
                api: Mapping[str, Any] = self._gateway.get_api(ApiId=known)
                return api
        # One of a call that was cut short: names of APIs are not unique, so it would be made twice.
        others = self._named(name, found.labels)
        made: Mapping[str, Any] = (
            others[0] if others else self._gateway.create_api(Name=name, ProtocolType="HTTP", Tags=dict(found.labels))
        )
        self._lambda.tag_resource(Resource=found.config["FunctionArn"], Tags={API_TAG: made["ApiId"]})
        return made

    def _named(self, name: str, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
        pages = self._gateway.get_paginator("get_apis").paginate()
        return [
            api
            for page in pages
            for api in page["Items"]
            if api["Name"] == name and labels.items() <= (api.get("Tags") or {}).items()
        ]

    def _integration(self, api_id: str, arn: str) -> str:
        present = self._gateway.get_integrations(ApiId=api_id)["Items"]
        found = next((each for each in present if each.get("IntegrationUri") == arn), None)
        if found is None:
            found = self._gateway.create_integration(
                ApiId=api_id,
                IntegrationType="AWS_PROXY",
                IntegrationUri=arn,
                PayloadFormatVersion="2.0",
                TimeoutInMillis=LONGEST_S * 1000,
            )
        return f"integrations/{found['IntegrationId']}"

    def _route(self, api_id: str, target: str) -> None:
        wanted = {"AuthorizationType": "NONE" if self._settings.public else "AWS_IAM", "Target": target}
        present = self._gateway.get_routes(ApiId=api_id)["Items"]
        found = next((each for each in present if each["RouteKey"] == _ROUTE), None)
        if found is None:
            self._gateway.create_route(ApiId=api_id, RouteKey=_ROUTE, **wanted)
        elif any(found.get(name) != value for name, value in wanted.items()):
            self._gateway.update_route(ApiId=api_id, RouteId=found["RouteId"], **wanted)

    def close(self, found: Observed) -> None:
        """Take the API of a function away that is called by other means now."""
        if API_TAG not in found.tags:
            return
        self._delete(found.tags[API_TAG])
        with suppress(self._lambda.exceptions.ResourceNotFoundException):
            self._lambda.remove_permission(
                FunctionName=function_name(found.name), Qualifier=ALIAS, StatementId=_PERMISSION
            )
        self._lambda.untag_resource(Resource=found.config["FunctionArn"], TagKeys=[API_TAG])

    def delete(self, name: str) -> bool:
        """Delete the API of a function that is about to go, or is gone; returns whether there was one."""
        function, labels = function_name(name), {"polyserve": name}
        doomed = set()
        with suppress(self._lambda.exceptions.ResourceNotFoundException):
            doomed |= {self._lambda.get_function(FunctionName=function).get("Tags", {}).get(API_TAG)} - {None}
        if self._settings.invoke == "http-api":
            # Also what was made and not noted before a call was cut short.
            doomed |= {api["ApiId"] for api in self._named(function, labels)}
        deleted = [self._delete(api_id) for api_id in sorted(doomed)]
        return any(deleted)

    def _delete(self, api_id: str) -> bool:
        try:
            self._gateway.delete_api(ApiId=api_id)
        except self._gateway.exceptions.NotFoundException:
            return False
        return True
