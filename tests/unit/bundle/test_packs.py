"""Packs keep compressed files and byte-code between bundles, and are believed only when they are what was written."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from polyserve.bundle import members, packs, preparing, zipping
from polyserve.bundle.contents import Content, of_file, of_text
from polyserve.errors import PackageError
from polyserve.model.storage import cache_directory

WORDS = b"words " * 1000


def made(place: Path) -> packs.Pack:
    writer = packs.Writer(place)
    writer.add_file("key", members.compressed(WORDS))
    writer.add_file("short", members.compressed(b"xy"))
    writer.add_byte_code("a/__pycache__/b.pyc", hashlib.sha256(WORDS).hexdigest(), members.compressed(WORDS))
    return writer.commit()


def test_a_pack_has_what_was_put_into_it(tmp_path):
    written = made(tmp_path / "packs/one")
    found = packs.opened(tmp_path / "packs/one")

    assert found == written
    assert found.files["key"].read() == WORDS
    assert found.files["short"].read() == b"xy"
    assert found.files["key"].length < 100
    assert (found.files["key"].method, found.files["short"].method) == (members.DEFLATED, members.STORED)
    sha256, byte_code = found.byte_code["a/__pycache__/b.pyc"]
    assert (sha256, byte_code.read()) == (hashlib.sha256(WORDS).hexdigest(), WORDS)


def test_a_pack_that_was_not_committed_was_never_there(tmp_path):
    writer = packs.Writer(tmp_path / "one")
    writer.add_file("key", members.compressed(WORDS))
    writer.discard()

    assert list(tmp_path.iterdir()) == []
    assert packs.opened(tmp_path / "one") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
        lambda data: data.replace(b"short", b"shirt"),
        lambda data: data + b"\0",
    ],
    ids=["empty", "shorter", "a bit in a body", "a letter in the index", "longer"],
)
def test_a_damaged_pack_is_not_believed(tmp_path, damage):
    made(tmp_path / "one")
    (tmp_path / "one").write_bytes(damage((tmp_path / "one").read_bytes()))

    assert packs.opened(tmp_path / "one") is None


def test_an_archive_from_packs_is_the_same_bytes_as_one_from_files(tmp_path):
    (tmp_path / "data.txt").write_bytes(WORDS)
    files = {"a/data.txt": of_file(tmp_path / "data.txt"), "b": of_text(""), "c": of_text("xy")}
    whole = zipping.write(tmp_path / "a.zip", files)
    compressed = preparing.prepare([files], "").compressed
    (tmp_path / "data.txt").unlink()

    assert zipping.write(tmp_path / "b.zip", files, compressed) == whole
    with zipfile.ZipFile(tmp_path / "b.zip") as opened:
        assert opened.read("a/data.txt") == WORDS


def test_what_was_compressed_before_is_not_read_again_and_a_damaged_pack_is_made_again(tmp_path):
    (tmp_path / "data.txt").write_bytes(WORDS)
    files = {"data.txt": of_file(tmp_path / "data.txt")}
    told: list[str] = []
    first = preparing.prepare([files], "", report=told.append)
    again = preparing.prepare([files], "", report=told.append)
    assert again == first
    assert len(told) == 1

    (pack,) = (cache_directory() / "packs").iterdir()
    pack.write_bytes(b"damaged")
    assert preparing.prepare([files], "", report=told.append) == first
    assert len(told) == 2
    pack.write_bytes(b"damaged")
    (tmp_path / "data.txt").write_bytes(b"changed")
    with pytest.raises(PackageError, match="was changed after it was first read"):
        preparing.prepare([files], "")
    assert [path.name for path in pack.parent.iterdir()] == [pack.name]


def test_a_group_is_found_again_beside_others(tmp_path):
    one, other = {"one.txt": of_text("1" * 1000)}, {"other.txt": of_text("2" * 1000)}
    preparing.prepare([one], "")
    told: list[str] = []

    assert len(preparing.prepare([one, other], "", report=told.append).compressed) == 2
    preparing.prepare([other], "", report=told.append)
    assert len(told) == 1
    assert len(list((cache_directory() / "packs").iterdir())) == 2


def test_a_file_too_large_to_be_compressed_is_in_no_pack(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "LARGEST", 1000)
    (tmp_path / "weights").write_bytes(b"w" * 5000)

    assert preparing.prepare([{"weights": of_file(tmp_path / "weights")}], "").compressed == {}


def test_byte_code_that_was_damaged_since_it_was_found_is_refused(tmp_path):
    sha256, packed = made(tmp_path / "one").byte_code["a/__pycache__/b.pyc"]
    content = Content(source=packed, sha256=sha256, size=packed.size, shared=True)
    assert content.read() == WORDS
    (tmp_path / "one").write_bytes(b"\xff" * (tmp_path / "one").stat().st_size)

    with pytest.raises(PackageError, match="remove its directory from the cache"):
        content.read()
