"""A model too large for its bundle stays in the bucket: deployed, restarted, damaged, mended and destroyed on local."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import polyserve
from polyserve.driver import Phase
from polyserve.metrics import request_line
from polyserve.rollout import Event
from polyserve_local.inventory import inventory

SIZE = 60_000_000
SOURCE = """
class Large:
    def load(self, model_dir):
        with (model_dir / "weights.bin").open("rb") as file:
            self.factor = file.read(1)[0]

    def predict(self, rows):
        return [[self.factor * value for value in row] for row in rows]
"""
NAME = "large"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> polyserve.ModelPackage:
    (tmp_path / "large.py").write_text(SOURCE)
    (tmp_path / "weights.bin").write_bytes(b"\x07" * SIZE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYSERVE_MODEL_IN_BUCKET_MB", "10")
    return polyserve.package("large:Large", name=NAME, sample=[[1.0], [2.0]], files="weights.bin")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def deployment(package: polyserve.ModelPackage, events: list[Event]) -> Iterator[polyserve.Deployment]:
    with polyserve.deploy(package, memory_mb=256, on_event=events.append) as deployment:
        yield deployment
        deployment.destroy()


def home() -> Path:
    return Path(os.environ["POLYSERVE_HOME"])


def model_object() -> Path:
    """Return the file of the model's object."""
    (found,) = (path for path in (home() / "buckets").rglob("*") if path.is_file() and path.stat().st_size > SIZE)
    return found


def assembled() -> Path:
    """Return the model's file where instances read it."""
    (found,) = (home() / "local/models").rglob("weights.bin")
    return found


def damage(path: Path) -> None:
    """Change one byte in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"\x08")


def kill_the_instance(deployment: polyserve.Deployment) -> None:
    lines = [request_line(event.message) for event in deployment.logs()]
    pid = next(line["pid"] for line in reversed(lines) if line and line["event"] == "start")
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([handle], [], [], 30)[0]
    finally:
        os.close(handle)


def failed_for_now(deployment: polyserve.Deployment) -> None:
    """Wait until the revision is not being tried anew, as it is whenever somebody calls."""
    deadline = time.monotonic() + 30
    while {revision.phase for revision in deployment.status().function.revisions} != {Phase.FAILED}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_plan_tells_what_stays_in_the_bucket(package):
    planned = polyserve.plan(package)

    assert planned.in_bucket == {"model/files/weights.bin": SIZE}
    assert planned.bundle_bytes < 1_000_000
    assert [step.kind.value for step in planned.steps][:4] == ["prepare", "upload", "models", "apply"]
    assert json.loads(json.dumps(planned.to_dict()))["in_bucket"] == {"model/files/weights.bin": SIZE}


def test_a_large_model_is_uploaded_once_with_progress_and_answers(package, deployment, events):
    told = [event.detail for event in events if event.step.value == "models"]

    assert deployment.invoke([[3.0]]) == [[21.0]]
    assert told[1].startswith("model/files/weights.bin: ")
    assert told[1].endswith(f" of {SIZE:,} bytes")
    assert len(told) > 5
    bundle = next(path for path in (home() / "buckets").rglob("*") if path.name.endswith(".zip"))
    assert "package/model/files/weights.bin" not in zipfile.ZipFile(bundle).namelist()
    events.clear()
    polyserve.deploy(package, memory_mb=256, on_event=events.append).close()
    assert events == []


def test_another_instance_takes_what_is_on_disk_and_reads_the_bucket_only_for_what_is_not(deployment):
    start = next(
        line
        for line in (request_line(event.message) for event in deployment.logs())
        if line is not None and line["event"] == "start"
    )
    assert start["fetched_bytes"] == SIZE
    model_object().unlink()

    kill_the_instance(deployment)

    assert deployment.invoke([[3.0]]) == [[21.0]]


def test_a_model_that_is_damaged_in_the_bucket_is_refused_by_name_and_mended_by_the_next_deploy(package, deployment):
    damage(model_object())
    damage(assembled())
    kill_the_instance(deployment)

    with pytest.raises(polyserve.PolyserveError) as caught:
        deployment.invoke([[3.0]], timeout=timedelta(seconds=3))

    told = str(caught.value)
    expected = package.manifest.files["model/files/weights.bin"].sha256[:12]
    assert "model/files/weights.bin has sha256" in told
    assert f"in the bucket, and the manifest says {expected}" in told
    assert not list((home() / "local/models").rglob("weights.bin.part"))
    failed_for_now(deployment)
    with polyserve.deploy(package, memory_mb=256) as mended:
        assert mended.invoke([[3.0]]) == [[21.0]]


def test_an_upload_that_was_interrupted_leaves_no_half_object_and_is_finished_by_the_next_deploy(package):
    def interrupt(event: Event) -> None:
        if event.state == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        polyserve.deploy(package, memory_mb=256, on_event=interrupt)
    assert [
        path for path in (home() / "buckets").rglob("*") if path.is_file() and path.stat().st_size > 1_000_000
    ] == []

    with polyserve.deploy(package, memory_mb=256) as deployment:
        assert deployment.invoke([[3.0]]) == [[21.0]]
        deployment.destroy()


def test_a_file_that_changed_after_packaging_is_not_uploaded(package):
    polyserve.plan(package)
    damage(package.root / "model/files/weights.bin")

    with pytest.raises(polyserve.PackageError, match=r"'weights\.bin' failed: it is not the file that was packaged"):
        polyserve.deploy(package, memory_mb=256)
    polyserve.destroy(NAME)


def test_destroy_leaves_neither_the_object_nor_the_file_on_disk(package):
    polyserve.deploy(package, memory_mb=256).close()
    assert any(line.startswith("model ") for line in inventory(home()))

    polyserve.destroy(NAME)

    assert [line for line in inventory(home()) if not line.startswith("process")] == []
