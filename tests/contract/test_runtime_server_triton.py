"""An outside client of the Open Inference Protocol, written by people who never saw this server, against a real model."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyserve.model import package
from polyserve.runtime.host import Host
from polyserve.runtime.server import Server

triton = pytest.importorskip("tritonclient.http", reason="the dev extra installs it")
linear_model = pytest.importorskip("sklearn.linear_model", reason="the demo extra installs it")


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    from sklearn.datasets import load_iris

    found: tuple[Any, Any] = load_iris(return_X_y=True)
    return found


@pytest.fixture(scope="module")
def model(data: tuple[Any, Any]) -> Any:
    return linear_model.LogisticRegression(max_iter=1000).fit(*data)


@pytest.fixture
def address(model: Any, data: tuple[Any, Any], tmp_path: Path) -> Iterator[str]:
    made = package(model, name="iris", sample=data[0][:8], into=tmp_path / "package")
    host = Host(made.root, revision=3, sink=lambda _: None)
    host.load()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = Server(host, token=None, timeout=30.0, sink=lambda _: None)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    async def begin() -> None:
        server.add_listener(listener)

    asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.drain(5.0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address, concurrency=8) as opened:
        yield opened


def ask(rows: Any, *, binary: bool) -> tuple[list[Any], list[Any]]:
    tensor = triton.InferInput("input", list(rows.shape), "FP64")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor], [triton.InferRequestedOutput("predict", binary_data=binary)]


def test_the_client_finds_the_server_and_its_model_alive_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "3")


def test_the_client_reads_the_metadata(client):
    found = client.get_model_metadata("iris")

    assert found["name"] == "iris"
    assert found["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}]
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_the_client_gets_the_models_own_answers(client, model, data, binary):
    inputs, outputs = ask(data[0], binary=binary)
    result = client.infer("iris", inputs, outputs=outputs, request_id="mine")

    np.testing.assert_array_equal(model.predict(data[0]), result.as_numpy("predict"))
    assert result.get_response()["id"] == "mine"


def test_a_compressed_request_is_understood(client, model, data):
    inputs, outputs = ask(data[0], binary=True)
    result = client.infer("iris", inputs, outputs=outputs, request_compression_algorithm="gzip")

    np.testing.assert_array_equal(model.predict(data[0]), result.as_numpy("predict"))


def test_many_requests_at_once_get_their_own_answers(client, model, data):
    rows = [data[0][index : index + 1] for index in range(0, 150, 3)]
    asked = [ask(row, binary=index % 2 == 0) for index, row in enumerate(rows)]
    pending = [client.async_infer("iris", inputs, outputs=outputs) for inputs, outputs in asked]
    answers = [one.get_result().as_numpy("predict")[0] for one in pending]

    assert answers == [model.predict(row)[0] for row in rows]


def test_an_unknown_model_is_an_error_of_the_client(client, data):
    inputs, outputs = ask(data[0], binary=True)

    with pytest.raises(triton.InferenceServerException, match="no model 'other'"):
        client.infer("other", inputs, outputs=outputs)


def test_a_wrong_shape_is_an_error_that_names_it(client):
    inputs, outputs = ask(np.zeros((2, 3)), binary=True)

    with pytest.raises(triton.InferenceServerException, match=r"\[-1, ?4\]|input"):
        client.infer("iris", inputs, outputs=outputs)


def test_plain_rows_are_answered_over_plain_http(address, model, data):
    import http.client

    connection = http.client.HTTPConnection(address, timeout=10)
    body = gzip.compress(json.dumps(data[0].tolist()).encode())
    connection.request("POST", "/invocations", body=body, headers={"content-encoding": "gzip"})
    response = connection.getresponse()
    predictions = json.loads(response.read())
    connection.close()

    assert response.status == 200
    assert response.headers["x-polyserve-revision"] == "3"
    assert predictions == model.predict(data[0]).tolist()
