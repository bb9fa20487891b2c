"""What a package is locked to and what serves it must be one thing: another version is refused, and both are named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401 - writes a file into TMPDIR when it is first imported, which no test may leave
import pytest

import polyserve
from polyserve.model import ModelPackage, package
from polyserve.runtime.environment import without_build
from polyserve.runtime.host import Host
from polyserve.runtime.loading import LoadError


def onnx_model(iris: Any) -> tuple[object, str]:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows = iris[0].astype("f4")
    return to_onnx(LogisticRegression(max_iter=200).fit(rows, iris[1]), rows[:1], target_opset=18), "onnxruntime"


def xgboost_model(iris: Any) -> tuple[object, str]:
    from xgboost import XGBClassifier

    # Two distributions hold it, and which one is installed is the user's choice.
    (distribution,) = packages_distributions()["xgboost"]
    return XGBClassifier(n_estimators=2).fit(*iris), distribution


def lightgbm_model(iris: Any) -> tuple[object, str]:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=2, num_leaves=4, verbose=-1).fit(*iris), "lightgbm"


def sklearn_model(iris: Any) -> tuple[object, str]:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(random_state=0).fit(*iris), "scikit-learn"


def torch_model(iris: Any) -> tuple[object, str]:
    from torch.nn import Linear

    return Linear(4, 3), "torch"


def tensorflow_model(iris: Any) -> tuple[object, str]:
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), "keras"


def tflite_model(iris: Any) -> tuple[object, str]:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(tensorflow_model(iris)[0])
    return converter.convert(), "ai-edge-litert"


MODELS: dict[str, Callable[[Any], tuple[object, str]]] = {
    "lightgbm": lightgbm_model,
    "onnx": onnx_model,
    "sklearn": sklearn_model,
    "tensorflow": tensorflow_model,
    "tflite": tflite_model,
    "torch": torch_model,
    "xgboost": xgboost_model,
}
"""For each flavor a model, and the distribution whose version its answers depend on."""


def relocked(made: ModelPackage, root: Path, **changed: Any) -> Path:
    """Copy a package with something else in its lock, as if it had been made elsewhere."""
    shutil.copytree(made.root, root, copy_function=shutil.copyfile)
    (root / "manifest.json").write_bytes(replace(made.manifest, **changed).to_json())
    return root


def refusal(root: Path) -> str:
    with pytest.raises(LoadError) as caught:
        Host(root, sink=lambda line: None).load()
    return str(caught.value)


# Of the module, since what some frameworks leave in TMPDIR while they make a model is no test's to answer for.
@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, iris: Any) -> tuple[str, object, str]:
    return request.param, *MODELS[request.param](iris)


# Of TensorFlow's variables, whose `__array__` is older than numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_another_version_of_the_framework_is_refused_with_both_named(trained, iris, tmp_path):
    flavor, model, distribution = trained
    made = package(model, name="iris", sample=iris[0][:4])
    lock = tuple(
        f"{distribution}==0.0.1" if line.startswith(f"{distribution}==") else line
        for line in made.manifest.requirements
    )

    message = refusal(relocked(made, tmp_path / "other", requirements=lock))

    assert made.manifest.flavor == flavor
    assert f"{distribution} is locked to 0.0.1, and {without_build(version(distribution))} is installed" in message
    assert message.endswith("or package the model again under this interpreter")


def test_another_python_and_what_is_not_installed_are_refused_too(forest, iris, tmp_path):
    made = package(forest, name="iris", sample=iris[0][:4])

    message = refusal(relocked(made, tmp_path / "other", python="3.99", requirements=("no-such-distribution==1.0",)))

    assert "the package is locked to Python 3.99, and this is Python 3." in message
    assert "no-such-distribution is locked to 1.0, and is not installed" in message


def test_a_deploy_under_another_version_than_is_to_be_had_fails_and_names_it(iris, tmp_path, monkeypatch):
    # Nothing is installed: no index is asked, and nothing is in the cache.
    for name in ("UV_OFFLINE", "UV_NO_INDEX", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    model, distribution = onnx_model(iris)
    made = package(model, name="iris", sample=iris[0][:4])
    lock = tuple(line if "numpy" in line else f"{distribution}==0.0.1" for line in made.manifest.requirements)
    other = ModelPackage.open(relocked(made, tmp_path / "other", requirements=lock))

    with pytest.raises(polyserve.FailedPreconditionError) as caught:
        polyserve.deploy(other)

    told = f"the Python that deployed will not do ({distribution} is {version(distribution)}, locked is 0.0.1)"
    assert f"{told}, and the locked requirements cannot be installed" in str(caught.value)
    polyserve.connect("iris").destroy()
