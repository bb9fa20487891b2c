"""The same object gives the same pickle."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.model.canonical import dumps

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.binary(max_size=8)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4) | st.tuples(inner, inner)
    ),
)


@given(values)
def test_what_is_loaded_is_what_was_dumped_and_dumps_the_same(value):
    raw, _ = dumps(value)
    loaded = pickle.loads(raw)

    assert loaded == value
    assert dumps(loaded)[0] == raw


@given(st.sets(st.text(max_size=6) | st.integers(), max_size=12))
def test_sets_have_one_order(items):
    shuffled = set()
    for item in sorted(items, key=repr, reverse=True):
        shuffled.add(item)

    assert dumps(items)[0] == dumps(shuffled)[0]
    assert pickle.loads(dumps(frozenset(items))[0]) == items


def test_equal_strings_are_one_string_whether_or_not_they_are_one_object():
    apart = "".join(["sep", "arate"])

    assert dumps(["separate", "separate"])[0] == dumps(["separate", apart])[0]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12)[::2],
        np.array([], dtype="f4"),
        np.array(["a", "bcd"]),
        np.array(["a", None], dtype=object),
        np.array(3.5),
    ],
    ids=["rows", "columns", "strided", "empty", "text", "objects", "scalar"],
)
def test_arrays_come_back_equal_and_writable(array):
    raw, modules = dumps([array, array.copy()])
    one, other = pickle.loads(raw)

    assert one.dtype == array.dtype
    assert np.array_equal(one, array)
    assert np.array_equal(other, array)
    assert one.flags.writeable
    assert any(module.startswith("numpy") for module in modules)


def test_what_memory_held_between_the_fields_of_records_is_not_pickled():
    kind = np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8], "itemsize": 16})
    dirty = np.frombuffer(b"\xff" * 32, "u1").copy().view(kind)
    clean = np.zeros(2, kind)
    dirty["a"] = clean["a"] = 1
    dirty["b"] = clean["b"] = 2.5

    assert dumps(dirty)[0] == dumps(clean)[0]


def test_a_read_only_array_is_the_same_as_a_writable_one():
    frozen = np.arange(3.0)
    frozen.flags.writeable = False

    assert dumps(frozen)[0] == dumps(np.arange(3.0))[0]


def test_an_ordinary_unpickler_reads_it(forest, iris):
    loaded = pickle.load(io.BytesIO(dumps(forest)[0]))

    assert np.array_equal(loaded.predict_proba(iris[0]), forest.predict_proba(iris[0]))
