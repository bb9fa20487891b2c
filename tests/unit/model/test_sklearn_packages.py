"""A scikit-learn model becomes a package that answers as the model does."""

import json
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from polyserve.model import ModelPackage, package
from polyserve.runtime.host import Host
from polyserve.runtime.protocol import parse_response


def served(made: ModelPackage) -> Host:
    host = Host(made.root, sink=lambda line: None)
    host.load()
    return host


def answered(made: ModelPackage) -> dict[str, list]:
    response = served(made).handle(made.golden_request())
    assert response.status == 200, response.body
    tensors, _ = parse_response(response.body, response.headers)
    return {tensor.name: tensor.tolist() for tensor in tensors}


def test_an_estimator_in_memory_answers_its_golden_sample_through_the_host(forest, iris):
    made = package(forest, name="iris", sample=iris[0][:6])

    assert made.difference(served(made).handle(made.golden_request())) is None
    assert answered(made) == {"predict": forest.predict(iris[0][:6]).tolist()}


def test_the_manifest_says_what_the_model_takes_and_gives(forest, iris):
    manifest = package(forest, sample=iris[0][:6]).manifest

    assert manifest.name == "random-forest-classifier"
    assert manifest.flavor == "sklearn"
    assert manifest.loader == {"format": "pickle", "path": "model/model.pickle", "methods": ["predict"]}
    assert manifest.signature.to_dict() == {
        "input_kind": "array",
        "output_kind": "array",
        "inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}],
        "outputs": [{"name": "predict", "datatype": "INT64", "shape": [-1]}],
    }
    assert manifest.safe is False
    assert set(manifest.files) == {"model/model.pickle", "sample/request.json", "sample/answer.json"}


def test_the_lock_has_the_framework_and_what_it_needs_and_nothing_else(forest, iris):
    locked = {line.partition("==")[0] for line in package(forest, sample=iris[0][:2]).manifest.requirements}

    assert {"scikit-learn", "numpy", "scipy", "joblib", "threadpoolctl"} <= locked
    assert not locked & {"pandas", "pytest", "polyserve-sdk", "httpx"}


def test_several_methods_are_several_outputs(regression, iris):
    made = package(regression, sample=iris[0][:3], methods=["predict", "predict_proba", "decision_function"])

    outputs = {spec.name: (spec.datatype, spec.shape) for spec in made.signature.outputs}
    assert outputs == {
        "predict": ("INT64", (-1,)),
        "predict_proba": ("FP64", (-1, 3)),
        "decision_function": ("FP64", (-1, 3)),
    }
    assert np.allclose(answered(made)["predict_proba"], regression.predict_proba(iris[0][:3]))


def test_a_request_for_one_of_several_outputs_gets_that_one(forest, iris):
    made = package(forest, sample=iris[0][:3], methods=["predict", "predict_proba"])
    request = json.loads(made.golden_request().body) | {"outputs": [{"name": "predict_proba"}]}
    golden = made.golden_request()

    response = served(made).handle(
        type(golden)(path=golden.path, headers=golden.headers, body=json.dumps(request).encode())
    )

    assert [output["name"] for output in json.loads(response.body)["outputs"]] == ["predict_proba"]


def test_several_targets_are_one_output_each(iris):
    rows, labels = iris
    model = MultiOutputClassifier(LogisticRegression(max_iter=200)).fit(rows, np.c_[labels, labels == 1])

    made = package(model, sample=rows[:3], methods=["predict_proba"])

    assert [spec.name for spec in made.signature.outputs] == ["predict_proba_0", "predict_proba_1"]
    assert made.difference(served(made).handle(made.golden_request())) is None


def test_a_pipeline_over_a_frame_has_one_input_for_each_column():
    frame = pd.DataFrame(
        {"age": [20, 35, 50, 65], "city": ["Rome", "Oslo", "Rome", "Bern"], "income": [1.5, 2.5, 3.5, 0.5]}
    )
    columns = ColumnTransformer([("city", OneHotEncoder(), ["city"]), ("numbers", StandardScaler(), ["age", "income"])])
    model = Pipeline([("columns", columns), ("model", RandomForestClassifier(4, random_state=0))])
    model.fit(frame, ["no", "yes", "no", "yes"])

    made = package(model, sample=frame)

    assert made.name == "pipeline"
    assert made.signature.input_kind == "frame"
    assert [(spec.name, spec.datatype) for spec in made.signature.inputs] == [
        ("age", "INT64"),
        ("city", "BYTES"),
        ("income", "FP64"),
    ]
    assert any(line.startswith("pandas==") for line in made.manifest.requirements)
    assert answered(made) == {"predict": ["no", "yes", "no", "yes"]}


def test_missing_values_travel_as_binary(iris):
    rows = iris[0].copy()
    rows[::3, 1] = np.nan
    model = make_pipeline(SimpleImputer(), RandomForestClassifier(4, random_state=0)).fit(rows, iris[1])

    made = package(model, sample=rows[:4])

    assert made.manifest.sample["request"] == "sample/request.bin"
    assert made.difference(served(made).handle(made.golden_request())) is None


def test_an_answer_that_json_cannot_hold_is_asked_for_as_binary(iris):
    rows = iris[0].copy()
    rows[0, 0] = np.nan
    model = StandardScaler().fit(iris[0])

    made = package(model, sample=rows[:2], methods=["transform"])

    assert made.manifest.sample["answer"] == "sample/answer.bin"
    assert made.difference(served(made).handle(made.golden_request())) is None


def test_text_goes_in_and_labels_that_are_text_come_out():
    texts = ["the cat sat", "a dog ran", "the cat slept", "dogs run far"]
    model = make_pipeline(TfidfVectorizer(stop_words="english"), LogisticRegression()).fit(
        texts, ["cat", "dog", "cat", "dog"]
    )

    made = package(model, sample=texts)

    assert made.signature.inputs[0].datatype == "BYTES"
    assert answered(made) == {"predict": model.predict(texts).tolist()}


def test_a_sparse_answer_becomes_dense(iris):
    model = OneHotEncoder().fit([["a"], ["b"]])

    made = package(model, sample=[["a"], ["b"], ["a"]], methods=["transform"])

    assert answered(made) == {"transform": [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]}


@pytest.mark.parametrize("suffix", [".joblib", ".pkl", ".pickle"])
def test_a_file_and_the_object_read_from_it_become_the_same_package(suffix, tmp_path, forest, iris):
    path = tmp_path / f"my_Model{suffix}"
    if suffix == ".joblib":
        joblib.dump(forest, path, compress=3)
    else:
        path.write_bytes(pickle.dumps(forest))

    made = package(path, sample=iris[0][:4])

    assert made.name == "my-model"
    assert made.digest == package(str(path), sample=iris[0][:4]).digest
    assert made.digest == package(forest, name="my-model", sample=iris[0][:4]).digest


@pytest.mark.parametrize(
    "model",
    [
        GradientBoostingClassifier(n_estimators=3, random_state=0),
        RandomForestRegressor(3, random_state=0),
        KNeighborsClassifier(3),
        SVC(),
        make_pipeline(StandardScaler(), PCA(2), LogisticRegression()),
        MLPRegressor(hidden_layer_sizes=(4,), max_iter=2000, random_state=0, tol=0.1),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_of_every_sort_answer_their_golden_sample(model, iris):
    made = package(model.fit(*iris), sample=iris[0][:5])

    assert made.difference(served(made).handle(made.golden_request())) is None
    assert made.digest == package(pickle.loads(pickle.dumps(model)), sample=iris[0][:5]).digest


def test_a_forest_is_proven_row_wise(forest, iris):
    assert package(forest, sample=iris[0][:5], methods=["predict", "predict_proba"]).manifest.row_wise


def test_one_row_proves_row_wise_too(forest, iris):
    assert package(forest, sample=iris[0][:1]).manifest.row_wise


def test_a_model_whose_rows_depend_on_each_other_is_not_row_wise():
    from polyserve.model import rehearsal

    class Loaded:
        def predict(self, inputs, outputs):
            rows = inputs[0].numpy()
            return [type(inputs[0]).from_numpy("predict", rows - rows.mean(axis=0))]

    from polyserve.runtime.tensors import Tensor

    inputs = [Tensor.from_numpy("input", np.arange(12.0).reshape(6, 2))]
    loaded = Loaded()
    assert not rehearsal._is_row_wise(loaded, inputs, loaded.predict(inputs, None))


def test_without_a_sample_the_number_of_features_is_the_signature(regression):
    made = package(regression)

    assert made.golden_request() is None
    assert made.manifest.sample is None
    assert not made.manifest.row_wise
    assert [spec.shape for spec in made.signature.inputs] == [(-1, 4)]
    assert [(spec.name, spec.datatype) for spec in made.signature.outputs] == [("predict", "INT64")]


def test_without_a_sample_the_columns_of_a_frame_are_the_signature():
    frame = pd.DataFrame({"width": [1.0, 2.0, 3.0], "height": [2.0, 1.0, 5.0]})

    made = package(LinearRegression().fit(frame, [1.0, 2.0, 3.0]))

    assert made.signature.input_kind == "frame"
    assert [spec.name for spec in made.signature.inputs] == ["width", "height"]


def test_floats_of_the_answer_are_recorded_with_six_digits(regression, iris):
    made = package(regression, sample=iris[0][:2], methods=["predict_proba"])

    recorded = json.loads((made.root / "sample/answer.json").read_bytes())["outputs"][0]["data"]
    assert recorded == [
        float(f"{value:.6g}") if value > 1e-7 else 0.0 for value in regression.predict_proba(iris[0][:2]).ravel()
    ]


def test_an_answer_that_differs_is_told_with_output_index_and_both_values(forest, iris):
    made = package(forest, sample=iris[0][:3])
    response = served(made).handle(made.golden_request())
    other = type(response)(status=200, headers=response.headers, body=response.body.replace(b"[0,0,0]", b"[0,2,0]"))

    assert made.difference(other) == "output 'predict' at index [1]: expected 0, got 2"


def test_floats_within_the_tolerance_are_equal_and_others_are_not(regression, iris):
    made = package(regression, sample=iris[0][:1], methods=["predict_proba"])
    response = served(made).handle(made.golden_request())
    answer = json.loads(response.body)
    first = answer["outputs"][0]["data"][0]

    def difference(value):
        answer["outputs"][0]["data"][0] = value
        return made.difference(type(response)(status=200, headers=response.headers, body=json.dumps(answer).encode()))

    assert difference(first * (1 + 2e-6)) is None
    assert "predict_proba" in difference(first * 1.001)
    assert "nan" in difference(float("nan")).lower()


def test_an_error_is_a_difference(forest, iris):
    made = package(forest, sample=iris[0][:1])
    host = Host(made.root, sink=lambda line: None)

    difference = made.difference(host.handle(made.golden_request()))

    assert difference.startswith("status 503 instead of 200")


def test_a_bad_row_is_the_callers_error(regression, iris):
    made = package(regression, sample=iris[0][:2])
    golden = made.golden_request()
    body = json.dumps(
        {"inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, float("nan")]}]}
    )

    response = served(made).handle(type(golden)(path=golden.path, headers=golden.headers, body=body.encode()))

    assert response.status == 400
    assert b"NaN" in response.body
