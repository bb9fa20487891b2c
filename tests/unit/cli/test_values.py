"""Input from the command line: what each kind of file becomes, and how a wrong one is refused."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from polyserve.cli import values
from polyserve.errors import InvalidArgumentError, NotFoundError


@pytest.fixture
def file(tmp_path):
    def file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return file


def test_json_is_read_as_it_is(file):
    assert values.read(file("a.json", '{"x": [1, 2.5, "é"]}')) == {"x": [1, 2.5, "é"]}


def test_a_dash_reads_json_from_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"[[1]]")))

    assert values.read("-") == [[1]]


def test_an_array_keeps_its_datatype(file, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4, dtype=np.float32).reshape(2, 2))
    array = values.read(str(tmp_path / "a.npy"))

    assert (array.dtype, array.tolist()) == (np.float32, [[0, 1], [2, 3]])


def test_a_pickle_in_an_array_is_refused_and_not_run(file, tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)

    with pytest.raises(InvalidArgumentError, match="is not a numpy array"):
        values.read(str(tmp_path / "a.npy"))


def test_a_table_of_numbers_becomes_rows(file):
    assert values.read(file("a.csv", "1,2.5\n3,4\n")) == [[1, 2.5], [3, 4]]


def test_the_header_of_a_table_of_numbers_is_left_out_where_the_model_takes_an_array(file):
    assert values.read(file("a.csv", "a,b\n1,2\n"), kind="array") == [[1, 2]]


def test_a_table_with_a_header_becomes_rows_by_name_where_the_model_takes_a_frame(file):
    assert values.read(file("a.csv", "\ufeffa,b\n1,2\n3,4\n"), kind="frame") == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_a_column_with_one_text_is_text_throughout(file):
    rows = values.read(file("a.csv", "size,colour\n1,red\n2,7\n"))

    assert rows == [{"size": 1, "colour": "red"}, {"size": 2, "colour": "7"}]


def test_a_sample_with_a_header_is_a_frame_and_one_without_an_array(file):
    frame = values.read_sample(file("a.csv", "a,b\n1,x\n"))
    array = values.read_sample(file("b.csv", "1,2\n3,4\n"))

    pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [1], "b": ["x"]}))
    assert array.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", "[1,", "is not JSON: .* line 1 column 4"),
        ("a.csv", "", "is empty: give at least one row"),
        ("a.csv", "1,2\n3\n", "row 2 has 1 fields, row 1 has 2"),
        ("a.csv", b"\xff\xfe1", "is not CSV in UTF-8"),
        ("a.npy", "no array", "is not a numpy array"),
        ("a.txt", "1", "has no known suffix: give one of .json, .npy, .csv"),
    ],
    ids=["broken json", "empty table", "ragged table", "table of another encoding", "broken array", "unknown suffix"],
)
def test_a_file_that_is_not_what_it_says_is_refused_with_the_reason(file, name, content, reason):
    with pytest.raises(InvalidArgumentError, match=reason):
        values.read(file(name, content))


def test_a_missing_file_is_not_found():
    with pytest.raises(NotFoundError, match=r"no file 'nowhere\.json'"):
        values.read("nowhere.json")
