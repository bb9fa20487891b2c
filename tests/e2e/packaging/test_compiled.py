"""Compiled packages: the same in every process, never of the user's own code, and equal to the model where they are deployed."""

import json
import os
import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

import polyserve

PACKAGE = """
import json
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from polyserve.model import package

X, y = load_iris(return_X_y=True)
models = {
    "forest": RandomForestClassifier(5, random_state=0).fit(X, y),
    "regression": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y),
}
made = {name: package(model, name=name, sample=X[::3], compile="onnx") for name, model in models.items()}
print(json.dumps({name: each.digest for name, each in made.items()}))
"""

OWN = '''
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


class Doubled(TransformerMixin, BaseEstimator):
    """A transformer of the user's own."""

    def fit(self, rows, labels=None):
        self.fitted_ = True
        return self

    def transform(self, rows):
        return rows * 2


model = make_pipeline(Doubled(), LogisticRegression(max_iter=500)).fit(*load_iris(return_X_y=True))
'''


def test_a_compiled_package_is_the_same_in_every_process(tmp_path):
    told = []
    for seed, threads in (("1", "1"), ("2", "2")):
        variables = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads, "POLYSERVE_CACHE": str(tmp_path / seed)}
        done = subprocess.run(
            [sys.executable, "-c", PACKAGE],
            env=os.environ | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        told.append(json.loads(done.stdout))
        assert done.stderr == ""

    assert told[0] == told[1]


def test_code_of_the_users_own_is_not_converted(project, iris):
    project({"doubling_of_mine": OWN})

    made = polyserve.package("doubling_of_mine:model", name="own", sample=iris[0][:40])

    assert made.manifest.flavor == "sklearn"
    assert "it has code of your own, and code cannot be converted" in made.compilation.reason


def test_a_deployment_of_the_compiled_model_answers_as_the_model_does():
    rows, labels = load_digits(return_X_y=True)
    model = RandomForestClassifier(10, random_state=0).fit(rows[:900], labels[:900])

    with polyserve.deploy(model, name="digits", provider="local", sample=rows[:40], compile="onnx") as deployment:
        answers = deployment.invoke(rows)
        flavor = polyserve.package(model, name="digits", sample=rows[:40], compile="onnx").manifest.flavor
        deployment.destroy()

    assert np.array_equal(answers, model.predict(rows))
    assert flavor == "onnx"
