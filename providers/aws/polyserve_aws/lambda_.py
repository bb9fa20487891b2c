"""Lambda as a function platform: a function for each deployment, a published version for each revision.

A revision takes one call where the function is new, else two: settings, then code, which publishes. Between them Lambda has to settle, so
the first `apply` returns when the settings were taken, and says that it wants to be called again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from polyserve.driver import ErrorCode, FunctionSpec, FunctionStatus, LogEvent, Phase, Scaling
from polyserve_aws import iam
from polyserve_aws.clients import Clients
from polyserve_aws.errors import RevisionError, UnsupportedOperationError
from polyserve_aws.http_api import ANSWERED_S, HttpApi
from polyserve_aws.logs import Logs
from polyserve_aws.names import MAX_TAG, MIN_TAG, PREFIX, REMOVED_TAG, Mark, function_name, payload_prefix
from polyserve_aws.observing import Observed, observe, versions_of
from polyserve_aws.obstacles import never_warm, obstacles, storage_mb
from polyserve_aws.settings import AwsSettings
from polyserve_aws.traffic import Traffic

__all__ = ["LambdaPlatform"]

LONGEST_S = 900


class LambdaPlatform:
    """Functions of Lambda. Implements `polyserve.driver.FunctionPlatform`.

    Args:
        clients: The SDK's clients.
        settings: How functions run.
    """

    def __init__(self, clients: Clients, settings: AwsSettings) -> None:
        self._clients = clients
        self._settings = settings
        self._roles = iam.Roles(clients, settings)
        self._logs = Logs(clients, settings)
        self._traffic = Traffic(clients, settings)
        self._api = HttpApi(clients, settings)

    @property
    def _lambda(self) -> Any:
        return self._clients.get("lambda")

    def _observe(self, name: str) -> Observed:
        return observe(self._clients, self._settings, name)

    # --- revisions ------------------------------------------------------------------------------------------------------

    def apply(self, spec: FunctionSpec) -> FunctionStatus:
        """Take the next step to a revision, if there is one to take."""
        if told := self.obstacles(spec):
            raise UnsupportedOperationError("; ".join(told))
        try:
            found = self._observe(spec.name)
        except self._lambda.exceptions.ResourceNotFoundException:
            self._create(spec)
            return self._observe(spec.name).status()
        if not spec.labels.items() <= found.tags.items():
            message = f"function {function_name(spec.name)!r} exists and is not of this deployment: delete it, or choose another name"
            raise RevisionError(ErrorCode.ALREADY_EXISTS, message)
        if (kind := self._package_type) != found.config.get("PackageType", "Zip"):
            raise UnsupportedOperationError(
                f"function {function_name(spec.name)!r} is of package type {found.config['PackageType']}, which Lambda does not "
                f"change to {kind}: destroy the deployment first, or give this one another name"
            )
        if self._step(spec, found):
            found = self._observe(spec.name)
        return found.status()

    def _step(self, spec: FunctionSpec, found: Observed) -> bool:
        """Do what comes next for a revision; returns whether anything was done."""
        published, pending = found.versions.get(spec.revision), found.pending
        begun = published.mark if published else pending if pending and pending.number == spec.revision else None
        if begun is not None and begun.spec != spec.digest():
            raise RevisionError(
                ErrorCode.ALREADY_EXISTS, f"revision {spec.revision} of {spec.name!r} exists and is another"
            )
        if published is not None and published.phase is not Phase.FAILED:
            return self._bound(spec, found)
        if not found.settled:
            if begun is None:
                message = f"function {function_name(spec.name)!r} is being changed: try again"
                raise RevisionError(ErrorCode.UNAVAILABLE, message)
            return False
        function = function_name(spec.name)
        if found.config.get("State") == "Failed" and not any(v.phase is Phase.READY for v in found.versions.values()):
            # What failed when it was made takes no changes.
            self._lambda.delete_function(FunctionName=function)
            self._create(spec)
        elif published is not None:
            self._lambda.delete_function(FunctionName=function, Qualifier=published.name)
            self._begin(spec, found, attempt=published.mark.attempt + 1)
        elif begun is None:
            latest = Mark.read(found.config.get("Description", ""))
            again = latest is not None and latest.number == spec.revision
            self._begin(spec, found, attempt=latest.attempt + 1 if latest and again else 1)
        elif found.config.get("LastUpdateStatus") == "Failed":
            self._begin(spec, found, attempt=begun.attempt + 1)
        else:
            self._publish(spec)
        return True

    def _create(self, spec: FunctionSpec) -> None:
        role = self._roles.ensure(spec)
        self._logs.ensure(spec.name, spec.labels)
        scaling, tags = spec.scaling, dict(spec.labels)
        if scaling.min_instances:
            tags[MIN_TAG] = str(scaling.min_instances)
        if scaling.max_instances is not None:
            # Lambda takes bounds once the function is active; until then they are remembered here.
            tags[MAX_TAG] = str(scaling.max_instances)
        self._lambda.create_function(
            **self._configuration(spec, role, attempt=1),
            Code=self._code(spec),
            PackageType=self._package_type,
            Architectures=[spec.architecture],
            Tags=tags,
            Publish=True,
        )

    def _begin(self, spec: FunctionSpec, found: Observed, *, attempt: int) -> None:
        role = self._roles.ensure(spec)
        self._logs.ensure(spec.name, spec.labels)
        wanted = self._configuration(spec, role, attempt=attempt)
        if "VpcConfig" not in wanted and (found.config.get("VpcConfig") or {}).get("SubnetIds"):
            wanted["VpcConfig"] = {"SubnetIds": [], "SecurityGroupIds": []}
        if "KMSKeyArn" not in wanted and found.config.get("KMSKeyArn"):
            wanted["KMSKeyArn"] = ""
        if "SnapStart" not in wanted and (found.config.get("SnapStart") or {}).get("ApplyOn", "None") != "None":
            wanted["SnapStart"] = {"ApplyOn": "None"}
        self._lambda.update_function_configuration(**wanted)
        if found.tags.get(REMOVED_TAG) == str(spec.revision):
            self._lambda.untag_resource(Resource=found.config["FunctionArn"], TagKeys=[REMOVED_TAG])

    def _publish(self, spec: FunctionSpec) -> None:
        self._lambda.update_function_code(
            FunctionName=function_name(spec.name),
            Architectures=[spec.architecture],
            Publish=True,
            **self._code(spec),
        )

    def _bound(self, spec: FunctionSpec, found: Observed) -> bool:
        """Set the bounds that a function was made with, once it takes them."""
        if found.unbounded is None or not found.settled:
            return False
        self._lambda.put_function_concurrency(
            FunctionName=function_name(spec.name), ReservedConcurrentExecutions=found.unbounded
        )
        return True

    @property
    def _package_type(self) -> str:
        return "Image" if self._settings.image_uri else "Zip"

    def _code(self, spec: FunctionSpec) -> dict[str, str]:
        if self._settings.image_uri:
            return {"ImageUri": self._settings.image_uri}
        return {"S3Bucket": spec.artifact.bucket, "S3Key": spec.artifact.key}

    def _configuration(self, spec: FunctionSpec, role: str, *, attempt: int) -> dict[str, Any]:
        settings = self._settings
        wanted: dict[str, Any] = {
            "FunctionName": function_name(spec.name),
            "Description": str(Mark.of(spec, attempt)),
            "Role": role,
            "MemorySize": spec.memory_mb,
            # A second more than the entrypoint takes: it says itself that the time is over.
            "Timeout": min(math.ceil(spec.timeout.total_seconds()) + 1, LONGEST_S),
            "Environment": {"Variables": self._environment(spec)},
            "EphemeralStorage": {"Size": storage_mb(spec, settings)},
        }
        if not settings.image_uri:
            wanted |= {"Runtime": f"python{spec.python}", "Handler": f"{spec.entrypoint}.handler"}
        if settings.subnet_ids:
            wanted["VpcConfig"] = {
                "SubnetIds": list(settings.subnet_ids), "SecurityGroupIds": list(settings.security_group_ids),
            }  # fmt: skip
        if settings.environment_key_arn:
            wanted["KMSKeyArn"] = settings.environment_key_arn
        if settings.snapstart:
            wanted["SnapStart"] = {"ApplyOn": "PublishedVersions"}
        return wanted

    def _environment(self, spec: FunctionSpec) -> dict[str, str]:
        seconds = spec.timeout.total_seconds()
        if self._settings.invoke == "http-api":
            seconds = min(seconds, ANSWERED_S)
        own = {
            "POLYSERVE_REVISION": str(spec.revision),
            "POLYSERVE_REQUEST_BYTES": str(spec.request_bytes),
            "POLYSERVE_TIMEOUT_S": f"{seconds:g}",
            "POLYSERVE_PAYLOADS": f"{spec.artifact.bucket}/{payload_prefix(spec)}",
        }
        if spec.models:
            first = spec.models[0]
            own["POLYSERVE_MODELS"] = f"{first.bucket}/{first.key.removesuffix(first.sha256)}"
        return {**spec.environment, **own}

    # --- everything else ------------------------------------------------------------------------------------------------

    def describe(self, name: str) -> FunctionStatus:
        """Describe a function."""
        return self._observe(name).status()

    def list(self, *, labels: Mapping[str, str]) -> Iterator[FunctionStatus]:
        """Yield the functions that carry all these labels, by name."""
        pages = self._lambda.get_paginator("list_functions").paginate()
        names = sorted(each["FunctionName"] for page in pages for each in page["Functions"])
        for name in names:
            if not name.startswith(PREFIX):
                continue
            # One that was deleted since.
            with suppress(self._lambda.exceptions.ResourceNotFoundException):
                status = self.describe(name.removeprefix(PREFIX))
                if labels.items() <= status.labels.items():
                    yield status

    def route(self, name: str, weights: Mapping[int, int]) -> None:
        """Set the percent of traffic by revision; an alias knows two versions at most."""
        self._traffic.route(self._observe(name), weights)

    def scale(self, name: str, scaling: Scaling) -> None:
        """Reserve concurrency, and provision it on the alias once there is one."""
        if told := never_warm(scaling, self._settings):
            raise UnsupportedOperationError(told)
        self._traffic.scale(self._observe(name), scaling)

    def logs(self, name: str, *, since: datetime | None) -> Iterator[LogEvent]:
        """Yield what the function wrote, oldest first; CloudWatch has it some seconds after."""
        versions = {version.name: number for number, version in versions_of(self._lambda, function_name(name)).items()}
        return self._logs.read(name, since=since, versions=versions)

    def remove_revision(self, name: str, number: int) -> None:
        """Delete one revision that has no traffic."""
        found = self._observe(name)
        version = found.versions.get(number)
        begun = found.pending is not None and found.pending.number == number
        if version is None and not begun:
            raise RevisionError(ErrorCode.NOT_FOUND, f"{name!r} has no revision {number}")
        if found.weights().get(number):
            raise RevisionError(
                ErrorCode.FAILED_PRECONDITION, f"revision {number} of {name!r} has traffic: route it elsewhere first"
            )
        latest = Mark.read(found.config.get("Description", ""))
        if latest is not None and latest.number == number:
            # Without its version it would look like one that is on its way.
            self._lambda.tag_resource(Resource=found.config["FunctionArn"], Tags={REMOVED_TAG: str(number)})
        if version is not None:
            self._lambda.delete_function(FunctionName=function_name(name), Qualifier=version.name)

    def delete(self, name: str) -> None:
        """Delete a function with its versions, alias, URL or HTTP API, log and role; what a delete left that was cut short goes, too."""
        missing: Exception | None = None
        # The API first: the function says which one it is.
        opened = self._api.delete(name)
        try:
            self._lambda.delete_function(FunctionName=function_name(name))
        except self._lambda.exceptions.ResourceNotFoundException as error:
            missing = error
        # The role last: until then its function can be found by it.
        logged = self._logs.delete(name)
        if not self._roles.delete(name) and not logged and not opened and missing is not None:
            raise missing

    def obstacles(self, spec: FunctionSpec, *, split: bool = False) -> Sequence[str]:
        """Return why a revision cannot be under these settings."""
        return obstacles(spec, self._settings)

    def permissions(self, spec: FunctionSpec) -> Sequence[str]:
        """Return the actions that the caller must be allowed."""
        return iam.permissions(spec, self._settings)

    def policy(self, spec: FunctionSpec) -> Mapping[str, Any]:
        """Return the IAM policy document of who deploys this."""
        return iam.deployer_policy(spec, self._settings, region=self._settings.region)
