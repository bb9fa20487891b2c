"""Which files travel and which stay: all travel, unless the platform refuses the bundle or somebody says otherwise."""

from __future__ import annotations

import random
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from polyserve import registry
from polyserve.bundle import build, fit
from polyserve.driver import ProviderInfo
from polyserve.model import ModelPackage, package

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MIB = 1 << 20
FILES = {"large.bin": 3 * MIB, "middle.bin": 2 * MIB, "small.bin": 1000}


SOURCE = """
class Reads:
    def load(self, model_dir):
        self.count = float(len(list(model_dir.iterdir())))

    def predict(self, rows):
        return [[self.count] for _ in rows]
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelPackage:
    (tmp_path / "reads.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    for name, size in FILES.items():
        # Nothing that compresses: then the archive's size is that of its files.
        (tmp_path / "files" / name).write_bytes(random.Random(size).randbytes(size))
    return package("reads:Reads", name="reads", sample=[[1.0]], files=tmp_path / "files")


def limited(**limits: int) -> ProviderInfo:
    info = registry.info("local")
    return replace(info, limits=replace(info.limits, **limits))


def remote(made: ModelPackage, info: ProviderInfo, model_in_bucket_mb: int | None = None) -> tuple[str, ...]:
    fitted = fit(made, info, python=PYTHON, architecture="x86_64", model_in_bucket_mb=model_in_bucket_mb)
    with zipfile.ZipFile(fitted.bundle.path) as archive:
        inside = {name.removeprefix("package/") for name in archive.namelist() if name.startswith("package/")}
    # Every file is in one place, and only in one.
    assert inside | set(fitted.remote) == {*made.manifest.files, "manifest.json"}
    assert not inside & set(fitted.remote)
    return tuple(path.rpartition("/")[2] for path in fitted.remote)


def test_everything_travels_where_the_platform_takes_it(made):
    assert remote(made, limited()) == ()
    assert remote(made, limited(bundle_unpacked_bytes=100 * MIB, bundle_bytes=100 * MIB)) == ()


@pytest.mark.parametrize("limit", ["bundle_unpacked_bytes", "bundle_bytes"])
@pytest.mark.parametrize(
    ("size", "stay"),
    [(4 * MIB, ("large.bin",)), (2 * MIB, ("large.bin", "middle.bin"))],
    ids=["one is enough", "it takes two"],
)
def test_where_it_would_be_over_a_limit_the_largest_files_stay_and_no_more_than_it_takes(made, limit, size, stay):
    assert remote(made, limited(**{limit: size})) == stay


def test_what_is_small_travels_even_where_nothing_else_helps(made):
    assert remote(made, limited(bundle_unpacked_bytes=1000)) == ("large.bin", "middle.bin")


@pytest.mark.parametrize(
    ("threshold", "stay"), [(4, ()), (3, ("large.bin",)), (1, ("large.bin", "middle.bin")), (0, tuple(sorted(FILES)))]
)
def test_from_a_size_on_all_stay_where_somebody_says_so(made, threshold, stay):
    assert remote(made, limited(), threshold) == stay


def test_where_files_travel_does_not_change_the_package_and_does_change_the_bundle(made):
    info = limited()
    whole = build(made, info, python=PYTHON, architecture="x86_64")
    left = build(made, info, python=PYTHON, architecture="x86_64", remote=["model/files/large.bin"])

    assert whole.package_digest == left.package_digest == made.digest
    assert whole.sha256 != left.sha256
    assert whole.parts["package"] - left.parts["package"] == 3 * MIB
