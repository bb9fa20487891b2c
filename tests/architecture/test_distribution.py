"""What ships: the wheel and the sdist hold what they should and nothing else, and the wheel works where no checkout is."""

import email
import json
import os
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyserve.model.flavors import FLAVORS

ROOT = Path(__file__).resolve().parents[2]
ROOMS = [ROOT / "polyserve", *sorted((ROOT / "providers").glob("*/polyserve_*"))]


@dataclass(frozen=True)
class Built:
    """The two archives, each with the names in it; those of the sdist without its top directory."""

    wheel: Path
    wheel_names: set[str]
    sdist: Path
    sdist_names: set[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build both archives, by the backend that pip would call."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    (sdist,) = target.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as tar:
        sdist_names = {name.partition("/")[2] for name in tar.getnames()}
        return Built(wheel, set(archive.namelist()), sdist, sdist_names)


def _sources(room: Path) -> set[str]:
    """Return the files of a room as they are named in the wheel."""
    files = (path for path in room.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(room.parent).as_posix() for path in files}


def test_the_wheel_holds_every_file_of_every_room_and_nothing_else(built: Built) -> None:
    expected = set().union(*(_sources(room) for room in ROOMS))
    metadata = {name for name in built.wheel_names if name.partition("/")[0].endswith(".dist-info")}

    assert built.wheel_names - metadata == expected


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_ships_its_types(built: Built, room: Path) -> None:
    assert f"{room.name}/py.typed" in built.wheel_names


def test_the_sdist_holds_what_is_named_and_nothing_else(built: Built) -> None:
    named = {
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "docs",
        "polyserve",
        "providers",
        "pyproject.toml",
        "tests",
        ".gitignore",
    }

    assert {name.partition("/")[0] for name in built.sdist_names} <= named
    assert {"tests/conftest.py", "docs/conf.py", "polyserve/py.typed"} <= built.sdist_names
    assert [name for name in built.sdist_names if "__pycache__" in name or "docs/_build" in name] == []


def test_a_wheel_built_from_the_sdist_is_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")]
    subprocess.run(command, cwd=unpacked, check=True, capture_output=True)
    (again,) = (tmp_path / "again").iterdir()

    with zipfile.ZipFile(built.wheel) as first, zipfile.ZipFile(again) as second:
        assert {i.filename: i.CRC for i in first.infolist()} == {i.filename: i.CRC for i in second.infolist()}


def test_the_metadata_names_the_distribution_and_its_extras(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))

    assert metadata["Name"] == "polyserve-sdk"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(metadata.get_all("Provides-Extra")) == sorted(declared)
    # One for each flavor whose framework is not another's, and for each provider.
    assert set(declared) >= {"aws", "azure", "gcp"} | set(FLAVORS) - {"python", "sklearn"}
    assert metadata.get_payload().startswith("# polyserve")


@pytest.fixture(scope="module")
def elsewhere(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a fresh environment with the wheel in it.

    The wheel's requirements are lent by this environment, which has them already; polyserve itself comes from the wheel,
    because the environment's own directory stands before the lent one.
    """
    home = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    command = ["-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(built.wheel)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (own,) = home.glob("lib/python3*/site-packages")
    (own / "lent.pth").write_text("\n".join(site.getsitepackages()))
    return python


def _run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run([python, *arguments], cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_installed_wheel_finds_its_providers(elsewhere: Path, tmp_path: Path) -> None:
    code = "import polyserve, polyserve.registry as r; print(polyserve.__file__); print(*r.providers())"
    where, names = _run(elsewhere, "-c", code, cwd=tmp_path).splitlines()

    assert Path(where).is_relative_to(elsewhere.parents[1])
    assert names == "local aws azure gcp"


def test_the_version_of_the_package_is_that_of_the_distribution(elsewhere: Path, tmp_path: Path) -> None:
    code = "import polyserve, importlib.metadata as m; print(polyserve.__version__, m.version('polyserve-sdk'))"
    ours, theirs = _run(elsewhere, "-c", code, cwd=tmp_path).split()

    assert ours == theirs


@pytest.mark.slow
def test_the_demo_works_from_the_installed_wheel_and_its_accuracies_are_equal(elsewhere: Path, tmp_path: Path) -> None:
    command = str(elsewhere.with_name("polyserve"))
    shown = json.loads(_run(elsewhere, command, "demo", "--json", cwd=tmp_path))
    _run(elsewhere, command, "destroy", shown["deployment"], "--yes", cwd=tmp_path)

    assert shown["accuracy_endpoint"] == shown["accuracy_in_process"] > 0.9
