"""Archives are the same bytes for the same files, and are extracted safely."""

import os
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.runtime.archive import ArchiveError, extract, write


def test_what_is_written_is_what_is_extracted(tmp_path):
    (tmp_path / "source").write_bytes(b"from a file")
    write(tmp_path / "a.zip", {"b/é.txt": tmp_path / "source", "a.txt": b"from memory"})

    size = extract(tmp_path / "a.zip", tmp_path / "out")

    assert (tmp_path / "out/b/é.txt").read_bytes() == b"from a file"
    assert (tmp_path / "out/a.txt").read_bytes() == b"from memory"
    assert size == 22


@given(files=st.dictionaries(st.from_regex(r"[a-zé]{1,4}\.txt", fullmatch=True), st.binary(max_size=64), max_size=5))
def test_order_dates_and_modes_do_not_change_the_bytes(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("archive")
    for name, content in files.items():
        (root / name).write_bytes(content)
    write(root / "one.zip", {name: root / name for name in files})
    for name in files:
        os.utime(root / name, (1, 1))
        (root / name).chmod(0o755)
    write(root / "two.zip", dict(reversed(files.items())))

    assert (root / "one.zip").read_bytes() == (root / "two.zip").read_bytes()


def test_entries_have_one_date_and_one_mode_and_are_in_the_order_of_their_bytes(tmp_path):
    write(tmp_path / "a.zip", {"b": b"", "a/z": b"", "é": b""})

    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == ["a/z", "b", "é"]
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\..\\x", "c:x", ""])
def test_a_path_that_leaves_the_archive_is_not_written(tmp_path, name):
    with pytest.raises(ArchiveError, match="no path inside an archive"):
        write(tmp_path / "a.zip", {name: b""})
    assert list(tmp_path.iterdir()) == []


def evil(path: Path, *entries: tuple[str, int]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first.txt", "harmless")
        for name, mode in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name  # past the constructor, which would tidy it
            info.external_attr = mode << 16
            archive.writestr(info, "evil")
    return path


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (("../escaped", 0o644), "outside of the directory"),
        (("/tmp/escaped", 0o644), "outside of the directory"),
        (("a/../../escaped", 0o644), "outside of the directory"),
        (("a\\..\\escaped", 0o644), "outside of the directory"),
        (("link", stat.S_IFLNK | 0o777), "is a link"),
    ],
    ids=["parent", "absolute", "parent within", "backslash", "link"],
)
def test_an_entry_that_would_do_harm_is_refused_before_anything_is_written(tmp_path, entry, told):
    path = evil(tmp_path / "evil.zip", entry)

    with pytest.raises(ArchiveError, match=told):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(ArchiveError, match="'twice' is there twice"):
        extract(evil(tmp_path / "evil.zip", ("twice", 0o644), ("twice", 0o644)), tmp_path / "out")


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:20], lambda raw: b"", lambda raw: raw.replace(b"some text", b"some TEXT")]
)
def test_a_damaged_archive_is_refused(tmp_path, damage):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "some text")
    (tmp_path / "a.zip").write_bytes(damage((tmp_path / "a.zip").read_bytes()))

    with pytest.raises(ArchiveError, match=r"a\.zip is no readable zip archive"):
        extract(tmp_path / "a.zip", tmp_path / "out")


def test_a_program_stays_a_program(tmp_path):
    extract(evil(tmp_path / "a.zip", ("tool", stat.S_IFREG | 0o755)), tmp_path / "out")

    assert (tmp_path / "out/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out/first.txt").stat().st_mode & 0o777 == 0o644


def test_an_archive_that_cannot_be_completed_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "a.zip", {"a": b"1", "b": tmp_path / "missing"})
    assert list(tmp_path.iterdir()) == []
