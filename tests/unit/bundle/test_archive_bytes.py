"""The bundle's archive: any tool can read it, and the same files are the same bytes."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyserve.bundle import members, zipping
from polyserve.bundle.contents import Content, of_file, of_text
from polyserve.errors import PackageError


def written(path: Path, files: dict[str, Content]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return zipping.write(path, files)


def test_an_archive_is_what_any_reader_expects(tmp_path):
    files = {"b/text.txt": of_text("words " * 1000), "a.bin": of_text(""), "é/ü.txt": of_text("ü")}
    digest = written(tmp_path / "a.zip", files)

    assert digest == hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["a.bin", "b/text.txt", "é/ü.txt"]
        assert {name: opened.read(name) for name in files} == {name: each.read() for name, each in files.items()}
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert opened.getinfo("b/text.txt").compress_size < 100


def test_modes_are_two_whatever_the_files_had(tmp_path):
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0o600)
    written(tmp_path / "a.zip", {"plain": of_file(tmp_path / "f"), "tool": of_file(tmp_path / "f", executable=True)})

    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        assert [oct(entry.external_attr >> 16) for entry in opened.infolist()] == ["0o100644", "0o100755"]


@settings(max_examples=30)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?x", fullmatch=True), st.text(max_size=300), max_size=8))
def test_the_order_of_the_files_does_not_show(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("order")
    files = {path: of_text(text) for path, text in contents.items()}
    backwards = dict(reversed(files.items()))

    assert written(folder / "a.zip", files) == written(folder / "b.zip", backwards)


def test_more_files_than_the_old_format_counts_can_be_read(tmp_path):
    empty = of_text("")
    written(tmp_path / "a.zip", {f"f{number}": empty for number in range(66_000)})

    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        assert len(opened.namelist()) == 66_000


def test_large_files_are_stored_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "LARGEST", 1000)
    (tmp_path / "weights").write_bytes(b"w" * 5000)
    written(tmp_path / "a.zip", {"weights": of_file(tmp_path / "weights")})

    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        assert opened.getinfo("weights").compress_type == zipfile.ZIP_STORED
        assert opened.read("weights") == b"w" * 5000


def test_a_file_that_changed_since_it_was_seen_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "f").write_text("x")
    seen = of_file(tmp_path / "f")
    (tmp_path / "f").write_text("y")
    (tmp_path / "out").mkdir()

    with pytest.raises(PackageError, match="was changed after it was first read"):
        written(tmp_path / "out/a.zip", {"f": seen})
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("path", ["../up", "/root", "a//b"])
def test_a_path_that_could_not_be_extracted_is_refused(tmp_path, path):
    with pytest.raises(PackageError, match="no path inside an archive"):
        written(tmp_path / "a.zip", {path: of_text("")})
