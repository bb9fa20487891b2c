from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature, TensorSpec, match
from polyserve.runtime.tensors import Tensor
from polyserve.runtime.values import describe, from_tensors, to_tensors

FRAME = pd.DataFrame(
    {"age": [31, 44], "name": ["Ada", "Bo"], "score": [0.5, np.nan], "member": [True, False], "f4": np.float32([1, 2])}
)
VALUES: dict[str, tuple[str, Any]] = {
    "matrix": ("array", np.arange(6.0).reshape(2, 3)),
    "small floats": ("array", np.float16([[1, 2]])),
    "booleans": ("array", np.array([True, False])),
    "nested lists": ("list", [[1, 2], [3, 4]]),
    "mixed numbers": ("list", [1.5, 2.0]),
    "text": ("list", "hello"),
    "texts": ("list", ["a", "é"]),
    "bytes": ("list", [b"\xff", b""]),
    "a number": ("list", 3),
    "a boolean": ("list", True),
    "frame": ("frame", FRAME),
    "mapping": ("mapping", {"x": np.ones((2, 2), "f4"), "k": 3, "t": "hi", "ids": [1, 2], "words": ["a", "b"]}),
    "rows": ("rows", [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    "arrays": ("arrays", (np.ones(2), np.zeros((2, 3), "i4"))),
}


def spec(name: str, datatype: str, *shape: int, **parameters: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, parameters=parameters)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right)
        return True
    if isinstance(left, np.ndarray):
        return type(right) is np.ndarray and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and left == right  # type: ignore[no-any-return]


def refusal(value: Any, *specs: TensorSpec, kind: str | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        to_tensors(value, specs, kind)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    return caught.value.message


@pytest.mark.parametrize(("kind", "value"), VALUES.values(), ids=VALUES)
def test_every_kind_of_value_comes_back_as_it_went(kind: str, value: Any) -> None:
    found, specs = describe(value)
    tensors = to_tensors(value, specs, found)
    as_bytes = [
        Tensor(t.name, t.datatype, t.shape, t.tobytes(), s.parameters) for t, s in zip(tensors, specs, strict=True)
    ]
    as_lists = [
        Tensor(t.name, t.datatype, t.shape, t.flat(), s.parameters) for t, s in zip(tensors, specs, strict=True)
    ]

    assert found == kind
    for some in (tensors, as_bytes, as_lists):
        assert equal(value, from_tensors(some, kind))


def test_rows_may_be_more_or_fewer_than_in_the_sample() -> None:
    kind, specs = describe(np.zeros((2, 3)))

    assert specs == (spec("input", "FP64", -1, 3),)
    assert to_tensors(np.zeros((7, 3)), specs, kind)[0].shape == (7, 3)


def test_specs_survive_the_manifest() -> None:
    kind, specs = describe(FRAME)
    signature = Signature(input_kind=kind, output_kind="array", inputs=specs, outputs=(spec("y", "FP64", -1),))

    assert Signature.from_dict(signature.to_dict()) == signature


@pytest.mark.parametrize(
    "value",
    [
        FRAME[["b", "a"]] if "b" in FRAME else pd.DataFrame({"b": ["x"], "a": [1.0]}),
        [{"b": "x", "a": 1}],
        ({"a": 1.0, "b": "x"},),
        {"a": [1], "b": ["x"]},
        {"a": np.array([1.0]), "b": np.array(["x"])},
        {"b": "x", "a": 1},
        [[1, "x"]],
        [(1.0, "x")],
        np.array([[1.0, "x"]], dtype=object),
    ],
    ids=["frame", "dicts", "tuple", "columns", "arrays", "one row", "lists", "tuples", "objects"],
)
def test_a_frame_is_made_of_whatever_has_its_columns(value: Any) -> None:
    specs = (spec("a", "FP64", -1), spec("b", "BYTES", -1, content_type="str"))

    frame = from_tensors(to_tensors(value, specs, "frame"), "frame")

    pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [1.0], "b": ["x"]}))


@pytest.mark.parametrize(
    "value",
    [np.ones((2, 2)), np.ones((2, 2), "i4"), [[1, 1], [1, 1.0]], [[True + 0, 1], (1, 1)], pd.DataFrame({"a": [1, 1], "b": [1.0, 1]}),
     [np.ones(2), np.ones(2)], np.ones((2, 2), dtype=object), {"input": [[1, 1], [1, 1]]}],
    ids=["array", "integers", "lists", "tuples", "frame", "list of arrays", "objects", "by name"],
)  # fmt: skip
def test_a_matrix_is_made_of_whatever_has_its_shape(value: Any) -> None:
    tensor = to_tensors(value, [spec("input", "FP64", -1, 2)], "array")[0]

    assert tensor.datatype == "FP64"
    assert tensor.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_no_rows_at_all_have_the_shape_of_the_spec() -> None:
    assert to_tensors([], [spec("input", "FP64", -1, 2)], "array")[0].shape == (0, 2)
    assert to_tensors(np.zeros((0, 2)), [spec("input", "FP32", -1, 2)], "array")[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (np.array([1.5]), "INT64", "input 'x': expected INT64, got FP64: 1.5 at index 0 would change"),
        (np.array([1.0, 300]), "UINT8", "300.0 at index 1 would change"),
        (np.array([np.nan]), "INT32", "nan at index 0 would change"),
        (np.array([2.0**63]), "INT64", "at index 0 would change"),
        (np.array([2**63], "u8"), "INT64", "at index 0 would change"),
        (np.array([-1]), "UINT64", "-1 at index 0 would change"),
        (np.array([1e39]), "FP32", "1e+39 at index 0 would change"),
        (np.array([1e10], "f4"), "FP16", "at index 0 would change"),
        (np.array([True]), "INT64", "expected INT64, got BOOL"),
        (np.array([1]), "BOOL", "expected BOOL, got INT64"),
        (np.array(["1"]), "FP64", "expected FP64, got BYTES"),
        (np.array([1]), "BYTES", "expected BYTES, got INT64"),
        ([1.5], "INT64", "expected INT64 values (integers), got 1.5 at index 0"),
        (["1"], "FP64", "expected FP64 values (numbers), got '1' at index 0"),
        ([[1]], "FP64", "expected shape [-1], got [1, 1]"),
        (1.0, "FP64", "expected shape [-1], got []; send one row as a list of one row"),
        (
            {1},
            "FP64",
            "expected an array, nested lists, a number, text, bytes, a DataFrame or a dict of these, got set",
        ),
        (None, "FP64", "got NoneType"),
        ({"y": [1]}, "FP64", "expected ['x'], got ['y']: 'x' is missing, 'y' is unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_lose_something_is_refused(value: Any, wanted: str, expected: str) -> None:
    assert expected in refusal(value, spec("x", wanted, -1))


@given(st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]), st.data())
def test_a_cast_changes_no_value(target: str, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(["i1", "u2", "i8", "u8", "f8"]))
    info = np.iinfo(source) if source != "f8" else None
    one = (
        st.integers(int(info.min), int(info.max))
        if info
        else st.floats(-1e20, 1e20) | st.integers(-300, 300).map(float)
    )
    array = np.array(data.draw(st.lists(one, min_size=1, max_size=5)), dtype=source)
    datatype = describe(np.zeros(1, target))[1][0].datatype
    try:
        cast = to_tensors(array, [spec("x", datatype, -1)], "array")[0].numpy()
    except RequestError:
        assert not datatype.startswith("FP")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [int(x) if x == int(x) else x for x in array.tolist()] != array.astype(target).tolist()
        return

    if not datatype.startswith("FP"):
        assert cast.tolist() == array.tolist()
    assert cast.dtype == np.dtype(target)


def test_bf16_is_sent_from_arrays_of_any_float() -> None:
    tensor = to_tensors(np.array([1.5, 2.0]), [spec("x", "BF16", -1)], "array")[0]

    assert tensor.datatype == "BF16"
    assert tensor.tobytes() == b"\xc0\x3f\x00\x40"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "'a': expected no missing values in a column of Int64, got one at row 1"),
        (pd.DataFrame({"a": ["x", None]}), "expected no missing values"),
        (pd.DataFrame({"a": pd.to_datetime(["2026-01-01"])}), "expected numbers, booleans or text, got a column of datetime64"),
        (pd.DataFrame({1: [2]}), "expected names that are text, got 1; rename it, or send an array"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "expected columns of different names"),
    ],
    ids=["missing integers", "missing text", "dates", "numbered columns", "columns twice"],
)  # fmt: skip
def test_frames_that_cannot_travel_are_refused(frame: pd.DataFrame, expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        describe(frame)

    assert expected in caught.value.message


def test_pandas_own_datatypes_become_numpys() -> None:
    frame = pd.DataFrame(
        {
            "i": pd.array([1, 2], dtype="Int8"),
            "f": pd.array([1.5, None], dtype="Float32"),
            "b": pd.array([True, False], dtype="boolean"),
            "c": pd.Categorical(["x", "y"]),
            "n": pd.Categorical([3, 4]),
        }
    )

    specs = describe(frame)[1]

    assert [s.datatype for s in specs] == ["INT8", "FP32", "BOOL", "BYTES", "INT64"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"a": 1, "b": 2}, {"a": 1}], "row 1: expected ['a', 'b'], got ['a']: 'b' is missing"),
        ([{"a": 1, "b": 2}, 3], "row 1: expected a dict as the rows before it, got 3"),
        ([[1]], "row 0: expected 2 columns (a, b), got [1]"),
        (np.ones((2, 3)), "expected rows of 2 columns (a, b), got an array of shape [2, 3]"),
        ({"a": [1], "b": [1, 2]}, "expected columns of one length, got others: 'a' has 1, 'b' has 2"),
        (3, "expected rows of 2 columns (a, b), got int"),
        (pd.DataFrame({"a": [1], "c": [2]}), "'b' is missing, 'c' is unknown"),
    ],
)
def test_rows_that_are_no_frame_are_refused(value: Any, expected: str) -> None:
    assert expected in refusal(value, spec("a", "FP64", -1), spec("b", "FP64", -1), kind="frame")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "expected at least one value"),
        ({}, "expected a dict with at least one name"),
        ([{}], "expected rows with at least one key"),
        ([[1], [2, 3]], "ragged"),
        (object(), "got object"),
        (np.zeros(1, "c8"), "got an array of complex64"),
    ],
)
def test_samples_that_no_tensor_can_hold_are_refused(value: Any, expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        describe(value)

    assert expected in caught.value.message


def test_a_sparse_matrix_is_told_the_way_out() -> None:
    sparse = pytest.importorskip("scipy.sparse")

    assert "got csr_matrix; call .toarray() first" in refusal(sparse.csr_matrix((2, 2)), spec("x", "FP64", -1, 2))


def test_outputs_by_name_may_be_in_any_order() -> None:
    specs = (spec("a", "FP64", -1), spec("b", "INT64", -1))

    tensors = to_tensors({"b": np.array([1]), "a": np.array([0.5])}, specs, "mapping")

    assert [tensor.name for tensor in tensors] == ["a", "b"]


def test_several_arrays_go_by_place() -> None:
    specs = (spec("y_0", "FP64", -1), spec("y_1", "INT64", -1))

    tensors = to_tensors([np.array([0.5]), np.array([1])], specs, "arrays")

    assert [tensor.tolist() for tensor in tensors] == [[0.5], [1]]
    assert "expected 2 arrays (y_0, y_1), got" in refusal([np.array([0.5])], *specs, kind="arrays")


# --- matching a request with a signature -----------------------------------------------------------------------------


def test_inputs_are_put_in_the_order_of_the_signature_and_take_its_parameters() -> None:
    specs = (spec("a", "INT64", -1), spec("b", "BYTES", -1, content_type="str"))
    tensors = [Tensor("b", "BYTES", [1], b"\x01\0\0\0x"), Tensor("a", "INT64", [1], [1], {"content_type": "str"})]

    matched = match(tensors, specs)

    assert [tensor.tolist() for tensor in matched] == [[1], ["x"]]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([Tensor("a", "FP32", [1, 2], [1, 2])], "input 'a': expected datatype FP64, got FP32"),
        ([Tensor("a", "FP64", [2], [1, 2])], "input 'a': expected shape [-1, 2], got [2]"),
        ([Tensor("a", "FP64", [1, 3], [1, 2, 3])], "input 'a': expected shape [-1, 2], got [1, 3]"),
        ([Tensor("b", "FP64", [1, 2], [1, 2])], "expected inputs ['a'], got ['b']: 'a' is missing, 'b' is unknown"),
        ([Tensor("a", "FP64", [1, 2], [1, 2])] * 2, "input 'a' is there more than once"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused(tensors: list[Tensor], expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        match(tensors, [spec("a", "FP64", -1, 2)])

    assert caught.value.message == expected


def test_lengths_that_are_free_in_the_middle_take_any() -> None:
    free = spec("a", "INT8", -1, -1, 1)

    assert match([Tensor("a", "INT8", [2, 3, 1], [0] * 6)], [free])[0].shape == (2, 3, 1)


@pytest.mark.parametrize(
    "described",
    [{}, {"name": "a"}, {"name": "", "datatype": "FP64", "shape": []}, {"name": "a", "datatype": "X", "shape": []},
     {"name": "a", "datatype": "FP64", "shape": [-2]}, {"name": "a", "datatype": "FP64", "shape": None}],
)  # fmt: skip
def test_descriptions_that_are_no_tensor_are_refused(described: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tensor"):
        TensorSpec.from_dict(described)


def test_signatures_of_unknown_kinds_or_with_names_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="a signature's kind is one of array"):
        Signature(input_kind="tree", output_kind="array", inputs=(), outputs=())
    with pytest.raises(ValueError, match="two inputs of a signature have the same name: a, a"):
        Signature(input_kind="array", output_kind="array", inputs=(spec("a", "INT8"),) * 2, outputs=())
    with pytest.raises(ValueError, match="not a signature"):
        Signature.from_dict({"inputs": 3})
