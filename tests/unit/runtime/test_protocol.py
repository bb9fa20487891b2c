from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.runtime import jsontext
from polyserve.runtime.datatypes import DATATYPES, INTEGERS
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.protocol import (
    HEADER_LENGTH,
    format_infer,
    format_request,
    format_rows,
    parse_infer,
    parse_response,
)
from polyserve.runtime.tensors import TEXT, Tensor

WIDTHS = {"FP16": 16, "FP32": 32, "FP64": 64, "BF16": 16}


def some(datatype: str) -> st.SearchStrategy[list[Any]]:
    if datatype in INTEGERS:
        one: st.SearchStrategy[Any] = st.integers(*INTEGERS[datatype])
    elif datatype == "BOOL":
        one = st.booleans()
    elif datatype == "BYTES":
        one = st.text(max_size=10)
    elif datatype == "BF16":
        one = st.integers(-256, 256).map(float) | st.sampled_from([math.inf, -math.inf, math.nan, 2.0**-120])
    else:
        one = st.floats(width=WIDTHS[datatype])  # type: ignore[arg-type]
    return st.lists(one, max_size=6)


def strict(body: bytes) -> Any:
    """Read JSON as a parser does that knows no NaN."""

    def forbid(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(body, parse_constant=forbid)


def one_input(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [2], "datatype": "FP64", "data": [1, 2]} | more]}


def refusal(body: bytes, headers: dict[str, str] | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_infer(body, headers or {})
    return caught.value


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_requests_and_answers_carry_every_datatype(datatype: str, binary: bool, data: st.DataObject) -> None:
    values = data.draw(some(datatype))
    parameters = TEXT if datatype == "BYTES" else {}
    tensor = Tensor("é x", datatype, [len(values), 1], values, parameters)
    other = Tensor("n", "INT8", [1], [7])

    body, headers = format_request([tensor, other], binary=binary, outputs=["a", "b"], request_id="r")
    request = parse_infer(body, headers)
    answer, headers = format_infer(request.inputs, model="m", version="2", request_id=request.id, binary=binary)
    outputs, request_id = parse_response(memoryview(answer), headers)

    for found in (request.inputs, outputs):
        assert [t.name for t in found] == ["é x", "n"]
        assert [t.shape for t in found] == [(len(values), 1), (1,)]
        assert found[0].is_text == (datatype == "BYTES")
        np.testing.assert_array_equal(found[0].flat(), tensor.flat())
        assert found[1].tolist() == [7]
    assert request.outputs == ("a", "b")
    assert request.binary_outputs == frozenset({"a", "b"} if binary else ())
    assert (request.id, request_id) == ("r", "r")
    assert (HEADER_LENGTH in headers) is binary


@given(st.lists(st.floats()))
def test_json_answers_are_json_for_strict_parsers(values: list[float]) -> None:
    body, _ = format_infer([Tensor("x", "FP64", [len(values)], values)], model="m", version="1")
    rows = format_rows([Tensor("x", "FP64", [len(values), 1], values)])

    data = strict(body)["outputs"][0]["data"]
    assert strict(rows) == [[value] for value in data]
    np.testing.assert_array_equal(np.array(data, dtype="f8"), values)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers()))
def test_numbers_are_written_as_the_standard_library_writes_them(values: list[Any]) -> None:
    floats = [float(value) for value in values if abs(value) < 1e300]
    body, _ = format_infer([Tensor("x", "FP64", [len(floats)], floats)], model="m", version="1")

    assert (
        body
        == json.dumps(
            {
                "model_name": "m",
                "model_version": "1",
                "outputs": [{"name": "x", "datatype": "FP64", "shape": [len(floats)], "data": floats}],
            },
            separators=(",", ":"),
        ).encode()
    )


def test_what_is_not_finite_has_words_in_json() -> None:
    assert format_rows([Tensor("x", "FP32", [3], [math.nan, math.inf, -math.inf])]) == b'[null,"Infinity","-Infinity"]'


@pytest.mark.parametrize("word", ["null", "NaN", '"NaN"'])
def test_every_spelling_of_not_a_number_is_read(word: str) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[%s]}]}' % word.encode()

    assert math.isnan(parse_infer(body, {}).inputs[0].tolist()[0])


def test_scalars_have_an_empty_shape() -> None:
    assert parse_infer(json.dumps(one_input(shape=[], data=[4])).encode(), {}).inputs[0].tolist() == 4.0
    assert parse_infer(json.dumps(one_input(shape=[], data=4)).encode(), {}).inputs[0].tolist() == 4.0
    assert format_rows([Tensor("x", "FP64", [], [1.5])]) == b"1.5"


def test_rows_of_every_sort_are_plain_json() -> None:
    text = Tensor("t", "BYTES", [2, 1], ["é", b"b"])
    flag = Tensor("f", "BOOL", [2], [True, False])

    assert format_rows([text]) == '[["é"],["b"]]'.encode()
    assert format_rows([text, flag]) == '{"t":[["é"],["b"]],"f":[true,false]}'.encode()
    assert format_rows([Tensor("t", "BYTES", [], ["hi"])]) == b'"hi"'


def test_bytes_that_are_not_utf8_are_refused_in_json_with_the_way_out() -> None:
    for write in (lambda t: format_rows([t]), lambda t: format_infer([t], model="m", version="1")):
        with pytest.raises(RequestError, match=r"holds bytes at index 1 that are not UTF-8, .* ask for it as binary"):
            write(Tensor("x", "BYTES", [2], [b"a", b"\xff"]))


def test_each_output_may_choose_its_form() -> None:
    outputs = [
        {"name": "a", "parameters": {"binary_data": True}},
        {"name": "b", "parameters": {"binary_data": False}},
        {"name": "c"},
    ]
    plain = parse_infer(json.dumps(one_input() | {"outputs": outputs}).encode(), {})
    default = parse_infer(
        json.dumps(one_input() | {"outputs": outputs, "parameters": {"binary_data_output": True}}).encode(), {}
    )

    assert plain.binary_outputs == {"a"}
    assert default.binary_outputs == {"a", "c"}


def test_binary_and_json_tensors_mix() -> None:
    a, b, c = (Tensor(name, "INT16", [2], [1, n]) for n, name in enumerate("abc"))

    body, headers = format_infer([a, b, c], model="m", version="1", binary=frozenset("ac"))
    outputs, _ = parse_response(body, headers)

    assert [t.tolist() for t in outputs] == [[1, 0], [1, 1], [1, 2]]
    assert body.endswith(a.tobytes() + c.tobytes())
    assert b'"data":[1,1]' in body


def test_inputs_in_json_and_binary_mix() -> None:
    head = json.dumps(
        {
            "inputs": [
                {"name": "a", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}},
                {"name": "b", "shape": [1], "datatype": "INT8", "data": [2]},
                {"name": "c", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}},
            ]
        }
    ).encode()

    request = parse_infer(head + b"\x01\x03\x04", {HEADER_LENGTH: str(len(head))})

    assert [tensor.tolist() for tensor in request.inputs] == [[1], [2], [3, 4]]


def test_white_space_around_the_json_is_nothing() -> None:
    assert parse_infer(b" \r\n\t" + json.dumps(one_input()).encode() + b"\n ", {}).inputs[0].tolist() == [1.0, 2.0]


DEEP = b"[" * 200_000


def dumped(payload: Any) -> bytes:
    return json.dumps(payload).encode()


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "expected JSON, got what cannot be read"),
    "half": (b'{"inputs":', "expected JSON, got what cannot be read"),
    "two": (b"{} {}", "got something after its end at character"),
    "no object": (b"[1]", "expected a JSON object as the request, got [1]"),
    "no utf-8": (b'{"a":"\xff"}', "expected UTF-8 JSON, got byte 0xff at 6"),
    "utf-16": ('{"a":1}'.encode("utf-16"), "expected UTF-8 JSON, got byte 0xff at 0"),
    "deep": (DEEP, "expected JSON, got one that is nested too deeply"),
    "deep data": (b'{"inputs":' + DEEP, "nested too deeply"),
    "huge integer": (b'{"inputs":' + b"9" * 5000 + b"}", "expected JSON, got what cannot be read"),
    "no inputs": (b"{}", "'inputs': expected a list of tensors, got None"),
    "empty inputs": (b'{"inputs":[]}', "'inputs': expected a list of tensors, got []"),
    "inputs of numbers": (b'{"inputs":[3]}', "'inputs': expected tensors with name, shape and datatype, got 3"),
    "inputs of text": (b'{"inputs":["x"]}', "expected tensors with name, shape and datatype, got 'x'"),
    "inputs of lists": (b'{"inputs":[[]]}', "expected tensors with name, shape and datatype, got []"),
    "a name that is none": (dumped(one_input(name=3)), "expected names that are text, got 3"),
    "a datatype that is none": (dumped(one_input(datatype="FP65")), "tensor 'x': expected a datatype of"),
    "a datatype in a list": (dumped(one_input(datatype=["FP64"])), "tensor 'x': expected a datatype of"),
    "a negative shape": (dumped(one_input(shape=[-2])), "tensor 'x': expected lengths from 0 as its shape, got [-2]"),
    "a shape of text": (dumped(one_input(shape=["2"])), "expected lengths from 0 as its shape, got ['2']"),
    "data that are none": (dumped(one_input(data=None)), "tensor 'x': expected a list as its data, got None"),
    "no data": (json.dumps(one_input(data=[], parameters={})).replace('"data": [], ', "").encode(), "got neither"),
    "parameters in a list": (dumped(one_input(parameters=[])), "tensor 'x': expected an object as its parameters"),
    "a size of text": (dumped(one_input(parameters={"binary_data_size": "1"})), "expected a number of bytes"),
    "a negative size": (dumped(one_input(parameters={"binary_data_size": -1})), "expected a number of bytes"),
    "binary without its header": (dumped(one_input(parameters={"binary_data_size": 16})), "expected 16 bytes after the JSON, got 0"),
    "a surrogate": (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}', "expected text that UTF-8 can carry"),
    "an id that is none": (dumped(one_input() | {"id": 3}), "'id': expected UTF-8 text, got 3"),
    "an id of surrogates": (b'{"id":"\\udfff",' + dumped(one_input())[1:], "'id': expected UTF-8 text"),
    "parameters of text": (dumped(one_input() | {"parameters": "a"}), "'parameters': expected an object, got 'a'"),
    "a flag of text": (dumped(one_input() | {"parameters": {"binary_data_output": "yes"}}), "expected true or false, got 'yes'"),
    "outputs of text": (dumped(one_input() | {"outputs": "a"}), "'outputs': expected a list, got 'a'"),
    "outputs of names": (dumped(one_input() | {"outputs": ["a"]}), "'outputs': expected objects with a name, got 'a'"),
    "outputs twice": (dumped(one_input() | {"outputs": [{"name": "a"}] * 2}), "output 'a' is asked for more than once"),
    "an output with a list": (dumped(one_input() | {"outputs": [{"name": "a", "parameters": [1]}]}), "output 'a': expected an object"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_request_is_refused_in_one_sentence(body: bytes, expected: str) -> None:
    error = refusal(body)

    assert expected in error.message
    assert error.status == 400
    assert len(error.message) < 300


@pytest.mark.parametrize("length", ["", "-1", "0", "abc", "1e3", "9" * 30, "²", "1000"])
def test_a_length_of_the_json_that_is_none_is_refused(length: str) -> None:
    assert (
        f"{HEADER_LENGTH}: expected the size of the JSON" in refusal(b'{"inputs":[]}', {HEADER_LENGTH: length}).message
    )


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    head = json.dumps(one_input()).encode()

    error = refusal(head + b"1234", {HEADER_LENGTH: str(len(head))})

    assert error.message == "expected 0 bytes of binary tensors after the JSON, got 4"


def test_binary_tensors_of_another_size_are_refused() -> None:
    item = {"name": "x", "shape": [2], "datatype": "FP64", "parameters": {"binary_data_size": 15}}
    head = json.dumps({"inputs": [item]}).encode()

    error = refusal(head + b"1" * 15, {HEADER_LENGTH: str(len(head))})

    assert error.message == "tensor 'x': expected 16 bytes for FP64 of shape [2], got 15"


@pytest.mark.parametrize(
    "payload",
    [
        one_input(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16}),
        one_input() | {"outputs": [{"name": "a", "parameters": {"classification": 3}}]},
    ],
    ids=["shared memory", "classification"],
)
def test_what_this_server_has_not_is_refused_and_not_ignored(payload: dict[str, Any]) -> None:
    error = refusal(json.dumps(payload).encode())

    assert error.code is ErrorCode.UNSUPPORTED


@given(st.binary(max_size=200), st.none() | st.integers(0, 250).map(str))
def test_no_bytes_break_the_reader(body: bytes, length: str | None) -> None:
    headers = {} if length is None else {HEADER_LENGTH: length}
    for read in (parse_infer, parse_response):
        with pytest.raises(RequestError):
            read(body, headers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {"name": json_values, "shape": json_values, "datatype": st.sampled_from(DATATYPES) | json_values},
                    optional={"data": json_values, "parameters": json_values},
                ),
                max_size=3,
            )
        },
        optional={"outputs": json_values, "parameters": json_values, "id": json_values},
    )
)
def test_no_json_breaks_the_reader(payload: dict[str, Any]) -> None:
    try:
        request = parse_infer(json.dumps(payload).encode("utf-8", "surrogatepass"), {})
    except RequestError:
        return

    for tensor in request.inputs:
        Tensor("again", tensor.datatype, tensor.shape, tensor.tobytes())


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i2", "u8"])
@given(data=st.data())
def test_a_faster_writer_changes_no_byte(dtype: str, data: st.DataObject) -> None:
    pytest.importorskip("orjson")
    if "f" in dtype:
        width = 8 * int(dtype[-1])
        one: st.SearchStrategy[Any] = st.floats(width=width) | st.floats(1, 1000, width=width)  # type: ignore[arg-type]
    else:
        one = st.integers(0, 2**15 - 1)
    array = np.array(data.draw(st.lists(one, min_size=1, max_size=5)) * 72, dtype=dtype).reshape(-1, 8).T
    plain = Tensor("x", *described(array), array.ravel().tolist())

    with pytest.MonkeyPatch.context() as patch:
        fast = (
            format_rows([Tensor.from_numpy("x", array)]),
            format_infer([Tensor.from_numpy("x", array)], model="m", version="1"),
        )
        patch.setattr(jsontext, "_orjson", None)
        slow = format_rows([plain]), format_infer([plain], model="m", version="1")

    assert fast == slow


def described(array: Any) -> tuple[str, tuple[int, ...]]:
    tensor = Tensor.from_numpy("x", array)
    return tensor.datatype, tensor.shape


def test_a_faster_reader_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the faster reader refuses, the standard library decides."""

    class Refusing:
        @staticmethod
        def loads(_: object) -> object:
            raise ValueError("no NaN here")

    monkeypatch.setattr(jsontext, "_orjson", Refusing)

    assert math.isnan(jsontext.decode_json(b"NaN"))
