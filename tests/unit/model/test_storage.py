"""Packages on disk: the cache, archives, and what happens to those that somebody changed."""

import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

from polyserve.errors import NotFoundError, PackageError
from polyserve.model import ModelPackage, package
from polyserve.model.packing import kebab
from polyserve.runtime.manifest import tree_digest


@pytest.fixture
def made(forest, iris) -> ModelPackage:
    return package(forest, name="iris", sample=iris[0][:3])


def test_a_package_is_in_the_cache_below_its_digest(made):
    assert made.root == Path(os.environ["POLYSERVE_CACHE"]) / "packages" / made.digest
    assert made.digest == tree_digest(made.root)


def test_nothing_but_packages_is_left_in_the_cache(made):
    assert [entry.name for entry in made.root.parent.iterdir()] == [made.digest]


def test_the_size_is_that_of_all_files(made):
    assert made.size_bytes == sum(file.stat().st_size for file in made.root.rglob("*") if file.is_file())


def test_a_package_is_kept_where_it_is_asked_to_be(forest, iris, tmp_path):
    made = package(forest, sample=iris[0][:3], into=tmp_path / "here")

    assert made.root == tmp_path / "here" / made.digest


def test_a_package_becomes_itself(made):
    assert package(made) is made
    assert package(made.root) == made
    assert package(str(made.root)) == made


def test_an_archive_opens_as_the_same_package_in_another_cache(made, tmp_path, monkeypatch):
    archive = made.save(tmp_path / "iris.zip")
    monkeypatch.setenv("POLYSERVE_CACHE", str(tmp_path / "other"))

    opened = ModelPackage.open(archive)

    assert opened == made
    assert opened.root == tmp_path / "other" / "packages" / made.digest
    assert package(archive) == made


def test_saving_gives_the_same_bytes_whatever_the_dates_and_modes(made, tmp_path):
    first = made.save(tmp_path / "first.zip").read_bytes()
    for file in made.root.rglob("*"):
        os.utime(file, (1, 1))
        file.chmod(0o700)

    assert made.save(tmp_path / "second.zip").read_bytes() == first


def test_saving_into_a_directory_names_the_archive_after_the_package(made, tmp_path):
    assert made.save(tmp_path) == tmp_path / f"iris-{made.digest[:12]}.zip"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "model/model.pickle").write_bytes(b"evil"), "model/model.pickle has 4 bytes"),
        (lambda root: (root / "sample/answer.json").unlink(), "sample/answer.json is missing"),
        (
            lambda root: (root / "code").mkdir() or (root / "code/x.py").write_text(""),
            "code/x.py is not in the manifest",
        ),
        (lambda root: (root / "link").symlink_to("/etc/hostname"), "link is neither a file nor a directory"),
        (lambda root: (root / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda root: (root / "manifest.json").write_bytes(b"{"), "manifest.json is not JSON"),
        (
            lambda root: (root / "manifest.json").write_bytes((root / "manifest.json").read_bytes() + b"\n"),
            "not in canonical form",
        ),
    ],
    ids=["changed", "missing", "added", "link", "no manifest", "broken manifest", "edited manifest"],
)
def test_a_package_that_was_changed_does_not_open(made, change, told):
    change(made.root)

    with pytest.raises(PackageError) as caught:
        ModelPackage.open(made.root)
    assert told in str(caught.value)


def test_one_flipped_bit_is_seen(made):
    file = made.root / "model/model.pickle"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)

    with pytest.raises(PackageError, match=r"model/model\.pickle has sha256"):
        made.verify()


def test_a_broken_entry_of_the_cache_is_made_again(made, forest, iris):
    (made.root / "model/model.pickle").write_bytes(b"half a mod")

    again = package(forest, name="iris", sample=iris[0][:3])

    assert again == made
    again.verify()
    assert [entry.name for entry in made.root.parent.iterdir()] == [made.digest]


def test_an_archive_heals_a_broken_entry(made, tmp_path):
    archive = made.save(tmp_path / "iris.zip")
    (made.root / "manifest.json").unlink()

    ModelPackage.open(archive).verify()


def test_several_threads_that_package_one_model_get_one_package(forest, iris):
    results: list[ModelPackage] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        results.append(package(forest, name="iris", sample=iris[0][:3]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({made.digest for made in results}) == 1
    assert len(results) == 4
    results[0].verify()
    assert len(list(results[0].root.parent.iterdir())) == 1


def test_a_file_that_is_no_archive_does_not_open(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"PK not really")

    with pytest.raises(PackageError, match=r"'model\.zip' is no model package: .* no readable zip"):
        ModelPackage.open(tmp_path / "model.zip")


def test_an_archive_of_something_else_does_not_open(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")

    with pytest.raises(PackageError, match=r"other\.zip.*manifest\.json cannot be read"):
        ModelPackage.open(tmp_path / "other.zip")


def test_an_archive_that_writes_outside_does_not_open(made, tmp_path):
    evil = shutil.copy(made.save(tmp_path / "iris.zip"), tmp_path / "evil.zip")
    with zipfile.ZipFile(evil, "a") as archive:
        archive.writestr("../../escaped.txt", "hello")

    with pytest.raises(PackageError, match="outside of the directory"):
        ModelPackage.open(evil)
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_path_where_nothing_is_does_not_open(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        ModelPackage.open(tmp_path / "none.zip")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("LogisticRegression", "logistic-regression"),
        ("SVC", "svc"),
        ("PCAModel", "pca-model"),
        ("my_model.v2", "my-model-v2"),
        ("  Été 2024 ", "t-2024"),
    ],
)
def test_names_become_words_joined_by_hyphens(given, name):
    assert kebab(given) == name
