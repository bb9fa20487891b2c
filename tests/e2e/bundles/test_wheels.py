"""Dependencies are those of the target, exactly the locked ones, never built, and fetched once."""

import shutil
import sys
from pathlib import Path

import pytest

from polyserve.bundle import Target, installers, wheels
from polyserve.errors import PackageError, UnavailableError
from polyserve.model.storage import cache_directory
from polyserve.runtime.environment import mismatches


def target(python: str = "3.12", architecture: str = "x86_64", glibc: tuple[int, int] = (2, 28)) -> Target:
    return Target(provider="A cloud", python=python, architecture=architecture, glibc=glibc)


@pytest.fixture(params=["uv", "pip"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pip":
        monkeypatch.setattr(installers, "find_uv", lambda: None)
    return request.param


def text(tree: wheels.Tree, path: str) -> str:
    return tree.files[path].read().decode()


def test_a_target_gets_the_wheels_that_were_built_for_it(make_wheel, tool):
    for python, machine in (("312", "x86_64"), ("312", "aarch64"), ("313", "x86_64")):
        tag = f"cp{python}-cp{python}-manylinux_2_28_{machine}"
        make_wheel("native", "1.0", {"native.py": f"BUILT_FOR = '{python} {machine}'"}, tag=tag)

    found = [
        text(wheels.fetch(["native==1.0"], [], target(python, architecture)), "native.py")
        for python, architecture in (("3.12", "x86_64"), ("3.12", "arm64"), ("3.13", "x86_64"))
    ]

    assert found == [f"BUILT_FOR = '{what}'" for what in ("312 x86_64", "312 aarch64", "313 x86_64")]


def test_a_tree_has_the_files_of_the_wheels_and_nothing_of_this_machine(make_wheel, tool):
    script = {"plain-1.0.dist-info/entry_points.txt": "[console_scripts]\nplain = plain:main\n"}
    make_wheel("plain", "1.0", {"plain/__init__.py": "", "plain/data.txt": "x"} | script)

    tree = wheels.fetch(["plain==1.0"], [], target())

    names = ["plain-1.0.dist-info/METADATA", "plain-1.0.dist-info/WHEEL", "plain-1.0.dist-info/entry_points.txt"]
    assert sorted(tree.files) == [*names, "plain/__init__.py", "plain/data.txt"]
    assert {content.owner for content in tree.files.values()} == {"plain"}


def test_what_the_lock_does_not_name_is_not_fetched(make_wheel, tool):
    make_wheel("top", "1.0", {"top.py": ""}, requires=["optional"])
    make_wheel("optional", "1.0", {"optional.py": ""})

    assert "optional.py" not in wheels.fetch(["top==1.0"], [], target()).files


def test_markers_are_those_of_the_target_and_not_of_this_machine(make_wheel, tool):
    make_wheel("elsewhere", "1.0", {"elsewhere.py": ""})
    make_wheel("there", "1.0", {"there.py": ""})
    lock = ["elsewhere==1.0 ; sys_platform == 'win32'", "there==1.0 ; python_version == '3.13'"]

    assert list(wheels.fetch([lock[0]], [], target()).files) == []
    assert "there.py" in wheels.fetch(lock, [], target("3.13")).files
    assert "elsewhere.py" not in wheels.fetch(lock, [], target("3.13")).files


def test_a_distribution_without_a_wheel_for_the_target_is_named_with_the_way_out(make_wheel, tool):
    make_wheel("native", "1.0", {"native.py": ""}, tag="cp312-cp312-manylinux_2_28_x86_64")

    with pytest.raises(PackageError) as refused:
        wheels.fetch(["native==1.0"], [], target("3.13", "arm64"))

    assert "native 1.0 has no wheel for Python 3.13 on arm64 with glibc 2.28 (A cloud)" in str(refused.value)
    assert "another Python" in str(refused.value)
    assert "--arch" in str(refused.value)


def test_a_wheel_for_a_newer_c_library_is_told_from_none_at_all(make_wheel, tool):
    make_wheel("native", "1.0", {"native.py": ""}, tag="cp312-cp312-manylinux_2_28_x86_64")

    with pytest.raises(PackageError, match=r"the wheels of native 1\.0 need a newer C library than .* glibc 2\.26"):
        wheels.fetch(["native==1.0"], [], target(glibc=(2, 26)))


def test_nothing_is_ever_built_from_source(make_wheel, tmp_path, tool):
    import tarfile

    source = tmp_path / "sourced-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: sourced\nVersion: 1.0\n")
    make_wheel("sourced", "0.9", {"sourced.py": ""})
    page = tmp_path / "wheelhouse/sourced"
    with tarfile.open(page / "sourced-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "sourced-1.0")
    with (page / "index.html").open("a") as index:
        index.write('<a href="sourced-1.0.tar.gz">sourced-1.0.tar.gz</a>')

    with pytest.raises(PackageError, match=r"sourced 1\.0 has no wheel"):
        wheels.fetch(["sourced==1.0"], [], target())
    assert not (tmp_path / "ran").exists()


def test_what_was_fetched_once_is_there_without_any_index(make_wheel, tmp_path):
    make_wheel("plain", "1.0", {"plain.py": "x = 1"})
    first = wheels.fetch(["plain==1.0"], [], target())
    shutil.rmtree(tmp_path / "wheelhouse")

    assert wheels.fetch(["plain==1.0"], [], target()) == first
    assert text(first, "plain.py") == "x = 1"


def test_a_damaged_tree_is_fetched_again(make_wheel):
    make_wheel("plain", "1.0", {"plain.py": "x = 1"})
    first = wheels.fetch(["plain==1.0"], [], target())
    (first.root / "files.json").write_text("{")

    assert wheels.fetch(["plain==1.0"], [], target()) == first


def test_a_file_that_somebody_changed_is_noticed(make_wheel):
    make_wheel("plain", "1.0", {"plain.py": "x = 1"})
    content = wheels.fetch(["plain==1.0"], [], target()).files["plain.py"]
    assert isinstance(content.source, Path)
    content.source.unlink()
    content.source.write_text("x = 2")

    with pytest.raises(PackageError, match=r"plain\.py' was changed .* remove its directory from the cache"):
        content.read()


def test_further_requirements_bring_what_they_need_at_the_versions_of_the_lock(make_wheel, tool):
    for version in ("1.0", "2.0"):
        make_wheel("shared-thing", version, {"shared_thing.py": f"VERSION = '{version}'"})
    make_wheel("needed", "3.0", {"needed.py": ""})
    make_wheel("more", "1.0", {"more.py": ""}, requires=["shared-thing", "needed>=2"])

    tree = wheels.fetch(["shared-thing==1.0"], ["more==1.0"], target())

    assert {"more.py", "needed.py", "shared_thing.py"} <= tree.files.keys()
    assert text(tree, "shared_thing.py") == "VERSION = '1.0'"


def test_further_requirements_that_contradict_the_lock_are_refused(make_wheel, tool):
    make_wheel("plain", "1.0", {"plain.py": ""})
    make_wheel("plain", "2.0", {"plain.py": ""})
    make_wheel("more", "1.0", {"more.py": ""}, requires=["plain>=2"])

    with pytest.raises(PackageError, match="cannot be brought together"):
        wheels.fetch(["plain==1.0"], ["more==1.0"], target())


def test_libraries_for_graphics_cards_are_named_and_not_fetched(make_wheel, monkeypatch):
    make_wheel("plain", "1.0", {"plain.py": ""})  # there is no wheel of the other: it must not be asked for

    tree = wheels.fetch(["nvidia-nccl-cu12==2.28.3", "plain==1.0"], [], target())
    for path, content in tree.files.items():
        place = cache_directory() / "there" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.read())
    monkeypatch.syspath_prepend(str(cache_directory() / "there"))

    assert tree.left_out == ("nvidia-nccl-cu12==2.28.3",)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert list(mismatches(python, ["nvidia-nccl-cu12==2.28.3", "plain==1.0"])) == []


def test_a_build_without_graphics_cards_stands_for_the_one_that_is_locked(make_wheel):
    make_wheel("xgboost", "3.2.0", {"xgboost/__init__.py": "CARDS = True"})
    make_wheel("xgboost-cpu", "3.2.0", {"xgboost/__init__.py": "CARDS = False"})
    lock = ["nvidia-nccl-cu12==2.28.3", "xgboost==3.2.0"]

    tree = wheels.fetch(lock, [], target())
    make_wheel("nvidia-nccl-cu12", "2.28.3", {"nvidia/nccl.py": ""})
    whole = wheels.fetch(lock, [], target(), slim=False)

    assert text(tree, "xgboost/__init__.py") == "CARDS = False"
    assert tree.replaced == {"xgboost==3.2.0": "xgboost-cpu==3.2.0"}
    assert "xgboost-3.2.0.dist-info/METADATA" in tree.files
    assert text(whole, "xgboost/__init__.py") == "CARDS = True"
    assert "nvidia/nccl.py" in whole.files


def test_an_index_that_cannot_be_reached_may_be_tried_again(make_wheel, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")

    with pytest.raises(UnavailableError, match="the package index cannot be reached") as raised:
        wheels.fetch(["plain==1.0"], [], target())
    assert raised.value.retryable


def test_a_fetch_that_is_interrupted_leaves_nothing_and_goes_on_the_next_time(make_wheel):
    make_wheel("plain", "1.0", {"plain.py": ""})

    def interrupt(told: str) -> None:
        if told.startswith("reading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wheels.fetch(["plain==1.0"], [], target(), report=interrupt)
    assert list((cache_directory() / "wheels").iterdir()) == []
    assert "plain.py" in wheels.fetch(["plain==1.0"], [], target()).files


def test_both_installers_give_the_same_tree(make_wheel, monkeypatch, tmp_path):
    make_wheel("plain", "1.0", {"plain/__init__.py": "", "plain/data.txt": "x"})
    trees = []
    for find in (installers.find_uv, lambda: None):
        monkeypatch.setattr(installers, "find_uv", find)
        monkeypatch.setenv("POLYSERVE_CACHE", str(tmp_path / f"cache{len(trees)}"))
        files = wheels.fetch(["plain==1.0"], [], target()).files
        trees.append({path: (content.key, content.executable) for path, content in files.items()})

    assert trees[0] == trees[1]
