"""An XGBoost model becomes a package that answers as XGBoost does, and holds no code."""

import json

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import package
from polyserve.runtime.messages import RequestError

SMALL = {"n_estimators": 6, "max_depth": 3, "random_state": 0}


@pytest.fixture(scope="session")
def cancer() -> tuple[pd.DataFrame, np.ndarray]:
    rows, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    return rows, labels.to_numpy()


@pytest.fixture(scope="session")
def binary(cancer):
    return xgboost.XGBClassifier(**SMALL).fit(cancer[0].to_numpy(), cancer[1])


@pytest.fixture(scope="session")
def named(cancer):
    return xgboost.XGBClassifier(**SMALL).fit(*cancer)


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: xgboost.XGBClassifier(**SMALL),
        lambda: xgboost.XGBClassifier(**SMALL, objective="multi:softmax"),
        lambda: xgboost.XGBRFClassifier(**SMALL),
        lambda: xgboost.XGBClassifier(**SMALL, booster="dart", rate_drop=0.5),
        lambda: xgboost.XGBClassifier(n_estimators=6, booster="gblinear", updater="coord_descent", random_state=0),
    ],
    ids=["softprob", "softmax", "random forest", "dart", "linear"],
)
def test_a_classifier_of_digits_answers_as_it_does(make, ask):
    rows, labels = load_digits(return_X_y=True)
    model = make().fit(rows[:600], labels[:600])

    made = package(model, sample=rows[:8], methods=["predict", "predict_proba"])
    answer = ask(made, rows)

    assert np.array_equal(answer["predict"], model.predict(rows))
    assert np.allclose(answer["predict_proba"], model.predict_proba(rows), rtol=1e-6)


def test_a_binary_classifier_answers_with_labels_and_with_both_probabilities(binary, cancer, ask):
    rows = cancer[0].to_numpy()

    labels = ask(package(binary, sample=rows[:8]), rows)
    probabilities = ask(package(binary, sample=rows[:8], methods="predict_proba"), rows)

    assert np.array_equal(labels["predict"], binary.predict(rows))
    assert np.array_equal(probabilities["predict_proba"], binary.predict_proba(rows))


def test_several_labels_a_row_are_answered_each(cancer, ask):
    rows = cancer[0].to_numpy()
    several = np.column_stack([cancer[1], 1 - cancer[1], rows[:, 0] > 15])
    model = xgboost.XGBClassifier(**SMALL).fit(rows, several)

    made = package(model, sample=rows[:8], methods=["predict", "predict_proba"])
    answer = ask(made, rows)

    assert np.array_equal(answer["predict"], model.predict(rows))
    assert np.array_equal(answer["predict_proba"], model.predict_proba(rows))


@pytest.mark.parametrize(
    "make",
    [
        lambda: xgboost.XGBRegressor(**SMALL),
        lambda: xgboost.XGBRFRegressor(**SMALL),
        lambda: xgboost.XGBRegressor(**SMALL, objective="reg:quantileerror", quantile_alpha=[0.1, 0.9]),
    ],
    ids=["boosting", "random forest", "two quantiles"],
)
def test_a_regressor_answers_as_it_does(make, ask):
    rows, target = load_diabetes(return_X_y=True)
    model = make().fit(rows, target)

    assert np.array_equal(ask(package(model, sample=rows[:8]), rows)["predict"], model.predict(rows))


def test_a_ranker_answers_with_scores(cancer, ask):
    rows = cancer[0].to_numpy()
    model = xgboost.XGBRanker(**SMALL).fit(rows, cancer[1], qid=np.arange(len(rows)) // 10)

    assert np.array_equal(ask(package(model, sample=rows[:8]), rows)["predict"], model.predict(rows))


def test_a_booster_answers_what_its_predict_answers(cancer, ask):
    rows, labels = cancer[0].to_numpy(), cancer[1]
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(rows, labels), 6)

    made = package(booster, name="booster", sample=rows[:8])

    assert np.array_equal(ask(made, rows)["predict"], booster.predict(xgboost.DMatrix(rows)))


def test_early_stopping_and_the_number_for_missing_values_are_kept(cancer, ask):
    rows, labels = cancer[0].to_numpy().copy(), cancer[1]
    rows[::3, 2] = -1.0
    model = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, missing=-1.0, learning_rate=0.9)
    model.fit(rows[:200], labels[:200], eval_set=[(rows[200:], labels[200:])], verbose=False)
    assert model.best_iteration + 3 == model.get_booster().num_boosted_rounds()

    made = package(model, sample=rows[:8], methods="predict_proba")

    assert np.array_equal(ask(made, rows)["predict_proba"], model.predict_proba(rows))


def test_what_is_missing_is_nan(binary, cancer, ask):
    rows = cancer[0].to_numpy().copy()
    rows[::2, 5] = np.nan

    made = package(binary, sample=rows[:8], methods="predict_proba")

    assert np.array_equal(ask(made, rows)["predict_proba"], binary.predict_proba(rows))


def test_the_manifest_says_what_it_takes_and_needs_no_scikit_learn(binary, cancer):
    manifest = package(binary, sample=cancer[0].to_numpy()[:8]).manifest

    assert manifest.name == "xgb-classifier"
    assert (manifest.flavor, manifest.safe, manifest.row_wise) == ("xgboost", True, True)
    assert [line.partition("==")[0] for line in manifest.requirements] == ["numpy", "scipy", "xgboost-cpu"]
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.signature.inputs] == [
        ("input", "FP64", (-1, 30))
    ]
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.signature.outputs] == [
        ("predict", "INT64", (-1,))
    ]


def test_columns_go_by_name_in_any_order_and_serving_needs_no_pandas(named, cancer, ask):
    frame = cancer[0]
    turned = frame[frame.columns[::-1]]

    made = package(named, sample=turned[:8])

    assert [spec.name for spec in made.signature.inputs] == list(frame.columns)
    assert not any(line.startswith("pandas") for line in made.manifest.requirements)
    expected = named.predict(frame)
    assert np.array_equal(ask(made, turned)["predict"], expected)
    assert np.array_equal(ask(made, frame.to_dict("records"))["predict"], expected)
    assert np.array_equal(ask(made, frame.to_numpy())["predict"], expected)


def test_without_a_sample_the_model_itself_says_what_it_takes(binary, named, cancer, ask):
    rows = cancer[0].to_numpy()

    assert np.array_equal(ask(package(binary), rows[:5])["predict"], binary.predict(rows[:5]))
    assert np.array_equal(ask(package(named), cancer[0][:5])["predict"], named.predict(cancer[0][:5]))


@pytest.mark.parametrize("form", [np.asarray, pd.DataFrame, np.ndarray.tolist], ids=["array", "frame", "nested lists"])
def test_rows_may_come_in_any_form(binary, cancer, ask, form):
    rows = cancer[0].to_numpy()[:9]
    given = form(rows)

    made = package(binary, sample=given.rename(columns=str) if isinstance(given, pd.DataFrame) else given)

    assert np.array_equal(ask(made, rows)["predict"], binary.predict(rows))
    assert made.digest == package(binary, sample=rows).digest


def test_a_sample_of_whole_numbers_does_not_refuse_fractions(binary, cancer, ask):
    rows = cancer[0].to_numpy()[:8]

    made = package(binary, sample=rows.astype(int))

    assert np.array_equal(ask(made, rows)["predict"], binary.predict(rows))


def test_columns_that_are_true_or_false_are_numbers_to_the_model(cancer, ask):
    frame = cancer[0][["mean radius"]].assign(large=cancer[0]["mean area"] > 600)
    model = xgboost.XGBClassifier(**SMALL).fit(frame, cancer[1])

    made = package(model, sample=frame[:8])

    assert [spec.datatype for spec in made.signature.inputs] == ["FP64", "BOOL"]
    assert np.array_equal(ask(made, frame)["predict"], model.predict(frame))


@pytest.mark.parametrize("suffix", [".ubj", ".json"])
def test_a_file_is_the_package_that_its_estimator_is(suffix, named, cancer, tmp_path):
    path = tmp_path / f"cancer{suffix}"
    named.save_model(path)
    sample = cancer[0][:4]

    assert package(path, sample=sample).digest == package(named, name="cancer", sample=sample).digest


def test_another_json_file_and_a_broken_one_are_refused(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"rows": [1]}))
    (tmp_path / "broken.ubj").write_bytes(b"{L")

    assert "'rows.json' is not a model that polyserve knows" in refusal(tmp_path / "rows.json")
    assert f"'broken.ubj' cannot be read by XGBoost {xgboost.__version__} (" in refusal(tmp_path / "broken.ubj")


def test_what_is_no_trained_model_is_refused(binary, tmp_path):
    assert "XGBClassifier is a class: pass a trained object" in refusal(xgboost.XGBClassifier)
    assert "XGBClassifier is not fitted: call fit() on it" in refusal(xgboost.XGBClassifier())
    assert "a dict is no XGBoost model" in refusal({}, flavor="xgboost")
    assert "takes no further files" in refusal(binary, files=tmp_path)
    assert "no method 'apply': pass methods= with some of predict, predict_proba" in refusal(binary, methods=["apply"])
    assert "each one once" in refusal(binary, methods=["predict", "predict"])


def test_columns_of_categories_are_refused_with_the_way_out(cancer):
    frame = pd.DataFrame({"city": pd.Categorical(["Rome", "Oslo"] * 20), "age": np.arange(40.0)})
    model = xgboost.XGBClassifier(**SMALL, enable_categorical=True).fit(frame, [0, 1] * 20)

    assert "columns of categories (city), whose dtype no request carries: train it on their codes" in refusal(model)


def test_a_sample_that_is_not_what_the_model_takes(binary, named, cancer):
    rows, frame = cancer[0].to_numpy(), cancer[0]

    assert "input 'input': expected shape [-1, 30], got [2, 3]" in refusal(binary, sample=np.ones((2, 3)))
    assert "'mean radius' is missing" in refusal(named, sample=frame[:4].drop(columns="mean radius"))
    assert "expected FP64, got BYTES" in refusal(named, sample=frame[:4].assign(**{"mean radius": "wide"}))
    assert "the sample is empty" in refusal(binary, sample=rows[:0])


def test_a_request_that_is_not_what_the_model_takes_is_the_callers_error(named, cancer, ask):
    made = package(named, sample=cancer[0][:4])

    with pytest.raises(RequestError, match="'mean radius' is missing"):
        ask(made, cancer[0][:4].drop(columns="mean radius"))
    with pytest.raises(RequestError, match="'mean radius': expected"):
        ask(made, cancer[0][:4].assign(**{"mean radius": "wide"}))


def test_without_xgboost_it_is_named_with_the_way_to_get_it(binary, monkeypatch):
    monkeypatch.setattr("polyserve.model.flavors.xgboost.find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match="pip install xgboost-cpu"):
        package(binary)
