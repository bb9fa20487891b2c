"""Which distribution a module was installed with."""

import importlib
import shutil
import sys
from importlib.metadata import packages_distributions

import pytest

from polyserve.model.environment import Environment


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install made-up distributions: their files, and what the installer noted beside them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(name, files, **notes):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        record = "".join(f'"{file}",,\n' if "," in file else f"{file},sha256=x,0\n" for file in files)
        known = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "RECORD": record} | notes
        for note, text in known.items():
            (info / note).write_text(text)
        importlib.invalidate_caches()

    return installed


def test_everything_installed_belongs_to_whom_the_standard_library_says_or_to_nobody():
    environment = Environment()

    for module, owners in packages_distributions().items():
        assert environment.owner(module) in {name.lower().replace("_", "-").replace(".", "-") for name in owners} | {
            None
        }
    assert environment.owner("numpy") == environment.owner("numpy.linalg") == "numpy"
    assert environment.owner("sklearn.tree") == "scikit-learn"


def test_a_module_belongs_to_the_distribution_whose_files_it_is_among(installed):
    installed("Plainly_Recorded", ["a,b/one.py", "plainly/__init__.py", "plainly/inside.py", "alone_there.py"])

    environment = Environment()

    assert environment.owner("plainly") == environment.owner("plainly.inside") == "plainly-recorded"
    assert environment.owner("alone_there") == "plainly-recorded"
    assert environment.owner("not_there") is None


def test_a_distribution_of_extension_modules_alone_has_them(installed):
    installed("compiled", ["compiled_alone.abi3.so", "compiled_package/inside.abi3.so", "compiled.libs/libother.so"])

    environment = Environment()

    assert environment.owner("compiled_alone") == "compiled"
    assert environment.owner("compiled_package") == "compiled"


def test_a_namespace_that_two_share_belongs_to_whoever_has_the_file(installed):
    installed("first-half", ["shared_by_two/first/__init__.py"])
    installed("second-half", ["shared_by_two/second/__init__.py"])

    environment = Environment()

    assert environment.owner("shared_by_two.first") == "first-half"
    assert environment.owner("shared_by_two.second") == "second-half"


def test_a_namespace_inside_another_is_found_though_neither_was_imported(installed):
    installed("first-deep", ["outer_of_two/inner/first/__init__.py", "outer_of_two/inner/first/own.py"])
    installed("second-deep", ["outer_of_two/inner/deepest/second.py"])

    environment = Environment()

    assert environment.find("outer_of_two.inner.first.own").origin.endswith("own.py")
    assert environment.owner("outer_of_two.inner.first") == "first-deep"
    assert environment.owner("outer_of_two.inner.deepest.second") == "second-deep"
    assert environment.find("outer_of_two.inner.first.not_there") is None
    assert environment.find("outer_of_two.not_there.first") is None
    assert not any(name.startswith("outer_of_two") for name in sys.modules)


def test_what_is_declared_counts_more_than_the_files(installed):
    installed("declares", ["declared/__init__.py", "undeclared/__init__.py"], **{"top_level.txt": "declared\n"})

    assert Environment().owner("declared") == "declares"
    assert Environment().owner("undeclared") is None


def test_what_was_installed_from_a_directory_is_the_users_own(installed):
    installed("mine", ["my_own/__init__.py"], **{"direct_url.json": '{"url": "file:///mine", "dir_info": {}}'})

    assert Environment().owner("my_own") is None


def test_what_is_installed_or_removed_between_two_packages_is_noticed(installed, tmp_path):
    assert Environment().owner("come_later") is None

    installed("comes-later", ["come_later/__init__.py"])
    assert Environment().owner("come_later") == "comes-later"

    shutil.rmtree(tmp_path / "comes_later-1.0.dist-info")
    assert Environment().owner("come_later") is None
