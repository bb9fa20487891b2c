"""A bundle has the package, the runtime and the entrypoint, and is the same bytes every time."""

import dataclasses
import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from sklearn.tree import DecisionTreeClassifier

import polyserve
from polyserve import registry
from polyserve.bundle import Bundle, build
from polyserve.errors import PackageError
from polyserve.model import ModelPackage, package
from polyserve.runtime import archive
from polyserve.runtime import manifest as manifests

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> ModelPackage:
    """Return a package that no test changes."""
    tree = DecisionTreeClassifier(random_state=0).fit([[0.0], [1.0]], [0, 1])
    return package(tree, name="tree", sample=[[0.0], [1.0]], into=tmp_path_factory.mktemp("packages"))


def built(made: ModelPackage, **changes: object) -> Bundle:
    return build(made, registry.info("local"), **({"python": PYTHON, "architecture": "x86_64"} | changes))


def test_a_bundle_has_the_package_the_runtime_and_the_entrypoint(made, tmp_path):
    bundle = built(made)
    size = archive.extract(bundle.path, tmp_path / "out")

    root = tmp_path / "out"
    manifest = manifests.read(root / "package")
    manifests.verify(root / "package", manifest)
    assert manifest.digest == made.digest == bundle.package_digest
    assert (root / "polyserve/__init__.py").read_bytes() == Path(polyserve.__file__).read_bytes()
    assert (root / "polyserve/runtime/host.py").is_file()
    assert (root / "polyserve/runtime/loaders/sklearn.py").is_file()
    assert "polyserve" in (root / "polyserve_entrypoint.py").read_text()
    assert sorted(entry.name for entry in root.iterdir()) == ["package", "polyserve", "polyserve_entrypoint.py"]
    assert size == bundle.unpacked_size == sum(bundle.parts.values())


def test_the_bundle_says_what_it_is_made_of(made):
    bundle = built(made)

    assert set(bundle.parts) == {"package", "runtime", "entrypoint"}
    assert bundle.parts["package"] == made.size_bytes
    assert bundle.size == bundle.path.stat().st_size
    assert bundle.sha256 == hashlib.sha256(bundle.path.read_bytes()).hexdigest()


def test_a_bundle_built_elsewhere_is_the_same_bytes(made, tmp_path, monkeypatch):
    first = built(made)
    monkeypatch.setenv("POLYSERVE_CACHE", str(tmp_path / "other"))

    second = built(made)

    assert second.path != first.path
    assert second.sha256 == first.sha256


def test_a_bundle_that_was_built_before_is_not_written_again(made):
    first = built(made)
    written = first.path.stat().st_mtime_ns

    assert built(made) == first
    assert first.path.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"half"),
        lambda path: path.with_suffix(".sha256").unlink(),
    ],
)
def test_a_broken_entry_of_the_cache_is_built_again(made, damage):
    first = built(made)
    damage(first.path)

    assert built(made) == first
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.sha256


def test_another_architecture_is_another_entry_of_the_cache(made):
    assert built(made).path != built(made, architecture="arm64").path


def test_nothing_but_bundles_is_left_in_the_cache(made):
    bundle = built(made)

    assert sorted(entry.name for entry in bundle.path.parent.iterdir()) == sorted(
        [bundle.path.name, bundle.path.stem + ".sha256"]
    )


def test_a_damaged_package_is_not_bundled(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "package")
    damaged = ModelPackage.open(tmp_path / "package")
    (damaged.root / "model/model.pickle").write_bytes(b"evil")

    with pytest.raises(PackageError, match=r"model/model\.pickle has 4 bytes"):
        built(damaged)


def test_another_python_is_refused_with_both_versions_named(made):
    with pytest.raises(PackageError, match=rf"made under Python {PYTHON} and cannot run under 3\.99"):
        built(made, python="3.99")


def test_an_entrypoint_that_is_not_installed_is_refused(made):
    info = dataclasses.replace(registry.info("local"), entrypoint="no_such_entrypoint")

    with pytest.raises(PackageError, match="entrypoint 'no_such_entrypoint', which is not installed"):
        build(made, info, python=PYTHON, architecture="x86_64")


def test_a_cache_that_cannot_be_written_is_told(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYSERVE_CACHE", str(tmp_path / "file"))

    with pytest.raises(PackageError, match="set POLYSERVE_CACHE"):
        built(made)
    assert os.environ["POLYSERVE_CACHE"]
