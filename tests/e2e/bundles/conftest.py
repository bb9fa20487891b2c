"""Wheels made on the spot, in a directory that uv and pip are told is all there is."""

import base64
import dataclasses
import hashlib
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from polyserve import registry
from polyserve.driver import BundleForm, Limits, ProviderInfo

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MakeWheel = Callable[..., Path]


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str | bytes],
    *,
    tag: str = "py3-none-any",
    requires: Sequence[str] = (),
) -> Path:
    """Write a wheel as a build tool would."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    contents = dict(files) | {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    encoded = {path: text.encode() if isinstance(text, str) else text for path, text in contents.items()}
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in encoded.items()
    )
    path = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, data in [*encoded.items(), (f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode())]:
            wheel.writestr(inside, data)
    return path


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """Return what makes a wheel that uv and pip will find; they find nothing else."""
    # A directory of pages as PEP 503 has them: uv has no variable for "no index", and every other one would be asked, too.
    house = tmp_path / "wheelhouse"
    house.mkdir()
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "DEFAULT_INDEX", "INDEX", "FIND_LINKS"):
        monkeypatch.delenv(f"UV_{name}", raising=False)
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", house.as_uri())
    monkeypatch.setenv("PIP_INDEX_URL", house.as_uri())

    def make(name: str, version: str, files: Mapping[str, str | bytes], **given: Any) -> Path:
        page = house / name
        page.mkdir(exist_ok=True)
        wheel = write_wheel(page, name, version, files, **given)
        links = "".join(
            f'<a href="{path.name}">{path.name}</a>' for path in sorted(page.iterdir()) if path.suffix != ".html"
        )
        (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
        return wheel

    return make


@pytest.fixture
def platform() -> Callable[..., ProviderInfo]:
    """Return what makes a platform that takes its dependencies in the bundle."""

    def made(*, form: BundleForm | None = None, **limits: object) -> ProviderInfo:
        local = registry.info("local")
        wanted: Limits = dataclasses.replace(local.limits, **limits)
        form = form or BundleForm(dependencies=".", glibc={PYTHON: (2, 28)})
        return dataclasses.replace(local, title="A cloud", bundle=form, limits=wanted)

    return made
