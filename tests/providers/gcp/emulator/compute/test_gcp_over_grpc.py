"""The same APIs over gRPC, with Google's own clients."""

import asyncio

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import functions_v2, run_v2
from google.cloud.functions_v2.services.function_service.transports import FunctionServiceGrpcAsyncIOTransport


def test_a_function_lives_and_dies_over_grpc(cloud, source):
    functions, services, revisions = cloud.over_grpc()
    function = functions_v2.Function(build_config=cloud.build(source("grpc")))
    made = functions.create_function(parent=cloud.parent, function_id=cloud.name("grpc"), function=function)
    assert made.metadata.verb == "create"
    made = made.result(polling=cloud.polling)
    answer = cloud.http.post(made.url, headers={"authorization": f"Bearer {cloud.id_token(made.url)}"})
    assert answer.json()["mark"] == "grpc"
    service = services.get_service(name=made.service_config.service)
    assert service.uri == made.url
    assert [one.name for one in revisions.list_revisions(parent=service.name)] == [service.latest_ready_revision]
    assert functions.get_function(name=made.name) == cloud.functions.get_function(name=made.name)
    functions.delete_function(name=made.name).result(polling=cloud.polling)
    with pytest.raises(exceptions.NotFound):
        functions.get_function(name=made.name)


def test_traffic_is_split_over_grpc(cloud, served):
    made = cloud.serve(served("one"))
    _, services, _ = cloud.over_grpc()
    wanted = run_v2.Service(
        name=made.name, traffic=[{"type_": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100}]
    )
    found = services.update_service(service=wanted, update_mask={"paths": ["traffic"]}).result(polling=cloud.polling)
    assert [one.percent for one in found.traffic_statuses] == [100]


def test_policies_are_set_over_grpc(cloud, function):
    functions, services, _ = cloud.over_grpc()
    policy = services.get_iam_policy(request={"resource": function.service})
    services.set_iam_policy(request={"resource": function.service, "policy": policy})
    assert functions.get_iam_policy(request={"resource": function.name}).version == 1


def test_errors_have_the_codes_and_the_details_of_google(cloud, function, source):
    functions, services, _ = cloud.over_grpc()
    with pytest.raises(exceptions.AlreadyExists):
        functions.create_function(
            parent=cloud.parent, function_id=function.short,
            function=functions_v2.Function(build_config=cloud.build(source())),
        )  # fmt: skip
    with pytest.raises(exceptions.InvalidArgument):
        functions.create_function(parent=cloud.parent, function_id="UP", function=functions_v2.Function())
    with pytest.raises(exceptions.NotFound):
        services.get_service(name=f"{cloud.parent}/services/none")
    stranger = cloud.as_account()
    with pytest.raises(exceptions.PermissionDenied, match=r"cloudfunctions\.functions\.get") as caught:
        stranger.over_grpc()[0].get_function(name=function.name)
    assert caught.value.reason == "IAM_PERMISSION_DENIED"
    assert caught.value.metadata["permission"] == "cloudfunctions.functions.get"


def test_a_call_without_a_token_is_from_nobody(cloud, function):
    with pytest.raises(exceptions.Unauthenticated):
        cloud.over_grpc(token="")[0].get_function(name=function.name)


def test_what_the_emulator_has_not_is_unimplemented(cloud, service):
    functions, _, _ = cloud.over_grpc()
    with pytest.raises(exceptions.MethodNotImplemented):
        functions.list_locations({"name": cloud.parent})


def test_googles_asynchronous_client_works_too(cloud, function):
    async def ask():
        async with grpc.aio.insecure_channel(cloud.emulator.grpc_address) as channel:
            client = functions_v2.FunctionServiceAsyncClient(
                transport=FunctionServiceGrpcAsyncIOTransport(channel=channel)
            )
            metadata = [("authorization", f"Bearer {cloud.token}")]
            return await client.get_function(name=function.name, metadata=metadata)

    assert asyncio.run(ask()).url == function.url
