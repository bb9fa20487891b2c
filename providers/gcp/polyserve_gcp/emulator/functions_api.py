"""The Cloud Functions API: `google.cloud.functions.v2.FunctionService`.

A function is source that is built, and a Cloud Run service of its name that runs what was built: who may invoke it is in
the policy of that service. What is said here about its state after an update that failed is from the proto's comments.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.cloud import functions_v2
from google.iam.v1 import iam_policy_pb2
from google.protobuf import empty_pb2, json_format

from polyserve_gcp.emulator.access import Access
from polyserve_gcp.emulator.asking import Ask, Handler, admit, split_name
from polyserve_gcp.emulator.building import FAILED, BuildError, Images
from polyserve_gcp.emulator.errors import ServiceError, invalid
from polyserve_gcp.emulator.function_rules import FIXED, check_function_id, complete, make_service
from polyserve_gcp.emulator.identities import Principal
from polyserve_gcp.emulator.installing import RUNTIMES
from polyserve_gcp.emulator.log_filters import parse_filter
from polyserve_gcp.emulator.masks import replace_fields
from polyserve_gcp.emulator.methods import IAM, plain
from polyserve_gcp.emulator.operations import Operations
from polyserve_gcp.emulator.run_api import check_account, cut_page, show_policy
from polyserve_gcp.emulator.run_rules import complete as complete_service
from polyserve_gcp.emulator.services import Service, Services
from polyserve_gcp.emulator.storage import Storage

FUNCTIONS = "google.cloud.functions.v2.FunctionService"
_STATE = functions_v2.Function.State
_KIND = functions_v2.OperationType


@dataclass(slots=True, eq=False, kw_only=True)
class Function:
    """One function.

    Attributes:
        name: `projects/p/locations/l/functions/f`.
        message: What is told of it.
        image: Name of what was built of it last; empty before that.
        builds: How often it was built.
        busy: Whether an operation on it is under way.
    """

    name: str
    message: Any
    image: str = ""
    builds: int = 0
    busy: bool = False
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def short(self) -> str:
        """Its name without its location."""
        return self.name.rpartition("/")[2]

    @property
    def service(self) -> str:
        """Name of its Cloud Run service."""
        return self.name.replace("/functions/", "/services/")


class FunctionsApi:
    """Answers the methods of the API.

    Args:
        services: Runs functions.
        images: Builds them.
        storage: Has their sources.
        operations: What takes time.
        access: Who may do what.
    """

    def __init__(
        self, services: Services, images: Images, storage: Storage, operations: Operations, access: Access
    ) -> None:
        self._services, self._images, self._storage = services, images, storage
        self._operations, self._access = operations, access
        self._all: dict[str, Function] = {}

    def handlers(self) -> dict[str, Handler]:
        """Return what answers each method."""
        return {
            f"{FUNCTIONS}/CreateFunction": self._create,
            f"{FUNCTIONS}/GetFunction": self._get,
            f"{FUNCTIONS}/ListFunctions": self._list,
            f"{FUNCTIONS}/UpdateFunction": self._update,
            f"{FUNCTIONS}/DeleteFunction": self._delete,
            f"{FUNCTIONS}/GenerateUploadUrl": self._upload_url,
            f"{FUNCTIONS}/GenerateDownloadUrl": self._download_url,
            f"{FUNCTIONS}/ListRuntimes": self._list_runtimes,
            f"{IAM}/GetIamPolicy": self._get_policy,
            f"{IAM}/SetIamPolicy": self._set_policy,
            f"{IAM}/TestIamPermissions": self._test_permissions,
        }

    async def _create(self, ask: Ask) -> Any:
        request = ask.request
        principal = admit(self._access, ask, "cloudfunctions.functions.create", request.parent)
        short = request.function_id or request.function.name.rpartition("/")[2]
        check_function_id(short)
        name = f"{request.parent}/functions/{short}"
        if request.function.name and request.function.name != name:
            raise invalid(f"function.name: must be empty or '{name}'.")
        if name in self._all:
            raise ServiceError("ALREADY_EXISTS", f"Resource '{name}' already exists")
        wanted = replace_fields(functions_v2.Function(), request.function, (), fixed=FIXED)
        wanted.name = name
        wanted = self._complete(wanted, principal)
        wanted.state, wanted.create_time, wanted.update_time = _STATE.DEPLOYING, datetime.now(UTC), datetime.now(UTC)
        made = self._all[name] = Function(name=name, message=wanted)

        async def deploy() -> Any:
            try:
                return await self._deploy(made, wanted, principal, build=True)
            except ServiceError as error:
                wanted.state = _STATE.FAILED
                wanted.state_messages = [_problem(error.message)]
                raise

        return self._start(made, _KIND.CREATE_FUNCTION, "create", request, deploy)

    async def _update(self, ask: Ask) -> Any:
        request = ask.request
        name = request.function.name
        split_name(name, "functions")
        principal = admit(self._access, ask, "cloudfunctions.functions.update", name)
        found = self._found(name)
        paths = list(request.update_mask.paths)
        wanted = replace_fields(found.message, request.function, paths, fixed=FIXED)
        wanted = self._complete(wanted, principal, found.message)
        self._refuse_busy(found)
        before = functions_v2.Function(found.message)
        wanted.state, wanted.update_time = _STATE.DEPLOYING, datetime.now(UTC)
        wanted.state_messages = []
        found.message = wanted
        build = not found.image or not paths or any(path.partition(".")[0] in {"build_config", "*"} for path in paths)

        async def deploy() -> Any:
            try:
                return await self._deploy(found, wanted, principal, build=build)
            except ServiceError as error:
                # "FAILED: the function isn't serving": this one still is, as it was before.
                found.message = before
                before.state_messages = [_problem(error.message)]
                raise

        return self._start(found, _KIND.UPDATE_FUNCTION, "update", request, deploy)

    async def _delete(self, ask: Ask) -> Any:
        admit(self._access, ask, "cloudfunctions.functions.delete", ask.request.name)
        found = self._found(ask.request.name)
        self._refuse_busy(found)
        found.message.state = _STATE.DELETING

        async def delete() -> Any:
            service = self._services.find(found.service)
            if service is not None and service.function:
                await self._services.remove(service)
            self._all.pop(found.name, None)
            self._access.forget(found.name)
            return empty_pb2.Empty()

        return self._start(found, _KIND.DELETE_FUNCTION, "delete", ask.request, delete)

    async def _get(self, ask: Ask) -> Any:
        admit(self._access, ask, "cloudfunctions.functions.get", ask.request.name)
        if ask.request.revision:
            raise invalid("revision: functions of the second generation have none of their own.")
        # A copy: what is written out of the loop must not change meanwhile.
        return functions_v2.Function(self._found(ask.request.name).message)

    async def _list(self, ask: Ask) -> Any:
        request = ask.request
        admit(self._access, ask, "cloudfunctions.functions.list", request.parent)
        if request.order_by not in {"", "name"}:
            raise invalid(f"order_by: the emulator sorts by name, not by '{request.order_by}'.")
        wanted = parse_filter(request.filter)
        prefix = request.parent[:-1] if request.parent.endswith("/-") else f"{request.parent}/functions/"
        found = [
            functions_v2.Function(one.message)
            for name, one in sorted(self._all.items())
            if name.startswith(prefix) and wanted(json_format.MessageToDict(plain(one.message)))
        ]
        page, token = cut_page(found, request.page_size, request.page_token, 1000)
        return functions_v2.ListFunctionsResponse(functions=page, next_page_token=token)

    async def _upload_url(self, ask: Ask) -> Any:
        request = ask.request
        admit(self._access, ask, "cloudfunctions.functions.sourceCodeSet", request.parent)
        if request.kms_key_name:
            raise invalid(f"kms_key_name: Key {request.kms_key_name} was not found, or may not be used.")
        location = request.parent.rpartition("/")[2]
        bucket = f"gcf-v2-uploads-{self._access.identities.number}.{location}.cloudfunctions.appspot.com"
        await self._storage.ensure_bucket(bucket, location)
        name = f"{uuid.uuid4()}.zip"
        url = self._storage.sign_url(bucket, name, "PUT", content_type="application/zip")
        source = functions_v2.StorageSource(bucket=bucket, object_=name)
        return functions_v2.GenerateUploadUrlResponse(upload_url=url, storage_source=source)

    async def _download_url(self, ask: Ask) -> Any:
        admit(self._access, ask, "cloudfunctions.functions.sourceCodeGet", ask.request.name)
        source = self._found(ask.request.name).message.build_config.source.storage_source
        url = self._storage.sign_url(source.bucket, source.object_, "GET")
        return functions_v2.GenerateDownloadUrlResponse(download_url=url)

    async def _list_runtimes(self, ask: Ask) -> Any:
        admit(self._access, ask, "cloudfunctions.runtimes.list", ask.request.parent)
        if ask.request.filter:
            raise invalid("filter: the emulator lists all runtimes only.")
        kind = functions_v2.ListRuntimesResponse.Runtime
        stage = functions_v2.ListRuntimesResponse.RuntimeStage.GA
        return functions_v2.ListRuntimesResponse(
            runtimes=[
                kind(
                    name=name, display_name=f"Python 3.{name.removeprefix('python3')}", stage=stage,
                    environment=functions_v2.Environment.GEN_2,
                )
                for name in RUNTIMES
            ]
        )  # fmt: skip

    async def _get_policy(self, ask: Ask) -> Any:
        admit(self._access, ask, "cloudfunctions.functions.getIamPolicy", ask.request.resource)
        return show_policy(self._access, self._found(ask.request.resource).name)

    async def _set_policy(self, ask: Ask) -> Any:
        admit(self._access, ask, "cloudfunctions.functions.setIamPolicy", ask.request.resource)
        found = self._found(ask.request.resource)
        self._access.set_policy(found.name, json_format.MessageToDict(ask.request.policy))
        return show_policy(self._access, found.name)

    async def _test_permissions(self, ask: Ask) -> Any:
        principal = self._access.enter(ask.call, ask.api)
        held = self._access.test(principal, ask.request.permissions, ask.request.resource)
        return iam_policy_pb2.TestIamPermissionsResponse(permissions=held)

    def _complete(self, given: Any, principal: Principal, before: Any = None) -> Any:
        """Return a function with everything filled in, if the caller may have it so."""
        wanted = complete(given, self._access.identities.default_account.email)
        account = wanted.service_config.service_account_email
        if before is None or account != before.service_config.service_account_email:
            check_account(self._access, principal, account)
        return wanted

    def _start(self, function: Function, kind: Any, verb: str, request: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        """Start the one operation that there may be on a function."""
        function.busy = True
        location, _ = split_name(function.name, "functions")
        metadata = functions_v2.OperationMetadata(
            create_time=datetime.now(UTC), target=function.name, verb=verb, api_version="v2", operation_type=kind
        )
        plain(metadata).request_resource.Pack(plain(request))

        async def run() -> Any:
            try:
                return await work()
            finally:
                function.busy = False
                metadata.end_time = datetime.now(UTC)

        return self._operations.start(location, lambda: metadata, run)

    async def _deploy(self, function: Function, wanted: Any, principal: Principal, *, build: bool) -> Any:
        """Build a function where that is needed, and bring its service to it; returns the function as it is then."""
        if build:
            await self._build(function, wanted)
        service = await self._run(function, wanted, principal)
        config = wanted.service_config
        config.service, config.uri, config.revision = service.name, service.front.url, service.ready_revision
        config.all_traffic_on_latest_revision = True
        wanted.url = service.front.url
        wanted.state, wanted.update_time = _STATE.ACTIVE, datetime.now(UTC)
        return wanted

    async def _build(self, function: Function, wanted: Any) -> None:
        config = wanted.build_config
        source = config.source.storage_source
        build = (
            f"projects/{self._access.identities.number}/locations/{function.name.split('/')[3]}/builds/{uuid.uuid4()}"
        )
        try:
            archive = await self._storage.read_object(source.bucket, source.object_, source.generation)
        except ServiceError as error:
            where = f"gs://{source.bucket}/{source.object_}"
            raise invalid(f"Failed to retrieve function source code from {where}: {error.message}") from error
        function.builds += 1
        project, location = self._access.identities.project, function.name.split("/")[3]
        image = f"{location}-docker.pkg.dev/{project}/gcf-artifacts/{project}__{location}__{function.short}:version_{function.builds}"
        try:
            await self._images.build(
                image, archive, runtime=config.runtime, entry_point=config.entry_point,
                variables=dict(config.environment_variables),
            )  # fmt: skip
        except BuildError as error:
            raise invalid(
                FAILED.format(error, f"https://console.cloud.google.com/cloud-build/builds;{build}")
            ) from error
        function.image = image
        config.build = build
        config.source_provenance.resolved_storage_source = source

    async def _run(self, function: Function, wanted: Any, principal: Principal) -> Service:
        service = self._services.find(function.service)
        made = complete_service(make_service(wanted, function.image), wanted.service_config.service_account_email)
        if service is None:
            service = await self._services.add(function.service, made, principal.email, function.name)
        elif service.function != function.name:
            message = (
                f"Could not create Cloud Run service {function.short}. A Cloud Run service with this name already exists. Please "
                "redeploy the function with a different name."
            )
            raise ServiceError("ALREADY_EXISTS", message)
        else:
            # Traffic that was split over there goes to the latest revision again, whatever the function says: reported for
            # all_traffic_on_latest_revision (terraform-provider-google #24130).
            self._services.want(service, made, principal.email)
        try:
            await self._services.roll_out(service, made, again=True)
        except ServiceError as error:
            message = f"Could not create or update Cloud Run service {function.short}, Container Healthcheck failed. {error.message}"
            raise invalid(message) from error
        return service

    def _found(self, name: str) -> Function:
        split_name(name, "functions")
        found = self._all.get(name)
        if found is None:
            raise ServiceError("NOT_FOUND", f"Resource '{name}' was not found")
        return found

    def _refuse_busy(self, function: Function) -> None:
        if function.busy:
            raise ServiceError("ABORTED", "unable to queue the operation")


def _problem(text: str) -> Any:
    severity = functions_v2.StateMessage.Severity.ERROR
    return functions_v2.StateMessage(severity=severity, type_="CloudRunServiceNotReady", message=text)
