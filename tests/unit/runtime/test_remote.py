"""Files that a bundle left in the bucket: streamed, checked, kept, and refused where they are not what the manifest says."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyserve.runtime import loading, remote
from polyserve.runtime import manifest as manifests
from polyserve.runtime.host import Host
from polyserve.runtime.loading import LoadError
from polyserve.runtime.messages import Request
from polyserve.runtime.remote import Remote

SOURCE = """
class Model:
    def load(self, model_dir):
        self.sizes = sorted(path.stat().st_size for path in model_dir.iterdir())

    def predict(self, rows):
        return [[float(size) for size in self.sizes] for _ in rows]
"""
BIG = {"big.bin": b"a" * 3_000_000, "more.bin": b"b" * 2_000_000}


class Bucket:
    """Objects by digest, with what was asked for."""

    def __init__(self, *bodies: bytes) -> None:
        self.objects = {hashlib.sha256(body).hexdigest(): body for body in bodies}
        self.asked: list[str] = []
        self.failures = 0

    def fetch(self, sha256: str) -> io.BytesIO:
        self.asked.append(sha256)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("reset by peer")
        return io.BytesIO(self.objects[sha256])


@pytest.fixture
def whole(package: Callable[..., Path]) -> Iterator[Path]:
    """Write a package with the two large files."""
    path, hooks = sys.path[:], sys.path_hooks[:]
    shape = [("input", "FP64", (-1, 1))]
    root = package(SOURCE, shape, [("output", "FP64", (-1, 2))], input_kind="list", output_kind="list")
    (root / "model/files").mkdir(parents=True)
    for name, content in BIG.items():
        (root / "model/files" / name).write_bytes(content)
    made = manifests.read(root)
    loader = {**made.loader, "format": "class", "attribute": "Model", "model_dir": "model/files"}
    made = replace(made, loader=loader, files=manifests.file_entries(root))
    (root / "manifest.json").write_bytes(made.to_json())
    yield root
    sys.path[:], sys.path_hooks[:] = path, hooks
    sys.modules.pop(str(loader["module"]), None)


@pytest.fixture
def bundled(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take the two large files out of the package, as a bundle without them has it."""
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    for name in BIG:
        (whole / "model/files" / name).unlink()
    return whole


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(*BIG.values())


def from_bucket(bucket: Bucket, into: Path) -> Remote:
    return Remote(fetch=bucket.fetch, into=into)


def test_a_package_is_put_together_from_the_bundle_and_the_bucket(bundled, bucket, tmp_path):
    host = Host(bundled, sink=lambda lines: None, remote=from_bucket(bucket, tmp_path / "disk"))
    host.load()

    answer = host.handle(Request(method="POST", path="/invocations", body=b"[[1.0]]"))
    assert answer.body == b"[[2000000.0,3000000.0]]"
    assert host.digest == manifests.read(bundled).digest
    assert not (bundled / "model/files/big.bin").exists()


def test_the_start_line_tells_how_long_it_took_and_how_much_was_read(bundled, bucket, tmp_path):
    lines: list[bytes] = []
    Host(bundled, sink=lines.append, remote=from_bucket(bucket, tmp_path / "disk")).load()

    start = json.loads(b"".join(lines))
    assert start["fetched_bytes"] == 5_000_000
    assert start["fetch_ms"] > 0


def test_a_package_that_lacks_nothing_is_served_where_it_is(whole, bucket, tmp_path):
    loading.load(whole, from_bucket(bucket, tmp_path / "disk"))

    assert not (tmp_path / "disk").exists()
    assert bucket.asked == []


def test_what_is_whole_on_disk_is_not_read_again(bundled, bucket, tmp_path):
    for _ in range(2):
        loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert sorted(bucket.asked) == sorted(bucket.objects)


def test_what_a_killed_start_left_half_is_read_again_and_only_that(bundled, bucket, tmp_path):
    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))
    (root,) = (path for path in (tmp_path / "disk").iterdir() if path.is_dir())
    half = root / "model/files/big.bin"
    half.unlink()
    half.write_bytes(BIG["big.bin"][:1000])
    left = tmp_path / "disk" / f"{root.name}.parts"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    bucket.asked.clear()

    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert bucket.asked == [hashlib.sha256(BIG["big.bin"]).hexdigest()]
    assert half.read_bytes() == BIG["big.bin"]
    assert not left.exists()


def test_a_damaged_file_of_the_right_size_is_read_again(bundled, bucket, tmp_path):
    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))
    (file,) = (tmp_path / "disk").glob("*/model/files/more.bin")
    file.write_bytes(b"x" * len(BIG["more.bin"]))

    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert file.read_bytes() == BIG["more.bin"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"x" * 3_000_000, ["has sha256", "in the bucket", "the manifest says"]),
        (b"a" * 3_000_001, ["more than 3000000 bytes", "the manifest says 3000000"]),
        (b"a" * 10, ["ends after 10 bytes", "the manifest says 3000000"]),
    ],
    ids=["other content", "longer", "shorter"],
)
def test_an_object_of_other_content_is_refused_naming_file_expected_and_got(bundled, bucket, tmp_path, body, words):
    expected = hashlib.sha256(BIG["big.bin"]).hexdigest()
    bucket.objects[expected] = body

    with pytest.raises(LoadError) as caught:
        loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert all(word in str(caught.value) for word in ["model/files/big.bin", *words, "deploy it again"])
    assert not list((tmp_path / "disk").glob("*/model/files/big.bin"))


def test_an_object_that_is_not_there_is_refused_with_its_name(bundled, bucket, tmp_path):
    gone = hashlib.sha256(BIG["more.bin"]).hexdigest()
    del bucket.objects[gone]

    with pytest.raises(LoadError, match=rf"model/files/more\.bin .* cannot be read from the bucket .*{gone}"):
        loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))


def test_a_connection_that_breaks_is_tried_again(bundled, bucket, tmp_path):
    bucket.failures = 2

    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert len(bucket.asked) == 4


def test_several_files_are_streamed_at_once(bundled, bucket, tmp_path):
    together = threading.Barrier(2, timeout=10)

    def fetch(sha256: str) -> io.BytesIO:
        together.wait()
        return bucket.fetch(sha256)

    loading.load(bundled, Remote(fetch=fetch, into=tmp_path / "disk"))

    assert not together.broken


def test_instances_that_start_together_read_the_bucket_once(bundled, bucket, tmp_path):
    starts = [
        threading.Thread(
            target=remote.assemble, args=(bundled, manifests.read(bundled), from_bucket(bucket, tmp_path / "d"))
        )
        for _ in range(4)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()

    assert sorted(bucket.asked) == sorted(bucket.objects)


def test_a_large_file_is_hashed_once_in_a_start(bundled, bucket, tmp_path, monkeypatch):
    read: list[str] = []
    real = manifests.file_digest

    def noting(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(manifests, "file_digest", noting)
    monkeypatch.setattr(remote, "file_digest", noting)

    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))
    first, read[:] = list(read), []
    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert not {"big.bin", "more.bin"} & set(first)
    assert sorted(read) == sorted(set(read)) >= ["big.bin"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_read(bundled, bucket, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4_000_000))

    with pytest.raises(LoadError, match=r"need 5,000,\d+ bytes on disk.*4,000,000 free: give the function more disk"):
        loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert bucket.asked == []


def test_a_directory_that_cannot_be_written_is_named(bundled, bucket, tmp_path):
    (tmp_path / "disk").write_bytes(b"a file")

    with pytest.raises(LoadError, match=r"disk' cannot hold the model's files: "):
        loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))


def test_without_a_bucket_a_file_that_is_missing_is_an_error(bundled):
    with pytest.raises(LoadError, match=r"model/files/big\.bin is missing"):
        loading.load(bundled)


def test_a_bundle_that_cannot_be_linked_is_copied(bundled, bucket, tmp_path, monkeypatch):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)

    loading.load(bundled, from_bucket(bucket, tmp_path / "disk"))

    assert len(list((tmp_path / "disk").glob("*/code/*.py"))) == 1
