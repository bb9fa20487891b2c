"""The bundle's archive where a platform wants a tar: any tool can read it, and the same files are the same bytes."""

import dataclasses
import hashlib
import sys
import tarfile
from pathlib import Path

import pytest
from sklearn.tree import DecisionTreeClassifier

from polyserve import registry
from polyserve.bundle import build, tarring
from polyserve.bundle.contents import of_file, of_text
from polyserve.driver import BundleForm
from polyserve.errors import PackageError
from polyserve.model import package


def test_a_tar_is_what_any_reader_expects(tmp_path):
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0o600)
    files = {
        "b/text.txt": of_text("words " * 1000),
        "é/ü.txt": of_text("ü"),
        "tool": of_file(tmp_path / "f", executable=True),
    }
    digest = tarring.write(tmp_path / "a.tar.gz", files)

    assert digest == hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest()
    with tarfile.open(tmp_path / "a.tar.gz") as opened:
        entries = opened.getmembers()
        assert [entry.name for entry in entries] == ["b/text.txt", "tool", "é/ü.txt"]
        assert [oct(entry.mode) for entry in entries] == ["0o644", "0o755", "0o644"]
        assert {(entry.mtime, entry.uid, entry.uname) for entry in entries} == {(0, 0, "")}
        assert {entry.name: opened.extractfile(entry).read() for entry in entries} == {
            name: each.read() for name, each in files.items()
        }


def test_the_order_of_the_files_does_not_show_in_a_tar(tmp_path):
    files = {name: of_text(name * 50) for name in ("c", "a/x", "b")}

    backwards = dict(reversed(files.items()))
    assert tarring.write(tmp_path / "a", files) == tarring.write(tmp_path / "b", backwards)


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a//b"])
def test_no_path_leads_out_of_a_tar(tmp_path, path):
    with pytest.raises(PackageError, match="no path inside"):
        tarring.write(tmp_path / "a", {path: of_text("x")})
    assert list(tmp_path.iterdir()) == []


def test_a_platform_that_wants_a_tar_gets_one_with_the_same_files():
    tree = DecisionTreeClassifier(random_state=0).fit([[0.0], [1.0]], [0, 1])
    made = package(tree, name="tarred", sample=[[0.0], [1.0]])
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    local = registry.info("local")
    wants_tar = dataclasses.replace(local, bundle=BundleForm(archive="tar.gz"))

    zipped, tarred = (build(made, info, python=python, architecture="x86_64") for info in (local, wants_tar))

    assert "".join(Path(tarred.path.name).suffixes) == ".tar.gz"
    assert tarred.unpacked_size == zipped.unpacked_size
    with tarfile.open(tarred.path) as opened:
        assert "package/manifest.json" in opened.getnames()
        assert sum(entry.size for entry in opened.getmembers()) == tarred.unpacked_size
