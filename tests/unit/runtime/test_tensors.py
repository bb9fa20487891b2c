from __future__ import annotations

import math
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.runtime.datatypes import DATATYPES, INTEGERS, ITEM_BYTES, pack, unpack
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.protocol import format_request, parse_infer
from polyserve.runtime.tensors import TEXT, Tensor, concatenate

FLOAT_WIDTHS = {"FP16": 16, "FP32": 32, "FP64": 64}
NUMPY = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {n: n.lower() for n in INTEGERS}


def bfloats() -> st.SearchStrategy[float]:
    """Every value that BF16 has: the upper half of a float32."""
    return st.integers(0, 2**16 - 1).map(lambda half: struct.unpack("<f", struct.pack("<I", half << 16))[0])


def elements(datatype: str) -> st.SearchStrategy[Any]:
    if datatype in INTEGERS:
        return st.integers(*INTEGERS[datatype])
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.binary(max_size=20)
    return bfloats() if datatype == "BF16" else st.floats(width=FLOAT_WIDTHS[datatype])  # type: ignore[arg-type]


@st.composite
def tensors(draw: st.DrawFn, datatype: str) -> tuple[tuple[int, ...], list[Any]]:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    count = math.prod(shape)
    return shape, draw(st.lists(elements(datatype), min_size=count, max_size=count))


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)) for a, b in zip(left, right, strict=True)
    )


def message_of(*arguments: Any, **more: Any) -> str:
    with pytest.raises(RequestError) as caught:
        Tensor(*arguments, **more)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    return caught.value.message


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_every_datatype_survives_lists_to_bytes_and_back(datatype: str, data: st.DataObject) -> None:
    shape, values = data.draw(tensors(datatype))

    raw = Tensor("x", datatype, shape, values).tobytes()

    assert same(Tensor("x", datatype, shape, raw).flat(), values)
    if datatype != "BYTES":
        assert len(raw) == len(values) * ITEM_BYTES[datatype]


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_every_datatype_survives_bytes_to_numpy_and_back(datatype: str, data: st.DataObject) -> None:
    shape, values = data.draw(tensors(datatype))
    given_list = Tensor("x", datatype, shape, values)
    given_raw = Tensor("x", datatype, shape, given_list.tobytes())

    for tensor in (given_list, given_raw):
        array = tensor.numpy()
        again = Tensor.from_numpy("x", array, datatype="BF16" if datatype == "BF16" else None) if array.size else None

        assert array.shape == shape
        assert same(array.ravel().tolist(), values)
        assert array.flags.writeable
        if again is not None and datatype != "BYTES":
            # NaN's payload may differ after a detour over Python's floats; the values may not.
            assert again.datatype == datatype
            assert same(again.flat(), values)
            assert again.shape == shape


@pytest.mark.parametrize("datatype", sorted(set(NUMPY)))
@given(data=st.data())
def test_bytes_are_those_that_numpy_writes(datatype: str, data: st.DataObject) -> None:
    shape, values = data.draw(tensors(datatype))
    values = [0.0 if isinstance(value, float) and math.isnan(value) else value for value in values]
    expected = np.array(values, dtype=NUMPY[datatype]).reshape(shape)

    tensor = Tensor("x", datatype, shape, values)

    assert tensor.tobytes() == expected.tobytes()
    assert Tensor.from_numpy("x", expected).tobytes() == expected.tobytes()


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=30))
def test_bf16_is_rounded_alike_with_and_without_numpy(values: list[float]) -> None:
    array = np.array(values, dtype="f4")
    try:
        plain = Tensor("x", "BF16", [len(values)], values).tobytes()
    except RequestError as error:
        with pytest.raises(RequestError, match="out of its range"):
            Tensor.from_numpy("x", array, datatype="BF16").tobytes()
        assert "out of its range" in error.message  # noqa: PT017  (one of two ways it may go)
        return

    assert same(unpack("BF16", plain), unpack("BF16", Tensor.from_numpy("x", array, datatype="BF16").tobytes()))


def test_bf16_is_rounded_to_the_nearest_even_value() -> None:
    ties = [1.00390625, 1.01171875]  # halfway between two BF16 values

    assert Tensor("x", "BF16", [2], ties).flat() == [1.0, 1.015625]


def test_lists_may_be_nested_as_the_shape_says_or_flat() -> None:
    nested = Tensor("x", "INT64", [2, 1, 3], [[[1, 2, 3]], [[4, 5, 6]]])
    flat = Tensor("x", "INT64", [2, 1, 3], [1, 2, 3, 4, 5, 6])

    assert nested.tolist() == flat.tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


def test_shapes_with_a_zero_give_empty_lists_of_that_shape() -> None:
    assert Tensor("x", "FP64", [0, 3], []).tolist() == []
    assert Tensor("x", "FP64", [2, 0], []).tolist() == [[], []]
    assert Tensor("x", "FP64", [2, 0], [[], []]).numpy().shape == (2, 0)
    assert Tensor("x", "FP64", [0, 3], []).numpy().shape == (0, 3)


def test_integers_become_floats_where_floats_are_asked_for() -> None:
    values = Tensor("x", "FP64", [2], [1, 2]).tolist()

    assert [type(value) for value in values] == [float, float]


def test_floats_without_a_fraction_become_integers() -> None:
    assert Tensor("x", "INT32", [2], [1.0, -3.0]).tolist() == [1, -3]


def test_words_for_numbers_that_are_not_finite_are_read() -> None:
    values = Tensor("x", "FP32", [4], [None, "NaN", "Infinity", "-Infinity"]).tolist()

    assert [math.isnan(value) for value in values] == [True, True, False, False]
    assert values[2:] == [math.inf, -math.inf]


def test_text_comes_back_as_text_and_bytes_as_bytes() -> None:
    assert Tensor("x", "BYTES", [2], ["é", b"a"], TEXT).tolist() == ["é", "a"]
    assert Tensor("x", "BYTES", [2], ["é", b"\xff"]).tolist() == ["é".encode(), b"\xff"]


def test_bytes_that_are_no_text_are_refused_where_text_is_asked_for() -> None:
    tensor = Tensor("x", "BYTES", [1], [b"\xff"], TEXT)

    with pytest.raises(RequestError, match=r"tensor 'x': expected UTF-8 text, got b'\\xff' at index 0"):
        tensor.tolist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("x", "FLOAT", [1], [1]), "expected a datatype of BOOL"),
        (("x", "FP64", [-1], [1]), "expected lengths from 0 as its shape, got [-1]"),
        (("x", "FP64", [True], [1]), "expected lengths from 0 as its shape, got [True]"),
        (("x", "FP64", [1.0], [1]), "expected lengths from 0 as its shape, got [1.0]"),
        (("x", "FP64", "2", [1]), "expected a list of lengths as its shape, got '2'"),
        (("x", "FP64", None, [1]), "expected a list of lengths as its shape, got None"),
        (("x", "FP64", [10**30], [1]), "expected at most 1099511627776 elements"),
        (
            ("x", "FP64", [0, 10**5000], []),
            "expected at most 1099511627776 elements, got shape a list too large to print",
        ),
        (("x", "FP64", [1] * 40, [1]), "expected at most 32 dimensions, got 40"),
        (("x", "FP64", [3], [1, 2]), "expected 3 elements for shape [3], got 2"),
        (("x", "FP64", [2, 2], [[1, 2], [3]]), "expected lists of 2 at depth 1 for shape [2, 2]"),
        (("x", "FP64", [2, 2], [[1, 2], 3]), "expected lists of 2 at depth 1"),
        (("x", "FP64", [3, 1], [[1], [2]]), "expected 3 rows for shape [3, 1], got 2"),
        (("x", "FP64", [1], [[1]]), "expected FP64 values (numbers), got [1] at index 0"),
        (("x", "FP64", [1], ["1.5"]), "expected FP64 values (numbers), got '1.5' at index 0"),
        (("x", "FP64", [2], [1, True]), "expected FP64 values (numbers), got True at index 1"),
        (("x", "FP64", [1], [10**400]), "which is out of its range"),
        (("x", "FP32", [2], [1, 1e39]), "expected FP32 values, got 1e+39 at index 1, which is out of its range"),
        (("x", "FP16", [1], [65520.0]), "got 65520.0 at index 0, which is out of its range"),
        (("x", "BF16", [1], [3.4e38]), "got 3.4e+38 at index 0, which is out of its range"),
        (("x", "INT8", [2], [1, 128]), "expected INT8 values (-128 to 127), got 128 at index 1"),
        (("x", "UINT64", [1], [-1]), "expected UINT64 values (0 to 18446744073709551615), got -1 at index 0"),
        (("x", "INT64", [1], [2**63]), "got 9223372036854775808 at index 0"),
        (("x", "INT64", [1], [10**5000]), "got a int too large to print at index 0"),
        (("x", "INT64", [1], [1.5]), "expected INT64 values (integers), got 1.5 at index 0"),
        (("x", "INT64", [1], [None]), "expected INT64 values (integers), got None at index 0"),
        (("x", "INT64", [1], [math.nan]), "expected INT64 values (integers), got nan at index 0"),
        (("x", "BOOL", [1], [2]), "expected BOOL values (true or false), got 2 at index 0"),
        (("x", "BYTES", [1], [3]), "expected BYTES values (text or bytes), got 3 at index 0"),
        (("x", "BYTES", [1], ["\ud800"]), "expected text that UTF-8 can carry"),
        (("x", "FP64", [2], b"1234"), "expected 16 bytes for FP64 of shape [2], got 4"),
        (("x", "BOOL", [1], b"\x02"), "expected BOOL bytes of 0 or 1"),
        (("x", "BYTES", [1], b"\x05\0\0\0ab"), "BYTES element 0 ends at byte 9 of a body of 6 bytes"),
        (("x", "BYTES", [1], b"\x05\0"), "BYTES element 0 ends at byte"),
        (("x", "BYTES", [2], b"\x01\0\0\0a"), "expected 2 BYTES elements by its shape, got 1"),
        (("x", "FP64", [1], np.zeros(1, "f4")), "expected FP64 values, got an array of float32"),
        (("x", "FP64", [2], np.zeros(1)), "expected shape [2], got an array of shape [1]"),
        (("x", "FP64", [1], 3.0), "expected a list, bytes or a numpy array as its data, got float"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else value[:40],
)
def test_what_is_not_such_a_tensor_is_refused_in_one_sentence(arguments: tuple[Any, ...], expected: str) -> None:
    message = message_of(*arguments)

    assert expected in message
    assert message.startswith("tensor 'x': ")
    assert len(message) < 300


def test_arrays_of_any_layout_and_byte_order_are_taken() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T

    tensor = Tensor.from_numpy("x", array)

    assert tensor.datatype == "INT32"
    assert tensor.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensor.tobytes() == array.astype("<i4").tobytes()


@pytest.mark.parametrize(
    ("array", "datatype", "expected"),
    [
        (np.array(["a", "bé"]), "BYTES", ["a", "bé"]),
        (np.array([b"a", b"\xff"]), "BYTES", [b"a", b"\xff"]),
        (np.array(["a", "b"], dtype=object), "BYTES", ["a", "b"]),
        (np.array([1, 2], dtype=object), "INT64", [1, 2]),
        (np.array([1.5, None], dtype=object)[:1], "FP64", [1.5]),
        (np.array([True, False], dtype=object), "BOOL", [True, False]),
        (np.array([np.int8(1), np.float32(0.5)], dtype=object), "FP64", [1.0, 0.5]),
    ],
    ids=[
        "text",
        "bytes",
        "objects of text",
        "objects of integers",
        "objects of floats",
        "objects of booleans",
        "numpy",
    ],
)
def test_arrays_of_text_and_objects_find_their_datatype(array: Any, datatype: str, expected: list[Any]) -> None:
    tensor = Tensor.from_numpy("x", array)

    assert (tensor.datatype, tensor.tolist()) == (datatype, expected)


@pytest.mark.parametrize(
    "array",
    [np.zeros(1, "c16"), np.zeros(1, "M8[s]"), np.array([{}], dtype=object), np.array([1, "a"], dtype=object)],
    ids=["complex", "dates", "dicts", "mixed"],
)
def test_arrays_that_no_datatype_holds_are_refused(array: Any) -> None:
    with pytest.raises(RequestError, match="tensor 'x': expected numbers, booleans, text or bytes"):
        Tensor.from_numpy("x", array)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_parts_of_joined_tensors_are_the_tensors(datatype: str, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    whole = [data.draw(st.lists(elements(datatype), min_size=n * 2, max_size=n * 2)) for n in counts]
    parts = [Tensor("x", datatype, [n, 2], values) for n, values in zip(counts, whole, strict=True)]
    mixed = [Tensor("x", datatype, t.shape, t.tobytes()) if i % 2 else t for i, t in enumerate(parts)]

    for some in (parts, mixed):
        joined = concatenate(some)
        as_numpy = Tensor.from_numpy("x", joined.numpy()) if datatype not in {"BYTES", "BF16"} else joined

        assert [part.tobytes() for part in joined.split(counts)] == [part.tobytes() for part in parts]
        assert [part.shape for part in as_numpy.split(counts)] == [part.shape for part in parts]
        if datatype not in {"FP16", "FP32", "FP64"}:
            assert [part.tobytes() for part in as_numpy.split(counts)] == [part.tobytes() for part in parts]


def test_splitting_into_another_number_of_rows_is_refused() -> None:
    with pytest.raises(RequestError, match="expected 3 rows, got 2"):
        Tensor("x", "INT8", [2], [1, 2]).split([1, 2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2**63], ("UINT64", (2,))),
        ([[1, 2.5]], ("FP64", (1, 2))),
        ([True], ("BOOL", (1,))),
        (["a"], ("BYTES", (1,))),
        ([[b"a"], [b"b"]], ("BYTES", (2, 1))),
        (3, ("INT64", ())),
        ([1.5, None], ("FP64", (2,))),
    ],
)
def test_lists_tell_their_datatype_and_shape(values: Any, expected: tuple[str, tuple[int, ...]]) -> None:
    tensor = Tensor.from_list("x", values)

    assert (tensor.datatype, tensor.shape) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1], [2, 3]], "expected rows of one length at depth 1, got ragged lists"),
        ([1, [2]], "expected values at depth 1, got [2] among them"),
        ([], "expected at least one value to take the datatype from, got none"),
        ([1, "a"], "of one sort, got int and str"),
        ([True, 1], "of one sort, got bool and int"),
        ([2**64, 1], "expected integers of at most 64 bits"),
        ([{}], "expected values at depth 1, got {} among them"),
        ([None], "of one sort, got NoneType"),
    ],
)
def test_lists_that_are_no_tensor_are_refused(values: Any, expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        Tensor.from_list("x", values)

    assert expected in caught.value.message


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_lists_and_bytes_need_no_numpy(datatype: str, binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    values = [b"a", b"b"] if datatype == "BYTES" else [True, False] if datatype == "BOOL" else [1, 2]
    tensor = Tensor("x", datatype, [2, 1], values)

    body, headers = format_request([tensor], binary=binary)
    again = parse_infer(body, headers).inputs[0]

    assert again.tobytes() == tensor.tobytes()
    assert again.tolist() == [[value] for value in values]
    assert concatenate([again, tensor]).split([2, 2])[1].tolist() == tensor.tolist()


def test_packing_an_empty_list_gives_no_elements() -> None:
    for datatype in DATATYPES:
        assert len(pack("x", datatype, [])) == 0
