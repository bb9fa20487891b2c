"""Directories that MLflow wrote deploy as they are; but for custom models, MLflow is imported neither to package nor to serve them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris

import polyserve
from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import ModelPackage, package
from polyserve.runtime.messages import Response

# In a process of its own, which is the only one that has MLflow.
WRITE = """
import sys, warnings
warnings.simplefilter("ignore")
import keras, lightgbm, mlflow, numpy as np, tensorflow as tf, torch, xgboost
import mlflow.keras, mlflow.lightgbm, mlflow.onnx, mlflow.pyfunc, mlflow.pytorch, mlflow.sklearn, mlflow.tensorflow, mlflow.xgboost
from mlflow.models import infer_signature
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import FunctionTransformer
from sklearn.pipeline import make_pipeline

import steps

rows, labels = load_iris(return_X_y=True)
small = rows.astype("f4")
frame = load_iris(as_frame=True).data
keras.utils.set_random_seed(0)
torch.manual_seed(0)
needs = {"pip_requirements": []}
answers = {}

linear = LogisticRegression(max_iter=500).fit(rows, labels)
pickled = {"serialization_format": "pickle", **needs}
signature = infer_signature(rows, linear.predict(rows))
mlflow.sklearn.save_model(linear, "linear", signature=signature, input_example=rows[:4], **pickled)
mlflow.sklearn.save_model(linear, "unsure", pyfunc_predict_fn="predict_proba", **pickled)
columns = LogisticRegression(max_iter=500).fit(frame, labels)
mlflow.sklearn.save_model(columns, "columns", input_example=frame[:4], **pickled)
piped = make_pipeline(FunctionTransformer(steps.shifted), LogisticRegression(max_iter=500)).fit(rows, labels)
mlflow.sklearn.save_model(piped, "piped", code_paths=["steps.py"], input_example=rows[:4], **pickled)
answers |= {"linear": linear.predict(rows), "unsure": linear.predict_proba(rows)}
answers |= {"columns": columns.predict(frame), "piped": piped.predict(rows)}

boosted = xgboost.XGBClassifier(n_estimators=3).fit(rows, labels)
mlflow.xgboost.save_model(boosted, "boosted", **needs)
mlflow.xgboost.save_model(boosted.get_booster(), "booster", **needs)
light = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(rows, labels)
mlflow.lightgbm.save_model(light, "light", **needs)
mlflow.lightgbm.save_model(light.booster_, "lighter", **needs)
answers |= {"boosted": boosted.predict(rows), "booster": boosted.get_booster().predict(xgboost.DMatrix(rows))}
answers |= {"light": light.predict(rows), "lighter": light.booster_.predict(rows)}

mlflow.onnx.save_model(to_onnx(linear, small[:1], options={"zipmap": False}), "onnx", **needs)
answers["onnx"] = linear.predict(rows)

net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1)).eval()
told = infer_signature(small, net(torch.tensor(small)).detach().numpy())
mlflow.pytorch.save_model(net, "net", signature=told, serialization_format="pickle", **needs)
mlflow.pytorch.save_model(net, "traced", input_example=small[:4], serialization_format="pt2", **needs)
answers |= {"net": net(torch.tensor(small)).detach().numpy(), "traced": net(torch.tensor(small)).detach().numpy()}

dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
mlflow.keras.save_model(dense, "dense", **needs)
mlflow.tensorflow.save_model(dense, "denser", **needs)
class Graph(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="rows")])
    def __call__(self, rows):
        return {"answer": self.dense(rows)}


graph = Graph()
graph.dense = dense
mlflow.tensorflow.save_model(graph, "graph", signature=told, **needs)
answers |= dict.fromkeys(["dense", "denser", "graph"], dense(small).numpy())


class Twice(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.factor = float(open(context.artifacts["factor"]).read())

    def predict(self, context, model_input, params=None):
        return np.asarray(model_input) * self.factor


with open("factor.txt", "w") as file:
    file.write("2")
artifacts = {"factor": "factor.txt"}
mlflow.pyfunc.save_model(
    "twice", python_model=Twice(), artifacts=artifacts, input_example=rows[:4], pip_requirements=["numpy"],
    signature=infer_signature(rows, rows),
)
np.savez("answers.npz", **answers)
"""
PACKAGE = """
import json, sys
from polyserve.model import package
made = package(sys.argv[1])
print(json.dumps([str(made.root), made.manifest.flavor, made.manifest.safe, list(made.manifest.requirements)]))
"""
SERVE = """
import json, sys
from polyserve.model import ModelPackage
from polyserve.runtime.host import Host
made = ModelPackage.open(sys.argv[1])
host = Host(made.root, sink=lambda line: None)
host.load()
response = host.handle(made.golden_request())
told = {"status": response.status, "headers": dict(response.headers), "body": response.body.decode()}
print(json.dumps(told | {"modules": sorted({"mlflow", "tensorflow", "torch", "sklearn"} & set(sys.modules))}))
"""
STEPS = """
def shifted(rows):
    return rows + 1
"""
FLAVORS = {
    "linear": "sklearn",
    "unsure": "sklearn",
    "columns": "sklearn",
    "piped": "sklearn",
    "boosted": "xgboost",
    "booster": "xgboost",
    "light": "lightgbm",
    "lighter": "lightgbm",
    "onnx": "onnx",
    "net": "torch",
    "traced": "torch",
    "dense": "tensorflow",
    "denser": "tensorflow",
    "graph": "tensorflow",
}

pytestmark = [
    # Of TensorFlow's variables, whose `__array__` is older than numpy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


def run(code: str, *arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mlflow")
    (root / "steps.py").write_text(STEPS)
    run(WRITE, cwd=root)
    (root / "steps.py").unlink()
    return root


@pytest.fixture
def rows() -> np.ndarray:
    return load_iris().data


def refusal(path: Path, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copied(models, tmp_path) -> "Path":
    """Return a function that copies a model and changes its description."""

    def copy(name: str, old: str, new: str) -> Path:
        root = tmp_path / name
        shutil.copytree(models / name, root)
        text = (root / "MLmodel").read_text()
        changed = re.sub(old, new, text)
        assert changed != text
        (root / "MLmodel").write_text(changed)
        return root

    return copy


@pytest.mark.parametrize("name", FLAVORS)
def test_a_directory_answers_as_the_model_that_was_saved(name, models, rows, ask):
    given = load_iris(as_frame=True).data if name == "columns" else rows
    sample = None if (models / name / "input_example.json").exists() else given[:4]

    made = package(str(models / name), sample=sample)

    [first, *_] = ask(made, given).values()
    expected = np.load(models / "answers.npz")[name]
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-6)
    assert made.manifest.flavor == FLAVORS[name]
    assert made.name == name
    assert not [line for line in made.manifest.requirements if line.startswith("mlflow")]
    assert "mlflow" not in sys.modules


def test_the_input_example_is_the_golden_sample(models, rows):
    made = package(models / "linear")

    assert made.manifest.sample is not None
    assert made.signature.inputs[0].shape == (-1, 4)
    assert made == package(models / "linear", sample=rows[:4])


def test_the_signature_says_what_the_inputs_are_where_there_is_no_sample(models):
    made = package(models / "net")

    [given] = made.signature.inputs
    assert (made.manifest.sample, given.datatype, given.shape) == (None, "FP32", (-1, 4))


def test_modules_that_were_saved_with_a_model_travel_as_code(models):
    made = package(models / "piped")

    assert (made.root / "code" / "steps.py").read_text() == STEPS


def test_a_custom_model_travels_whole_and_is_loaded_by_mlflow(models, tmp_path):
    root, flavor, safe, requirements = json.loads(run(PACKAGE, models / "twice", cwd=tmp_path).splitlines()[-1])
    made = ModelPackage.open(root)

    told = json.loads(run(SERVE, root, cwd=tmp_path).splitlines()[-1])

    assert (flavor, safe) == ("mlflow", False)
    assert any(line.startswith("mlflow-skinny==") for line in requirements)
    response = Response(status=told["status"], headers=told["headers"], body=told["body"].encode())
    assert made.difference(response) is None
    answer = json.loads((made.root / "sample/answer.json").read_text())["outputs"][0]["data"]
    assert answer == (2 * load_iris().data[:4]).round(6).ravel().tolist()
    made.verify()


def test_a_directory_is_deployed_by_its_path(models, rows):
    with polyserve.deploy(models / "linear", memory_mb=512) as deployment:
        answer = deployment.invoke(rows)
        deployment.destroy()

    assert np.array_equal(answer, np.load(models / "answers.npz")["linear"])


# --- what is refused --------------------------------------------------------------------------------------------------------------------


def test_a_model_that_another_version_saved_is_refused_with_both_named(copied):
    from sklearn import __version__ as sklearn_version
    from torch import __version__ as torch_version

    linear = copied("linear", r"sklearn_version: .*", "sklearn_version: 0.24.2")
    net = copied("net", r"pytorch_version: .*", "pytorch_version: 1.13.1")

    assert f"saved by scikit-learn 0.24.2, and {sklearn_version} is installed here" in refusal(linear)
    assert f"saved by torch 1.13.1, and {torch_version} is installed here" in refusal(net)


def test_a_custom_model_of_another_python_or_other_requirements_is_refused(copied, models, tmp_path):
    older = copied("twice", r"python_version: .*", "python_version: 3.7.1")
    other = tmp_path / "other"
    shutil.copytree(models / "twice", other)
    (other / "requirements.txt").write_text("numpy==1.0\n")

    assert "was saved by Python 3.7, and this is Python 3." in refusal(older)
    assert f"asks for 'numpy==1.0', and {np.__version__} is installed here" in refusal(other)


def test_a_flavor_that_is_not_served_is_refused_with_those_that_are(copied):
    path = copied("twice", r"loader_module: .*", "loader_module: mlflow.spark")
    text = (path / "MLmodel").read_text()
    (path / "MLmodel").write_text(text.replace("flavors:\n", "flavors:\n  spark:\n    model_data: sparkml\n"))

    told = refusal(path)

    assert "is an MLflow model of flavor spark, and those that are served are onnx, xgboost, lightgbm, sklearn" in told
    assert "wrap it in a mlflow.pyfunc.PythonModel" in told


def test_what_is_no_description_or_lacks_its_files_is_refused(models, tmp_path):
    for name, text in {"list": "[1, 2]", "text": "flavors: {", "empty": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "MLmodel").write_text(text)
        assert f"{name!r} has a file MLmodel that is no description" in refusal(tmp_path / name)
    shutil.copytree(models / "boosted", tmp_path / "lost")
    (tmp_path / "lost" / "model.ubj").unlink()

    assert "'lost' lacks model.ubj of its flavor 'xgboost'" in refusal(tmp_path / "lost")


def test_what_is_needed_and_not_installed_is_named(models, monkeypatch):
    monkeypatch.setattr("polyserve.model.flavors.mlflow.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install mlflow-skinny"):
        package(models / "twice")
    with pytest.raises(MissingDependencyError, match="pip install lightgbm"):
        package(models / "light")
    monkeypatch.setattr("polyserve.model.mlmodel.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install pyyaml"):
        package(models / "linear")
