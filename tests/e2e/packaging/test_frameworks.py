"""A framework is imported when a model of its own is used, and does nothing but answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {
    "ai_edge_litert",
    "keras",
    "lightgbm",
    "mlflow",
    "onnx",
    "onnxruntime",
    "skops",
    "tensorflow",
    "torch",
    "xgboost",
}

PACKAGE_AND_SERVE = """
import json, sys
import numpy as np
from polyserve.model import package
from polyserve.runtime.host import Host
{model}
made = package(model, name="made", sample={sample})
host = Host(made.root, sink=lambda line: None)
host.load()
response = host.handle(made.golden_request())
assert response.status == 200, response.body
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
FUNCTION = "model = 'doubling:predict'"
SKLEARN = """
from sklearn.tree import DecisionTreeClassifier
model = DecisionTreeClassifier().fit([[0.0], [1.0]], [0, 1])
"""
XGBOOST = """
import xgboost
model = xgboost.XGBClassifier(n_estimators=2).fit(np.array([[0.0], [1.0]]), [0, 1])
"""
LIGHTGBM = """
import lightgbm
rows = np.arange(40.0).reshape(-1, 1)
model = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(rows, [0] * 20 + [1] * 20)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    (tmp_path / "doubling.py").write_text("def predict(rows):\n    return rows * 2")

    def run(model: str, sample: str = "np.array([[0.0], [1.0]])") -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", PACKAGE_AND_SERVE.format(model=model, sample=sample)],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "CI"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[-1]))

    return run


@pytest.mark.parametrize(
    ("model", "used"),
    [(FUNCTION, set()), (SKLEARN, set()), (XGBOOST, {"xgboost"}), (LIGHTGBM, {"lightgbm"})],
    ids=["a function", "scikit-learn", "xgboost", "lightgbm"],
)
def test_packaging_and_serving_imports_no_other_framework(run, model, used):
    assert run(model) & FRAMEWORKS == used


def test_a_function_of_the_users_imports_no_scikit_learn_either(run):
    assert not run(FUNCTION) & {"sklearn", "joblib", "pandas", "scipy"}


def test_onnxruntime_is_kept_from_writing_and_sending_anything(run, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "made", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "neg.onnx")

    used = run("model = 'neg.onnx'")

    assert used & FRAMEWORKS == {"onnxruntime"}
    # What it would write before it sends it: a session's number, a machine's, and a queue.
    assert not [path for path in Path(os.environ["HOME"]).rglob("*") if "onnxruntime" in path.name]
    assert not list(Path(os.environ["TMPDIR"]).iterdir())
