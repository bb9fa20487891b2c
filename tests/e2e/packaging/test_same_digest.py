"""The same input gives the same digest in every process, on every processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_digits

TRAIN = """
import sys, joblib, pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

X, y = load_digits(return_X_y=True)
X, y = X[:300], y[:300]
texts = ["the cat sat", "a dog ran", "the cat slept", "dogs run far"]
frame = pd.DataFrame({"city": ["Rome", "Oslo", "Rome", "Bern"], "income": [1.5, 2.5, 3.5, 0.5]})
MODELS = {
    "forest": (RandomForestClassifier(10, random_state=0).fit(X, y), X[:5], None),
    "boosting": (HistGradientBoostingClassifier(max_iter=2, random_state=0).fit(X, y), X[:5], None),
    "regression": (make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, y), X[:5], ["predict", "predict_proba"]),
    "text": (
        make_pipeline(CountVectorizer(stop_words=["the", "a"]), LogisticRegression()).fit(texts, ["cat", "dog", "cat", "dog"]),
        texts,
        None,
    ),
    "frame": (
        make_pipeline(
            make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["income"])), RandomForestClassifier(3, random_state=0)
        ).fit(frame, [0, 1, 0, 1]),
        frame,
        None,
    ),
}
"""
PACKAGE = (
    TRAIN
    + """
from polyserve.model import package
print({name: package(model, name=name, sample=sample, methods=methods).digest for name, (model, sample, methods) in MODELS.items()})
"""
)
TRAIN_OTHERS = """
import joblib, lightgbm, onnx, xgboost
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

X, y = load_breast_cancer(return_X_y=True)
pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
joblib.dump(pipeline, "pipeline.joblib")
onnx.save(to_onnx(pipeline, X[:1].astype("f4"), target_opset=18), "pipeline.onnx")
joblib.dump(xgboost.XGBClassifier(n_estimators=5).fit(X, y), "xgboost.joblib")
joblib.dump(lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, y), "lightgbm.joblib")
"""
PACKAGE_OTHERS = """
import sys, joblib, onnx, skops.io
from polyserve.model import package
from sklearn.datasets import load_breast_cancer
X = load_breast_cancer(return_X_y=True)[0]
models, out = sys.argv[1], sys.argv[2]
skops.io.dump(joblib.load(f"{models}/pipeline.joblib"), f"{out}/pipeline.skops")
given = {
    "onnx": onnx.load(f"{models}/pipeline.onnx"),
    "xgboost": joblib.load(f"{models}/xgboost.joblib"),
    "lightgbm": joblib.load(f"{models}/lightgbm.joblib"),
    "skops": f"{out}/pipeline.skops",
}
print({name: package(model, name=name, sample=X[:5]).digest for name, model in given.items()})
"""
OPEN = """
import json, sys, joblib
from polyserve.model import package
from sklearn.datasets import load_digits
X = load_digits(return_X_y=True)[0]
made = package(sys.argv[1], sample=X[:5], methods=["predict", "predict_proba"])
print(json.dumps({"digest": made.digest, "row_wise": made.manifest.row_wise}))
"""


def output(code: str, *arguments: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_trained_in_two_processes_are_the_same_packages(tmp_path):
    (tmp_path / "elsewhere").mkdir()

    first = output(PACKAGE, cwd=tmp_path, PYTHONHASHSEED="1", POLYSERVE_CACHE=str(tmp_path / "one"))
    second = output(PACKAGE, cwd=tmp_path / "elsewhere", PYTHONHASHSEED="2", POLYSERVE_CACHE=str(tmp_path / "two"))

    assert first == second


def test_models_of_other_frameworks_are_the_same_packages_in_two_processes(tmp_path):
    output(TRAIN_OTHERS, cwd=tmp_path)
    told = set()
    for seed, threads in [("1", "1"), ("2", "2")]:
        (tmp_path / seed).mkdir()
        out = tmp_path / seed
        environment = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads, "POLYSERVE_CACHE": str(out / "cache")}
        told.add(output(PACKAGE_OTHERS, tmp_path, out, cwd=tmp_path, **environment))

    assert len(told) == 1


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Train once: training on another processor may well give another model."""
    root = tmp_path_factory.mktemp("models")
    output(TRAIN + "for name in MODELS: joblib.dump(MODELS[name][0], f'{name}.joblib')", cwd=root)
    return root


@pytest.mark.parametrize("name", ["forest", "boosting", "regression"])
def test_a_file_is_the_same_package_on_processors_with_other_instructions(models, tmp_path, name):
    told = {
        kernel: json.loads(
            output(
                OPEN,
                models / f"{name}.joblib",
                cwd=tmp_path,
                OPENBLAS_CORETYPE=kernel,
                NPY_DISABLE_CPU_FEATURES=disabled,
                POLYSERVE_CACHE=str(tmp_path / kernel),
            )
        )
        for kernel, disabled in [("Haswell", ""), ("Prescott", "AVX2 FMA3")]
    }

    assert told["Haswell"] == told["Prescott"]


def test_dates_and_modes_of_a_file_do_not_matter(models, tmp_path):
    from polyserve.model import package

    path = tmp_path / "forest.joblib"
    path.write_bytes((models / "forest.joblib").read_bytes())
    rows = load_digits().data[:5]
    first = package(path, sample=rows)
    os.utime(path, (1, 1))
    path.chmod(0o600)

    assert package(path, sample=rows) == first


def test_processes_that_package_one_model_at_once_agree(models, tmp_path):
    code = (
        "import sys\n"
        "from polyserve.model import package\n"
        "import numpy as np\n"
        "print(package(sys.argv[1], sample=np.zeros((2, 64))).digest)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, models / "forest.joblib"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        for _ in range(3)
    ]
    digests = {process.communicate()[0].strip() for process in running}

    assert len(digests) == 1
    assert [process.returncode for process in running] == [0, 0, 0]
    assert [entry.name for entry in Path(os.environ["POLYSERVE_CACHE"], "packages").iterdir()] == list(digests)


def test_the_object_in_memory_is_the_package_that_its_file_is(models, tmp_path):
    from polyserve.model import package

    rows = load_digits().data[:5]

    assert package(joblib.load(models / "boosting.joblib"), name="boosting", sample=rows) == package(
        models / "boosting.joblib", sample=rows
    )
