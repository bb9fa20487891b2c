"""What a revision runs on: the deployer's own Python where it satisfies the lock, else an environment made for the lock."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from polyserve.bucket import Bucket
from polyserve.driver import FunctionSpec, Phase, PutAttributes
from polyserve.model import package
from polyserve.rollout import Target, desire
from polyserve_local import environment, processes
from polyserve_local.places import Places
from polyserve_local.provider import LocalProvider
from polyserve_local.settings import LocalSettings

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
TELLER = """
import sys
from importlib.metadata import PackageNotFoundError, version

def predict(rows):
    try:
        found = float(version("polyserve-pebble"))
    except PackageNotFoundError:
        found = 0.0
    return [[found, float(sys.prefix != sys.base_prefix)] for _ in rows]
"""


def make_wheel(directory: Path, name: str, release: str) -> Path:
    """Write the smallest wheel there can be."""
    stem = f"{name.replace('-', '_')}-{release}"
    files = {
        f"{name.replace('-', '_')}.py": f"RELEASE = {release!r}\n",
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
    ]
    files[f"{stem}.dist-info/RECORD"] = "\n".join([*lines, f"{stem}.dist-info/RECORD,,"]) + "\n"
    path = directory / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path


@pytest.fixture(scope="session")
def teller(tmp_path_factory: pytest.TempPathFactory) -> tuple[FunctionSpec, bytes]:
    """Package a function that tells what it runs on, locked to a distribution that is not installed here."""
    directory = tmp_path_factory.mktemp("teller")
    (directory / "local_teller.py").write_text(TELLER)
    found = spec_from_file_location("local_teller", directory / "local_teller.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    sys.modules["local_teller"] = module
    try:
        found.loader.exec_module(module)
        made = package(module.predict, name="actor", sample=[[0.0, 1.0], [0.0, 2.0]])
    finally:
        del sys.modules["local_teller"]
    provider = LocalProvider(LocalSettings(home=str(directory)))
    desired, bundle = desire(made, Target(provider=provider, bucket=Bucket(provider, "bundles")), name="actor")
    return desired.spec(1), relocked(bundle.path.read_bytes(), ("polyserve-pebble==1.5",))


def relocked(bundle: bytes, requirements: tuple[str, ...]) -> bytes:
    """Return a bundle whose package has another lock, as if it had been made where that is installed."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(bundle)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename == "package/manifest.json":
                manifest = {**json.loads(content), "requirements": list(requirements)}
                content = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            new.writestr(entry, content)
    return out.getvalue()


@pytest.fixture(params=["uv", "pip"])
def wheels(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all the index there is, for uv or for pip."""
    tools = tmp_path / "tools"
    tools.mkdir()
    counted = tmp_path / "installs"
    if request.param == "uv":
        uv = shutil.which("uv", path=f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}")
        if uv is None:
            pytest.skip("uv is not installed")
        script = f'#!/bin/sh\necho "$*" >> {counted}\nexec {uv} "$@"\n'
    else:
        # Hides a uv that is installed: it is found, and cannot be run.
        script = ""
        monkeypatch.setattr(sys, "executable", str(_without_uv(tools)))
    if script:
        (tools / "uv").write_text(script)
        (tools / "uv").chmod(0o755)
    places = tmp_path / "wheels"
    places.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for prefix in ("UV", "PIP"):
        monkeypatch.setenv(f"{prefix}_NO_INDEX", "1")
        monkeypatch.setenv(f"{prefix}_FIND_LINKS", str(places))
        monkeypatch.setenv(f"{prefix}_CACHE_DIR", str(tmp_path / "cache"))
    return places


def _without_uv(tools: Path) -> Path:
    """Return this Python by another name, in a directory where no uv lies."""
    python = tools / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def locked(make_world: Callable[..., Any], teller: tuple[FunctionSpec, bytes]) -> Any:
    """A world whose function is locked to polyserve-pebble 1.5."""
    world = make_world(retry_s=60.0)
    lock(world, teller, ("polyserve-pebble==1.5",))
    return world


def lock(world: Any, teller: tuple[FunctionSpec, bytes], requirements: tuple[str, ...]) -> None:
    spec, bundle = teller
    content = relocked(bundle, requirements)
    digest = hashlib.sha256(content).hexdigest()
    world.provider.ensure_bucket("bundles")
    key = f"bundles/{digest}.zip"
    world.provider.store("bundles").put(key, BytesIO(content), attrs=PutAttributes())
    artifact = replace(spec.artifact, key=key, sha256=digest, size=len(content))
    world.teller = replace(spec, artifact=artifact, requirements=requirements)


def deploy(world: Any, number: int) -> Any:
    world.functions.apply(replace(world.teller, revision=number))
    return world.settled(number)


def environments(world: Any) -> list[str]:
    return sorted(path.name for path in (world.home / "local/environments").iterdir())


def test_a_lock_that_this_python_does_not_satisfy_gets_an_environment_of_its_own(wheels: Path, locked: Any) -> None:
    make_wheel(wheels, "polyserve-pebble", "1.5")
    make_wheel(wheels, "polyserve-pebble", "1.6")
    revision = deploy(locked, 1)

    assert (revision.phase, revision.reason) == (Phase.READY, None)
    assert locked.call(revision=1).json() == [[1.5, 1.0]]


def test_a_second_revision_with_the_same_lock_installs_nothing(wheels: Path, locked: Any) -> None:
    wheel = make_wheel(wheels, "polyserve-pebble", "1.5")
    assert deploy(locked, 1).phase is Phase.READY
    (made,) = environments(locked)
    before = (locked.home / "local/environments" / made / "complete").stat().st_mtime_ns
    wheel.unlink()

    assert deploy(locked, 2).phase is Phase.READY
    assert environments(locked) == [made]
    assert (locked.home / "local/environments" / made / "complete").stat().st_mtime_ns == before


def test_revisions_that_are_made_at_once_with_the_same_lock_share_one_environment(wheels: Path, locked: Any) -> None:
    make_wheel(wheels, "polyserve-pebble", "1.5")
    for number in (1, 2, 3):
        locked.functions.apply(replace(locked.teller, revision=number))

    assert [locked.settled(number).phase for number in (1, 2, 3)] == [Phase.READY] * 3
    assert len(environments(locked)) == 1
    assert locked.call(revision=3).json() == [[1.5, 1.0]]


def test_a_lock_that_nothing_satisfies_fails_with_what_the_installer_says(wheels: Path, locked: Any) -> None:
    make_wheel(wheels, "polyserve-pebble", "1.6")
    revision = deploy(locked, 1)

    assert revision.phase is Phase.FAILED
    assert "polyserve-pebble==1.5" in revision.reason
    assert environments(locked) == []


def test_a_failed_installation_is_tried_anew_with_the_settings_of_who_deploys_again(
    wheels: Path, locked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert deploy(locked, 1).phase is Phase.FAILED
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make_wheel(elsewhere, "polyserve-pebble", "1.5")
    monkeypatch.setenv("UV_FIND_LINKS", str(elsewhere))
    monkeypatch.setenv("PIP_FIND_LINKS", str(elsewhere))

    assert deploy(locked, 1).phase is Phase.READY


def test_an_environment_goes_with_the_last_revision_that_could_use_it(
    wheels: Path, locked: Any, teller: tuple[FunctionSpec, bytes]
) -> None:
    make_wheel(wheels, "polyserve-pebble", "1.5")
    make_wheel(wheels, "polyserve-pebble", "1.6")
    deploy(locked, 1)
    deploy(locked, 2)
    lock(locked, teller, ("polyserve-pebble==1.6",))
    deploy(locked, 3)
    assert len(environments(locked)) == 2

    locked.functions.remove_revision("actor", 1)
    assert len(environments(locked)) == 2
    locked.functions.remove_revision("actor", 2)
    assert len(environments(locked)) == 1
    assert locked.call(revision=3).json() == [[1.6, 1.0]]


def test_a_gateway_that_is_killed_during_the_installation_leaves_nothing_half_made(
    locked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "polyserve-pebble", "1.5")
    tools = tmp_path / "tools"
    tools.mkdir()
    real = shutil.which("uv", path=f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}")
    if real is None:
        pytest.skip("uv is not installed")
    slow = tmp_path / "slow"
    slow.touch()
    held = f'[ "$1" = pip ] && [ -e {slow} ] && touch {tmp_path}/began && exec sleep 600\n'
    (tools / "uv").write_text(f'#!/bin/sh\n{held}exec {real} "$@"\n')
    (tools / "uv").chmod(0o755)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(wheels)), ("CACHE_DIR", str(tmp_path / "cache"))):
        monkeypatch.setenv(f"UV_{name}", value)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    locked.functions.apply(replace(locked.teller, revision=1))
    locked.until((tmp_path / "began").exists)
    (record,) = (locked.home / "local/environments").glob("*.making")
    installing = json.loads(record.read_bytes())
    locked.kill_gateway()
    assert processes.started_at(installing["pid"]) == installing["started"]

    slow.unlink()
    assert locked.settled(1).phase is Phase.READY
    assert processes.started_at(installing["pid"]) != installing["started"]
    assert len(environments(locked)) == 1
    assert locked.call(revision=1).json() == [[1.5, 1.0]]


def test_deleting_a_function_ends_the_installation_that_it_waits_for(
    locked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/began.tmp\nmv {tmp_path}/began.tmp {tmp_path}/began\nexec sleep 600\n"
    )
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    locked.functions.apply(replace(locked.teller, revision=1))
    locked.until((tmp_path / "began").exists)
    locked.functions.delete("actor")

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "began").read_text()), signal.SIGCONT)
    assert not (locked.home / "local/environments").exists()


def test_a_lock_that_this_python_satisfies_is_served_by_this_python(make_world: Callable[..., Any]) -> None:
    world = make_world()
    world.deploy(requirements=(f"pytest=={version('pytest')}",))

    assert world.call().status_code == 200
    assert environments(world) == []


def test_what_the_deployer_says_of_where_to_install_does_not_count(tmp_path: Path) -> None:
    from polyserve_local.installing import settings_of

    told = settings_of(
        {"PIP_TARGET": "/x", "UV_SYSTEM_PYTHON": "1", "PIP_INDEX_URL": "u", "AWS_SECRET_ACCESS_KEY": "s"}
    )
    assert told == {"PIP_INDEX_URL": "u"}


def test_what_is_missing_is_said_in_words(tmp_path: Path) -> None:
    assert environment.missing(sys.executable, MINOR, [f"pytest=={version('pytest')}"]) is None
    assert environment.missing(sys.executable, "2.7", []) == f"it is Python {MINOR}"
    told = environment.missing(sys.executable, MINOR, ["pytest==0.1", "polyserve-nowhere==1"])
    assert told == f"pytest is {version('pytest')}, locked is 0.1; polyserve-nowhere is not installed, locked is 1"
    assert "cannot be asked" in str(environment.missing(str(tmp_path / "python"), MINOR, []))
    assert Places(tmp_path).environments.parent == tmp_path / "local"
