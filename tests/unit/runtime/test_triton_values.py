"""Triton's own client writes what we read and reads what we write; no sockets here, only its code and ours."""

from __future__ import annotations

import gzip
import warnings
from typing import Any

import numpy as np
import pytest

from polyserve.runtime.protocol import HEADER_LENGTH, format_infer, parse_infer
from polyserve.runtime.tensors import TEXT, Tensor

with warnings.catch_warnings():
    # Its HTTP library, gevent, warns about what it finds in its own dependencies.
    warnings.simplefilter("ignore")
    httpclient: Any = pytest.importorskip("tritonclient.http")
    from tritonclient.http._utils import _get_inference_request

ARRAYS = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], "u1"),
    "UINT16": np.array([[0, 65535]], "u2"),
    "UINT32": np.array([[0, 2**32 - 1]], "u4"),
    "UINT64": np.array([[0, 2**64 - 1]], "u8"),
    "INT8": np.array([[-128, 127]], "i1"),
    "INT16": np.array([[-(2**15), 2**15 - 1]], "i2"),
    "INT32": np.array([[-(2**31), 2**31 - 1]], "i4"),
    "INT64": np.array([[-(2**63), 2**63 - 1]], "i8"),
    "FP16": np.array([[0.1, -65504]], "f2"),
    "FP32": np.array([[0.1, np.inf]], "f4"),
    "FP64": np.array([[0.1, np.nan]], "f8"),
    "BYTES": np.array([["é".encode(), b"b"]], dtype=object),
}


def written(*inputs: Any, outputs: Any = None, **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers that Triton's client would send."""
    options = {
        "request_id": "",
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
    }
    body, length = _get_inference_request(inputs=inputs, outputs=outputs, custom_parameters=None, **options | more)
    return body, {} if length is None else {HEADER_LENGTH: str(length)}


def tensor_input(name: str, array: np.ndarray[Any, Any], datatype: str, *, binary: bool) -> Any:
    made = httpclient.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def read_by_triton(body: bytes, headers: dict[str, str]) -> Any:
    length = headers.get(HEADER_LENGTH)
    return httpclient.InferenceServerClient.parse_response_body(
        body, header_length=None if length is None else int(length)
    )


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", ARRAYS)
def test_inputs_written_by_triton_are_read(datatype: str, binary: bool) -> None:
    array = ARRAYS[datatype]

    body, headers = written(tensor_input("x", array, datatype, binary=binary), request_id="7")
    request = parse_infer(body, headers)

    assert request.id == "7"
    assert request.outputs is None
    assert request.binary_outputs is True
    assert request.inputs[0].datatype == datatype
    assert request.inputs[0].shape == (1, 2)
    np.testing.assert_array_equal(request.inputs[0].numpy(), array)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", ARRAYS)
def test_outputs_we_write_are_read_by_triton(datatype: str, binary: bool) -> None:
    array = ARRAYS[datatype]
    tensors = [
        Tensor.from_numpy("x", array),
        Tensor("again", datatype, [2, 1], Tensor.from_numpy("x", array).tobytes()),
    ]

    body, headers = format_infer(tensors, model="m", version="3", request_id="7", binary=binary)
    result = read_by_triton(body, headers)

    assert result.get_response()["id"] == "7"
    assert result.get_response()["model_version"] == "3"
    expected = array if binary or datatype != "BYTES" else np.vectorize(bytes.decode, otypes=[object])(array)
    np.testing.assert_array_equal(result.as_numpy("x"), expected)
    np.testing.assert_array_equal(result.as_numpy("again"), expected.reshape(2, 1))


def test_bf16_travels_both_ways() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([[1.5, -2.0]], dtype=ml_dtypes.bfloat16)

    body, headers = written(tensor_input("x", array, "BF16", binary=True))
    tensor = parse_infer(body, headers).inputs[0]
    answer, headers = format_infer([tensor, Tensor.from_numpy("y", array)], model="m", version="1", binary=True)
    result = read_by_triton(answer, headers)

    assert tensor.tolist() == [[1.5, -2.0]]
    for name in ("x", "y"):
        np.testing.assert_array_equal(result.as_numpy(name).astype("f4"), array.astype("f4"))


def test_several_inputs_in_both_forms_keep_their_places() -> None:
    inputs = [tensor_input(f"x{n}", np.full((1, n + 1), n, "i4"), "INT32", binary=n % 2 == 0) for n in range(4)]

    body, headers = written(*inputs)
    request = parse_infer(body, headers)

    assert [tensor.tolist() for tensor in request.inputs] == [[[0]], [[1, 1]], [[2, 2, 2]], [[3, 3, 3, 3]]]


def test_requested_outputs_choose_their_form() -> None:
    outputs = [httpclient.InferRequestedOutput("a"), httpclient.InferRequestedOutput("b", binary_data=False)]

    body, headers = written(tensor_input("x", ARRAYS["INT8"], "INT8", binary=False), outputs=outputs)
    request = parse_infer(body, headers)
    named = [Tensor(name, "INT8", [1], [n]) for n, name in enumerate(request.outputs or ())]
    answer, headers = format_infer(named, model="m", version="1", binary=request.binary_outputs)
    result = read_by_triton(answer, headers)

    assert request.outputs == ("a", "b")
    assert request.binary_outputs == {"a"}
    assert (result.as_numpy("a").tolist(), result.as_numpy("b").tolist()) == ([0], [1])


def test_text_without_a_mark_is_bytes_and_with_one_is_text() -> None:
    body, headers = written(tensor_input("x", np.array([b"a"], dtype=object), "BYTES", binary=True))
    tensor = parse_infer(body, headers).inputs[0]

    assert tensor.tolist() == [b"a"]
    tensor.parameters = TEXT
    assert tensor.tolist() == ["a"]


def test_outputs_without_elements_are_read_by_triton() -> None:
    body, headers = format_infer([Tensor("x", "FP32", [0, 3], b"")], model="m", version="1", binary=True)

    assert read_by_triton(body, headers).as_numpy("x").shape == (0, 3)


def test_a_classification_is_refused() -> None:
    from polyserve.runtime.messages import ErrorCode, RequestError

    outputs = [httpclient.InferRequestedOutput("a", class_count=2)]
    body, headers = written(tensor_input("x", ARRAYS["INT8"], "INT8", binary=True), outputs=outputs)

    with pytest.raises(RequestError) as caught:
        parse_infer(body, headers)
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_a_compressed_request_of_tritons_is_what_gzip_makes_of_it(doubling: Any) -> None:
    from polyserve.runtime.messages import Request

    body, headers = written(tensor_input("input", np.ones((1, 4)), "FP64", binary=True))
    compressed = gzip.compress(body)

    response = doubling.host.handle(
        Request(path="/v2/models/tiny/infer", headers=headers | {"content-encoding": "gzip"}, body=compressed)
    )

    assert read_by_triton(response.body, dict(response.headers)).as_numpy("output").tolist() == [[2.0] * 4]
