"""Layers are the same bytes for the same files, touch nothing of the base, and are made once."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import tarfile
from pathlib import Path

import pytest

from polyserve.bundle import layers
from polyserve.bundle.layers import Layer, layer
from polyserve.errors import PackageError

LONG = "/".join(["directory-with-a-long-name"] * 8) + "/ünïcode.txt"


def tree(root: Path) -> dict[str, Path | bytes]:
    """Write some files, and return them by path."""
    contents = {"b.txt": b"b", "a/z.bin": random.Random(0).randbytes(9_000_000), "a/b/c.txt": b"", LONG: b"long"}
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return {path: root / path for path in contents}


def members(made: Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(made.path) as archive:
        return {each.name: each for each in archive.getmembers()}


def test_the_same_files_are_the_same_bytes_whatever_their_dates_modes_order_and_place(tmp_path, monkeypatch):
    first = layer("one", tree(tmp_path / "here"), root="/var/task")
    monkeypatch.setenv("POLYSERVE_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    before = os.umask(0o077)
    try:
        files = tree(tmp_path / "there")
        for file in files.values():
            assert isinstance(file, Path)
            os.utime(file, (1, 1))
            file.chmod(0o755)
        second = layer("two", dict(reversed(files.items())), root="/var/task/")
    finally:
        os.umask(before)

    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes()
    assert (first.digest, first.diff_id, first.size) == (second.digest, second.diff_id, second.size)


def test_a_layer_says_what_it_is(tmp_path):
    made = layer("one", tree(tmp_path), root="/var/task")
    body = made.path.read_bytes()

    assert made.digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert made.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(body)).hexdigest()}"
    assert (made.size, made.unpacked_size) == (len(body), 9_000_005)
    # No name, no date, no system.
    assert body[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def test_a_layer_has_the_files_and_no_directory_of_the_base(tmp_path):
    found = members(layer("one", tree(tmp_path), root="/var/task"))

    assert "var" not in found
    assert list(found)[:2] == ["var/task", "var/task/a"]
    assert found[f"var/task/{LONG}"].size == 4
    assert {(each.uid, each.gid, each.uname, each.mtime) for each in found.values()} == {(0, 0, "", 0)}
    assert {each.mode for each in found.values() if each.isfile()} == {0o644}
    assert {each.mode for each in found.values() if each.isdir()} == {0o755}
    assert "a" in members(layer("one", {"a/b": b"c"}, root="/"))


def test_content_may_be_given_instead_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")

    assert layer("one", {"a": b"content"}).digest == layer("one", {"a": tmp_path / "file"}).digest


def test_a_layer_is_made_once_and_again_where_the_cache_is_damaged(monkeypatch):
    packed: list[int] = []
    real = layers._member
    monkeypatch.setattr(layers, "_member", lambda block: packed.append(1) or real(block))
    first = layer("one", {"a": b"content"})
    again = layer("two", {"a": b"content"})

    assert len(packed) == 1
    assert (again.digest, again.name) == (first.digest, "two")
    first.path.write_bytes(b"damaged")
    assert layer("one", {"a": b"content"}).digest == first.digest
    assert len(packed) == 2


def test_another_directory_is_another_layer():
    assert layer("one", {"a": b"content"}, root="/app").diff_id != layer("one", {"a": b"content"}).diff_id


@pytest.mark.parametrize("path", ["/a", "../a", "a/../../b", ".wh.passwd", "etc/.wh..wh..opq", ""])
def test_a_path_that_would_change_what_is_below_is_refused(path):
    with pytest.raises(PackageError, match="is no path inside a layer"):
        layer("one", {path: b""})


def test_a_root_that_is_none_is_refused():
    with pytest.raises(PackageError, match="is no directory of an image"):
        layer("one", {"a": b""}, root="/../etc")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PackageError, match="no-such-file"):
        layer("one", {"a": tmp_path / "no-such-file"})
