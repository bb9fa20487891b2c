"""Functions and their versions: made, changed, published, listed and removed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from polyserve.emulation.http import Answer, json_answer
from polyserve_aws.emulator.asking import Ask, check_settled, page
from polyserve_aws.emulator.describing import account_settings, configuration
from polyserve_aws.emulator.errors import ServiceError, conflict, invalid, missing
from polyserve_aws.emulator.fleet import Fleet
from polyserve_aws.emulator.functions import LATEST, Function, Functions, Version
from polyserve_aws.emulator.identities import ACCOUNT, Identities
from polyserve_aws.emulator.releases import Code, Release, Settings
from polyserve_aws.emulator.services import read_object
from polyserve_aws.emulator.strictness import check_name, check_settings, read_settings
from polyserve_aws.emulator.surroundings import check_surroundings, shown_to
from polyserve_aws.emulator.uploads import Uploads

LOCATION_LIFE_S = 600
"""How long the address of a function's code holds."""


class Control:
    """The operations on functions and versions.

    Args:
        functions: All functions.
        fleet: Their execution environments.
        uploads: Their archives.
        identities: Who may be an execution role.
        pull: Fetches and unpacks an image by its URI and region.
        settle_s: How long a function is Pending, or its update InProgress.
        own_url: Address of the emulator.
    """

    def __init__(
        self,
        functions: Functions,
        fleet: Fleet,
        uploads: Uploads,
        identities: Identities,
        *,
        pull: Callable[[str, str], Code],
        settle_s: float,
        own_url: Callable[[], str],
    ) -> None:
        self._functions, self._fleet, self._uploads, self._identities = functions, fleet, uploads, identities
        self._pull, self._settle_s, self._own_url = pull, settle_s, own_url
        self._locations: dict[str, tuple[float, Code]] = {}
        self.forgotten: list[Callable[[Function], Awaitable[None]]] = []

    def operations(self) -> Mapping[str, Callable[[Ask], Awaitable[Answer]]]:
        """Return the operations by name."""
        return {
            "CreateFunction": self.create,
            "GetFunction": self.get,
            "GetFunctionConfiguration": self.get_configuration,
            "UpdateFunctionCode": self.update_code,
            "UpdateFunctionConfiguration": self.update_configuration,
            "DeleteFunction": self.delete,
            "ListFunctions": self.list_functions,
            "PublishVersion": self.publish,
            "ListVersionsByFunction": self.list_versions,
            "GetAccountSettings": self.account,
        }

    async def create(self, ask: Ask) -> Answer:
        """Make a function."""
        body = ask.body
        name = self._functions.read(str(body.get("FunctionName", "")), ask.region).name
        check_name(name)
        settings = read_settings(body)
        ask.permit("iam:PassRole", settings.role, {"iam:passedtoservice": "lambda.amazonaws.com"})
        if self._functions.has(ask.region, name):
            raise conflict(f"Function already exist: {name}")
        self._identities.check_role(settings.role)
        check_surroundings(ask, settings, None, self._identities)
        if body.get("Tags"):
            ask.permit("lambda:TagResource", f"arn:aws:lambda:{ask.region}:{ACCOUNT}:function:{name}")
        code = await self._take_code(ask, dict(body.get("Code") or {}), settings, "CreateFunction")
        if self._functions.has(ask.region, name):
            raise conflict(f"Function already exist: {name}")
        release = Release(name=name, version=LATEST, region=ask.region, code=code, settings=settings)
        latest = Version(release=release, ready_at=time.monotonic() + self._settle_s)
        function = Function(name=name, region=ask.region, latest=latest, tags=dict(body.get("Tags") or {}))
        self._functions.add(function)
        shown = configuration(function, latest)
        if body.get("Publish"):
            shown = configuration(function, self._publish(function, ""))
        return json_answer(201, shown)

    async def get(self, ask: Ask) -> Answer:
        """Describe a function, with an address from which its code can be fetched."""
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        version = self._exact(function, reference.qualifier)
        code = version.release.code
        if code.archive is not None:
            token = secrets.token_urlsafe(24)
            self._locations[token] = (time.monotonic() + LOCATION_LIFE_S, code)
            shown = {"RepositoryType": "S3", "Location": f"{self._own_url()}/_code/{token}"}
        else:
            shown = {"RepositoryType": "ECR", "ImageUri": code.image_uri, "ResolvedImageUri": code.resolved_uri}
        described = configuration(function, version, qualifier=reference.qualifier)
        found: dict[str, Any] = {"Configuration": shown_to(ask, version.release.settings, described), "Code": shown}
        # "Lambda returns tag data only if you have explicit allow permissions for lambda:ListTags": GetFunction in its API reference.
        if function.tags and ask.access.may(ask.principal, "lambda:ListTags", function.arn()):
            found["Tags"] = function.tags
        if function.reserved is not None:
            found["Concurrency"] = {"ReservedConcurrentExecutions": function.reserved}
        return json_answer(200, found)

    async def get_configuration(self, ask: Ask) -> Answer:
        """Describe a version."""
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        version = self._exact(function, reference.qualifier)
        described = configuration(function, version, qualifier=reference.qualifier)
        return json_answer(200, shown_to(ask, version.release.settings, described))

    async def update_code(self, ask: Ask) -> Answer:
        """Give a function other code."""
        body = ask.body
        function = ask.function(self._functions)
        latest = function.latest
        check_settled(function, latest)
        ask.check_revision(latest.revision_id)
        settings = latest.release.settings
        if "Architectures" in body:
            settings = replace(settings, architecture=body["Architectures"][0])
            check_settings(settings)
        code = await self._take_code(ask, body, settings, "UpdateFunctionCode")
        if body.get("DryRun"):
            trial = Version(release=replace(latest.release, code=code, settings=settings), ready_at=0.0)
            return json_answer(200, configuration(function, trial))
        check_settled(function, latest)
        self._change(latest, replace(latest.release, code=code, settings=settings))
        if body.get("Publish"):
            return json_answer(200, configuration(function, self._publish(function, "")))
        return json_answer(200, configuration(function, latest))

    async def update_configuration(self, ask: Ask) -> Answer:
        """Give a function other settings."""
        function = ask.function(self._functions)
        latest = function.latest
        check_settled(function, latest)
        ask.check_revision(latest.revision_id)
        settings = read_settings(ask.body, latest.release.settings)
        if "Role" in ask.body:
            ask.permit("iam:PassRole", settings.role, {"iam:passedtoservice": "lambda.amazonaws.com"})
            self._identities.check_role(settings.role)
        check_surroundings(ask, settings, latest.release.settings, self._identities)
        self._change(latest, replace(latest.release, settings=settings))
        return json_answer(200, configuration(function, latest))

    async def publish(self, ask: Ask) -> Answer:
        """Make a numbered version of what `$LATEST` is."""
        function = ask.function(self._functions)
        latest = function.latest
        check_settled(function, latest)
        ask.check_revision(latest.revision_id)
        wanted, have = ask.body.get("CodeSha256"), latest.release.code.sha256
        if wanted and wanted != have:
            raise invalid(
                f"CodeSHA256 ({wanted}) is different from current CodeSHA256 in $LATEST ({have}). "
                "Please try again with the CodeSHA256 in $LATEST."
            )
        return json_answer(
            201, configuration(function, self._publish(function, str(ask.body.get("Description") or "")))
        )

    async def delete(self, ask: Ask) -> Answer:
        """Remove a function, or one of its versions."""
        reference = ask.reference(self._functions)
        function = self._functions.find(reference)
        number = reference.qualifier
        if not number:
            self._functions.remove(function)
            for version in function.all_versions():
                self._fleet.retire(version.release)
                if version.before is not None:
                    self._fleet.retire(version.before)
            for forget in self.forgotten:
                await forget(function)
            return Answer(204)
        if number == LATEST:
            raise invalid("$LATEST version cannot be deleted without deleting the function.")
        if not number.isdigit():
            raise invalid("Deletion of aliases is not supported; give the number of a version.")
        numbered = function.versions.get(number)
        if numbered is None:
            return Answer(204)  # as on AWS: what is not there is deleted
        users = sorted(
            alias.name for alias in function.aliases.values() if number == alias.version or number in alias.weights
        )
        if users:
            raise conflict(f"Version was not deleted because the following aliases reference it: [{', '.join(users)}]")
        del function.versions[number]
        self._fleet.retire(numbered.release)
        return Answer(204)

    async def list_functions(self, ask: Ask) -> Answer:
        """List the functions of the region, with every version where that is asked for."""
        every = ask.call.query.get("FunctionVersion") == "ALL"
        shown = [
            configuration(function, version, qualifier=version.release.version if every else "")
            for function in self._functions.of(ask.region)
            for version in (function.all_versions() if every else [function.latest])
        ]
        return json_answer(200, page(shown, ask.call.query, "Functions"))

    async def list_versions(self, ask: Ask) -> Answer:
        """List the versions of a function."""
        function = ask.function(self._functions)
        shown = [
            configuration(function, version, qualifier=version.release.version) for version in function.all_versions()
        ]
        return json_answer(200, page(shown, ask.call.query, "Versions"))

    async def account(self, ask: Ask) -> Answer:
        """Tell the account's limits."""
        return json_answer(200, account_settings(self._functions.of(ask.region)))

    def location(self, token: str) -> bytes:
        """Return the archive behind an address that GetFunction gave out.

        Raises:
            ServiceError: It gave out no such address, or too long ago.
        """
        until, code = self._locations.get(token, (0.0, None))
        if code is None or code.archive is None or time.monotonic() > until:
            raise ServiceError(403, "AccessDenied", "Request has expired")
        return code.archive.read_bytes()

    def _exact(self, function: Function, qualifier: str) -> Version:
        """Return the version that a description is about: an alias means its own, never that of a weight."""
        alias = function.aliases.get(qualifier)
        return function.version(alias.version) if alias else function.resolve(qualifier)

    async def _take_code(self, ask: Ask, given: dict[str, Any], settings: Settings, operation: str) -> Code:
        loop = asyncio.get_running_loop()
        if settings.package_type == "Image":
            uri = given.get("ImageUri")
            if not uri:
                raise invalid("Please provide ImageUri for a function with PackageType Image.")
            return await loop.run_in_executor(None, self._pull, str(uri), ask.region)
        if given.get("ImageUri"):
            raise invalid("Please don't provide ImageUri when updating a function with packageType Zip.")
        if given.get("ZipFile") is not None:
            try:
                data = base64.b64decode(given["ZipFile"], validate=True)
            except (binascii.Error, ValueError):
                raise invalid(
                    "Could not unzip uploaded file. Please check your file, then try to upload again."
                ) from None
            return await loop.run_in_executor(None, lambda: self._uploads.add(data, direct=True, operation=operation))
        bucket, key = given.get("S3Bucket"), given.get("S3Key")
        if not bucket or not key:
            raise invalid("Please provide a source for function code.")
        resource = f"arn:aws:s3:::{bucket}/{key}"
        if not ask.access.may(ask.principal, "s3:GetObject", resource):
            message = (
                "Your access has been denied by S3, please make sure your request credentials have permission to "
                f"GetObject for {bucket}/{key}. S3 Error Code: AccessDenied. S3 Error Message: Access Denied"
            )
            raise ServiceError(403, "AccessDeniedException", message)

        def fetch() -> Code:
            return self._uploads.add(
                read_object(bucket, key, given.get("S3ObjectVersion")), direct=False, operation=operation
            )

        return await loop.run_in_executor(None, fetch)

    def _change(self, version: Version, release: Release) -> None:
        """Start an update: what was there serves until it is done."""
        old = version.release
        version.before, version.release = old, release
        version.ready_at = time.monotonic() + self._settle_s
        version.failed = ""
        version.touch()
        asyncio.get_running_loop().call_later(self._settle_s, self._fleet.retire, old)

    def _publish(self, function: Function, description: str) -> Version:
        latest = function.latest
        newest = function.versions.get(str(function.next_version - 1))
        if newest is not None and _same(newest.release, latest.release):
            return newest  # Lambda publishes nothing where nothing has changed since
        number = str(function.next_version)
        function.next_version += 1
        release = replace(latest.release, version=number)
        version = Version(release=release, ready_at=time.monotonic() + self._settle_s, description=description)
        function.versions[number] = version
        return version


def _same(one: Release, other: Release) -> bool:
    return one.code.sha256 == other.code.sha256 and one.settings == other.settings


def find_version(function: Function, number: str) -> Version:
    """Return a version that an alias is to lead to.

    Raises:
        ServiceError: There is none.
    """
    if number == LATEST or number in function.versions:
        return function.version(number)
    raise missing(f"Function not found: {function.arn(number)}")
