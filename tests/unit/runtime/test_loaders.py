"""Loaders find their flavor, and the user's modules come from verified source alone."""

import dataclasses
import pickle
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from polyserve.runtime import loaders
from polyserve.runtime.manifest import Manifest, ManifestError, Tolerance
from polyserve.runtime.messages import ErrorCode, RequestError
from polyserve.runtime.signature import Signature, TensorSpec
from polyserve.runtime.tensors import Tensor


def manifest(
    flavor: str, loader: dict[str, object], kind: str = "list", outputs: tuple[TensorSpec, ...] = ()
) -> Manifest:
    inputs = (TensorSpec(name="input", datatype="INT64", shape=(-1,)),)
    return Manifest(
        name="m",
        python="3.11",
        flavor=flavor,
        loader=loader,
        requirements=(),
        signature=Signature(input_kind=kind, output_kind=kind, inputs=inputs, outputs=outputs),
        row_wise=False,
        safe=False,
        sample=None,
        tolerance=Tolerance(),
        files={},
    )


@pytest.fixture(autouse=True)
def unchanged_imports() -> Iterator[None]:
    path, hooks, modules = list(sys.path), list(sys.path_hooks), set(sys.modules)
    yield
    sys.path[:], sys.path_hooks[:] = path, hooks
    sys.path_importer_cache.clear()
    for name in set(sys.modules) - modules:
        if "/code/" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def rows(*values: int) -> list[Tensor]:
    return [Tensor.from_list("input", list(values))]


def python_package(root: Path, source: str, name: str, **loader: object) -> Manifest:
    (root / "code").mkdir(exist_ok=True)
    (root / f"code/{name}.py").write_text(source)
    spec = (TensorSpec(name="output", datatype="INT64", shape=(-1,)),)
    return manifest(
        "python",
        {"format": "function", "module": name, "attribute": "predict", "model_dir": None, **loader},
        outputs=spec,
    )


def test_a_flavor_that_this_runtime_has_not_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="flavor 'quantum' is unknown to this runtime: upgrade"):
        loaders.load(tmp_path, manifest("quantum", {}))


def test_a_function_answers_and_its_answer_has_the_signatures_names(tmp_path):
    model = loaders.load(
        tmp_path, python_package(tmp_path, "def predict(rows): return [2 * row for row in rows]", "loads_a")
    )

    [output] = model.predict(rows(1, 2), None)

    assert (output.name, output.tolist()) == ("output", [2, 4])
    assert model.predict(rows(1), ["other"]) == []


def test_a_predictor_loads_once_and_runs_its_steps_in_order(tmp_path):
    source = """
class Steps:
    def load(self, model_dir):
        self.plus = int((model_dir / "plus").read_text())
    def preprocess(self, inputs):
        if inputs[0] < 0: raise ValueError("no negative numbers")
        return [value + self.plus for value in inputs]
    def predict(self, inputs):
        return [value * 10 for value in inputs]
    def postprocess(self, outputs):
        return [value + 1 for value in outputs]
"""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/plus").write_text("2")
    model = loaders.load(
        tmp_path, python_package(tmp_path, source, "loads_b", format="class", attribute="Steps", model_dir="files")
    )

    assert model.predict(rows(1, 2), None)[0].tolist() == [31, 41]
    with pytest.raises(RequestError, match="no negative numbers") as caught:
        model.predict(rows(-1), None)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_value_error_outside_of_preprocess_is_the_models_own(tmp_path):
    model = loaders.load(tmp_path, python_package(tmp_path, "def predict(rows): raise ValueError('a bug')", "loads_c"))

    with pytest.raises(ValueError, match="a bug"):
        model.predict(rows(1), None)


def test_an_answer_that_is_not_what_it_was_is_no_error_of_the_caller(tmp_path):
    model = loaders.load(tmp_path, python_package(tmp_path, "def predict(rows): return ['text']", "loads_d"))

    with pytest.raises(TypeError, match="not what it was when it was packaged"):
        model.predict(rows(1), None)


def test_byte_code_beside_the_source_is_neither_read_nor_written(tmp_path):
    described = python_package(tmp_path, "def predict(rows): return [666]", "loads_e")
    source = tmp_path / "code/loads_e.py"
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text("def predict(rows): return [1]")

    assert loaders.load(tmp_path, described).predict(rows(1), None)[0].tolist() == [1]


def test_nothing_is_written_into_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    described = python_package(tmp_path, "import loads_g.inner\ndef predict(rows): return rows", "loads_f")
    (tmp_path / "code/loads_g").mkdir()
    (tmp_path / "code/loads_g/__init__.py").write_text("")
    (tmp_path / "code/loads_g/inner.py").write_text("")
    before = sorted(tmp_path.rglob("*"))

    loaders.load(tmp_path, described)

    assert sorted(tmp_path.rglob("*")) == before


def test_modules_of_a_package_are_not_found_without_it(tmp_path):
    loaders.load(tmp_path, python_package(tmp_path, "def predict(rows): return rows", "loads_h"))

    assert sys.modules["loads_h"].__file__ == str(tmp_path / "code/loads_h.py")


@pytest.fixture
def tree(tmp_path) -> tuple[Path, Manifest]:
    model = DecisionTreeClassifier().fit([[0], [1]], ["no", "yes"])
    (tmp_path / "m.pickle").write_bytes(pickle.dumps(model))
    described = manifest(
        "sklearn", {"format": "pickle", "path": "m.pickle", "methods": ["predict", "predict_proba"]}, "array"
    )
    spec = TensorSpec(name="input", datatype="FP64", shape=(-1, 1))
    return tmp_path, dataclasses.replace(described, signature=dataclasses.replace(described.signature, inputs=(spec,)))


def test_an_estimators_methods_are_its_outputs_and_only_those_asked_for_are_called(tree):
    model = loaders.load(*tree)
    inputs = [Tensor.from_numpy("input", np.array([[1.0], [0.0]]))]

    assert [tensor.name for tensor in model.predict(inputs, None)] == ["predict", "predict_proba"]
    assert model.predict(inputs, ["predict_proba"])[0].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert model.predict(inputs, ["predict"])[0].tolist() == ["yes", "no"]


def test_a_method_that_is_not_asked_for_is_not_called(tree):
    model = loaders.load(*tree)
    model.estimator.predict = None

    answers = model.predict([Tensor.from_numpy("input", np.array([[1.0]]))], ["predict_proba"])

    assert [tensor.name for tensor in answers] == ["predict_proba"]


def test_an_estimator_that_refuses_its_input_is_the_callers_error(tree):
    model = loaders.load(*tree)

    with pytest.raises(RequestError, match="the model refuses the input: X has 2 features") as caught:
        model.predict([Tensor.from_numpy("input", np.ones((1, 2)))], None)
    assert caught.value.status == 400
