"""What is too large for an event of Lambda goes through S3, both ways, and nothing of it stays there."""

import asyncio
from datetime import timedelta

import numpy as np
import pytest

from polyserve.driver import Request
from polyserve.endpoint import Endpoint
from polyserve.errors import InvalidArgumentError
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.testing.functions import MODEL, NAME
from polyserve_aws.provider import AwsProvider
from polyserve_aws.settings import AwsSettings

MIB = 1 << 20
ARRAY = TensorSpec(name="input", datatype="FP64", shape=(-1, 2))
SIGNATURE = Signature(
    input_kind="list",
    output_kind="list",
    inputs=(ARRAY,),
    outputs=(TensorSpec(name="output", datatype="FP64", shape=(-1, 2)),),
)


@pytest.fixture(params=["url", "api"])
def endpoint(request, functions, aws):
    """Give an endpoint of a function whose traffic goes to revision 3, called by its URL or by the Invoke API."""
    provider = AwsProvider(AwsSettings(**aws.options, invoke=request.param))
    functions.applied(3)
    functions.route({3: 100})
    with Endpoint(provider, NAME, model=MODEL, signature=SIGNATURE, timeout=timedelta(seconds=60)) as given:
        yield given
    provider.close()


def payloads(aws):
    found = aws.client("s3").list_objects_v2(Bucket="contract-bundles", Prefix=f"deployments/{NAME}/payloads/")
    return [each["Key"] for each in found.get("Contents", ())]


def test_rows_of_any_size_are_answered(endpoint, aws):
    rows = np.arange(5 * MIB / 8).reshape(-1, 2)

    answer = endpoint.invoke(rows)

    np.testing.assert_array_equal(answer, rows * 3)
    assert payloads(aws) == []


def test_many_at_once_on_an_event_loop_are_answered_too(endpoint, aws):
    rows = np.arange(5 * MIB / 8).reshape(-1, 2)

    async def all_of_them():
        async with endpoint:
            return await asyncio.gather(*(endpoint.ainvoke(rows + number) for number in range(2)))

    for number, answer in enumerate(asyncio.run(all_of_them())):
        np.testing.assert_array_equal(answer, (rows + number) * 3)
    assert payloads(aws) == []


def test_json_of_any_size_is_answered(endpoint, aws):
    body = b"[" + b" " * 7 * MIB + b"[1.25, -2.5]]"

    response = endpoint.send(Request(path="/invocations", headers={"content-type": "application/json"}, body=body))

    assert response.body == b"[[3.75,-7.5]]"
    assert payloads(aws) == []


def test_a_name_of_somebody_elses_object_is_not_read(endpoint):
    request = Request(path="/invocations", headers={"x-polyserve-body": "../bundles/secret"}, body=b"[[1, 2]]")

    with pytest.raises(InvalidArgumentError, match="badly formed"):
        endpoint.send(request)
