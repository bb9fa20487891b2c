"""A model that is bound to no Python runs under the platform's that its dependencies have wheels for; a pickle and code do not."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from polyserve import desired as desired_module
from polyserve.bucket import Bucket
from polyserve.desired import Target, desire
from polyserve.driver import BundleForm
from polyserve.errors import PackageError
from polyserve.model import ModelPackage, package
from polyserve.testing.memory import MemoryProvider

MINOR = sys.version_info.minor
HERE, NEXT, AFTER = (f"3.{MINOR + n}" for n in range(3))


@pytest.fixture(scope="module")
def onnx_package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """Return the package of an ONNX model that doubles its input."""
    from onnx import TensorProto, helper, save

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder = tmp_path_factory.mktemp("onnx")
    save(model, folder / "double.onnx")
    return package(folder / "double.onnx", sample=np.ones((3, 2), "f4"), into=folder)


@pytest.fixture
def cloud(platform, make_wheel):
    """Return a platform for whose own Python onnxruntime has no wheel, but for the next one."""
    for name in ("onnxruntime", "numpy"):
        tag = f"cp3{MINOR + 1}-cp3{MINOR + 1}-manylinux_2_28_x86_64"
        make_wheel(name, version(name), {f"{name}/__init__.py": ""}, tag=tag)
    form = BundleForm(dependencies=".", glibc=dict.fromkeys((HERE, NEXT, AFTER), (2, 28)))
    made = MemoryProvider()
    made._info = platform(form=form, pythons=(HERE, NEXT, AFTER), architectures=("x86_64",))
    return Target(provider=made, bucket=Bucket(made, "models"))


def test_a_model_that_is_bound_to_no_python_goes_to_the_next_that_has_the_wheels(onnx_package, cloud):
    desired, _ = desire(onnx_package, cloud, name="double")

    assert desired.python == desired.spec(1).python == NEXT
    assert any(f"run under Python {NEXT}" in warning for warning in desired.warnings)


def test_a_python_that_was_asked_for_is_the_one_or_refused(onnx_package, cloud):
    assert desire(onnx_package, cloud, name="double", python=NEXT)[0].python == NEXT
    with pytest.raises(PackageError, match=f"no wheel for Python {AFTER}"):
        desire(onnx_package, cloud, name="double", python=AFTER)


def test_where_no_python_has_the_wheels_the_reason_is_that_of_its_own(onnx_package, cloud):
    info = cloud.provider.info
    cloud.provider._info = dataclasses.replace(info, limits=dataclasses.replace(info.limits, pythons=(HERE, AFTER)))

    with pytest.raises(PackageError, match=f"no wheel for Python {HERE}"):
        desire(onnx_package, cloud, name="double")


def test_a_rehearsal_is_refused_where_this_machine_has_no_such_python(onnx_package, cloud, monkeypatch):
    here = {NEXT: f"/usr/bin/python{NEXT}"}
    monkeypatch.setattr(desired_module, "find_python", here.get)
    assert desire(onnx_package, cloud, name="double", emulated=True)[0].obstacles == ()

    here.clear()
    (reason,) = desire(onnx_package, cloud, name="double", emulated=True)[0].obstacles

    assert f"python{NEXT} is on the PATH" in reason
    # It was never anything but ONNX.
    assert "--compile" not in reason
    assert desire(onnx_package, cloud, name="double")[0].obstacles == ()


def test_a_rehearsal_of_a_compiled_model_may_do_without_compiling(onnx_package, cloud, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(desired_module, "find_python", lambda python: None)
    origin = {"compiled": {"from": "sklearn", "to": "onnx"}, "digest": "d" * 64}
    shutil.copytree(onnx_package.root, tmp_path / "compiled")
    manifest = dataclasses.replace(onnx_package.manifest, origin=origin)
    (tmp_path / "compiled" / "manifest.json").write_bytes(manifest.to_json())
    compiled = ModelPackage.open(tmp_path / "compiled")

    (reason,) = desire(compiled, cloud, name="double", emulated=True)[0].obstacles

    assert f"under Python {HERE}, with --compile off" in reason


def test_code_and_pickles_stay_with_their_python(cloud, tmp_path: Path, monkeypatch):
    (tmp_path / "doubling_rows.py").write_text(
        "def predict(rows):\n    return [[2 * x for x in row] for row in rows]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = package("doubling_rows:predict", sample=[[1.0]], into=tmp_path / "kept")

    assert made.manifest.tied_to_python
    assert desire(made, cloud, name="doubling")[0].python == HERE
    with pytest.raises(PackageError, match=f"made under Python {HERE} and cannot run under {NEXT}"):
        desire(made, cloud, name="doubling", python=NEXT)


def test_such_a_model_is_served_whatever_python_it_was_packaged_under(onnx_package, tmp_path: Path):
    from polyserve.runtime.host import Host

    manifest = dataclasses.replace(onnx_package.manifest, python=NEXT)
    moved = onnx_package.root.parent / "moved"
    moved.mkdir()
    for path in [*manifest.files]:
        (moved / path).parent.mkdir(parents=True, exist_ok=True)
        (moved / path).write_bytes((onnx_package.root / path).read_bytes())
    (moved / "manifest.json").write_bytes(manifest.to_json())
    host = Host(moved, sink=lambda _lines: None)

    host.load()

    request = onnx_package.golden_request()
    assert onnx_package.difference(host.handle(request)) is None
